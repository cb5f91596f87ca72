"""The server's parts, put together from its config, and what it leaves when the rounds are done."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from feddgm_flwr.build import build_engine
from feddgm_flwr.config import DataConfig, RunConfig
from feddgm_flwr.core.algorithm import Emit, Setting, fresh_state, init_state, taught_by_prior
from feddgm_flwr.core.distillation.distill import Bench
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.models import build_global_model, build_surrogate, initialise
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import RoundReport, ServerState
from feddgm_flwr.data import datasets
from feddgm_flwr.data.partition import counts, partition
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.arithmetic import Arithmetic, Distillation
from feddgm_flwr.federation.baselines import build_baseline
from feddgm_flwr.federation.scoring import Scorer
from feddgm_flwr.generators import build_prior
from feddgm_flwr.monitoring import plots
from feddgm_flwr.monitoring.files import write_atomically
from feddgm_flwr.monitoring.results import Results

logger = logging.getLogger(__name__)

Control = Callable[[], ServerState]
"""Returns models that the prior alone has taught."""


@dataclass(frozen=True)
class ServerSide:
    """What the strategy is made of.

    Attributes
    ----------
    state, results
        Round 0's, or the checkpoint's.
    control
        None for a baseline, which has no prior.
    """

    arithmetic: Arithmetic
    state: ServerState
    results: Results
    scorer: Scorer
    control: Control | None = None


@contextmanager
def server_side(
    config: RunConfig, spec: ImageSpec, folder: Path, device: torch.device, emit: Emit
) -> Iterator[ServerSide]:
    """Build the server's parts and release them after the block."""
    test = server_images(config.data, "test")
    if config.strategy == "feddgm":
        setting = build_setting(config, spec, device)
        models = {"surrogate": setting.surrogate, **setting.global_models}
        try:
            parts = _restore(
                config,
                folder,
                Scorer(models, test, device),
                arithmetic=Distillation(setting, emit),
                fresh=lambda: init_state(setting, emit=emit),
            )
            yield replace(parts, control=lambda: control_state(setting, parts.state, emit))
        finally:
            setting.engine.close()
        return
    surrogate = build_surrogate(config.surrogate, spec)
    yield _restore(
        config,
        folder,
        Scorer({"surrogate": surrogate}, test, device),
        arithmetic=build_baseline(config.strategy, config.baseline),
        fresh=lambda: baseline_state(config, spec, device, emit),
    )


def build_setting(config: RunConfig, spec: ImageSpec, device: torch.device) -> Setting:
    """Return what FedDGM's arithmetic computes with; close its engine after the run.

    Raises
    ------
    ValueError
        Nothing can compile, though the config asks for it.
    """
    compiler = os.environ.get("CXX", "g++")
    if config.distill.compile and device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"distill.compile = true needs a C++ compiler, and {compiler} is not found; install "
            "one, name it by the environment's CXX, or set distill.compile = false"
        )
    surrogate = build_surrogate(config.surrogate, spec)
    prior = build_prior(config.generator, spec).to(device)
    bench = Bench(surrogate, prior, config.distill, spec, config.generator.chunk, device)
    return Setting(
        config=config,
        spec=spec,
        prior=prior,
        surrogate=surrogate,
        global_models={
            name: build_global_model(name, spec, config.surrogate)
            for name in config.global_model.name_list
        },
        device=device,
        engine=build_engine(config.distill, bench),
    )


def control_state(setting: Setting, state: ServerState, emit: Emit) -> ServerState:
    """Return the generator-only control; a run that starts from the prior starts from it."""
    if setting.config.starts_from_prior and setting.prior.conditional and not state.server_round:
        return state
    return taught_by_prior(fresh_state(setting), setting, emit=emit)


def baseline_state(
    config: RunConfig, spec: ImageSpec, device: torch.device, emit: Emit
) -> ServerState:
    """Return round 0 of a baseline: fresh weights, or FedDGM's own start where config asks."""
    if config.starts_from_prior:
        alone = replace(config, distill=replace(config.distill, engine="serial"))  # nothing distils
        state = init_state(build_setting(alone, spec, device), emit=emit)
        return ServerState(0, state.surrogate, {}, {}, ())
    surrogate = build_surrogate(config.surrogate, spec)
    initialise(surrogate, rng=derive(config.seed, "surrogate"))
    return ServerState(0, params_of(surrogate), {}, {}, ())


def _restore(
    config: RunConfig,
    folder: Path,
    scorer: Scorer,
    *,
    arithmetic: Arithmetic,
    fresh: Callable[[], ServerState],
) -> ServerSide:
    """Return the parts at round 0, or where the checkpoint left them."""
    if not config.resume:
        return ServerSide(arithmetic, fresh(), Results.of(config), scorer)
    saved = checkpoint.load(folder)
    checkpoint.check_same_run(saved.config, config.flat())
    arithmetic.recall(saved.memory)
    logger.info("going on after round %d", saved.state.server_round)
    results = Results.from_dict(saved.results)
    return ServerSide(arithmetic, saved.state, results, scorer)


def server_images(config: DataConfig, part: datasets.Part) -> ImageSet | None:
    """Return images that the server has itself; None, and a line in the log, where it has none."""
    packaged = config.name in ("mnist5k", "digits")
    if not packaged and not config.root:
        logger.info("the server has no %s images: data.root is empty", part)
        return None
    try:
        return datasets.load(config, part)
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and config.name not in ("folder", "npz"):
            raise
        logger.warning("the server has no %s images: %s", part, error)
        return None


def add_control(config: RunConfig, parts: ServerSide) -> None:
    """Score models that the prior alone has taught, once a run."""
    wanted = config.server.generator_only and not parts.results.generator_only
    if not wanted or parts.control is None or not parts.scorer.has_images:
        return
    logger.info("the control first: models that learn from the prior alone")
    taught = parts.control()
    models = {"surrogate": taught.surrogate, **taught.global_models}
    scores = parts.scorer.score(models)
    parts.results.generator_only = asdict(scores)
    told = ", ".join(f"{name} {value:.1%}" for name, value in scores.accuracy.items())
    logger.info("without any client the prior alone gives %s", told)


def draw_owners(config: RunConfig, spec: ImageSpec, num_partitions: int, folder: Path) -> None:
    """Draw who owns what, where the clients' data are parts of a set that is here too."""
    if num_partitions == 0:
        logger.info("no picture of who owns what: the clients have data of their own")
        return
    data = server_images(config.data, "train")
    if data is None:
        return
    labels = data.labels.numpy()
    parts = partition(labels, config.data, num_clients=num_partitions, seed=config.seed)
    owned = counts(parts, labels, spec.num_classes)
    plots.draw_ownership(owned.T, spec.classes, folder / "owners.png")


def draw_round(folder: Path, spec: ImageSpec) -> Callable[[int, RoundReport], None]:
    """Return what draws a round's distilled images."""

    def show(server_round: int, report: RoundReport) -> None:
        if len(report.fresh):
            plots.draw_round(folder / "images", server_round, report.fresh, spec.classes)

    return show


def save_models(state: ServerState, folder: Path) -> None:
    """Write the surrogate and the global models as safetensors."""
    for name, weights in {"surrogate": state.surrogate, **state.global_models}.items():
        tensors = {key: value.contiguous() for key, value in weights.items()}
        data = safetensors.torch.save(tensors)
        write_atomically(folder / "models" / f"{name}.safetensors", data)


def draw_results(results: Results, folder: Path) -> None:
    """Draw accuracy by round."""
    plots.draw_accuracy([results.to_dict()], folder / "accuracy.png")
