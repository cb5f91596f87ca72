"""Any diffusers autoencoder as a frozen prior; latents live before or in its decoder.

Decoders are cut into blocks, per family; ``prior.feature-block = n`` starts the
latents as the feature after the first n blocks (F_n in GLaD and the paper) and decodes
through the rest:

===============  ====================================================================
AutoencoderKL    first convolutions | middle | each up block | output; VQModel too
AutoencoderTiny  first convolution | each residual block or upsampling | output
===============  ====================================================================

Where a bank of encoded pictures lies beside the weights, ``sample`` draws from it and knows its
classes. Without one it knows none: its latents are standard normal in the space in which the
model's makers scaled them to unit variance (``scaling_factor``, ``shift_factor``,
``latents_mean``). VQ models decode the latents as they are, without looking up the
nearest code word, which has no gradient.

What config.json does not state is never filled in from a class's default, but by what it meant to
those who left it out (``stated``). After loading, a few latents are decoded: a decoder that gives
anything but finite, varied images of the right shape is refused. Knows of diffusers, and of nothing
federated, and leaves files to ``weights``.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, VQModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.params import fingerprint
from feddgm_flwr.priors.bank import FILE, LatentBank, match_classes
from feddgm_flwr.priors.settings import PriorConfig
from feddgm_flwr.priors.weights import Place, one_line, read_config, read_weights

logger = logging.getLogger(__name__)

POOL_GROUPS = 4
"""Groups of the normalisation in a pooled block."""
TRIED_SIDE = 4
"""Side of the latents that are decoded once after loading."""
LEAST_DEVIATION = 1e-5
"""Of the pixels of such an image; less is one colour, rounded."""


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

    def widen(self, weights: Mapping[str, Tensor]) -> None:
        """Put a pooled block wherever ``weights`` have one."""
        for name, weight in weights.items():
            if found := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.pool\.0\.weight", name):
                layers = self.get_submodule(f"{found[1]}.layers")
                inner, channels = weight.shape[:2]
                layers[int(found[2])] = PooledBlock(channels, inner, self.config.act_fn)


FAMILIES: dict[str, type[ModelMixin]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": PooledAutoencoderTiny,
    "AutoencoderTinyFlux2": PooledAutoencoderTiny,
    "PooledAutoencoderTiny": PooledAutoencoderTiny,
    "VQModel": VQModel,
}
"""``_class_name`` in config.json -> class."""


SD1_SCALING = 0.18215
"""Of Stable Diffusion 1 and 2, whose files are older than the key: pipelines had it built in."""

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How attention layers were called in the files of those days."""


def load_autoencoder(path: str, subfolder: str = "", revision: str = "") -> ModelMixin:
    """Return the frozen float32 autoencoder at a hub id or in a folder.

    Raises
    ------
    ValueError
        It is not there, is of no family in ``FAMILIES``, or its weights are not those of the model
        that its config.json describes.
    """
    place = Place(path, subfolder, revision)
    config = read_config(place, FAMILIES)
    family = FAMILIES[config["_class_name"]]
    config = stated(config, family, place)
    weights = {_new_name(name): tensor for name, tensor in read_weights(place).items()}
    try:
        # Without memory and without drawing weights that the file is about to give.
        with torch.device("meta"):
            model = family.from_config(config)
            if isinstance(model, PooledAutoencoderTiny):
                model.widen(weights)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"{place} must hold a config.json from which {config['_class_name']} can be built,"
            f" and it cannot ({type(e).__name__}: {one_line(e)}); fetch it anew"
        ) from e
    _check_names(model, weights, place)
    model.load_state_dict(weights, assign=True)
    return model.float().eval().requires_grad_(False)


def stated(config: Mapping[str, Any], family: type[ModelMixin], place: Place) -> dict[str, Any]:
    """Return ``config`` with the statistics of the latents that it states, or means by silence.

    A class's default is what diffusers would write, not what this model's makers measured.
    Silence means: for AutoencoderTiny, latents as the large model's diffusion sees them (1); for
    VQModel, code words as they are (1); for AutoencoderKL of 4 channels, Stable Diffusion 1 or 2,
    whose files are older than the key (0.18215). Another AutoencoderKL must say.

    Raises
    ------
    ValueError
        A statistic is missing that cannot be known, or is no such number.
    """
    known = dict(config)
    if issubclass(family, AutoencoderTiny):
        # The class works it out of the decoder's, and warns where it is given.
        known.pop("block_out_channels", None)
    if known.get("scaling_factor") is None:
        known["scaling_factor"] = _silent_scaling(known, family, place)
        logger.info("%s states no scaling_factor; taken as %s", place, known["scaling_factor"])
    if known.get("shift_factor") is None and family is not VQModel:
        known["shift_factor"] = 0.0
    _check_statistics(known, place)
    if known.get("out_channels", 3) not in (1, 3):
        raise ValueError(
            f"{place} must make images of 1 or 3 channels, its config.json says"
            f" {known['out_channels']!r} (4 may be latents, or transparency); choose another"
            " autoencoder"
        )
    return known


