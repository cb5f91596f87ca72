"""What a run tells while it goes on: one dataclass a kind of event, as lines of JSON and back.

``to_line`` and ``from_line`` are the format, ``Follower`` reads a log that still grows. Knows
the standard library alone: no tensor, no Flower, and neither who tells an event nor who listens.
``docs/events.md`` is written from this module.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

SCHEMA = 1
"""Version of the format; within one, kinds and fields are added, never renamed or removed."""

CHUNK_BYTES = 8 << 20
"""What ``Follower`` reads at once, at most."""

LINE_BYTES = 4 << 20
"""A longer line is no event: the end of a round of 20,000 clients fits."""

Scalar = bool | int | float | str
Phase = Literal["wait", "clients", "aggregate", "distill", "learn", "score", "evaluate", "save"]
Reply = Literal["failed", "malformed", "late"]
Status = Literal["completed", "failed", "stopped"]

PHASES: Mapping[Phase, str] = {
    "wait": "The server waits until enough nodes are online.",
    "clients": "The clients train, from the first message out to the last reply.",
    "aggregate": "A strategy of Flower's makes the next model of the replies.",
    "distill": "The server turns each client's update into images.",
    "learn": "The surrogate and the global models learn from the images of all clients.",
    "score": "The server scores every model on its own test images.",
    "evaluate": "The clients score the new surrogate on theirs.",
    "save": "The result and the checkpoint are written.",
}
"""What each phase of a round is, in the usual order."""


# A field that is added later needs a default, or older logs could no longer be read.
@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened."""

    round: int
    """The round it belongs to; 0 before the first."""


@dataclass(frozen=True, kw_only=True)
class RunStart(Event):
    """A run begins, or goes on from its checkpoint."""

    method: str
    """The federated method: `feddgm`, or another; the class of a watched strategy."""
    rounds: int
    """Rounds in all, those before a resume counted in."""
    seed: int | None
    """Everything random is derived from it; null where the app does not say."""
    resumed: bool
    """Whether it goes on from a checkpoint; `round` is then the last one done."""
    config: Mapping[str, Scalar]
    """Every setting as it holds, by its dotted key."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    versions: Mapping[str, str]
    """Versions of Python and of the packages that numbers depend on."""
    machine: Mapping[str, Scalar]
    """The server's machine: `host`, `user`, `platform`, `cpus`, and what else is known of it."""
    pid: int
    """The server's process, on that host."""
    said: tuple[str, ...] = ()
    """Keys of `config` that the user said; the others stand as the recipe has them."""
    image: Mapping[str, int] = field(default_factory=dict)
    """Shape of an image: `channels` and `size`; empty where there is none."""
    flower_run: str = ""
    """Flower's own number of the run, as `flwr list` has it."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Event):
    """The server's process lives; told every 15 seconds, whatever else happens."""

    pid: int
    """Which process."""
    load: Mapping[str, float]
    """What it uses: `rss_mb`, `cpu_percent` of one core since the last beat, `gpu_mb`."""


@dataclass(frozen=True, kw_only=True)
class ClientsOnline(Event):
    """Who can be asked has changed."""

    nodes: Mapping[str, str]
    """Partition id -> Flower's number of the node that answers for it."""
    left_out: Mapping[str, str]
    """Number of a node that may not take part -> why, in words; at most 100."""


@dataclass(frozen=True, kw_only=True)
class RoundStart(Event):
    """The clients of a round are chosen."""

    rounds: int
    """Rounds in all."""
    clients: tuple[int, ...]
    """Partition ids of those asked to train."""
    online: int
    """Clients that could have been asked."""


@dataclass(frozen=True, kw_only=True)
class PhaseStart(Event):
    """A phase of the round begins."""

    phase: Phase
    """Which one."""


