"""Models as teachers: what they say together of an image, and a student that listens.

With f_i the reply of client i and w_i its weight, an ensemble says ``A(x) = sum_i w_i f_i(x)``
(logits), and the student f minimises, at a temperature T (Hinton et al., arXiv 1503.02531)::

    T^2 KL( softmax(A(x) / T) || softmax(f(x) / T) )

Knows nothing of where images come from, nor of rounds. Axes: ``m`` members, ``n`` images, ``k``
classes, ``c h w`` one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from feddgm_flwr.core.params import Params, on


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
        members = tuple(on(device, reply) for reply in replies)
        like = next(iter(members[0].values()))
        return cls(module, members, like.new_full((len(members),), 1 / len(members)))

    @classmethod
    def weighted(
        cls,
        module: nn.Module,
        replies: Sequence[Params],
        weights: Sequence[float | int],
        device: torch.device,
    ) -> "Ensemble":
        """Return an ensemble of ``replies`` on ``device``, weighted, the weights' sum being 1."""
        found = cls.of(module, replies, device)
        share = torch.tensor(weights, dtype=found.weights.dtype, device=device)
        return replace(found, weights=share / share.sum())

    def each(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m n k"]:
        """Return every member's logits, differentiable in ``images``."""
        return torch.stack([functional_call(self.module, p, (images,)) for p in self.members])

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return A(x), differentiable in ``images``."""
        return together(self.each(images), self.weights)

    def likely(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the mean of the members' probabilities.

        Of probabilities, not logits: a member's logits of classes that it lacks have no bound.
        """
        return together(self.each(images).softmax(2), self.weights)


@dataclass(frozen=True)
class Teachers:
    """The surrogate and the replies, heard together.

    Attributes
    ----------
    replies
        None where there are none.
    share
        Of what the replies say; the rest is the surrogate's.
    mirrored
        Whether each picture and its mirror image are answered by the mean of both answers, which
        is right more often where a mirrored image keeps its class.
    """

    surrogate: Ensemble
    replies: Ensemble | None
    share: float
    mirrored: bool

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logarithm of what they hold likely."""
        # Both in one pass: passes of so small models cost by their number, not their size.
        seen = torch.cat([images, images.flip(3)]) if self.mirrored else images
        said = torch.stack(torch.split(self._likely(seen), len(images))).mean(0)
        return said.clamp_min(torch.finfo(said.dtype).tiny).log()

    def _likely(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        said = self.surrogate.likely(images)
        if self.replies is None or not self.share:
            return said
        return said.lerp(self.replies.likely(images), self.share)


def together(each: Float[Tensor, "m n k"], weights: Float[Tensor, " m"]) -> Float[Tensor, "n k"]:
    """Return the weighted sum of the members' logits."""
    return torch.einsum("m,mnk->nk", weights, each)


@torch.no_grad()
def answers(
    ensemble: Ensemble, images: Float[Tensor, "n c h w"], *, batch_size: int
) -> Float[Tensor, "n k"]:
    """Return A(x) for many images, a batch at a time; no gradient."""
    return torch.cat([ensemble(batch) for batch in torch.split(images, batch_size)])


@torch.no_grad()
def mixture(
    module: nn.Module,
    members: Sequence[Params],
    weights: Sequence[float | int],
    images: Float[Tensor, "n c h w"],
    *,
    device: torch.device,
    batch_size: int = 256,
) -> Float[Tensor, "n k"]:
    """Return, on the CPU, the members' mean probabilities of many images, a batch at a time."""
    ensemble = Ensemble.weighted(module.to(device), members, weights, device)
    batches = torch.split(images.to(device), batch_size)
    told = torch.cat([ensemble.likely(b) for b in batches])
    module.to("cpu")
    return told.cpu()


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
) -> Float[Tensor, ""]:
    """Make one step of ``student`` towards the logits that it was ``told``; return its loss."""
    loss = divergence(told, student(images), temperature).mean()
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()
