"""Choosing among a prior's samples before any is optimised (``distill.candidates``); our own.

Of K samples for each image, first those are kept that the client's model takes for their class, and
of them no more than the surest half of all; the surest is taken, and then each time the one whose
picture is farthest from all that were taken. So a start is of its class in the client's eyes, and
no two starts are the same. Costs one decoding of all candidates. Knows no trajectory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from feddgm_flwr.core.prior import Prior

Hold = Callable[[Tensor], Tensor]
"""The client's logits of images."""
Show = Callable[[Tensor], Tensor]
"""Images of latents, without a graph."""


@dataclass(frozen=True)
class Choosy:
    """A prior whose samples are the best of ``candidates`` times as many."""

    prior: Prior
    candidates: int
    show: Show
    hold: Hold

    @property
    def conditional(self) -> bool:
        """As the prior."""
        return self.prior.conditional

    @property
    def fingerprint(self) -> str:
        """As the prior."""
        return self.prior.fingerprint

    @torch.no_grad()
    def sample(self, labels: Int[Tensor, " n"], *, rng: torch.Generator) -> Float[Tensor, "n ..."]:
        """Return chosen latents, one a label."""
        of = labels.repeat_interleave(self.candidates)
        values = self.prior.sample(of, rng=rng)
        images = self.show(values)
        held = self.hold(images).log_softmax(1).cpu()
        seen = held.argmax(1)
        taken = torch.empty_like(labels)
        for label in sorted(set(labels.tolist())):
            own, wanted = (of == label).nonzero().flatten(), labels == label
            right = int((seen[own] == label).sum())
            places = choose(images[own].cpu(), held[own, label], int(wanted.sum()), right=right)
            taken[wanted] = own[places]
        return values[taken]

    def decode(self, latents: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
        """As the prior."""
        return self.prior.decode(latents)

    def to(self, device: torch.device) -> "Choosy":
        """Move the prior's weights."""
        self.prior.to(device)
        return self


def choose(
    images: Float[Tensor, "m c h w"], held: Float[Tensor, " m"], count: int, *, right: int
) -> Int[Tensor, " count"]:
    """Return places of ``count`` images of one class: surely held, and far from each other.

    Parameters
    ----------
    held
        The larger, the more surely the image is held for its class.
    right
        How many are held for no other class more surely.
    """
    order = held.argsort(descending=True, stable=True)
    pool = order[: max(count, min(right, -(-len(order) // 2)))]
    flat = images[pool].flatten(1)
    distance = torch.cdist(flat, flat)
    taken = [0]
    while len(taken) < count:
        nearest = distance[:, taken].amin(1)
        nearest[taken] = -1
        taken.append(int(nearest.argmax()))
    return pool[taken]
