"""Runs units of work: in a pool of processes, each on one thread, each run resumable by its round.

Knows no table and no grid.
"""

import logging
import math
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from inprocess import Round, rounds_of

from comparing.store import Record, keep
from comparing.units import Unit
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.machine import device_of
from feddgm_flwr.monitoring.results import versions

logger = logging.getLogger(__name__)

Tell = Callable[[Unit, Record], None]


def run_all(units: Sequence[Unit], out: Path, workers: int, tell: Tell) -> None:
    """Run ``units`` in their order and keep each; ``tell`` hears of each as it is kept.

    An interrupt ends the workers at once; what they had begun goes on from its last round.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
        try:
            waiting = {pool.submit(run_unit, unit, out): unit for unit in units}
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    tell(waiting.pop(done), done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("feddgm_flwr").setLevel(logging.WARNING)


def run_unit(unit: Unit, out: Path) -> Record:
    """Run ``unit``, from its last round if it was begun before, keep and return its record."""
    partial = out / "partial" / unit.name
    record, after = _begun(unit, partial)
    config = unit.config
    began, before = time.perf_counter(), record["seconds"]
    device = device_of("server.device", config.server.device)
    try:
        for done in rounds_of(config, unit.clients, after=after, device=device):
            _note(record, done)
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


def _begun(unit: Unit, partial: Path) -> tuple[Record, Any]:
    """Return a run's record and state so far; an empty record and None where there is none."""
    if checkpoint.is_there(partial):
        saved = checkpoint.load(partial)
        if saved.config == unit.resolved:
            return saved.results, saved.state
    return _empty(unit), None


def _empty(unit: Unit) -> Record:
    return {
        "label": unit.label,
        "seed": unit.seed,
        "clients": unit.clients,
        "fingerprint": unit.fingerprint,
        "tried": unit.tried,
        "config": unit.resolved,
        "versions": versions(),
        "start": {},
        "rounds": [],
        "length": unit.length,
        "diverged": "",
        "seconds": 0.0,
        "finished": False,
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
        }
    )


def _checkpoint(unit: Unit, done: Round, record: Record) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(
        state=done.state,
        results=record,
        config=unit.resolved,
        prior="",
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
