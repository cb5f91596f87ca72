"""Any diffusers autoencoder as a frozen prior; latents live before or in its decoder.

Decoders are cut into blocks, per family; ``prior.feature-block = n`` starts the
latents as the feature after the first n blocks (F_n in GLaD and the paper) and decodes
through the rest:

===============  ====================================================================
AutoencoderKL    first convolutions | middle | each up block | output; VQModel too
AutoencoderTiny  first convolution | each residual block or upsampling | output
===============  ====================================================================

``sample`` knows no classes: its latents are standard normal in the space in which the
model's makers scaled them to unit variance (``scaling_factor``, ``shift_factor``,
``latents_mean``). VQ models decode the latents as they are, without looking up the
nearest code word, which has no gradient. Knows of diffusers, and of nothing federated.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, VQModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.params import fingerprint
from feddgm_flwr.priors.settings import PriorConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
POOL_GROUPS = 4
"""Groups of the normalisation in a pooled block."""


class PooledBlock(AutoencoderTinyBlock):  # type: ignore[misc]
    """The block of FLUX.2's tiny autoencoder: a pointwise branch before the usual one.

    Its normalisation takes statistics over the whole picture, which is what pools.
    """

    def __init__(self, channels: int, inner: int, act_fn: str) -> None:
        super().__init__(channels, channels, act_fn)
        self.pool = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.GroupNorm(POOL_GROUPS, inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the block's output."""
        y: Tensor = super().forward(x + self.pool(x))
        return y


class PooledAutoencoderTiny(AutoencoderTiny):  # type: ignore[misc]
    """``AutoencoderTiny`` with pooled blocks wherever the weights have a ``pool``."""

    @classmethod
    def from_weights(
        cls, config: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> "PooledAutoencoderTiny":
        """Return the model with its weights in float32."""
        known = {k: v for k, v in config.items() if k != "block_out_channels"}
        model: PooledAutoencoderTiny = cls.from_config(known)
        for name, weight in weights.items():
            if found := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.pool\.0\.weight", name):
                layers = model.get_submodule(f"{found[1]}.layers")
                inner, channels = weight.shape[:2]
                layers[int(found[2])] = PooledBlock(channels, inner, model.config.act_fn)
        model.load_state_dict(weights)
        return model


FAMILIES: dict[str, type[ModelMixin]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": PooledAutoencoderTiny,
    "AutoencoderTinyFlux2": PooledAutoencoderTiny,
    "PooledAutoencoderTiny": PooledAutoencoderTiny,
    "VQModel": VQModel,
}
"""``_class_name`` in config.json -> class."""


def load_autoencoder(path: str, subfolder: str = "") -> ModelMixin:
    """Return the frozen float32 autoencoder at a hub id or in a folder.

    Raises
    ------
    ValueError
        It is not there, does not load, or is of no family in ``FAMILIES``.
    """
    where = f"prior.path {path!r}" + (f" (subfolder {subfolder!r})" if subfolder else "")
    inside = {"subfolder": subfolder} if subfolder else {}
    try:
        config = AutoencoderTiny.load_config(path, **inside)
        family = FAMILIES.get(config.get("_class_name", ""))
        if family is None:
            raise ValueError(
                f"{where} must hold one of {sorted(FAMILIES)}, its config.json says"
                f" {config.get('_class_name')!r}; choose another autoencoder"
            )
        if family is PooledAutoencoderTiny:
            model = family.from_weights(config, _weights(path, subfolder))
        else:
            model = family.from_pretrained(path, low_cpu_mem_usage=False, **inside)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{where} must be a hub id or a folder with config.json and {WEIGHTS},"
            f" and could not be loaded: {error}"
        ) from error
    return model.float().eval().requires_grad_(False)


def _weights(path: str, subfolder: str) -> dict[str, Tensor]:
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    if Path(path).is_dir():
        return load_file(Path(path, subfolder, WEIGHTS))
    return load_file(hf_hub_download(path, WEIGHTS, subfolder=subfolder or None))


class _Clamp(nn.Module):
    """The soft clamp of latents with which every tiny decoder begins."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return 3 * torch.tanh(x / 3)


class _Unsigned(nn.Module):
    """From [-1, 1] to [0, 1]."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (x + 1) / 2


class _WholeVQ(nn.Module):
    """A VQ decoder whose every layer looks at the latent again cannot be cut."""

    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        y: Tensor = self.decoder(self.post_quant_conv(x), x)
        return y


