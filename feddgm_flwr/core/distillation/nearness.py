"""Keeping latents near where the prior put them (``distill.prior-weight``); our own addition.

Descent may leave the region that the decoder was trained on: the loss still falls, and the images
are of nothing any more. With z_0 what the prior sampled and s its spread, a channel at a time, the
matching loss gets the penalty::

    P(z) = weight * mean over all numbers of ((z - z_0) / s)^2

so that a weight of 0.1 lets a latent that moved one spread away cost a tenth of what a student that
has not moved at all does. Knows a prior by its samples alone, and no client.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.core.prior import Prior

SAMPLES = 256
"""Drawn to measure a prior's spread, at least."""
LEAST_SHARE = 0.01
"""Of the spread of all channels together: a channel that hardly varies is not tied down harder."""


@torch.no_grad()
def spread_of(prior: Prior, num_classes: int, *, rng: torch.Generator) -> Float[Tensor, "c ..."]:
    """Return the standard deviation of the prior's samples over all classes, by channel."""
    labels = torch.arange(num_classes).repeat_interleave(-(-SAMPLES // num_classes))
    values = prior.sample(labels, rng=rng)
    rest = [axis for axis in range(values.ndim) if axis != 1]
    own = values.std(rest, keepdim=True)
    return own.clamp_min(LEAST_SHARE * float(values.std()))[0]


def penalty(
    values: Float[Tensor, "n c ..."],
    origin: Float[Tensor, "n c ..."],
    spread: Float[Tensor, "c ..."],
    weight: float,
) -> Float[Tensor, ""]:
    """Return P."""
    return weight * ((values - origin) / spread).square().mean()


def pull(
    values: Float[Tensor, "n c ..."],
    origin: Float[Tensor, "n c ..."],
    spread: Float[Tensor, "c ..."],
    weight: float,
) -> Float[Tensor, "n c ..."]:
    """Return dP/dz."""
    return 2 * weight / values.numel() * (values - origin) / spread.square()
