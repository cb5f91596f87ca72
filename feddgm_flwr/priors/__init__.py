"""Frozen pretrained priors, and how to build the one that a config names.

Importing this module costs nothing; diffusers is imported by the prior that needs it.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import torch

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.prior import Prior
from feddgm_flwr.priors.settings import PriorConfig

CPU = torch.device("cpu")

logger = logging.getLogger(__name__)


def build_prior(config: PriorConfig, spec: ImageSpec, device: torch.device = CPU) -> Prior:
    """Return the prior that ``config`` names, for images of ``spec``, on the CPU.

    Parameters
    ----------
    device
        Where a pipeline may sample.

    Raises
    ------
    ValueError
        The prior cannot make such images, or its weights are missing.
    """
    match config.kind:
        case "auto":
            return _at(config, spec) if config.path else _fitting(config, spec)
        case "pixel":
            from feddgm_flwr.priors.pixel import PixelPrior

            return PixelPrior(spec, config.pixel_start)
        case "autoencoder":
            from feddgm_flwr.priors.autoencoder import build_autoencoder_prior

            return build_autoencoder_prior(config, spec)
        case "pipeline":
            from feddgm_flwr.priors.sampling import build_sampled_prior

            return build_sampled_prior(config, spec, device)
        case "glyphs":
            from feddgm_flwr.priors.glyphs import build_glyph_prior

            return build_glyph_prior(config, spec)
        case _:
            assert_never(config.kind)


def _fitting(config: PriorConfig, spec: ImageSpec) -> Prior:
    """Return glyphs where they know the classes of ``spec``, else no prior; say which."""
    why = f"glyphs are grey, the data have {spec.channels} channels"
    if spec.channels == 1:
        glyphs = build_prior(replace(config, kind="glyphs"), spec)
        if glyphs.conditional:
            logger.info("prior.kind = auto: glyphs, which know all %d classes", spec.num_classes)
            return glyphs
        why = f"glyphs do not know all of the classes {', '.join(spec.classes[:3])}, ..."
    logger.info(
        "prior.kind = auto: pixel, since %s; public pictures make a better prior (feddgm-pretrain)",
        why,
    )
    return build_prior(replace(config, kind="pixel"), spec)


def _at(config: PriorConfig, spec: ImageSpec) -> Prior:
    """Return what lies at ``config.path``; say which."""
    from feddgm_flwr.priors.bank import FILE, LatentBank

    home = Path(config.path, config.subfolder)
    trained = (home / FILE).is_file() and not LatentBank.load(home).image_scale
    prior = build_prior(replace(config, kind="glyphs" if trained else "autoencoder"), spec)
    logger.info(
        "prior.kind = auto: %s at %r, which %s the classes",
        "a prior that feddgm-pretrain trained" if trained else "the autoencoder",
        str(home),
        "knows" if prior.conditional else "does not know",
    )
    return prior