@dataclass(frozen=True, kw_only=True)
class PhaseEnd(Event):
    """A phase of the round is over."""

    phase: Phase
    """Which one."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, kw_only=True)
class ClientAsked(Event):
    """A client is sent the surrogate, to train it or to score it."""

    partition_id: int
    """The client's stable identity; of a watched strategy, its place among the nodes seen."""
    phase: Phase
    """`clients` to train, `evaluate` to score."""
    num_bytes: int
    """Size of the message's records."""
    surrogate: str = "surrogate"
    """Which one: `surrogate`, or a narrower one, such as `surrogate-16`."""


@dataclass(frozen=True, kw_only=True)
class ReplyArrived(Event):
    """A client's reply is here; whether it counts is told when all are, or the time is up."""

    partition_id: int
    """The client's stable identity."""
    phase: Phase
    """What it was asked for: `clients` to train, `evaluate` to score."""
    seconds: float
    """Since it was asked."""
    num_bytes: int
    """Size of the reply's records."""
    error: str
    """Empty, or what went wrong at the client, in words."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the client says, each believed by nobody yet; at most 16."""


@dataclass(frozen=True, kw_only=True)
class ClientReply(Event):
    """A client's reply is accepted."""

    partition_id: int
    """The client's stable identity."""
    num_examples: int
    """Images it trained on."""
    train_loss: float | None
    """Its own last training loss; null where it does not say."""
    seconds: float | None
    """Its own training time; null where it does not say."""
    num_bytes: int
    """Size of the reply's records."""
    moved: float | None = None
    """Euclidean distance of its parameters from those that it was sent."""
    label_counts: tuple[int, ...] | None = None
    """Its images of each class, in label order; null where it does not share them."""


@dataclass(frozen=True, kw_only=True)
class ClientClipped(Event):
    """An accepted reply claims more than its limit; what is beyond does not count."""

    partition_id: int
    """The client's stable identity."""
    what: str
    """`examples`, the number of its images, or `movement`, how far its parameters moved."""
    claimed: float
    """What the reply says."""
    counted: float
    """What of it counts: `server.clip-examples` or `server.clip-movement` medians of the round."""


@dataclass(frozen=True, kw_only=True)
class ClientDisbelieved(Event):
    """The other clients' images do not bear an accepted reply out; it counts nowhere."""

    partition_id: int
    """The client's stable identity."""
    gain: float
    """How much likelier the reply holds its classes than the surrogate that was sent."""


@dataclass(frozen=True, kw_only=True)
class ClientScored(Event):
    """A client's score of the surrogate on its own test images is accepted."""

    partition_id: int
    """The client's stable identity."""
    accuracy: float
    """Share of its images that the surrogate gets right."""
    loss: float
    """Mean loss."""
    num_examples: int
    """Its test images."""


@dataclass(frozen=True, kw_only=True)
class ClientRejected(Event):
    """A client's reply, a score too, is set aside, or never came."""

    partition_id: int | None
    """The client that was asked; null for a reply that nobody was asked for."""
    reply: Reply
    """In which way it is bad."""
    reason: str
    """Why, in words."""
    phase: Phase = "clients"
    """What it was asked for: `clients` to train, `evaluate` to score."""


@dataclass(frozen=True, kw_only=True)
class PrivacySpent(Event):
    """What differential privacy of clients' images has spent in all rounds so far."""

    epsilon: float | None
    """The largest in `clients`, and no bound for those `unknown`; null where it is beyond every
    number, and where no client is known."""
    delta: float
    """Probability at which it holds."""
    clients: Mapping[str, float]
    """Partition id -> epsilon of that client's images, where it has said how many it has."""
    unknown: int
    """Clients that were asked and have not said; no `epsilon` is known of them."""


@dataclass(frozen=True, kw_only=True)
class DistillProgress(Event):
    """A client's images are one iteration further; on disk at most one a client a second."""

    partition_id: int
    """Whose update is being distilled; below 0 it is the mean of all clients' (`distill.of`)."""
    iteration: int
    """Iterations done."""
    iterations: int
    """Iterations to do."""
    loss: float
    """Matching loss: 1 at the start of the client's trajectory, 0 on its end."""
    eta_s: float
    """Seconds until all clients are distilled; 0 while there is no pace yet."""


