"""The run log: events as lines of ``events.jsonl``, and what people are told of them.

Knows the kinds of ``feddgm_flwr.events`` and nothing of who tells them. A run outlives its log:
no error of the disk or of a listener gets out of here.
"""

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

from feddgm_flwr.events import (
    ClientClipped,
    ClientDisbelieved,
    ClientRejected,
    ClientReply,
    ControlScored,
    Distilled,
    DistillProgress,
    Emit,
    Event,
    Heartbeat,
    PrivacySpent,
    RoundEnd,
    RoundStart,
    RunEnd,
    Trained,
    TrainingFailed,
    TrainProgress,
    to_line,
)
from flwr_dashboard.writer import BEAT_S, FILE, OpenLog, Status

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
"""Least time on disk between two events of progress of one client or model."""


class EventLog(OpenLog):
    """Appends events to a run folder and passes them on; from any thread.

    Parameters
    ----------
    out_dir
        The run folder.
    listeners
        Told of every event after it is written.
    load
        What the heartbeat says that the run uses, beside memory and CPU.

    Raises
    ------
    OSError
        The log cannot be opened: a run that cannot write there should not begin.
    """

    def __init__(
        self, out_dir: Path, *listeners: Emit, load: Callable[[], dict[str, float]] = dict
    ) -> None:
        super().__init__(out_dir, BEAT_S)
        self._listeners = listeners
        self._throttle = _Throttle()
        self._further_load = load
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Write one event, unless it is one of too many of progress, and tell the listeners."""
        try:
            with self._lock:
                self._round = event.round
                wanted = self._throttle.lets(event, time.monotonic())
            if wanted:
                self._file.append(to_line(event, time.time()))
        except Exception as error:
            self._warn_once(FILE, error)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                self._warn_once(listener, error)

    def _beat(self) -> None:
        load = {**self._load(), **self._further_load()}
        self.emit(Heartbeat(round=self._round, pid=os.getpid(), load=load))

    def _end(self, status: Status, reason: str) -> None:
        self.emit(RunEnd(round=self._round, status=status, reason=reason))

    def _warn(self, what: object, error: Exception) -> None:
        logger.warning("%s misses events, and the run goes on: %r", what, error)


class _Throttle:
    """Thins out progress: of 200 clients it would be four fifths of the log."""

    def __init__(self) -> None:
        self._last: dict[tuple[type[Event], int | str], float] = {}

    def lets(self, event: Event, now: float) -> bool:
        """Whether to write ``event``; the last step of a client or a model always is."""
        who: int | str
        if isinstance(event, DistillProgress):
            who, last = event.partition_id, event.iteration >= event.iterations
        elif isinstance(event, TrainProgress):
            who, last = event.model, event.epoch >= event.epochs
        else:
            return True
        key = (type(event), who)
        if not last and now - self._last.get(key, -math.inf) < PROGRESS_EVERY_S:
            return False
        self._last[key] = now
        return True


class LogFollower:
    """Says events in log lines: one a client, one a round, and progress now and then.

    Parameters
    ----------
    every_s
        Least time between two progress lines.
    """

    def __init__(self, *, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._last_progress = -math.inf

    def __call__(self, event: Event) -> None:
        """Log ``event`` if a person wants to know."""
        if isinstance(event, DistillProgress | TrainProgress):
            now = time.monotonic()
            if now - self._last_progress < self._every_s:
                return
            self._last_progress = now
        said = sentence(event)
        if said:
            bad = isinstance(
                event, ClientClipped | ClientDisbelieved | ClientRejected | TrainingFailed
            )
            logger.log(logging.WARNING if bad else logging.INFO, "%s", said)


@functools.singledispatch
def sentence(event: Event) -> str:
    """Return ``event`` in words; "" for a kind that people need not hear of."""
    return ""


@sentence.register
def _(e: RoundStart) -> str:
    return f"round {e.round} of {e.rounds}: {len(e.clients)} of {e.online} clients train"


@sentence.register
def _(e: ClientReply) -> str:
    loss = f", loss {e.train_loss:.3f}" if _is_number(e.train_loss) else ""
    spent = f", {e.seconds:.1f} s" if _is_number(e.seconds) else ""
    return f"client {e.partition_id}: {e.num_examples} images{loss}{spent}"


@sentence.register
def _(e: ClientRejected) -> str:
    who = "a stray reply" if e.partition_id is None else f"client {e.partition_id}"
    return f"{who} is set aside ({e.reply}): {e.reason}"


@sentence.register
def _(e: ClientClipped) -> str:
    return f"client {e.partition_id} claims {e.claimed:.4g} {e.what}; {e.counted:.4g} count"


@sentence.register
def _(e: ClientDisbelieved) -> str:
    return (
        f"client {e.partition_id} is not believed: on the others' images of its classes its reply "
        f"is no better than what it was sent ({e.gain:+.3f})"
    )


@sentence.register
def _(e: PrivacySpent) -> str:
    if e.epsilon is None:
        return (
            "privacy so far: epsilon is not known, as no client of those asked "
            f"({e.unknown}) has said how many images it has"
        )
    known = f"of the {len(e.clients)} that have said how many they have, and not known for "
    whose = f"{known}{e.unknown} that have not" if e.unknown else "of a client"
    return (
        f"privacy so far: epsilon at most {_number(e.epsilon)} at delta {e.delta:g}, for one image "
        f"{whose}"
    )


@sentence.register
def _(e: DistillProgress) -> str:
    return (
        f"distilling {_whose(e.partition_id)}: iteration {e.iteration} of {e.iterations}, "
        f"matching loss {_number(e.loss)}{_left(e.eta_s)}"
    )


@sentence.register
def _(e: Distilled) -> str:
    line = (
        f"distilled {_whose(e.partition_id)}: {e.num_images} images of {len(e.classes)} classes, "
        f"matching loss {_number(e.first_loss)} -> {_number(e.last_loss)} in {e.seconds:.1f} s"
    )
    stopped = f" ({e.stopped})" if e.stopped else ""
    return line + stopped + _left(e.eta_s)


@sentence.register
def _(e: TrainProgress) -> str:
    return (
        f"training {e.model}: epoch {e.epoch} of {e.epochs}, loss {_number(e.loss)}{_left(e.eta_s)}"
    )


@sentence.register
def _(e: Trained) -> str:
    return (
        f"trained {e.model} on {e.images} synthetic images: {e.epochs} epochs, "
        f"loss {_number(e.loss)}, {e.seconds:.1f} s"
    )


@sentence.register
def _(e: TrainingFailed) -> str:
    return f"training {e.model} failed, so it stays as it was: {e.reason}"


@sentence.register
def _(e: ControlScored) -> str:
    scores = ", ".join(f"{name} {value:.1%}" for name, value in e.accuracy.items())
    return f"without any client the prior alone gives {scores}"


@sentence.register
def _(e: RoundEnd) -> str:
    scores = ", ".join(f"{name} {value:.1%}" for name, value in e.accuracy.items())
    kept = f"; the model stays as it was: {e.kept}" if e.kept else ""
    return (
        f"round {e.round} done: {scores or 'not scored'} in {e.seconds:.1f} s, "
        f"{_size(e.bytes_up)} up, {_size(e.bytes_down)} down{kept}{_left(e.eta_s)}"
    )


@sentence.register
def _(e: RunEnd) -> str:
    if e.status == "completed":
        return "the run is complete"
    return f"the run {'was stopped' if e.status == 'stopped' else 'failed'}: {e.reason}"


def _whose(partition_id: int) -> str:
    return f"client {partition_id}" if partition_id >= 0 else "the mean of all clients"


def _left(seconds: float) -> str:
    return f"; about {duration(seconds)} left" if seconds and math.isfinite(seconds) else ""


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not a number"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Return ``seconds`` as a person says them: 48 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
