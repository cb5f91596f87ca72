"""How much distilled images look like real ones, beside what models learn from them.

Two numbers against real images that neither the prior nor any client has: the share of images that
a classifier trained on them puts in the image's own class, and the root mean square distance in
pixel values from an image to the nearest real one of its class. The first falls where images are
of nothing any more; the second tells copies (near 0) from noise (above that of real images to each
other). Knows no file and no round.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.synthetic import SyntheticSet

CHUNK = 256
"""Images classified or compared at a time."""


class Judge:
    """Measures synthetic sets.

    Parameters
    ----------
    model
        Trained on ``real``.
    """

    def __init__(self, model: nn.Module, real: ImageSet, device: torch.device) -> None:
        self._model, self._real, self._device = model.to(device).eval(), real, device

    def __call__(self, synthetic: SyntheticSet) -> dict[str, float]:
        """Return ``in-class`` and ``nearest`` of a set with at least one image."""
        images, labels = synthetic.images.clamp(0, 1), synthetic.targets.argmax(1)
        guesses = self._guesses(images)
        distance = nearest(images, labels, self._real)
        found = distance[distance.isfinite()]
        return {
            "in-class": float((guesses == labels).float().mean()),
            "nearest": float(found.mean()),
        }

    @torch.inference_mode()
    def _guesses(self, images: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
        parts = torch.split(images, CHUNK)
        return torch.cat([self._model(p.to(self._device)).argmax(1).cpu() for p in parts])


def distances(
    images: Float[Tensor, "n c h w"], others: Float[Tensor, "m c h w"]
) -> Float[Tensor, "n m"]:
    """Return the Euclidean distance of each image to each other one; a copy has none."""
    # Not by inner products, whose rounding would give a copy a distance.
    return torch.cdist(
        images.flatten(1), others.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )


def nearest(
    images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], real: ImageSet
) -> Float[Tensor, " n"]:
    """Return the distance of each image to the nearest real one of its class; infinite if none."""
    found = torch.full((len(images),), torch.inf)
    pixels = images[0].numel() if len(images) else 1
    for label in sorted(set(labels.tolist())):
        of = real.images[real.labels == label]
        if not len(of):
            continue
        own = (labels == label).nonzero().flatten()
        for part in torch.split(own, CHUNK):
            found[part] = distances(images[part], of).amin(1) / pixels**0.5
    return found
