"""What the core asks of a frozen pretrained generator (G in the paper).

``feddgm_flwr.priors`` implements it. Axes: ``n`` images, ``c h w`` one image.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Prior(Protocol):
    """A frozen generator G: latents -> images, about in [0, 1], in the data's shape."""

    @property
    def conditional(self) -> bool:
        """Whether ``sample`` knows the data set's classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells this prior from one with other weights, wherever it lies."""
        ...

    def sample(self, labels: Int[Tensor, " n"], *, rng: torch.Generator) -> Float[Tensor, "n ..."]:
        """Return starting latents, of the labels' classes where ``conditional``."""
        ...

    def decode(self, latents: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
        """Return images, differentiable in ``latents``, not clamped."""
        ...

    def to(self, device: torch.device) -> "Prior":
        """Move the prior's weights."""
        ...
