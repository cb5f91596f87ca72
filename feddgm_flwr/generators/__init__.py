"""Frozen pretrained priors: what distillation needs of one, and how to build it.

Importing this module costs nothing; diffusers is imported by the prior that needs it.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from feddgm_flwr.config import GeneratorConfig
from feddgm_flwr.images import ImageSpec


@runtime_checkable
class Prior(Protocol):
    """A frozen generator G: latents -> images, about in [0, 1], in the data's shape."""

    @property
    def conditional(self) -> bool:
        """Whether ``sample`` knows the data set's classes."""
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


def build_prior(config: GeneratorConfig, spec: ImageSpec) -> Prior:
    """Return the prior that ``config`` names, for images of ``spec``.

    Raises
    ------
    ValueError
        The prior cannot make such images, or its weights are missing.
    """
    match config.kind:
        case "pixel":
            from feddgm_flwr.generators.pixel import PixelPrior

            return PixelPrior(spec)
        case "autoencoder":
            from feddgm_flwr.generators.autoencoder import build_autoencoder_prior

            return build_autoencoder_prior(config, spec)
        case "glyphs":
            from feddgm_flwr.generators.glyphs import build_glyph_prior

            return build_glyph_prior(config, spec)
