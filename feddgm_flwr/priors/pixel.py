"""No prior at all: the images are their own latents, and start as noise.

The ablation that tells what a pretrained prior is worth. ``STARTS`` says what noise: white, that is
uniform in [0, 1]; smooth, which has only the low frequencies that photographs have most of; or grey
with just enough noise that two images of a class are not the same one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from feddgm_flwr.core.images import ImageSpec

WAVES = 4
"""Side of the coarse noise that a smooth start is drawn from: waves of a quarter of the image."""
SMOOTH = 0.2
"""Standard deviation of that noise, near that of photographs (0.25)."""
GREY = 0.02
"""Standard deviation about grey: five of 255 levels."""

Shape = tuple[int, int, int, int]
Start = Callable[[Shape, torch.Generator], Tensor]


def white(shape: Shape, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return uniform noise in [0, 1]."""
    return torch.rand(shape, generator=rng)


def smooth(shape: Shape, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return coarse normal noise about a half, enlarged bilinearly, within [0, 1]."""
    coarse = torch.randn((*shape[:2], WAVES, WAVES), generator=rng)
    if not shape[0]:  # of which torch enlarges none
        return torch.empty(shape)
    return (0.5 + SMOOTH * interpolate(coarse, shape[2:], mode="bilinear")).clamp(0, 1)


def grey(shape: Shape, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return a half everywhere, with a little normal noise."""
    return 0.5 + GREY * torch.randn(shape, generator=rng)


STARTS: dict[str, Start] = {"white": white, "smooth": smooth, "grey": grey}
"""``prior.pixel-start`` -> what draws it."""


@dataclass(frozen=True)
class PixelPrior:
    """The identity on images of ``spec``, which start as ``start`` says."""

    spec: ImageSpec
    start: str = "white"
    conditional: bool = False

    @property
    def fingerprint(self) -> str:
        """There is nothing to tell apart."""
        return "pixel"

    def sample(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return noise about a half, whatever the labels."""
        shape = (len(labels), self.spec.channels, self.spec.size, self.spec.size)
        return STARTS[self.start](shape, rng)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the latents themselves."""
        return latents

    def to(self, device: torch.device) -> "PixelPrior":
        """Return itself: there are no weights."""
        return self
