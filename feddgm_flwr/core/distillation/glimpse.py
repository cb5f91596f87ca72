"""What a person sees of images while they are distilled: a few, small, as bytes.

Looking changes nothing: it takes the images that a step has decoded anyway, and draws no random
number. Axes: ``n`` images, ``c h w`` one image. Knows no file.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from feddgm_flwr.core.images import thumbnails


@dataclass(frozen=True)
class Glimpse:
    """Some of a client's images as they were at one moment.

    Attributes
    ----------
    iteration
        Iterations done.
    labels
        The class of each.
    pictures
        At most ``images.THUMBNAIL`` pixels a side.
    """

    iteration: int
    labels: tuple[int, ...]
    pictures: UInt8[np.ndarray, "n h w c"]


def glimpse(
    images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], *, iteration: int, count: int
) -> Glimpse:
    """Return at most ``count`` of the images: the first of each class, then the second, ..."""
    seen: dict[int, int] = {}
    places = []
    for index, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        places.append((seen[label], label, index))
    chosen = [(label, index) for _, label, index in sorted(places)[:count]]
    return Glimpse(
        iteration=iteration,
        labels=tuple(label for label, _ in chosen),
        pictures=thumbnails(images[[index for _, index in chosen]].detach()),
    )


def moments(iterations: int) -> frozenset[int]:
    """Return after how many of ``iterations`` one looks: 0, 25 and 50 %; the end is the result."""
    return frozenset((0, iterations // 4, iterations // 2))
