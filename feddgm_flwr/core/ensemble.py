"""The replies as teachers: what they say together of an image, and a student that listens.

With f_i the reply of client i and w_i its weight, an ensemble says ``A(x) = sum_i w_i f_i(x)``
(logits), and the student f minimises, at a temperature T (Hinton et al., arXiv 1503.02531)::

    T^2 KL( softmax(A(x) / T) || softmax(f(x) / T) )

Knows nothing of where images come from, nor of rounds. Axes: ``m`` members, ``n`` images, ``k``
classes, ``c h w`` one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from feddgm_flwr.core.params import Params


@dataclass(frozen=True)
class Ensemble:
    """Models of one architecture that answer together.

    Attributes
    ----------
    module
        The architecture; its own weights are neither read nor changed.
    weights
        Of each member's logits.
    """

    module: nn.Module
    members: tuple[Params, ...]
    weights: Float[Tensor, " m"]

    @classmethod
    def of(cls, module: nn.Module, replies: Sequence[Params], device: torch.device) -> "Ensemble":
        """Return an ensemble of ``replies`` on ``device``, all of one weight."""
        members = tuple({name: p.to(device) for name, p in reply.items()} for reply in replies)
        like = next(iter(members[0].values()))
        return cls(module, members, like.new_full((len(members),), 1 / len(members)))

    def each(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m n k"]:
        """Return every member's logits, differentiable in ``images``."""
        return torch.stack([functional_call(self.module, p, (images,)) for p in self.members])

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return A(x), differentiable in ``images``."""
        return together(self.each(images), self.weights)


def together(each: Float[Tensor, "m n k"], weights: Float[Tensor, " m"]) -> Float[Tensor, "n k"]:
    """Return the weighted sum of the members' logits."""
    return torch.einsum("m,mnk->nk", weights, each)


@torch.no_grad()
def answers(
    ensemble: Ensemble, images: Float[Tensor, "n c h w"], *, batch_size: int
) -> Float[Tensor, "n k"]:
    """Return A(x) for many images, a batch at a time; no gradient."""
    return torch.cat([ensemble(batch) for batch in torch.split(images, batch_size)])


def divergence(
    teacher: Float[Tensor, "n k"], student: Float[Tensor, "n k"], temperature: float = 1.0
) -> Float[Tensor, " n"]:
    """Return each image's ``T^2 KL(teacher || student)`` of two sets of logits."""
    told = (teacher / temperature).log_softmax(1)
    heard = (student / temperature).log_softmax(1)
    return temperature**2 * (told.exp() * (told - heard)).sum(1)


def listen(
    student: nn.Module,
    images: Float[Tensor, "n c h w"],
    told: Float[Tensor, "n k"],
    optimizer: torch.optim.Optimizer,
    temperature: float = 1.0,
) -> None:
    """Make one step of ``student`` towards the logits that it was ``told``."""
    loss = divergence(told, student(images), temperature).mean()
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
