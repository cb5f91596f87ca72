"""The run log: one JSON object a line in ``events.jsonl``, and its lines for people.

Every event has ``time`` (seconds since the epoch) and ``kind``. The core and the strategy say
what happened, through ``emit``; nothing here knows more of an event than how to say it.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

Event = Mapping[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Appends events to a run folder and passes them on.

    Parameters
    ----------
    out_dir
        The run folder.
    listeners
        Told of every event after it is written.
    """

    def __init__(self, out_dir: Path, *listeners: Listener) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        self._file = (out_dir / "events.jsonl").open("a", encoding="utf-8")
        self._listeners = listeners

    def emit(self, kind: str, **fields: Any) -> None:  # noqa: ANN401
        """Write one event; numbers that JSON lacks (NaN, infinity) become null."""
        event = {"time": time.time(), "kind": kind, **_json(fields)}
        self._file.write(json.dumps(event, allow_nan=False) + "\n")
        self._file.flush()
        for listener in self._listeners:
            listener(event)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say how the run ended, whatever happened, and close the file."""
        if error is None:
            self.emit("run-end", status="completed", reason="")
        else:
            self.emit("run-end", status="failed", reason=f"{type(error).__name__}: {error}")
        self._file.close()


def _json(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
        if event["kind"] in ("distill-progress", "train-progress"):
            now = time.monotonic()
            if now - self._last_progress < self._every_s:
                return
            self._last_progress = now
        say = _LINES.get(event["kind"])
        if say is None:
            return
        bad = event["kind"] in ("client-rejected", "training-failed")
        level = logging.WARNING if bad else logging.INFO
        logger.log(level, "%s", say(event))


def _round_start(e: Event) -> str:
    return (
        f"round {e['round']} of {e['rounds']}: {len(e['clients'])} of {e['online']} clients train"
    )


def _client_reply(e: Event) -> str:
    loss = "" if e["train_loss"] is None else f", loss {e['train_loss']:.3f}"
    spent = "" if e["seconds"] is None else f", {e['seconds']:.1f} s"
    return f"client {e['partition_id']}: {e['num_examples']} images{loss}{spent}"


def _client_rejected(e: Event) -> str:
    who = "a stray reply" if e["partition_id"] is None else f"client {e['partition_id']}"
    return f"{who} is set aside ({e['reply']}): {e['reason']}"


def _distill_progress(e: Event) -> str:
    return (
        f"distilling client {e['partition_id']}: iteration {e['iteration']} of "
        f"{e['iterations']}, matching loss {_number(e['loss'])}{_left(e)}"
    )


def _distilled(e: Event) -> str:
    line = (
        f"distilled client {e['partition_id']}: {e['num_images']} images of "
        f"{len(e['classes'])} classes, matching loss {_number(e['first_loss'])} -> "
        f"{_number(e['last_loss'])} in {e['seconds']:.1f} s"
    )
    stopped = f" ({e['stopped']})" if e["stopped"] else ""
    return line + stopped + _left(e)


def _train_progress(e: Event) -> str:
    return (
        f"training {e['model']}: epoch {e['epoch']} of {e['epochs']}, "
        f"loss {_number(e['loss'])}{_left(e)}"
    )


def _trained(e: Event) -> str:
    return (
        f"trained {e['model']} on {e['images']} synthetic images: {e['epochs']} epochs, "
        f"loss {_number(e['loss'])}, {e['seconds']:.1f} s"
    )


def _training_failed(e: Event) -> str:
    return f"training {e['model']} failed, so it stays as it was: {e['reason']}"


def _models_trained(e: Event) -> str:
    return f"server's part of round {e['round']} took {e['seconds']:.1f} s"


def _round_end(e: Event) -> str:
    scores = ", ".join(f"{name} {value:.1%}" for name, value in e["accuracy"].items())
    kept = f"; the model stays as it was: {e['kept']}" if e["kept"] else ""
    return (
        f"round {e['round']} done: {scores or 'not scored'} in {e['seconds']:.1f} s, "
        f"{_size(e['bytes_up'])} up, {_size(e['bytes_down'])} down{kept}{_left(e)}"
    )


def _run_end(e: Event) -> str:
    return "the run is complete" if e["status"] == "completed" else f"the run failed: {e['reason']}"


_LINES: dict[str, Callable[[Event], str]] = {
    "round-start": _round_start,
    "client-reply": _client_reply,
    "client-rejected": _client_rejected,
    "distill-progress": _distill_progress,
    "distilled": _distilled,
    "train-progress": _train_progress,
    "trained": _trained,
    "training-failed": _training_failed,
    "models-trained": _models_trained,
    "round-end": _round_end,
    "run-end": _run_end,
}


def _left(e: Event) -> str:
    seconds = e.get("eta_s")
    return f"; about {duration(seconds)} left" if seconds else ""


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3f}"


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