@dataclass(frozen=True, kw_only=True)
class Distilled(Event):
    """A client's update has become images."""

    partition_id: int
    """Whose update it was; below 0 the mean of all clients'."""
    classes: tuple[int, ...]
    """Labels of the classes that its images show."""
    num_images: int
    """Images made; 0 where it was given up."""
    iterations: int
    """Iterations done."""
    first_loss: float
    """Matching loss before the first iteration."""
    last_loss: float
    """Matching loss after the last."""
    student_lr: float
    """Learning rate of the student at the end; it is learned too."""
    seconds: float
    """How long it took."""
    stopped: str
    """Empty after all iterations, `converged`, or why it was given up."""
    eta_s: float
    """Seconds until all clients are distilled; 0 while there is no pace yet."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress(Event):
    """A model is one epoch further; on disk at most one a model a second."""

    model: str
    """`surrogate`, a narrower one (`surrogate-16`), or a global model's name."""
    epoch: int
    """Epochs done."""
    epochs: int
    """Epochs to do."""
    loss: float
    """Mean training loss of the epoch."""
    eta_s: float
    """Seconds until this model is trained; 0 while there is no pace yet."""


@dataclass(frozen=True, kw_only=True)
class Trained(Event):
    """A model has learned from synthetic images."""

    model: str
    """`surrogate`, a narrower one (`surrogate-16`), or a global model's name."""
    images: int
    """Images it learned from."""
    epochs: int
    """Epochs done."""
    loss: float
    """Mean training loss of the last epoch."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, kw_only=True)
class TrainingFailed(Event):
    """A model's training diverged; the model stays as it was."""

    model: str
    """`surrogate`, a narrower one (`surrogate-16`), or a global model's name."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """The models are scored on the server's test images: at the start, and after every round."""

    accuracy: Mapping[str, float]
    """Model -> share of images that it gets right; empty where the server has no images."""
    loss: Mapping[str, float]
    """Model -> mean loss."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Further measures, each model -> value (`core/evaluation.py`)."""


@dataclass(frozen=True, kw_only=True)
class ControlScored(Event):
    """Models that the prior alone has taught are scored; what clients add is over this."""

    accuracy: Mapping[str, float]
    """Model -> share of images that it gets right."""
    loss: Mapping[str, float]
    """Model -> mean loss."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Further measures, each model -> value (`core/evaluation.py`)."""


@dataclass(frozen=True, kw_only=True)
class ImagesDrawn(Event):
    """A picture of the round's images is on the disk."""

    path: str
    """Where, relative to the run folder."""
    num_images: int
    """Images in it."""


@dataclass(frozen=True, kw_only=True)
class SpriteWritten(Event):
    """A round's images are on the disk as one picture of equal square cells, without any text."""

    path: str
    """A PNG, relative to the run folder."""
    side: int
    """Pixels of a cell, each way."""
    across: int
    """Cells in a row: cell number i is in row i // across, column i % across."""
    owners: tuple[int, ...]
    """Of each cell, the partition id of the client whose update became the image."""
    labels: tuple[int, ...]
    """Of each cell, the class that weighs most."""
    weights: tuple[float, ...]
    """Of each cell, how many examples it weighs in the union."""
    num_images: int
    """Images that the round made; the sprite may hold fewer, spread over clients and classes."""


@dataclass(frozen=True, kw_only=True)
class GrowthWritten(Event):
    """A client's images, as they are now, have joined the picture of how they grow in a round."""

    path: str
    """A PNG as of `sprite-written`, relative to the run folder; each row shows one moment."""
    side: int
    """Pixels of a cell, each way."""
    partition_id: int
    """Whose update is being distilled; below 0 it is the mean of all clients' (`distill.of`)."""
    labels: tuple[int, ...]
    """Class of each column."""
    iterations: tuple[int, ...]
    """Iterations done at each row: at first 0, then about 25, 50 and 100 % of all."""


