"""What matching asks of a student: its loss gradient at a point, and how that turns along a vector.

With g = d/d theta  loss(theta; X, Y), one student step needs g itself on the way forward and, for a
vector v, the derivatives of <g, v> in X, Y and theta on the way back. ``AutogradStudent`` gets them
from torch for any module; ``convnet`` has them in closed form for the surrogate. Knows nothing of
trajectories, clients or latents. Axes: ``n`` images, ``k`` classes, ``c h w`` one image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from feddgm_flwr.core.params import Params


@dataclass(frozen=True)
class Pulled:
    """The derivatives of <g, v>.

    Attributes
    ----------
    slope
        <g, v> itself, the loss's derivative along v.
    params
        In the order of the parameters (the Hessian times v); None where it was not asked for.
    """

    slope: Float[Tensor, ""]
    images: Float[Tensor, "n c h w"]
    targets: Float[Tensor, "n k"]
    params: list[Tensor] | None


@runtime_checkable
class Trace(Protocol):
    """One evaluated step, to be differentiated once more."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds, apart from its inputs."""
        ...

    def pull(self, direction: Sequence[Tensor], *, through: bool) -> Pulled:
        """Differentiate <g, direction>; ``through`` asks for the parameters' part. Once only."""
        ...


@runtime_checkable
class Student(Protocol):
    """A network under mean cross-entropy with class probabilities."""

    def step(
        self, params: Params, images: Tensor, targets: Tensor, *, keep: bool
    ) -> tuple[list[Tensor], Trace]:
        """Return g at ``params`` and its trace, which without ``keep`` holds next to nothing.

        A trace that was not kept evaluates the step again when it is pulled, to the same bits.
        """
        ...


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages behind ``tensors``."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class AutogradStudent:
    """Any module, differentiated twice by torch."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def step(
        self, params: Params, images: Tensor, targets: Tensor, *, keep: bool
    ) -> tuple[list[Tensor], Trace]:
        """Return g and its trace."""
        trace = _AutogradTrace(self._module, params, images.detach(), targets.detach())
        return trace.evaluate(keep=keep), trace


class _AutogradTrace:
    def __init__(self, module: nn.Module, params: Params, images: Tensor, targets: Tensor) -> None:
        self._module, self._names = module, [*params]
        self._inputs = [t.detach().requires_grad_() for t in (images, targets, *params.values())]
        self._gradient: list[Tensor] | None = None
        self.nbytes = 0

    def evaluate(self, *, keep: bool) -> list[Tensor]:
        images, targets, *leaves = self._inputs
        held: list[Tensor] = []

        def hold(tensor: Tensor) -> Tensor:
            held.append(tensor.detach())
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
            params = dict(zip(self._names, leaves, strict=True))
            logits = functional_call(self._module, params, (images,))
            loss = cross_entropy(logits, targets)
            # A graph in any case: without one torch takes other kernels, and other bits come out.
            gradient = list(torch.autograd.grad(loss, leaves, create_graph=True))
        if keep:
            self._gradient, self.nbytes = gradient, held_bytes(held)
        return [g.detach() for g in gradient]

    def pull(self, direction: Sequence[Tensor], *, through: bool) -> Pulled:
        if self._gradient is None:
            self.evaluate(keep=True)
        assert self._gradient is not None
        asked = self._inputs if through else self._inputs[:2]
        images, targets, *params = torch.autograd.grad(
            self._gradient, asked, grad_outputs=direction
        )
        slope = sum((g.detach() * v).sum() for g, v in zip(self._gradient, direction, strict=True))
        self._gradient = None
        return Pulled(torch.as_tensor(slope), images, targets, params if through else None)
