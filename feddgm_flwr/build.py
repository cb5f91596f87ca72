"""The tools of a run, put together from its config, without Flower.

Whoever reproduces or extends the algorithm in a plain script begins here (examples/one_round.py);
the apps do too. A client's half is ``methods.client``. Knows no file but the prior's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from feddgm_flwr.compiler import need_compiler
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import Workshop
from feddgm_flwr.core.augment import fitting
from feddgm_flwr.core.distillation.distill import Bench
from feddgm_flwr.core.distillation.engine import (
    Engine,
    ProcessEngine,
    SerialEngine,
    default_workers,
)
from feddgm_flwr.core.distillation.nearness import spread_of
from feddgm_flwr.core.distillation.progress import Gallery
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.learning import Learner, Learners
from feddgm_flwr.core.models import SURROGATE, build_global_model, build_surrogate
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.start import fresh_state, taught_by_prior
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.events import Emit
from feddgm_flwr.priors import build_prior

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tools:
    """What a server works with.

    Attributes
    ----------
    bench
        None where neither the method nor the start needs a prior.
    gallery
        Where images are shown while they grow.
    """

    spec: ImageSpec
    device: torch.device
    learners: Learners
    bench: Bench | None
    gallery: Gallery = field(default_factory=Gallery)


def build_tools(config: RunConfig, spec: ImageSpec, device: torch.device = CPU) -> Tools:
    """Return a run's models, and its prior on the bench of distillation where one is needed.

    Raises
    ------
    ValueError
        The prior or a model cannot make or take such images.
    """
    # Without images a larger model is taught by the prior alone, as a control, or by nothing.
    shown = config.makes_images or (config.needs_prior and config.start.control)
    names = config.global_model.names if shown else ""
    config = replace(config, global_model=replace(config.global_model, names=names))
    learners = build_learners(config, spec, device)
    bench = build_bench(config, spec, learners, device) if config.needs_prior else None
    return Tools(spec, device, learners, bench)


def build_learners(config: RunConfig, spec: ImageSpec, device: torch.device = CPU) -> Learners:
    """Return the surrogates and the global models, with how each learns from synthetic images."""
    union = replace(config.union, augment=fitting(config.union.augment, flip=spec.flip))
    large = config.global_model
    large = replace(large, augment=fitting(large.augment, flip=spec.flip))
    surrogates = {
        name: Learner(name, build_surrogate(architecture, spec), union, device)
        for name, architecture in config.surrogate.architectures.items()
    }
    return Learners(
        surrogates.pop(SURROGATE),
        {
            name: Learner(name, build_global_model(name, spec, config.surrogate), large, device)
            for name in large.name_list
        },
        narrow=surrogates,
    )


def build_bench(
    config: RunConfig, spec: ImageSpec, learners: Learners, device: torch.device = CPU
) -> Bench:
    """Return what every client's distillation shares."""
    distill = replace(config.distill, augment=fitting(config.distill.augment, flip=spec.flip))
    prior = build_prior(config.prior, spec, device).to(device)
    rng = derive(config.seed, "prior-spread")
    spread = spread_of(prior, spec.num_classes, rng=rng) if distill.prior_weight else None
    return Bench(
        learners.surrogate.module,
        prior,
        distill,
        spec,
        config.prior.chunk,
        device,
        {name: learner.module for name, learner in learners.narrow.items()},
        spread,
    )


@contextmanager
def workshop(config: RunConfig, tools: Tools) -> Iterator[Workshop]:
    """Build what Algorithm 1 works with, and release its workers after the block."""
    assert tools.bench is not None
    engine = build_engine(config.distill, tools.bench)
    try:
        yield Workshop(
            bench=tools.bench,
            engine=engine,
            learners=tools.learners,
            union=config.union,
            client=config.client,
            seed=config.seed,
            gallery=tools.gallery,
            mean=config.server.mean,
        )
    finally:
        engine.close()


def first_state(config: RunConfig, tools: Tools, emit: Emit) -> ServerState:
    """Return round 0: seeded fresh weights, or models that the prior taught."""
    fresh = fresh_state(tools.learners, seed=config.seed)
    return control_state(config, tools, fresh, emit) if config.starts_from_prior else fresh


def control_state(config: RunConfig, tools: Tools, fresh: ServerState, emit: Emit) -> ServerState:
    """Return models that samples of the prior alone have taught."""
    assert tools.bench is not None
    return taught_by_prior(
        fresh,
        tools.learners,
        tools.bench,
        config.start,
        images_per_class=config.union.prior_images_per_class,
        seed=config.seed,
        emit=emit,
    )


def build_engine(config: DistillConfig, bench: Bench) -> Engine:
    """Return the engine that ``config`` names; close it after the run.

    Raises
    ------
    ValueError
        Nothing here can compile, though the config asks for it.
    """
    if config.compile:
        need_compiler("distill.compile", bench.device)
    match config.engine:
        case "serial":
            return SerialEngine(bench)
        case "processes":
            workers = config.workers or default_workers(bench.device)
            return SerialEngine(bench) if workers == 1 else ProcessEngine(bench, workers)
        case "ray":
            from feddgm_flwr.cluster import RayEngine

            return RayEngine(
                bench,
                workers=config.workers,
                address=config.ray_address,
                gpus=config.ray_gpus,
            )
