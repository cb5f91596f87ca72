"""Whether distilled images lie nearer to the clients' images than to others of the same kind.

An image that copies a client's is far nearer to it than to any image that no client had. Distances
are Euclidean, of pixels in [0, 1]. Axes: ``n`` distilled images, ``m`` real ones. Knows no run and
no file.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from feddgm_flwr.core.fidelity import distances

PERMUTATIONS = 999


@dataclass(frozen=True)
class Nearness:
    """How near distilled images are to both.

    Attributes
    ----------
    images
        Distilled images.
    real
        Members, and as many non-members, that were compared.
    members, non_members
        Median over distilled images of the distance to the nearest one.
    ratio
        Of the two medians; below 1 the members are nearer.
    nearer
        Share of distilled images whose nearest image of all is a member's; 0.5 by chance.
    p_value
        Probability of so low a ratio if it did not matter who is a member: who is, is drawn anew
        ``PERMUTATIONS`` times.
    """

    images: int
    real: int
    members: float
    non_members: float
    ratio: float
    nearer: float
    p_value: float


def nearness(
    distilled: Float[Tensor, "n c h w"],
    members: Float[Tensor, "k c h w"],
    non_members: Float[Tensor, "l c h w"],
    *,
    rng: np.random.Generator,
) -> Nearness:
    """Return how near ``distilled`` are to ``members`` and to as many ``non_members``.

    The larger of the two sets is thinned out at random: among more images there is a nearer one.
    """
    count = min(len(members), len(non_members))
    real = [drawn(part, count, rng) for part in (members, non_members)]
    far = distances(distilled.clamp(0, 1), torch.cat(real)).numpy()
    mine = np.arange(2 * count) < count
    ratio, near, other = _ratio(far, mine)
    drawn_ratios = [_ratio(far, rng.permutation(mine))[0] for _ in range(PERMUTATIONS)]
    return Nearness(
        images=len(distilled),
        real=count,
        members=near,
        non_members=other,
        ratio=ratio,
        nearer=float((far[:, mine].min(1) < far[:, ~mine].min(1)).mean()),
        p_value=(1 + sum(r <= ratio for r in drawn_ratios)) / (1 + PERMUTATIONS),
    )


def _ratio(
    far: Float[np.ndarray, "n m"], mine: Bool[np.ndarray, " m"]
) -> tuple[float, float, float]:
    near, other = (float(np.median(far[:, part].min(1))) for part in (mine, ~mine))
    return near / max(other, 1e-12), near, other


def drawn(
    images: Float[Tensor, "m c h w"], count: int, rng: np.random.Generator
) -> Float[Tensor, "count c h w"]:
    """Return ``count`` of ``images``, drawn without replacement."""
    return images[torch.from_numpy(rng.permutation(len(images))[:count])]