@dataclass(frozen=True, kw_only=True)
class RoundEnd(Event):
    """A round is scored and saved; all that was reached in it."""

    accuracy: Mapping[str, float]
    """Model -> share of the server's test images that it gets right."""
    loss: Mapping[str, float]
    """Model -> mean loss."""
    seconds: float
    """From waiting for nodes to the last score."""
    bytes_up: int
    """Size of all records from the clients."""
    bytes_down: int
    """Size of all records to them."""
    replies: Mapping[str, int]
    """How many replies were `accepted`, `failed`, `malformed`, `late`."""
    kept: str
    """Empty, or why the old model was kept."""
    eta_s: float
    """Seconds until the last round is done, by the pace so far."""
    federated: Mapping[str, float] | None
    """The clients' own score: `accuracy`, `loss`, `examples`, `clients`; null if not asked.
    Of a watched strategy, what it made of the clients' metrics."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Further measures, each model -> value (`core/evaluation.py`)."""
    fidelity: Mapping[str, float] | None = None
    """How real the round's images look to the judge: `in-class`, `nearest`; null without one."""


@dataclass(frozen=True, kw_only=True)
class RunEnd(Event):
    """A run is over; `round` is the last that anything was told of."""

    status: Status
    """How: all rounds done, an error, or stopped from outside."""
    reason: str
    """The error, or what stopped it; empty when completed."""


