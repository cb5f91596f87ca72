"""What is told of a run of any Flower strategy: its grid and its hooks as events of a log.

The kinds and fields are those of ``docs/events.md``. Nothing of the strategy is changed or assumed
but the names and order of Flower's hooks. Needs Flower alone.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal

from flwr.app import ArrayRecord, Message, MessageType, Metadata
from flwr.serverapp import Grid

from flwr_dashboard import __version__
from flwr_dashboard.writer import machine

MAX_NUMBERS = 16
"""Numbers of one reply that are told."""
MAX_ERROR = 300
"""Characters of a client's error that are told."""
PHASES: Mapping[str, Literal["clients", "evaluate"]] = {
    MessageType.TRAIN: "clients",
    MessageType.EVALUATE: "evaluate",
}
"""What a message asks for -> the phase that waits for its reply."""

Tell = Callable[..., None]
"""``tell(kind, server_round, **fields)``."""


class Story:
    """What is told of one run.

    Clients are known by numbers, in the order in which their nodes are first seen; an event tells
    which node each number stands for.
    """

    def __init__(self, tell: Tell, rounds: int) -> None:
        self._tell, self._rounds = tell, rounds
        self._numbers: dict[int, int] = {}
        self._online: dict[str, str] = {}
        self._began = time.monotonic()
        self._scored_here = False
        self._now = _Round(0, self._began)
        self._done = 0

    def begin(self, name: str, grid: Grid, config: Mapping[str, Any]) -> None:
        """Tell what is run, and where."""
        self._tell(
            "run-start",
            0,
            method=name,
            rounds=self._rounds,
            seed=None,
            resumed=False,
            config={str(k): v for k, v in config.items() if _is_scalar(v)},
            classes=[],
            versions={
                "python": platform.python_version(),
                "flwr": version("flwr"),
                "flwr-dashboard": __version__,
            },
            machine=machine(),
            pid=os.getpid(),
            flower_run=str(grid.run.run_id),
        )

    # What the grid tells.

    def sent(self, messages: list[Message]) -> None:
        """Tell who is asked."""
        for message in messages:
            phase = PHASES.get(message.metadata.message_type)
            if phase is not None:
                size = _bytes(message)
                self._now.bytes_down += size
                client = self._number(message.metadata.dst_node_id)
                self._said("client-asked", partition_id=client, phase=phase, num_bytes=size)

    def arrived(self, asked: Metadata, reply: Message, seconds: float) -> None:
        """Tell who has answered, and what it says or which error it had."""
        phase = PHASES.get(asked.message_type)
        if phase is None:
            return
        client, size, said = self._number(asked.dst_node_id), _bytes(reply), numbers_of(reply)
        error = ""
        if reply.has_error():
            error = str(reply.error.reason or "no reason given")[:MAX_ERROR]
        self._now.bytes_up += size
        self._said(
            "reply-arrived",
            partition_id=client,
            phase=phase,
            seconds=seconds,
            num_bytes=size,
            error=error,
            metrics=said,
        )
        if error:
            self._reject(client, "failed", f"the client failed: {error}", phase)
        elif phase == "clients":
            self._accept(client, size, said)
        elif "accuracy" in said and "loss" in said:
            self._said(
                "client-scored",
                partition_id=client,
                accuracy=said["accuracy"],
                loss=said["loss"],
                num_examples=int(said.get("num-examples", 0)),
            )

    def silent(self, asked: Metadata) -> None:
        """Tell who did not answer in time."""
        phase = PHASES.get(asked.message_type)
        if phase is not None:
            client = self._number(asked.dst_node_id)
            self._reject(client, "late", "it did not answer in time", phase)

    def _accept(self, client: int, size: int, said: Mapping[str, float]) -> None:
        self._now.replies["accepted"] += 1
        losses = (said[name] for name in ("train_loss", "train-loss", "loss") if name in said)
        self._said(
            "client-reply",
            partition_id=client,
            num_examples=int(said.get("num-examples", 0)),
            train_loss=next(losses, None),
            seconds=None,
            num_bytes=size,
        )

    def _reject(self, client: int, reply: str, reason: str, phase: str) -> None:
        if phase == "clients":
            self._now.replies[reply] += 1
        self._said("client-rejected", partition_id=client, reply=reply, reason=reason, phase=phase)

    # What the strategy's hooks tell.

    def configure_train(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``hook``, telling who is chosen and how long the wait for nodes was."""

        def call(server_round: int, arrays: Any, config: Any, grid: Grid) -> list[Message]:  # noqa: ANN401
            self.end_round()
            self._now = _Round(server_round, time.monotonic())
            with self._phase("wait"):
                messages = list(hook(server_round, arrays, config, grid))
            online = sorted(grid.get_node_ids())
            self._look(online)
            self._said(
                "round-start",
                rounds=self._rounds,
                clients=[self._number(m.metadata.dst_node_id) for m in messages],
                online=len(online),
            )
            self._open("clients")
            return messages

        return call

    def aggregate_train(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``hook``, telling that the wait is over and how long the next model took."""

        def call(server_round: int, replies: Iterable[Message]) -> Any:  # noqa: ANN401
            self._close()
            with self._phase("aggregate"):
                arrays, metrics = hook(server_round, replies)
            if arrays is None:
                self._now.kept = "the strategy made no new model of the replies"
            for name, value in _finite(metrics).items():
                name = name if name.startswith("train") else f"train-{name}"
                self._now.metrics[name] = {"clients": value}
            return arrays, metrics

        return call

    def configure_evaluate(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``hook``, telling that clients score."""

        def call(server_round: int, arrays: Any, config: Any, grid: Grid) -> list[Message]:  # noqa: ANN401
            messages = list(hook(server_round, arrays, config, grid))
            if messages:
                self._open("evaluate")
            return messages

        return call

    def aggregate_evaluate(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``hook``, telling what the clients' scores come to."""

        def call(server_round: int, replies: Iterable[Message]) -> Any:  # noqa: ANN401
            self._close()
            metrics = hook(server_round, replies)
            self._now.federated = _finite(metrics) or None
            if not self._scored_here:
                self.end_round()
            return metrics

        return call

    def scoring(self, score: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``score``, telling what comes of it."""
        self._scored_here = True

        def call(server_round: int, arrays: ArrayRecord) -> Any:  # noqa: ANN401
            with self._phase("score"):
                metrics = score(server_round, arrays)
            self._now.scores = _finite(metrics)
            self._said("scored", **self._now.as_scores())
            if server_round:
                self.end_round()
            return metrics

        return call

    def end_round(self) -> None:
        """Tell what the round has come to, unless none is under way."""
        now = self._now
        if not now.number or now.ended:
            return
        now.ended = True
        self._done += 1
        spent = time.monotonic()
        left = max(0, self._rounds - now.number)
        self._said(
            "round-end",
            **now.as_scores(),
            seconds=spent - now.began,
            bytes_up=now.bytes_up,
            bytes_down=now.bytes_down,
            replies=now.replies,
            kept=now.kept,
            eta_s=left * (spent - self._began) / self._done,
            federated=now.federated,
        )

    def _look(self, online: list[int]) -> None:
        """Give new nodes their numbers, and tell who is there if that has changed."""
        nodes = {str(self._number(node)): str(node) for node in online}
        if nodes != self._online:
            self._online = nodes
            self._said("clients-online", nodes=nodes, left_out={})

    def _number(self, node: int) -> int:
        return self._numbers.setdefault(node, len(self._numbers))

    def _said(self, kind: str, **fields: object) -> None:
        self._tell(kind, self._now.number, **fields)

    def _open(self, phase: str) -> None:
        self._now.waiting = phase, time.monotonic()
        self._said("phase-start", phase=phase)

    def _close(self) -> None:
        if self._now.waiting is not None:
            (phase, began), self._now.waiting = self._now.waiting, None
            self._said("phase-end", phase=phase, seconds=time.monotonic() - began)

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        self._said("phase-start", phase=phase)
        try:
            yield
        finally:
            self._said("phase-end", phase=phase, seconds=time.monotonic() - began)


class _Round:
    """What is known of the round under way."""

    def __init__(self, number: int, began: float) -> None:
        self.number, self.began, self.ended = number, began, False
        self.waiting: tuple[str, float] | None = None
        self.bytes_up = self.bytes_down = 0
        self.replies = {"accepted": 0, "failed": 0, "malformed": 0, "late": 0}
        self.metrics: dict[str, dict[str, float]] = {}
        self.scores: dict[str, float] = {}
        self.federated: dict[str, float] | None = None
        self.kept = ""

    def as_scores(self) -> dict[str, dict[str, Any]]:
        """Return the server's own scores, or where it has none the clients', as events have them.

        A model is called by who has scored it.
        """
        who, said = ("model", self.scores) if self.scores else ("clients", self.federated or {})
        by_name = {name: {who: value} for name, value in said.items()}
        accuracy, loss = _pick(by_name, "acc"), _pick(by_name, "loss")
        return {"accuracy": accuracy, "loss": loss, "metrics": {**self.metrics, **by_name}}


def _pick(by_name: dict[str, dict[str, float]], part: str) -> dict[str, float]:
    """Take out the only measure, or the shortest-named, whose name holds ``part``."""
    names = sorted((n for n in by_name if part in n.lower()), key=len)
    return by_name.pop(names[0]) if names else {}


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | str) or _is_finite(value)


def _is_finite(value: object) -> bool:
    if type(value) is int:
        return abs(value) < 1 << 1023  # beyond, there is no float
    return isinstance(value, float) and math.isfinite(value)


def _finite(record: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the plain, finite numbers of a record."""
    return {k: float(v) for k, v in (record or {}).items() if _is_finite(v)}


def _bytes(message: Message) -> int:
    """Return the size of a message's records; 0 for one that carries an error, or has none."""
    if not message.has_content():
        return 0
    try:
        return sum(record.count_bytes() for record in message.content.values())
    except Exception:  # Flower's count raises where a client sent an empty list
        return 0


def numbers_of(reply: Message) -> dict[str, float]:
    """Return the plain numbers of a reply's metrics, the first ``MAX_NUMBERS``."""
    if not reply.has_content():
        return {}
    found = {k: v for r in reply.content.metric_records.values() for k, v in _finite(r).items()}
    return {k[:60]: v for k, v in list(found.items())[:MAX_NUMBERS]}