def _silent_scaling(config: Mapping[str, Any], family: type[ModelMixin], place: Place) -> float:
    if family is not AutoencoderKL:
        return 1.0
    channels = config.get("latent_channels", 4)
    if channels != 4:
        raise ValueError(
            f"{place} must state scaling_factor in its config.json, one over the deviation of its"
            f" {channels} latent channels, and does not; look it up where the model comes from,"
            " and add it"
        )
    return SD1_SCALING


def _check_statistics(config: Mapping[str, Any], place: Place) -> None:
    channels = config.get("vq_embed_dim") or config.get("latent_channels")
    for key, positive, many in (
        ("scaling_factor", True, False), ("shift_factor", False, False),
        ("latents_std", True, True), ("latents_mean", False, True),
    ):  # fmt: skip
        said = config.get(key)
        if said is None:
            continue
        numbers = said if many and isinstance(said, list) else [said]
        fits = not many or len(numbers) in {1, channels or len(numbers)}
        if not fits or not all(_is_number(n, positive) for n in numbers):
            wanted = f"{channels} numbers" if many else "a number"
            raise ValueError(
                f"{place} must state {key} as {wanted}{' above 0' if positive else ''} in its"
                f" config.json, got {said!r}; correct it there"
            )


def _is_number(value: object, positive: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and (value > 0 or not positive)


def _new_name(name: str) -> str:
    old = "|".join(OLD_NAMES)
    found = re.fullmatch(rf"(.+\.attentions\.\d+\.)({old})(\.\w+)", name)
    return f"{found[1]}{OLD_NAMES[found[2]]}{found[3]}" if found else name


def _check_names(model: ModelMixin, weights: Mapping[str, Tensor], place: Place) -> None:
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = sorted(set(wanted) - set(weights))
    unknown = sorted(set(weights) - set(wanted))
    unlike = sorted(n for n in set(wanted) & set(weights) if wanted[n] != weights[n].shape)
    for names, what in ((missing, "missing"), (unknown, "unknown"), (unlike, "of another shape")):
        if names:
            raise ValueError(
                f"{place} must hold weights and config.json of one {type(model).__name__}, and"
                f" {len(names)} tensors are {what} by that config, such as {names[0]}; fetch both"
                " anew"
            )


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
    config = model.config  # as ``stated``
    mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
    std = config.get("latents_std") or [1.0]
    scale = config["scaling_factor"]
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1) / scale


def _latent_channels(model: ModelMixin) -> int:
    return int(model.config.get("vq_embed_dim") or model.config.latent_channels)


def _upsampling(model: ModelMixin) -> int:
    config = model.config
    if isinstance(model, AutoencoderTiny):
        return int(config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1))
    return int(2 ** (len(config.block_out_channels) - 1))