KINDS: Mapping[str, type[Event]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower(): cls for cls in Event.__subclasses__()
}
"""Kind, as it stands in a line -> its class."""
_NAMES = {cls: kind for kind, cls in KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """An event of a kind that this version does not know.

    Attributes
    ----------
    fields
        All of its fields but ``round``, as JSON has them.
    """

    kind: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Recorded:
    """An event and when it was told.

    Attributes
    ----------
    time
        Seconds since the epoch.
    """

    time: float
    event: Event


Emit = Callable[[Event], None]
"""Where events go."""


def to_line(event: Event, time: float) -> str:
    """Return ``event`` as one line of JSON, without its end; NaN and infinity become null."""
    if isinstance(event, Unknown):
        kind, own = event.kind, {"round": event.round, **event.fields}
    else:
        kind, own = _NAMES[type(event)], vars(event)
    head = {"v": SCHEMA, "time": time, "kind": kind}
    # Escapes keep it ASCII, so that even half a surrogate in a file name can be written.
    return json.dumps(_plain({**head, **own}), allow_nan=False)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return ``value`` as JSON has it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_line(line: str) -> Recorded | None:
    """Return what ``to_line`` wrote, or None if the line is not an event.

    Unknown fields are left out, an unknown kind becomes ``Unknown``, and null in the place of a
    number becomes NaN. So does what a newer schema has made of a kind known here.
    """
    try:
        return _recorded(json.loads(line, parse_constant=lambda _: None))
    except (ValueError, OverflowError, RecursionError):
        # No JSON, a number beyond any float, or brackets within brackets without end.
        return None


def _recorded(said: object) -> Recorded:
    """Return the event that a line says; ValueError if it says none."""
    if not isinstance(said, dict):
        raise ValueError("an event is an object")
    version, kind = _read(int, said.pop("v", None)), _read(str, said.pop("kind", None))
    time = _number(said.pop("time", None))
    if math.isnan(time):
        raise ValueError("an event has a time")
    if kind not in KINDS:
        return Recorded(time, _unknown(kind, said))
    try:
        return Recorded(time, _known(KINDS[kind], said))
    except ValueError:
        if version <= SCHEMA:
            raise
        return Recorded(time, _unknown(kind, said))


def _known(cls: type[Event], said: Mapping[str, object]) -> Event:
    """Return an event of ``cls``; ValueError if a field is missing or of another type."""
    hints, needed = _SHAPES[cls]
    if not needed <= said.keys():
        raise ValueError(f"{cls.__name__} lacks {needed - said.keys()}")
    return cls(**{name: _read(hints[name], v) for name, v in said.items() if name in hints})


def _unknown(kind: str, said: dict[str, object]) -> Unknown:
    number = said.pop("round", 0)
    # Nesting that Python cannot follow ends here, not in the reader's own code.
    return Unknown(round=number if type(number) is int else 0, kind=kind, fields=_plain(said))


def _shape(cls: type[Event]) -> tuple[dict[str, Any], set[str]]:
    """Return the types of ``cls``'s fields and the names of those without a default."""
    needed = {f.name for f in fields(cls) if f.default is f.default_factory is MISSING}
    return get_type_hints(cls), needed


_SHAPES = {cls: _shape(cls) for cls in KINDS.values()}


def _read(hint: Any, value: Any) -> Any:  # noqa: ANN401
    """Return a JSON value as what the type ``hint`` asks for; ValueError if it is not that."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is float:
        return _number(value)
    if origin in (Union, UnionType):
        return _first(args, value)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(args[0], v) for v in value)
    if origin is Mapping and isinstance(value, dict):
        return {k: _read(args[1], v) for k, v in value.items()}
    # By exact type, since a boolean is no integer here.
    if type(value) is hint or (origin is Literal and value in args):
        return value
    raise ValueError(f"{value!r:.50} is not {hint}")


def _first(hints: tuple[Any, ...], value: object) -> object:
    """Return ``value`` as its own type, or as the first of ``hints`` that takes it."""
    if type(value) in hints:
        return _number(value) if type(value) is float else value
    for hint in hints:
        try:
            return _read(hint, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r:.50} is none of {hints}")


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise ValueError(f"{value!r:.50} is not a number")
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else math.nan


class Follower:
    """Reads a log that may still grow, be cut, be replaced or not be there yet.

    Parameters
    ----------
    path
        The log; need not exist.

    Attributes
    ----------
    broken
        Lines of the present file that were left out, since they are no events.
    restarted
        How often the file was cut or replaced; what was told of the old one is then void.
    behind
        Whether the last poll left something for the next.
    """

    _TAIL_BYTES = 256

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.restarted = 0
        self._begin(None)

    def _begin(self, identity: tuple[int, int] | None) -> None:
        """Know nothing of the file but which one it is."""
        self._identity = identity
        self._offset = 0
        self._tail = b""
        self._half = b""
        self._dropping = False
        self.broken = 0
        self.behind = False

    def poll(self) -> list[Recorded]:
        """Return the events that are new since the last call, a large file's in parts.

        Raises
        ------
        OSError
            The file is there but cannot be read.
        """
        chunk = self._new_bytes()
        self.behind = len(chunk) == CHUNK_BYTES
        taken = map(self._take, self._lines(chunk))
        return [recorded for recorded in taken if recorded is not None]

    def _new_bytes(self) -> bytes:
        try:
            file = self._path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            # A new file may get the number of the old one, so forget it.
            self._identity = None
            return b""
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            file.seek(self._offset - len(self._tail))
            before, chunk = file.read(len(self._tail)), file.read(CHUNK_BYTES)
            # The bytes before tell a file that was cut and has grown again since.
            if identity != self._identity or before != self._tail:
                self.restarted += self._offset > 0
                self._begin(identity)
                file.seek(0)
                chunk = file.read(CHUNK_BYTES)
        self._offset += len(chunk)
        self._tail = (self._tail + chunk[-self._TAIL_BYTES :])[-self._TAIL_BYTES :]
        return chunk

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Give the lines that ``chunk`` completes and keep the half one after them."""
        data, start = self._half + chunk, 0
        while (end := data.find(b"\n", start)) >= 0:
            yield data[start:end]
            start = end + 1
        self._half = data[start:]
        if self._dropping or len(self._half) > LINE_BYTES:
            self.broken += not self._dropping
            self._half, self._dropping = b"", True

    def _take(self, line: bytes) -> Recorded | None:
        if self._dropping:  # the rest of a line that was counted when it grew too long
            self._dropping = False
            return None
        if not line.strip():
            return None
        fits = len(line) <= LINE_BYTES
        recorded = from_line(line.decode(errors="replace")) if fits else None
        self.broken += recorded is None
        return recorded


def read(path: str | Path) -> list[Recorded]:
    """Return all events of a log; none if it does not exist."""
    follower = Follower(path)
    events = follower.poll()
    while follower.behind:
        events += follower.poll()
    return events
