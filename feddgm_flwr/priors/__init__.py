"""Frozen pretrained priors, and how to build the one that a config names.

Importing this module costs nothing; diffusers is imported by the prior that needs it.
"""

from typing import assert_never

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.prior import Prior
from feddgm_flwr.priors.settings import PriorConfig


def build_prior(config: PriorConfig, spec: ImageSpec) -> Prior:
    """Return the prior that ``config`` names, for images of ``spec``.

    Raises
    ------
    ValueError
        The prior cannot make such images, or its weights are missing.
    """
    match config.kind:
        case "pixel":
            from feddgm_flwr.priors.pixel import PixelPrior

            return PixelPrior(spec)
        case "autoencoder":
            from feddgm_flwr.priors.autoencoder import build_autoencoder_prior

            return build_autoencoder_prior(config, spec)
        case "glyphs":
            from feddgm_flwr.priors.glyphs import build_glyph_prior

            return build_glyph_prior(config, spec)
        case _:
            assert_never(config.kind)
