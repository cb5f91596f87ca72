"""DynaFed (Pi et al., arXiv 2211.10878): images from the global model's own way, made once.

For R rounds the server averages and keeps each round's surrogate. Then it optimises pixels, soft
labels and the student's rate so that N student steps from the surrogate of a round s, drawn anew in
each iteration, end at that of round s + L (``core.distillation.matching``). From the next round on
the average is trained on these images before it is sent. Unlike the authors' code a target is one
round's surrogate and not a mean of several.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.params import Params, on
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.settings import restated, setting
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.core.synthetic import Latents, SyntheticSet, fresh_latents
from feddgm_flwr.core.training import TrainConfig
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools
    from feddgm_flwr.core.distillation.distill import Bench

PATH, IMAGES, TARGETS = "path", "images", "targets"


@dataclass(frozen=True, kw_only=True)
class DynaFedConfig(TrainConfig):
    """DynaFed: how the server makes images of its own way, and how the average learns from them."""

    section: ClassVar[str] = "dynafed"

    rounds_kept: int = setting(
        5, "Rounds of plain averaging whose surrogates are matched once they are done.", ge=1
    )
    span: int = setting(2, "Rounds from the start of a matched segment to its target.", ge=1)
    images_per_class: int = setting(5, "Images of each class.", ge=1)
    iterations: int = setting(200, "Descent steps on the images, each on one segment.", ge=1)
    student_steps: int = setting(10, "Steps of the student along a segment.", ge=1)
    student_lr: float = setting(
        0.02, "The student's learning rate at the start; it is learned.", gt=0
    )
    pixel_lr: float = setting(0.05, "Adam's step on the pixels.", gt=0)
    label_lr: float = setting(0.01, "Adam's step on the label logits.", ge=0)
    epochs: int = restated(
        TrainConfig, "epochs", 20, meaning="Passes of the average over the images, each round."
    )
    lr: float = restated(TrainConfig, "lr", 0.003)
    momentum: float = restated(TrainConfig, "momentum", 0.9)
    batch_size: int = restated(TrainConfig, "batch_size", 64)


def synthesise(
    path: Sequence[Params], bench: "Bench", span: int, *, seed: int, server_round: int
) -> Latents:
    """Return pixels and label logits whose training follows ``path``, ``span`` rounds at a time.

    A loss that is not finite ends the descent at the last finite pixels.

    Parameters
    ----------
    path
        Surrogates of successive rounds, more than ``span``.
    bench
        Its prior must be the pixels themselves.
    """
    from feddgm_flwr.core.distillation.distill import (
        DistillJob,
        Variables,
        after_last_step,
        student_input,
        student_of,
    )
    from feddgm_flwr.core.distillation.matching import matching_gradients

    config, device = bench.config, bench.device
    rng = derive(seed, "latents", server_round)
    each = dict.fromkeys(range(bench.num_classes), config.images_per_class)
    best = fresh_latents(bench.prior, each, bench.num_classes, config, rng=rng)
    labels = best.labels
    variables = Variables(best, config, bench.num_classes, device, bench.spread)
    student = student_of(bench.student.to(device))
    starts = torch.randint(len(path) - span, (config.iterations,), generator=rng).tolist()
    way = [on(device, params) for params in path]
    for iteration, s in enumerate(starts):
        job = DistillJob(0, server_round, seed, way[s], way[s + span], each, None)
        images, targets = variables.values.detach(), variables.targets()
        gradients = matching_gradients(
            student,
            student_input(bench, job, iteration, len(images)),
            job.start,
            job.target,
            images,
            targets,
            variables.student_lr(),
            steps=config.student_steps,
            exact=True,
        )
        if not math.isfinite(float(gradients.loss)):
            return best
        best = variables.latents(labels)
        variables.step(gradients.images, targets, gradients)
    return after_last_step(variables.latents(labels), best, "")[0]


def as_set(latents: Latents) -> SyntheticSet:
    """Return the images with their learned labels; they are nobody's in particular."""
    assert latents.label_logits is not None
    return SyntheticSet.of(latents.values, latents.label_logits.softmax(1))


def pixel_bench(own: DynaFedConfig, augment: str, config: RunConfig, tools: "Tools") -> "Bench":
    """Return what the descent of the pixels works with."""
    from feddgm_flwr.core.distillation.distill import Bench
    from feddgm_flwr.priors.pixel import PixelPrior

    distill = DistillConfig(
        images_per_class=own.images_per_class,
        iterations=own.iterations,
        student_steps=own.student_steps,
        student_lr=own.student_lr,
        latent_lr=own.pixel_lr,
        label_lr=own.label_lr,
        labels="soft",
        augment=augment,
    )
    module, spec = tools.learners.surrogate.module, tools.spec
    return Bench(module, PixelPrior(spec), distill, spec, config.prior.chunk, tools.device)


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    from feddgm_flwr.core.augment import fitting
    from feddgm_flwr.core.telling import phase

    own = config.of_method(DynaFedConfig)
    if own.span > own.rounds_kept:
        raise ValueError(
            f"dynafed.span must be at most dynafed.rounds-kept = {own.rounds_kept}, got "
            f"{own.span}; change one of the two with -c"
        )
    augment = fitting(own.augment, flip=tools.spec.flip)
    learner = replace(tools.learners.surrogate, config=replace(own, augment=augment))
    bench = pixel_bench(own, augment, config, tools)

    def advance(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, RoundReport | None]:
        number = state.server_round + 1
        mean = config.server.mean.of(updates, state.surrogate)
        if IMAGES in state.memory:
            lessons = SyntheticSet.of(state.memory[IMAGES], state.memory[TARGETS])
            rng = derive(config.seed, "surrogate-training", number)
            with phase("learn", number, emit):
                mean = learner.learn(mean, lessons, rng=rng, server_round=number, emit=emit)
            return replace(state, server_round=number, surrogate=mean), None
        path = [*state.memory.get(PATH, [state.surrogate]), mean]
        after = replace(state, server_round=number, surrogate=mean, memory={PATH: path})
        if len(path) <= own.rounds_kept:
            return after, None
        with phase("distill", number, emit):
            fresh = as_set(synthesise(path, bench, own.span, seed=config.seed, server_round=number))
        memory = {IMAGES: fresh.images, TARGETS: fresh.targets}
        return replace(after, memory=memory), RoundReport((), fresh)

    return ServerHalf(advance=advance)


METHODS = {
    "dynafed": Method(
        server=_server,
        settings=(DynaFedConfig,),
        shows_images=True,
        takes_mean=True,
        read=("prior.chunk",),
    )
}
