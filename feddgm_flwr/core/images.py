"""Images as the whole project sees them: float tensors in [0, 1], and what describes them.

Normalisation belongs to the models (their first layer), so that real, synthetic and generated
images are the same kind of thing everywhere. Axes: ``n`` images, ``c`` channels, ``h w`` sides.
Knows no file and no data set.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


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