class AutoencoderPrior:
    """A frozen decoder whose images are cut and averaged to the data set's shape.

    Parameters
    ----------
    bank
        What it samples from, knowing the data set's classes; None for standard normal latents.

    Raises
    ------
    ValueError
        The decoder has no colour, or the bank is not of such images or classes.
    """

    def __init__(
        self,
        decoder: Decoder,
        spec: ImageSpec,
        image_scale: int = 1,
        bank: LatentBank | None = None,
    ) -> None:
        if decoder.out_channels < spec.channels:
            raise ValueError(
                f"prior.path makes images of {decoder.out_channels} channel,"
                f" the data set has {spec.channels}; choose an autoencoder for colour"
            )
        self._decoder, self._spec = decoder, spec
        self._scale = scale_of(bank, image_scale)
        self._side = -(-spec.size * self._scale // decoder.factor)
        self._bank = bank
        self._classes = None if bank is None else _fitting(bank, spec, decoder.channels, self._side)

    @property
    def conditional(self) -> bool:
        """Whether there is a bank."""
        return self._bank is not None

    @property
    def fingerprint(self) -> str:
        """Of the decoder's weights, and the bank."""
        bank = {} if self._bank is None else self._bank.tensors
        return fingerprint(self._decoder.state_dict() | bank)

    def sample(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return latents, or their features: the bank's, else standard normal for any label."""
        if self._bank is None or self._classes is None:
            shape = (len(labels), self._decoder.channels, self._side, self._side)
            latents = torch.randn(shape, generator=rng)
        else:
            wanted = [self._classes[label] for label in labels.tolist()]
            latents = self._bank.sample(wanted, len(labels), rng=rng)
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


def scale_of(bank: LatentBank | None, said: int) -> int:
    """Return how many times larger than the data set's images are decoded: the bank knows.

    Raises
    ------
    ValueError
        ``said`` is another scale than the bank's.
    """
    own = 0 if bank is None else bank.image_scale
    if own and said not in (1, own):
        raise ValueError(
            f"prior.image-scale must be {own}, at which the bank of prior.path was encoded, got"
            f" {said}; leave it out, or make a bank by feddgm-pretrain --image-scale {said}"
        )
    return own or said


def _fitting(bank: LatentBank, spec: ImageSpec, channels: int, side: int) -> tuple[int, ...]:
    """Return the bank's label of each class of the data set.

    Raises
    ------
    ValueError
        The bank is of other latents, other images, or lacks a class.
    """
    shape, wanted = tuple(bank.codes.shape[1:]), (channels, side, side)
    if shape != wanted or bank.size not in (0, spec.size):
        made = f" of images of {bank.size} pixels" if bank.size else ""
        raise ValueError(
            f"prior.path must have a bank of latents of shape {wanted} for images of"
            f" {spec.size} pixels, got {shape}{made}; make one by feddgm-pretrain --autoencoder"
            f" --size {spec.size}"
        )
    classes = match_classes(spec.classes, bank.classes)
    if classes is None:
        lacking = [name for name in spec.classes if match_classes((name,), bank.classes) is None]
        raise ValueError(
            f"prior.path must have a bank that knows every class of the data set, and it lacks"
            f" {lacking}; name the folders of its pictures as the data set names its classes, and"
            " make it anew by feddgm-pretrain --autoencoder"
        )
    return classes


def centre_crop(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c s s"]:
    """Return the middle ``size`` pixels either way."""
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]


@torch.no_grad()
def check_decoding(decoder: Decoder, latents: Float[Tensor, "n c h w"], place: Place) -> None:
    """Raise unless ``decoder`` makes images of a few latents that can be told apart.

    Raises
    ------
    ValueError
        They are not finite, not of the right shape, or the same everywhere or of every latent.
    """
    try:
        images = decoder(decoder.enter(latents))
    except RuntimeError as error:
        raise ValueError(
            f"{place} must decode latents of shape {(*latents.shape[1:],)}, and cannot"
            f" ({one_line(error)}); fetch its config.json and weights anew"
        ) from error
    height, width = (side * decoder.factor for side in latents.shape[2:])
    shape = (len(latents), decoder.out_channels, height, width)
    wrong = ""
    if images.shape != shape:
        wrong = f"images of shape {(*images.shape[1:],)} instead of {shape[1:]}"
    elif not torch.isfinite(images).all():
        wrong = "pixels that are not finite"
    elif images.std(dim=(1, 2, 3)).min() < LEAST_DEVIATION:
        wrong = "images of one colour"
    elif len(images) > 1 and (images[0] - images[1]).abs().max() < LEAST_DEVIATION:
        wrong = "the same image of every latent"
    if wrong:
        raise ValueError(
            f"{place} must decode latents to images, and gives {wrong}; its weights are not those"
            " of a trained model: fetch them anew, or choose others"
        )


def build_autoencoder_prior(config: PriorConfig, spec: ImageSpec) -> AutoencoderPrior:
    """Return the prior at ``config.path``, for images of ``spec``; a bank there is its own.

    Raises
    ------
    ValueError
        It does not load, or cannot make images of ``spec``.
    """
    place = Place(config.path, config.subfolder, config.revision)
    model = load_autoencoder(config.path, config.subfolder, config.revision)
    home = place.folder
    bank = LatentBank.load(home) if home is not None and (home / FILE).is_file() else None
    return prior_of(model, config, spec, bank, place)


def prior_of(
    model: ModelMixin, config: PriorConfig, spec: ImageSpec, bank: LatentBank | None, place: Place
) -> AutoencoderPrior:
    """Return the prior of a model, after its decoder was tried on latents of its own size."""
    decoder = Decoder(model, config.feature_block)
    # Seeded: what is decoded here must not depend on, or move, anybody's draws.
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, decoder.channels, TRIED_SIDE, TRIED_SIDE, generator=rng)
    check_decoding(decoder, latents, place)
    return AutoencoderPrior(decoder, spec, config.image_scale, bank)
