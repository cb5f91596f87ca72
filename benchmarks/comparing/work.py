"""Runs units of work: in a pool of processes, each on one thread, each run resumable by its round.

Local training that several units share is done before them, client by client, so that no two
processes train the same. Knows no table and no grid.
"""

import logging
import math
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from inprocess import Local, Round, own_images, quiet, rounds_of, task_of, train_now

from comparing.shared import FIRST, SharedTraining
from comparing.store import Record, keep
from comparing.units import Unit, same_prior
from feddgm_flwr.build import build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.judging import appoint
from feddgm_flwr.federation.machine import device_of, name_of
from feddgm_flwr.federation.sampling import sampled
from feddgm_flwr.methods.client import Client
from feddgm_flwr.methods.halves import method_of
from feddgm_flwr.monitoring.plots import draw_grid
from feddgm_flwr.monitoring.results import versions
from feddgm_flwr.priors import build_prior

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Tell = Callable[[Unit, Record], None]


def run_all(units: Sequence[Unit], out: Path, workers: int, tell: Tell) -> None:
    """Run ``units`` in their order and keep each; ``tell`` hears of each as it is kept.

    An interrupt ends the workers at once; what they had begun goes on from its last round, and
    clients whose training was shared and finished are not trained again.

    Raises
    ------
    RuntimeError
        Runs failed; each was told as it failed, and the others were finished first.
    """
    context = multiprocessing.get_context("spawn")
    shared = shared_training(units)
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
        try:
            training = {pool.submit(_tried, train_client, u, i, out): (u, i) for u, i in shared}
            for number, (told, _) in enumerate(_as_they_end(training), 1):
                logger.info("%d of %d clients' shared training done", number, len(shared))
                if told is not None:  # the runs that need it train it themselves, or fail alone
                    logger.error("a client's shared training failed:\n%s", told)
            running = {pool.submit(_tried, run_unit, unit, out): unit for unit in units}
            failed = []
            for done, unit in _as_they_end(running):
                if isinstance(done, str):
                    logger.error("%s failed:\n%s", unit.name, done)
                    failed.append(unit.name)
                else:
                    tell(unit, done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed: {', '.join(failed)}; start again to retry")


def _tried(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | str:
    """Return what ``work`` returns, or the traceback of what ended it."""
    try:
        return work(*args, **kwargs)
    except Exception:
        return traceback.format_exc()


def _as_they_end(waiting: dict[Future[R], T]) -> Iterator[tuple[R, T]]:
    """Yield each result, with what it was computed for, as soon as it is there."""
    while waiting:
        for done in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield done.result(), waiting.pop(done)


def shared_training(units: Sequence[Unit]) -> list[tuple[Unit, int]]:
    """Return which clients train for several of ``units``: of each such group one unit, client."""
    first: dict[tuple[object, ...], Unit] = {}
    for unit in units:
        config = unit.config
        if not unit.shares_training or not unit.length or config.privacy.on:
            continue
        if method_of(config.method).client(config).trains_plainly:
            same = (config.client, config.data, config.surrogate, config.seed, unit.clients)
            first.setdefault((*same, unit.fingerprint, _teacher(config)), unit)
    return [
        (unit, i)
        for unit in first.values()
        for i in sampled(range(unit.clients), unit.config.rounds.fraction_train, unit.seed, FIRST)
    ]


def _teacher(config: RunConfig) -> object:
    """Return what makes a run's start another than the seed's fresh weights; None if nothing."""
    if not config.starts_from_prior:
        return None
    prior = build_prior(config.prior, spec_of(config.data))
    return (config.prior, config.start) if prior.conditional else None


def train_client(unit: Unit, partition_id: int, out: Path) -> None:
    """Do a client's part of the first round of ``unit``, for all runs that share it."""
    device = _device(unit)
    config = unit.config
    tools = build_tools(config, spec_of(config.data), device)
    client = Client(config, tools.spec, partition_id, device)
    task = task_of(first_state(config, tools, quiet), client, None)
    data = own_images(config.data, partition_id, unit.clients, config.seed)
    # A client that diverges does so in the run as well, which is where that is a result.
    with suppress(FloatingPointError):
        _training(unit, out)(client, task, data)


def _training(unit: Unit, out: Path) -> Local:
    return SharedTraining(out / "data" / "local") if unit.shares_training else train_now


def _device(unit: Unit) -> torch.device:
    return device_of("--device", unit.device or unit.config.server.device)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("feddgm_flwr").setLevel(logging.WARNING)


def run_unit(unit: Unit, out: Path) -> Record:
    """Run ``unit``, from its last round if it was begun before, keep and return its record."""
    partial = out / "partial" / unit.name
    device = _device(unit)
    record, after = _begun(unit, partial, device)
    config, local = unit.config, _training(unit, out)
    judge = appoint(config, spec_of(config.data), device)
    began, before = time.perf_counter(), record["seconds"]
    try:
        for done in rounds_of(config, unit.clients, after=after, device=device, local=local):
            _note(record, done)
            if judge and done.report and len(done.report.fresh):
                record["rounds"][-1]["fidelity"] = judge.judge(done.report.fresh)
                _draw(done, unit, out / "pictures" / unit.name)
            record["seconds"] = before + time.perf_counter() - began
            if done.number >= unit.length:
                break
            checkpoint.save(partial, _checkpoint(unit, done, record))
    except FloatingPointError as error:
        record["diverged"] = str(error)
        record["seconds"] = before + time.perf_counter() - began
    record["finished"] = True
    keep(out, unit, record)
    shutil.rmtree(partial, ignore_errors=True)
    return record


def _begun(unit: Unit, partial: Path, device: torch.device) -> tuple[Record, Any]:
    """Return a run's record and state so far; an empty record and None where there is none."""
    if checkpoint.is_there(partial):
        saved = checkpoint.load(partial)
        if saved.config == unit.resolved and same_prior(saved.prior, unit):
            return saved.results, saved.state
    return _empty(unit, device), None


def _empty(unit: Unit, device: torch.device) -> Record:
    return {
        "label": unit.label,
        "seed": unit.seed,
        "clients": unit.clients,
        "fingerprint": unit.fingerprint,
        "tried": unit.tried,
        "config": unit.resolved,
        "prior": unit.prior,
        "versions": versions(),
        "machine": machine(device),
        "start": {},
        "rounds": [],
        "length": unit.length,
        "diverged": "",
        "seconds": 0.0,
        "finished": False,
    }


def machine(device: torch.device) -> dict[str, Scalar]:
    """Return what a run's seconds depend on, for a record that anybody may read."""
    return {
        "device": name_of(device),
        "processor": platform.machine(),
        "cpus": os.cpu_count() or 0,
    }


def _note(record: Record, done: Round) -> None:
    if not done.number:
        record["start"] = done.accuracy
        return
    record["rounds"].append(
        {
            "round": done.number,
            "accuracy": done.accuracy,
            "asked": len(done.asked),
            **asdict(done.cost),
            **_matching(done),
        }
    )


def _matching(done: Round) -> Record:
    """Return the mean matching loss over clients, before and after distillation."""
    reports = done.report.distilled if done.report else ()
    moved = [r for r in reports if r.iterations]
    if not moved:
        return {}
    first, last = (statistics.fmean(v) for v in zip(*((r.first_loss, r.last_loss) for r in moved),
                                                    strict=True))  # fmt: skip
    return {"matching": {"first": first, "last": last}}


def _draw(done: Round, unit: Unit, folder: Path) -> None:
    """Draw the first and the last round's images."""
    if done.report and done.number in (1, unit.length):
        classes = spec_of(unit.config.data).classes
        path = folder / f"round_{done.number:03d}.png"
        title = f"{unit.label}, round {done.number}"
        draw_grid(done.report.fresh, classes, path, title=title)


def _checkpoint(unit: Unit, done: Round, record: Record) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(
        state=done.state,
        results=record,
        config=unit.resolved,
        prior=unit.prior,
        partitions=unit.clients,
        clients=[],
        threads=1,
    )


class Progress:
    """Says how far a list of units is, and how long the rest may take.

    Parameters
    ----------
    known
        Finished runs, from which the seconds of like ones are guessed.
    """

    def __init__(self, units: Sequence[Unit], known: Mapping[str, Record], workers: int) -> None:
        self._left = {unit.name: unit for unit in units if unit.name not in known}
        self._all, self._workers = len(units), workers
        self._spent: dict[str, list[float]] = {}
        for record in known.values():
            self._learn(record)

    def _learn(self, record: Record) -> None:
        rate = record["seconds"] / max(1, len(record["rounds"]))
        self._spent.setdefault(record["label"], []).append(rate)

    def left_s(self) -> float:
        """Return the seconds that the rest may take; NaN before anything is known."""
        rates = {label: sum(s) / len(s) for label, s in self._spent.items()}
        if not rates:
            return math.nan
        usual = sum(rates.values()) / len(rates)
        left = self._left.values()
        return sum(rates.get(u.label, usual) * max(1, u.length) for u in left) / self._workers

    def __call__(self, unit: Unit, record: Record) -> None:
        """Say that ``unit`` is finished."""
        self._left.pop(unit.name, None)
        self._learn(record)
        last = record["rounds"][-1]["accuracy"] if record["rounds"] else record["start"]
        reached = "diverged" if record["diverged"] else f"{100 * last['surrogate']:.1f} %"
        logger.info(
            "%d of %d done, %s left: %s, seed %d%s: %s in %.0f s",
            self._all - len(self._left),
            self._all,
            duration(self.left_s()),
            unit.label,
            unit.seed,
            "".join(f", {key} = {value}" for key, value in unit.tried.items()),
            reached,
            record["seconds"],
        )


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if math.isnan(seconds):
        return "an unknown time"
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
