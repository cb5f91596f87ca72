"""Images as the whole project sees them: float tensors in [0, 1], and what describes them.

Normalisation belongs to the models (their first layer), so that real, synthetic and generated
images are the same kind of thing everywhere. Axes: ``n`` images, ``c`` channels, ``h w`` sides.
Knows no file and no data set.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

THUMBNAIL = 64
"""Pixels of a small picture, each way, at most."""


@dataclass(frozen=True)
class ImageSpec:
    """What a model must know of a data set before it sees any of it.

    Attributes
    ----------
    channels
        1 or 3.
    size
        Side in pixels; images are square.
    classes
        Class names in label order.
    mean, std
        Per channel, of images in [0, 1]; the models' first layer uses them.
    flip
        Whether a mirrored image keeps its class (false for digits and letters).
    """

    channels: int
    size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class ImageSet:
    """Labelled real images.

    Attributes
    ----------
    images
        In [0, 1].
    labels
        Class indices.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)


def to_pictures(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w c"]:
    """Return images as bytes, colours last."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def thumbnails(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n small small c"]:
    """Return images as bytes, of each every so many-th pixel, at most ``THUMBNAIL`` a side."""
    step = -(-images.shape[-1] // THUMBNAIL)
    return to_pictures(images[:, :, ::step, ::step])
