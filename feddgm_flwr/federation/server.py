"""The server's side of a run, put together from its config: a method's half, state, results."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from feddgm_flwr.build import Tools, build_tools, control_state, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.distillation.progress import Gallery
from feddgm_flwr.core.fidelity import Judge
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.start import fresh_state
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.events import ControlScored, Emit, RunStart
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.facts import facts
from feddgm_flwr.federation.judging import appoint
from feddgm_flwr.federation.scoring import Scorer
from feddgm_flwr.federation.server_data import server_images
from feddgm_flwr.methods.halves import ServerHalf, method_of
from feddgm_flwr.monitoring.results import Results, versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSide:
    """What a run's rounds are made of.

    Attributes
    ----------
    state, results
        Round 0's, or the checkpoint's.
    saved
        The checkpoint that is gone on from, if any.
    num_threads
        CPU threads of the server's own computing; they decide its last bits, so a run keeps the
        number that it began with.
    judge
        Measures how real distilled images look; None where the server has no data for it.
    taught
        The models that the prior taught for the start of this very run, else None.
    """

    config: RunConfig
    tools: Tools
    half: ServerHalf
    state: ServerState
    results: Results
    scorer: Scorer
    saved: checkpoint.Checkpoint | None
    num_threads: int
    taught: ServerState | None
    judge: Judge | None

    @property
    def prior(self) -> str:
        """Fingerprint of the prior; "" where the run has none."""
        return "" if self.tools.bench is None else self.tools.bench.prior.fingerprint


@dataclass(frozen=True)
class Said:
    """What Flower says of a run.

    Attributes
    ----------
    keys
        Settings that the user said.
    run
        Flower's own number of the run.
    """

    keys: tuple[str, ...] = ()
    run: str = ""


def restored(config: RunConfig, folder: Path) -> checkpoint.Checkpoint | None:
    """Return the checkpoint to go on from, or None for a run that begins.

    Raises
    ------
    ValueError
        There is none, ``config`` is another run's, or what begins would lose a run that is there.
    """
    if not config.resume:
        if checkpoint.is_there(folder):
            raise ValueError(
                f"out-dir must be a new folder, got {config.out_dir!r}, which holds a run; "
                "go on with that run by resume = true, or name another folder"
            )
        return None
    saved = checkpoint.load(folder)
    checkpoint.check_same_run(saved.config, config.flat())
    return saved


@contextmanager
def server_side(
    config: RunConfig,
    spec: ImageSpec,
    saved: checkpoint.Checkpoint | None,
    device: torch.device,
    emit: Emit,
    gallery: Gallery,
    said: Said,
) -> Iterator[ServerSide]:
    """Build the server's side and release it after the block."""
    num_threads = saved.threads if saved else config.server.threads or torch.get_num_threads()
    torch.set_num_threads(num_threads)
    begin(config, spec, device, emit, said, done=saved.state.server_round if saved else 0)
    tools = replace(build_tools(config, spec, device), gallery=gallery)
    say_what_is_missing(config, tools)
    scorer = Scorer(tools.learners.modules, server_images(config.data, "test"), device)
    half = method_of(config.method).server(config, tools, emit)
    try:
        if saved is None:
            state, results = first_state(config, tools, emit), Results.of(config)
        else:
            state, results = saved.state, Results.from_dict(saved.results)
            logger.info("going on after round %d", state.server_round)
        taught = state if saved is None and config.starts_from_prior else None
        if not config.makes_images:
            state = replace(state, global_models={})
        appointed = appoint(config, spec, device) if config.shows_images else None
        if appointed is not None:
            results.header["judge"] = appointed.about
        judge = None if appointed is None else appointed.judge
        side = ServerSide(
            config, tools, half, state, results, scorer, saved, num_threads, taught, judge
        )
        if saved is not None:
            checkpoint.check_same_prior(saved.prior, side.prior)
        yield side
    finally:
        half.close()


def begin(
    config: RunConfig,
    spec: ImageSpec,
    device: torch.device,
    emit: Emit,
    said: Said,
    *,
    done: int,
) -> None:
    """Tell what is run, with what, and where, after how many rounds done."""
    emit(
        RunStart(
            round=done,
            method=config.method,
            rounds=config.num_server_rounds,
            seed=config.seed,
            resumed=config.resume,
            config=config.flat(),
            classes=spec.classes,
            versions=versions(),
            machine=facts(device),
            pid=os.getpid(),
            said=said.keys,
            image={"channels": spec.channels, "size": spec.size},
            flower_run=said.run,
        )
    )


def say_what_is_missing(config: RunConfig, tools: Tools) -> None:
    """Say in one sentence why a method without images has no larger models."""
    if not config.global_model.names or config.makes_images:
        return
    teaches = tools.bench is not None and tools.bench.prior.conditional
    reported = teaches and config.start.control
    instead = "; they are reported as the prior alone taught them" if reported else ""
    logger.warning(
        "global-model.names = %r: method %s makes no images from which a larger model could learn "
        "in its rounds%s",
        config.global_model.names,
        config.method,
        instead,
    )


def add_control(side: ServerSide, emit: Emit) -> None:
    """Score models that the prior alone has taught, once a run, where it knows the classes."""
    config, bench = side.config, side.tools.bench
    if not config.start.control or side.results.generator_only or not side.scorer.has_images:
        return
    if bench is None or not bench.prior.conditional:
        return
    logger.info("the control first: models that learn from the prior alone")
    taught = side.taught
    if taught is None:
        fresh = fresh_state(side.tools.learners, seed=config.seed)
        taught = control_state(config, side.tools, fresh, emit)
    scores = side.scorer.score(taught.models)
    side.results.generator_only = asdict(scores)
    emit(ControlScored(round=0, **asdict(scores)))


def say_hello(config: RunConfig, folder: Path, device: torch.device) -> None:
    """Log where this runs, where its results go and what will happen."""
    logger.info("device %s, torch %s, flwr %s", device, torch.__version__, version("flwr"))
    logger.info("run folder: %s", folder)
    logger.info(
        "%s (recipe %s) on %s, %s partition, %d rounds, seed %d",
        config.method,
        config.recipe,
        config.data.name,
        config.data.partition,
        config.num_server_rounds,
        config.seed,
    )
    if idle := config.unread():
        logger.info("not read by method %s: %s", config.method, ", ".join(idle))
