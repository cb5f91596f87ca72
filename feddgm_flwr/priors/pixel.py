"""No prior at all: the images are their own latents, and start as noise.

The ablation that tells what a pretrained prior is worth.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from feddgm_flwr.core.images import ImageSpec


@dataclass(frozen=True)
class PixelPrior:
    """The identity on images of ``spec``."""

    spec: ImageSpec
    conditional: bool = False

    @property
    def fingerprint(self) -> str:
        """There is nothing to tell apart."""
        return "pixel"

    def sample(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return uniform noise in [0, 1], whatever the labels."""
        shape = (len(labels), self.spec.channels, self.spec.size, self.spec.size)
        return torch.rand(shape, generator=rng)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the latents themselves."""
        return latents

    def to(self, device: torch.device) -> "PixelPrior":
        """Return itself: there are no weights."""
        return self
