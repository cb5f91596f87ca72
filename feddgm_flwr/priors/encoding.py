"""From pictures to latents: the first half of an autoencoder, in the units of its ``Decoder``.

The other way round is ``autoencoder``. Pictures are padded to the model's step as its prior cuts
them again, so that encoding and decoding leave a picture where it was. Knows no class and no file.
"""

import torch
from diffusers import AutoencoderKL, ModelMixin
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from feddgm_flwr.priors.autoencoder import Decoder


class Encoder:
    """The frozen first half of ``model``: pictures in [0, 1] to latents of unit variance."""

    def __init__(self, model: ModelMixin) -> None:
        whole = Decoder(model, 0)
        self.channels = int(model.config.in_channels)
        self._model, self._factor = model, whole.factor
        self._mean, self._std = whole.mean, whole.std

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n c s s"]) -> Float[Tensor, "n c2 h w"]:
        """Return the latents; of a model that draws them, the middle of what it would draw."""
        device = self._model.device
        encoded = self._model.encode(padded(images, self._factor).to(device) * 2 - 1)
        raw = encoded.latent_dist.mode() if isinstance(self._model, AutoencoderKL) else None
        latents: Tensor = encoded.latents if raw is None else raw
        return ((latents.cpu() - self._mean.cpu()) / self._std.cpu()).contiguous()


def padded(images: Float[Tensor, "n c s s"], step: int) -> Float[Tensor, "n c s2 s2"]:
    """Return images whose side is a multiple of ``step``; ``centre_crop`` gives the old ones."""
    size = images.shape[-1]
    more = -size % step
    before = more // 2
    edges = (before, more - before, before, more - before)
    return functional.pad(images, edges, mode="replicate") if more else images