def decoder_blocks(model: ModelMixin) -> list[nn.Module]:
    """Return modules that in turn take the model's own latents to images in [0, 1]."""
    decoder = model.decoder
    if isinstance(model, AutoencoderTiny):
        return _tiny_blocks(list(decoder.layers))
    if model.config.get("norm_type") == "spatial":
        return [nn.Sequential(_WholeVQ(model), _Unsigned())]
    stem = [m for m in (model.post_quant_conv, decoder.conv_in) if m is not None]
    head = (decoder.conv_norm_out, decoder.conv_act, decoder.conv_out, _Unsigned())
    return [
        nn.Sequential(*stem), decoder.mid_block, *decoder.up_blocks,
        nn.Sequential(*head),
    ]  # fmt: skip


def _tiny_blocks(layers: list[nn.Module]) -> list[nn.Module]:
    blocks: list[list[nn.Module]] = [[_Clamp(), *layers[:2]]]
    for layer in layers[2:-1]:
        if isinstance(layer, nn.Conv2d):  # the convolution of the upsampling before it
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
    return [nn.Sequential(*block) for block in [*blocks, [layers[-1]]]]


class Decoder(nn.Module):
    """The second half of an autoencoder, cut after ``skip`` blocks.

    Its latents are in the model's unit-variance space where ``skip`` is 0, else
    features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelMixin, skip: int) -> None:
        super().__init__()
        blocks = decoder_blocks(model)
        if skip >= len(blocks):
            raise ValueError(
                f"prior.feature-block must be at most {len(blocks) - 1} for this"
                f" {type(model).__name__}, got {skip}; choose a smaller one"
            )
        self.first, self.rest = (
            nn.ModuleList(blocks[:skip]),
            nn.ModuleList(blocks[skip:]),
        )
        mean, std = _statistics(model)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.channels, self.factor = _latent_channels(model), _upsampling(model)
        self.out_channels = int(model.config.out_channels)
        # Half as much time again as channels first, on a CPU.
        self.to(memory_format=torch.channels_last)
        self.eval()

    def enter(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Return what ``forward`` takes, of unit-variance latents."""
        if not self.first:
            return latents
        with torch.no_grad():
            x = latents * self.std + self.mean
            for block in self.first:
                x = block(x)
        return x

    def forward(self, values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Return images in (about) [0, 1]."""
        x = values if self.first else values * self.std + self.mean
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.rest:
            x = block(x)
        return x


def _statistics(model: ModelMixin) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation that lead from unit latents to the model's."""
    config = model.config
    mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
    std = config.get("latents_std") or [1.0]
    scale = config.get("scaling_factor") or 1.0
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1) / scale


def _latent_channels(model: ModelMixin) -> int:
    return int(model.config.get("vq_embed_dim") or model.config.latent_channels)


def _upsampling(model: ModelMixin) -> int:
    config = model.config
    if isinstance(model, AutoencoderTiny):
        return int(config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1))
    return int(2 ** (len(config.block_out_channels) - 1))


class AutoencoderPrior:
    """A frozen decoder whose images are cut and averaged to the data set's shape."""

    conditional = False

    def __init__(self, decoder: Decoder, spec: ImageSpec, image_scale: int = 1) -> None:
        if decoder.out_channels < spec.channels:
            raise ValueError(
                f"prior.path makes images of {decoder.out_channels} channel,"
                f" the data set has {spec.channels}; choose an autoencoder for colour"
            )
        self._decoder, self._spec, self._scale = decoder, spec, image_scale
        self._side = -(-spec.size * image_scale // decoder.factor)

    @property
    def fingerprint(self) -> str:
        """Of the decoder's weights."""
        return fingerprint(self._decoder.state_dict())

    def sample(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return standard normal latents, or their features, whatever the labels."""
        shape = (len(labels), self._decoder.channels, self._side, self._side)
        latents = torch.randn(shape, generator=rng)
        values: Tensor = self._decoder.enter(latents.to(self._decoder.std.device)).cpu()
        return values

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Return images of the data set's shape."""
        images = centre_crop(self._decoder(latents), self._spec.size * self._scale)
        images = functional.avg_pool2d(images, self._scale)
        return images.mean(1, keepdim=True) if self._spec.channels == 1 else images

    def to(self, device: torch.device) -> "AutoencoderPrior":
        """Move the decoder."""
        self._decoder.to(device)
        return self


def centre_crop(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c s s"]:
    """Return the middle ``size`` pixels either way."""
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]


def build_autoencoder_prior(config: PriorConfig, spec: ImageSpec) -> AutoencoderPrior:
    """Return the prior at ``config.path``, for images of ``spec``."""
    model = load_autoencoder(config.path, config.subfolder)
    return AutoencoderPrior(Decoder(model, config.feature_block), spec, config.image_scale)
