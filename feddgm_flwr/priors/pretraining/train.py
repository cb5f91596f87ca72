"""Fit a small diffusers autoencoder to a source, and bank its latents by class.

Step k draws its batch from a generator keyed by k, so that a run that was cut off and
resumed ends where the uninterrupted one ends, bit for bit on one thread count.
"""

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float, Int
from torch import Tensor, nn

from feddgm_flwr.core.seeding import derive, derive_seed
from feddgm_flwr.files import DamagedError, seal, unseal
from feddgm_flwr.priors.bank import LatentBank
from feddgm_flwr.priors.pretraining.sources import Source

CHECKPOINT = "checkpoint.feddgm"
KIND = "feddgm pretraining 1"
SAVE_EVERY = 250
BANK_BYTES = 1_600_000
"""Room for the bank at a byte a number: weights and bank together stay under 2 MB."""
BANK_PER_CLASS = 400
"""More latents a class than this would help no more."""
LEAST = {"seed": 0, "steps": 1, "batch": 1, "width": 1, "latent_channels": 1, "noise": 0}
"""Options of a number -> the least that it may be."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a training run depends on.

    Attributes
    ----------
    steps, batch, lr
        Adam steps, images a step, peak learning rate (warm-up, then a cosine).
    width
        Channels of every layer.
    latent_channels
        The latent is this many channels at a quarter of the side.
    noise
        Standard deviation of the noise on latents in training: what a small step in
        latent space must not break.

    Raises
    ------
    ValueError
        A value out of range, or not finite.
    """

    seed: int = 0
    steps: int = 6000
    batch: int = 64
    lr: float = 4e-3
    width: int = 16
    latent_channels: int = 4
    noise: float = 0.15
    channels: int = 1
    size: int = 28

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            _check(least <= value < math.inf, name, value, f"{least} or more")
        _check(0 < self.lr < math.inf, "lr", self.lr, "greater than 0")
        _check(self.channels in (1, 3), "channels", self.channels, "1 or 3")
        fits = 8 <= self.size <= 1024 and self.size % 4 == 0
        _check(fits, "size", self.size, "a multiple of 4 from 8 to 1024")


def _check(ok: bool, name: str, value: float | int, expected: str) -> None:
    if not ok:
        option = name.replace("_", "-")
        raise ValueError(f"{option} must be {expected}, got {value!r}; correct it")


def build_autoencoder(config: Pretraining) -> AutoencoderTiny:
    """Return an untrained model: two halvings, all depth at the coarse scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "pretrain-weights"))
        return AutoencoderTiny(
            in_channels=config.channels,
            out_channels=config.channels,
            latent_channels=config.latent_channels,
            encoder_block_out_channels=(config.width,) * 3,
            decoder_block_out_channels=(config.width,) * 3,
            num_encoder_blocks=(0, 1, 2),
            num_decoder_blocks=(3, 3, 0),
        )


def loss_of(
    model: AutoencoderTiny,
    images: Float[Tensor, "n c h w"],
    noise: float,
    *,
    rng: torch.Generator,
) -> Float[Tensor, ""]:
    """Return the reconstruction error, plus what keeps latents near unit variance."""
    target = images * 2 - 1
    latents = model.encode(target).latents
    noisy = latents + noise * torch.randn(latents.shape, generator=rng)
    decoded = model.decode(noisy).sample
    error = decoded - target
    mean, var = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    spread = mean.square().mean() + (var - 1).square().mean()
    loss: Tensor = error.abs().mean() + error.square().mean() + 0.01 * spread
    return loss


def learning_rate(config: Pretraining, step: int) -> float:
    """Return a linear warm-up over 2 % of the steps, then a cosine to zero."""
    warm = max(1, config.steps // 50)
    return config.lr * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def fit(
    config: Pretraining,
    source: Source,
    folder: Path,
    *,
    on_step: Callable[[int, float], None],
) -> AutoencoderTiny:
    """Train to the last step, from ``folder``'s checkpoint where there is one.

    Raises
    ------
    ValueError
        The checkpoint belongs to another run.
    """
    model = build_autoencoder(config)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    start = _resume(config, source, folder, model, optimizer)
    for step in range(start, config.steps):
        rng = derive(config.seed, "pretrain-batch", step)
        images = source.images(source.labels(config.batch, rng=rng), rng=rng)
        loss = loss_of(model, images, config.noise, rng=rng)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == config.steps:
            _save(config, source, folder, model, optimizer, step + 1)
    return model.eval().requires_grad_(False)


def _save(
    config: Pretraining, source: Source, folder: Path,
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int,
) -> None:  # fmt: skip
    state = {
        "run": _identity(config, source), "step": step,
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state, buffer)
    seal(folder / CHECKPOINT, KIND, buffer.getvalue())


def _resume(
    config: Pretraining, source: Source, folder: Path,
    model: nn.Module, optimizer: torch.optim.Optimizer,
) -> int:  # fmt: skip
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(io.BytesIO(unseal(path, KIND)), weights_only=True)
    except DamagedError as error:
        raise ValueError(
            f"pretraining cannot go on from {error}; delete it to begin anew, or give another --out"
        ) from error
    if state["run"] != _identity(config, source):
        raise ValueError(
            f"{path} is of another run: {state['run']}; give the same options, another"
            " --out, or delete it"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _identity(config: Pretraining, source: Source) -> dict[str, object]:
    pictures = {"pictures": source.fingerprint} if source.fingerprint else {}
    return {**asdict(config), "classes": list(source.classes), **pictures}


@torch.no_grad()
def make_bank(model: AutoencoderTiny, config: Pretraining, source: Source) -> LatentBank:
    """Return encodings of fresh images of every class, as many as there is room for."""
    room = BANK_BYTES // (config.latent_channels * (config.size // 4) ** 2)
    latents, labels = [], []
    for label, share in enumerate(source.bank_shares):
        count = max(2, min(BANK_PER_CLASS, int(room * share)))
        mine = torch.full((count,), label)
        latents.append(_encode(model, config, source, mine))
        labels.append(mine)
    return LatentBank.quantised(torch.cat(latents), torch.cat(labels), source.classes)


def _encode(
    model: AutoencoderTiny,
    config: Pretraining,
    source: Source,
    labels: Int[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    images = source.images(labels, rng=derive(config.seed, "pretrain-bank", int(labels[0])))
    encoded: Tensor = model.encode(images * 2 - 1).latents
    return encoded
