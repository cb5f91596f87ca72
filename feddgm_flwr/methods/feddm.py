"""FedDM (Xiong et al., arXiv 2207.09653): clients send images, and the server trains on them.

A client makes a few images of each class it owns that look to models around the received one as its
own images do (``core.distribution``), and sends them instead of parameters: ``4 c h w`` bytes an
image, or ``c h w + 8`` as ``uint8``. The server trains the surrogate on the union of all. Unlike
the paper it does not hold the surrogate within the radius of what it sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.local import ClientConfig, Task, Walk
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.settings import restated, setting
from feddgm_flwr.core.state import ClientUpdate, Extra, RoundReport, ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.core.training import Rule, TrainConfig
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import ClientHalf, Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools

IMAGES, LABELS, RANGES = "images", "labels", "ranges"
FARTHEST = 100.0
"""Largest believable pixel, either way."""


@dataclass(frozen=True, kw_only=True)
class FedDMConfig(TrainConfig):
    """FedDM: how clients make images, and how the server trains on them."""

    section: ClassVar[str] = "feddm"

    images_per_class: int = setting(
        10, "Images that a client makes and sends of each class it owns.", ge=1
    )
    sent_as: Literal["float32", "uint8"] = setting(
        "float32",
        "The type of a pixel on its way: 4 bytes as it is, or 1 byte, rounded within its image's "
        "own range.",
    )
    begin: Literal["noise", "real"] = setting(
        "noise",
        "What images begin as; own images (`real`) would leave much of themselves in what is sent.",
    )
    iterations: int = setting(100, "Steps of a client on its images a round.", ge=0)
    image_lr: float = setting(1.0, "Step on the images.", gt=0)
    radius: float = setting(
        5.0, "How far from the received surrogate a client's models are drawn (rho).", ge=0
    )
    real_batch: int = setting(32, "Own images of each class a step.", ge=1)
    epochs: int = restated(TrainConfig, "epochs", 50, meaning="Passes of the surrogate over them.")
    lr: float = restated(TrainConfig, "lr", 0.01)
    momentum: float = restated(TrainConfig, "momentum", 0.9)
    batch_size: int = restated(TrainConfig, "batch_size", 64)


def make_images(
    model: nn.Module,
    data: ImageSet,
    task: Task,
    config: ClientConfig,
    rule: Rule,
    *,
    own: FedDMConfig,
    rng: torch.Generator,
    device: torch.device,
) -> Walk:
    """Return a client's images, and no parameters."""
    from feddgm_flwr.core.distribution import first_images, match_distributions

    images, labels = first_images(data, own.images_per_class, real=own.begin == "real", rng=rng)
    images, loss = match_distributions(
        model.to(device),
        data,
        task.params,
        images,
        labels,
        iterations=own.iterations,
        lr=own.image_lr,
        radius=own.radius,
        batch_size=own.real_batch,
        augmented=config.augment,
        rng=rng,
        device=device,
    )
    sent = rounded(images) if own.sent_as == "uint8" else {IMAGES: images}
    return Walk({}, own.iterations, loss, Extra(tensors={**sent, LABELS: labels}))


def rounded(images: Float[Tensor, "m c h w"]) -> dict[str, Tensor]:
    """Return images as bytes, each within its own range.

    Within [0, 1] they would no longer look to models as the client's do: nothing keeps their
    pixels there.
    """
    flat = images.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    step = ((high - low) / 255).clamp_min(torch.finfo(low.dtype).tiny)
    steps = ((flat - low[:, None]) / step[:, None]).round().to(torch.uint8)
    return {IMAGES: steps.view_as(images), RANGES: torch.stack([low, high], 1)}


def pixels(extra: Extra) -> Float[Tensor, "m c h w"]:
    """Return the images that a client sent, as floats."""
    images, ranges = extra.tensors[IMAGES], extra.tensors.get(RANGES)
    if ranges is None:
        return images
    low, high = ranges[:, 0, None, None, None], ranges[:, 1, None, None, None]
    return low + images.float() * ((high - low) / 255)


def wrong(extra: Extra, own: FedDMConfig, spec: ImageSpec) -> str:
    """Return why what a client sent cannot be believed, or ""."""
    names = [IMAGES, LABELS, *([RANGES] if own.sent_as == "uint8" else [])]
    if extra.numbers or set(extra.tensors) != set(names):
        return f"it must send {', '.join(names)} and nothing else"
    images, labels = extra.tensors[IMAGES], extra.tensors[LABELS]
    shape, kind = (spec.channels, spec.size, spec.size), getattr(torch, own.sent_as)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or images.dtype != kind:
        return (
            f"{IMAGES} must be {own.sent_as} of shape (n, {', '.join(map(str, shape))}), got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        return f"{LABELS} must be {len(images)} integers, got {labels.dtype} {tuple(labels.shape)}"
    ranges = extra.tensors.get(RANGES, torch.zeros(len(images), 2))
    if ranges.dtype != torch.float32 or ranges.shape != (len(images), 2):
        return f"{RANGES} must be float32 of shape ({len(images)}, 2)"
    return _wrong_values(pixels(extra), labels, own, spec)


def _wrong_values(images: Tensor, labels: Tensor, own: FedDMConfig, spec: ImageSpec) -> str:
    last = spec.num_classes - 1
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        return f"{LABELS} must be of at least 1 image and from 0 to {last}"
    if int(torch.bincount(labels).max()) > own.images_per_class:
        return f"it must send at most {own.images_per_class} images a class"
    if not float(images.abs().max()) <= FARTHEST:
        return f"pixels must be between -{FARTHEST:g} and {FARTHEST:g}"
    return ""


def union(updates: Sequence[ClientUpdate], spec: ImageSpec) -> SyntheticSet:
    """Return the images of all clients, each of weight 1."""
    sets = [SyntheticSet.empty(spec)]
    for u in updates:
        images, labels = pixels(u.extra), u.extra.tensors[LABELS]
        targets = one_hot(labels, spec.num_classes).float()
        sets.append(SyntheticSet.of(images, targets, u.partition_id))
    return SyntheticSet.concat(sets)


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    from feddgm_flwr.core.augment import fitting
    from feddgm_flwr.core.telling import phase

    own, spec = config.of_method(FedDMConfig), tools.spec
    learning = replace(own, augment=fitting(own.augment, flip=spec.flip))
    learner = replace(tools.learners.surrogate, config=learning)

    def advance(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, RoundReport]:
        number, images = state.server_round + 1, union(updates, spec)
        rng = derive(config.seed, "surrogate-training", number)
        with phase("learn", number, emit):
            surrogate = learner.learn(
                state.surrogate, images, rng=rng, server_round=number, emit=emit
            )
        return replace(state, server_round=number, surrogate=surrogate), RoundReport((), images)

    return ServerHalf(
        advance=advance, wrong=lambda extra, _: wrong(extra, own, spec), takes_params=False
    )


def _client(config: RunConfig) -> ClientHalf:
    own = config.of_method(FedDMConfig)
    return ClientHalf(walk=partial(make_images, own=own), up=lambda task, walked, *_: walked.made)


METHODS = {
    "feddm": Method(
        server=_server,
        client=_client,
        settings=(FedDMConfig,),
        shows_images=True,
        own_loss=True,
        unread=tuple(
            f"{ClientConfig.section}.{name}"
            for name in ("epochs", "lr", "momentum", "weight-decay", "batch-size", "compile")
        ),
    )
}
