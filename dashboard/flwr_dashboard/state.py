"""A run as its log tells it: ``take`` folds one event after another into a ``Run``.

An unknown kind, field or type is passed over; it is still among the latest events. Everything kept
is bounded, since a log may come from anywhere. Knows no file, no page and no clock.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr_dashboard import words
from flwr_dashboard.log import Record, is_number

MAX_CLIENTS = 5000
"""Clients that are kept; of more, the first."""
MAX_ROUNDS = 20_000
"""Rounds that are kept."""
MAX_PARTS = 300_000
"""Client's shares of rounds that are kept; beyond, the oldest rounds lose theirs."""
MAX_LATEST = 200
"""Events that the log page shows."""
MAX_CELLS = 10_000
"""Images of a picture that are shown, as many as a run may draw."""
MIDDLE = "the middle of the log"
"""What is left out of a run that was read from the two ends of a long log."""
MAX_LOSSES = 60
"""Points of a client's loss within a round."""

OUTCOMES = ("replied", "late", "failed", "malformed")
"""How a client's part of a round ended; ``asked`` until then."""


@dataclass(slots=True)
class Part:
    """What one client did in one round."""

    outcome: str = "asked"
    examples: int = 0
    seconds: float | None = None
    loss: float | None = None
    bytes_up: int = 0
    moved: float | None = None
    reason: str = ""
    images: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    distill_seconds: float | None = None


@dataclass(slots=True)
class Client:
    """A client as it is now.

    Attributes
    ----------
    state
        ``idle``, ``trains``, ``replied``, ``distils``, ``done``, ``late`` or ``failed``.
    classes
        Labels found in its latest reply; ``counts`` where it shares how many of each.
    """

    name: str
    state: str = "idle"
    iteration: int = 0
    iterations: int = 0
    losses: list[float] = field(default_factory=list)
    classes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    node: str = ""
    last_round: int = 0

    @property
    def is_one(self) -> bool:
        """Whether it is a client and not an aggregate, whose id is below 0."""
        return not self.name.startswith("-")


@dataclass(frozen=True, slots=True)
class Sprite:
    """A picture of equal square cells; ``cells`` holds client, class and weight of each.

    Attributes
    ----------
    down
        Rows of the file, those of cells beyond ``MAX_CELLS`` too.
    """

    path: str
    side: int
    across: int
    down: int
    cells: tuple[tuple[str, int, float], ...]
    num_images: int
    time: float


@dataclass(frozen=True, slots=True)
class Growth:
    """A picture of one client's images within a round: a row a moment, a column an image."""

    path: str
    side: int
    labels: tuple[int, ...]
    iterations: tuple[int, ...]
    time: float


@dataclass(slots=True)
class Round:
    """One round, as far as it is known."""

    number: int
    began: float | None = None
    ended: bool = False
    online: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    federated: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    replies: dict[str, float] = field(default_factory=dict)
    kept: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    sprite: Sprite | None = None
    growth: dict[str, Growth] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """A run from its log.

    Attributes
    ----------
    given
        The settings as they stand in the log; ``config`` has them as they are shown.
    phase, phase_began
        What the server does now and since when; empty between two phases.
    faults
        What went wrong, latest last, as (time, sentence); at most 50.
    left_out
        What this run had too much of to be kept, in words.
    """

    method: str = ""
    rounds_planned: int = 0
    seed: str = ""
    flower_run: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    said: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    load: dict[str, float] = field(default_factory=dict)
    pid: int = 0
    status: str = ""
    reason: str = ""
    resumed: int = 0
    began: float | None = None
    last: float | None = None
    beats: bool = False
    round: int = 0
    phase: str = ""
    phase_began: float = 0.0
    online: int = 0
    nodes_left_out: dict[str, str] = field(default_factory=dict)
    eta_s: float | None = None
    eta_told: float = 0.0
    progress: str = ""
    control: dict[str, float] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)
    faults: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=50))
    latest: deque[Record] = field(default_factory=lambda: deque(maxlen=MAX_LATEST))
    warnings: deque[Record] = field(default_factory=lambda: deque(maxlen=MAX_LATEST))
    left_out: set[str] = field(default_factory=set)
    events: int = 0
    num_parts: int = 0

    @property
    def config(self) -> dict[str, str]:
        """The settings as they are shown. A list of many runs needs two or three of a hundred."""
        return _texts(self.given, 1000)

    def setting(self, key: str) -> str:
        """Return one setting as it is shown; empty where there is none."""
        return _exactly(self.given[key]) if key in self.given else ""

    def scored(self) -> list[Round]:
        """Return the rounds that have an accuracy, in order."""
        return [r for _, r in sorted(self.rounds.items()) if r.accuracy]

    def done(self) -> list[Round]:
        """Return the rounds that are over, in order; round 0 is none."""
        return [r for n, r in sorted(self.rounds.items()) if n and r.ended]

    @property
    def model(self) -> str:
        """The model that a run is judged by: the first that is no surrogate, if there is one."""
        names = [name for r in self.scored()[-1:] for name in r.accuracy]
        return next((n for n in names if n != "surrogate"), names[0] if names else "")

    def accuracy(self, model: str) -> list[tuple[int, float]]:
        """Return a model's accuracy by round."""
        return [(r.number, r.accuracy[model]) for r in self.scored() if model in r.accuracy]

    def best(self) -> tuple[int, float] | None:
        """Return the round and accuracy of the best, the earliest of equals."""
        points = self.accuracy(self.model)
        return max(points, key=lambda p: (p[1], -p[0])) if points else None

    def set_aside(self) -> int:
        """Return how many replies did not count, in all rounds."""
        return self._ended(OUTCOMES[1:])

    def answered(self) -> int:
        """Return how many clients' parts of a round have ended, one way or another."""
        return self._ended(OUTCOMES)

    def _ended(self, ways: Sequence[str]) -> int:
        return sum(p.outcome in ways for r in self.rounds.values() for p in r.parts.values())


def take(run: Run, record: Record) -> None:
    """Fold one event into ``run``."""
    kind, time = record["kind"], float(record["time"])
    run.events += 1
    run.last = time if run.last is None else max(run.last, time)
    run.began = time if run.began is None else run.began
    if kind in ("run-start", "round-start", "phase-start"):
        # A run that goes on has not ended.
        run.status = run.reason = ""
    if record["round"] > run.round:
        run.round = record["round"]
    fold = _FOLDS.get(kind)
    if fold is not None:
        fold(run, record)
    if kind not in QUIET:
        run.latest.append(record)
    if is_warning(record):
        run.warnings.append(record)
        run.faults.append((time, words.sentence(record)))


QUIET = frozenset({"distill-progress", "train-progress", "heartbeat"})
"""Kinds that would drown the others in the log page."""


def is_warning(record: Record) -> bool:
    """Whether an event tells of something that went wrong, once of each thing."""
    kind = record["kind"]
    return (
        kind in ("client-rejected", "client-clipped", "client-disbelieved", "training-failed")
        or (kind == "round-end" and bool(record.get("kept")))
        or (kind == "run-end" and record.get("status") != "completed")
    )


def _round(run: Run, record: Record) -> Round:
    number = record["round"]
    if number in run.rounds:
        return run.rounds[number]
    if len(run.rounds) >= MAX_ROUNDS:
        run.left_out.add(f"rounds beyond the first {MAX_ROUNDS:,}")
        return Round(number)
    return run.rounds.setdefault(number, Round(number))


def _client(run: Run, key: object) -> Client | None:
    """Return the client of an event, None for a stray reply or one too many."""
    if type(key) is not int and not isinstance(key, str):
        return None
    name = words.clean(key, 40)
    if name not in run.clients:
        if len(run.clients) >= MAX_CLIENTS:
            run.left_out.add(f"clients beyond the first {MAX_CLIENTS:,}")
            return None
        run.clients[name] = Client(name)
    return run.clients[name]


def _part(run: Run, record: Record) -> tuple[Client, Part] | None:
    client = _client(run, record.get("partition_id"))
    if client is None:
        return None
    parts = _round(run, record).parts
    if client.name not in parts:
        run.num_parts += 1
        if run.num_parts > MAX_PARTS:
            _forget_oldest(run, record["round"])
    part = parts.setdefault(client.name, Part())
    client.last_round = max(client.last_round, record["round"])
    return client, part


def _forget_oldest(run: Run, present: int) -> None:
    for number in sorted(run.rounds):
        parts = run.rounds[number].parts
        if parts and number != present:
            run.num_parts -= len(parts)
            run.rounds[number].parts = {}
            run.left_out.add("clients' shares of the oldest rounds")
            return


def _run_start(run: Run, r: Record) -> None:
    run.method = words.text(r, "method")
    run.rounds_planned = words.whole(r, "rounds")
    run.seed = words.text(r, "seed")
    run.flower_run = words.text(r, "flower_run")
    given = r.get("config")
    run.given = given if isinstance(given, Mapping) else {}
    run.said = frozenset(words.clean(k) for k in _list(r.get("said"), 1000))
    run.classes = tuple(words.clean(c, 40) for c in _list(r.get("classes"), 1000))
    run.versions = _texts(r.get("versions"), 40)
    run.machine = _texts(r.get("machine"), 40)
    run.pid = words.whole(r, "pid")
    run.phase = run.progress = ""
    run.eta_s = None
    if r.get("resumed") is True:
        run.resumed += 1
        # What a crash left of later rounds is done anew.
        for number in [n for n in run.rounds if n > r["round"]]:
            run.num_parts -= len(run.rounds.pop(number).parts)
    else:
        run.rounds.clear()
        run.clients.clear()
        run.num_parts = 0
    run.round = r["round"]


def _run_end(run: Run, r: Record) -> None:
    status = r.get("status")
    run.status = status if status in ("completed", "failed", "stopped") else "failed"
    run.reason = words.text(r, "reason")
    run.phase = run.progress = ""


def _heartbeat(run: Run, r: Record) -> None:
    run.beats = True
    # A run that goes on is another process; the list of runs may not have read its start.
    run.pid = words.whole(r, "pid") or run.pid
    run.load = words.numbers(r.get("load"), 12)


def _online(run: Run, r: Record) -> None:
    nodes, out = r.get("nodes"), r.get("left_out")
    if isinstance(nodes, Mapping):
        run.online = len(nodes)
        for key, node in list(nodes.items())[:MAX_CLIENTS]:
            client = _client(run, key)
            if client is not None:
                client.node = words.clean(node, 40)
    run.nodes_left_out = _texts(out, 100)


def _round_start(run: Run, r: Record) -> None:
    this = _round(run, r)
    this.began, this.online = float(r["time"]), words.whole(r, "online")
    run.online = this.online
    run.rounds_planned = words.whole(r, "rounds") or run.rounds_planned
    for client in run.clients.values():
        client.state, client.losses, client.iteration = "idle", [], 0


def _phase_start(run: Run, r: Record) -> None:
    run.phase, run.phase_began, run.progress = words.clean(r.get("phase"), 40), float(r["time"]), ""


def _phase_end(run: Run, r: Record) -> None:
    phases, name = _round(run, r).phases, words.clean(r.get("phase"), 40)
    if len(phases) < 20 or name in phases:
        phases[name] = phases.get(name, 0.0) + max(words.number(r, "seconds") or 0.0, 0.0)
    if run.phase == name:
        run.phase = run.progress = ""


def _asked(run: Run, r: Record) -> None:
    if r.get("phase") == "evaluate":
        return
    found = _part(run, r)
    if found:
        found[0].state = "trains"


def _arrived(run: Run, r: Record) -> None:
    if r.get("phase") == "evaluate":
        return
    found = _part(run, r)
    if found:
        client, part = found
        client.state = "failed" if r.get("error") else "replied"
        part.outcome = client.state
        part.reason = words.text(r, "error")
        part.seconds = words.number(r, "seconds")
        part.bytes_up = words.whole(r, "num_bytes")
        said = words.numbers(r.get("metrics"))
        part.examples = int(said.get("num-examples", 0))
        part.loss = said.get("train-loss", said.get("train_loss"))


def _reply(run: Run, r: Record) -> None:
    found = _part(run, r)
    if found:
        client, part = found
        client.state = part.outcome = "replied"
        part.examples = words.whole(r, "num_examples")
        part.seconds = _first(words.number(r, "seconds"), part.seconds)
        part.loss = _first(words.number(r, "train_loss"), part.loss)
        part.moved = words.number(r, "moved")
        part.bytes_up = words.whole(r, "num_bytes")
        client.counts = tuple(
            c for c in _list(r.get("label_counts"), 1000) if type(c) is int and 0 <= c < 1 << 62
        )


def _first(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


def _rejected(run: Run, r: Record) -> None:
    # A score that does not count leaves the client's training as it was.
    if r.get("phase", run.phase) == "evaluate":
        return
    found = _part(run, r)
    if found:
        client, part = found
        outcome = r.get("reply")
        part.outcome = outcome if outcome in OUTCOMES[1:] else "failed"
        client.state = "late" if part.outcome == "late" else "failed"
        part.reason = words.text(r, "reason")


def _progress(run: Run, r: Record) -> None:
    found = _part(run, r)
    if found:
        client, _ = found
        client.state = "distils"
        client.iteration, client.iterations = (
            words.whole(r, "iteration"),
            words.whole(r, "iterations"),
        )
        loss = words.number(r, "loss")
        if loss is not None:
            client.losses.append(loss)
            del client.losses[:-MAX_LOSSES]


def _distilled(run: Run, r: Record) -> None:
    found = _part(run, r)
    if found:
        client, part = found
        client.state = "done"
        client.classes = tuple(c for c in _list(r.get("classes"), 1000) if _is_label(c))
        part.images = words.whole(r, "num_images")
        part.first_loss, part.last_loss = (
            words.number(r, "first_loss"),
            words.number(r, "last_loss"),
        )
        part.distill_seconds = words.number(r, "seconds")


def _train_progress(run: Run, r: Record) -> None:
    run.progress = (
        f"{words.text(r, 'model')}, epoch {words.whole(r, 'epoch')}/{words.whole(r, 'epochs')}"
    )


def _trained(run: Run, r: Record) -> None:
    run.progress = ""


def _scored(run: Run, r: Record) -> None:
    this = _round(run, r)
    this.accuracy = words.numbers(r.get("accuracy"))
    this.loss = words.numbers(r.get("loss"))
    this.metrics = _tables(r.get("metrics"))


def _control(run: Run, r: Record) -> None:
    run.control = words.numbers(r.get("accuracy"))


def _round_end(run: Run, r: Record) -> None:
    _scored(run, r)
    this = _round(run, r)
    this.ended = True
    this.seconds = words.number(r, "seconds")
    this.bytes_up, this.bytes_down = words.whole(r, "bytes_up"), words.whole(r, "bytes_down")
    this.replies = words.numbers(r.get("replies"), 8)
    this.federated = words.numbers(r.get("federated"), 16)
    this.kept = words.text(r, "kept")
    run.eta_s, run.eta_told = words.number(r, "eta_s"), float(r["time"])


def _sprite(run: Run, r: Record) -> None:
    side, across, path = words.whole(r, "side"), words.whole(r, "across"), r.get("path")
    if not (isinstance(path, str) and 0 < side <= 1024 and 0 < across <= MAX_CELLS):
        return
    owners = r.get("owners")
    drawn = len(owners) if isinstance(owners, list) else 0
    down = max(-(-drawn // across), 1)
    if drawn > MAX_CELLS:
        run.left_out.add(f"images beyond the first {MAX_CELLS:,} of a round")
    rows = zip(_list(owners), _list(r.get("labels")), _list(r.get("weights")), strict=False)
    cells = tuple(
        (words.clean(owner, 40), label, float(weight) if is_number(weight) else 0.0)
        for owner, label, weight in rows
        if _is_label(label) and not isinstance(owner, dict | list)
    )
    for owner, _, _ in cells:
        _client(run, owner)
    made = words.whole(r, "num_images")
    _round(run, r).sprite = Sprite(path, side, across, down, cells, made, float(r["time"]))


def _growth(run: Run, r: Record) -> None:
    client, path = _client(run, r.get("partition_id")), r.get("path")
    side = words.whole(r, "side")
    if client is None or not isinstance(path, str) or not 0 < side <= 1024:
        return
    _round(run, r).growth[client.name] = Growth(
        path,
        side,
        tuple(c for c in _list(r.get("labels")) if _is_label(c)),
        tuple(i for i in _list(r.get("iterations"), 16) if type(i) is int),
        float(r["time"]),
    )


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _list(value: object, most: int = MAX_CELLS) -> list[Any]:
    return value[:most] if isinstance(value, list) else []


def _texts(value: object, most: int) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {words.clean(k, 80): _exactly(v) for k, v in list(value.items())[:most]}


def _exactly(value: object) -> str:
    """Return a scalar with all its digits."""
    if type(value) is float or (type(value) is int and abs(value) < 1 << 63):
        return repr(value)
    return words.clean(value)


def _tables(value: object) -> dict[str, dict[str, float]]:
    if not isinstance(value, Mapping):
        return {}
    return {words.clean(k, 60): words.numbers(v) for k, v in list(value.items())[:32]}


_FOLDS: Mapping[str, Callable[[Run, Record], None]] = {
    "run-start": _run_start,
    "run-end": _run_end,
    "heartbeat": _heartbeat,
    "clients-online": _online,
    "round-start": _round_start,
    "round-end": _round_end,
    "phase-start": _phase_start,
    "phase-end": _phase_end,
    "client-asked": _asked,
    "reply-arrived": _arrived,
    "client-reply": _reply,
    "client-rejected": _rejected,
    "distill-progress": _progress,
    "distilled": _distilled,
    "train-progress": _train_progress,
    "trained": _trained,
    "training-failed": _trained,
    "scored": _scored,
    "control-scored": _control,
    "sprite-written": _sprite,
    "growth-written": _growth,
}
"""Kind -> what it changes."""


@dataclass(frozen=True)
class Standing:
    """How a run stands: one of seven words, a glyph to it and why."""

    key: str
    glyph: str
    word: str
    why: str = ""


SILENT_AFTER_S = 60.0
"""A run whose log beats and has said nothing for longer has stopped."""
SILENT_WITHOUT_BEATS_S = 900.0
"""The same for a log without heartbeats, where a long phase is silent as well."""


def standing(run: Run, now: float, *, alive: bool | None = None) -> Standing:
    """Return how ``run`` stands.

    Parameters
    ----------
    now
        Seconds since the epoch.
    alive
        Whether the run's process lives; None where that cannot be known.
    """
    if run.status == "completed":
        return Standing("completed", "✓", "completed")
    if run.status == "failed":
        return Standing("failed", "×", "failed", run.reason)
    if run.status == "stopped":
        return Standing("stopped", "■", "stopped", run.reason)
    if run.last is None:
        return Standing("empty", "○", "nothing told yet")
    patience = SILENT_AFTER_S if run.beats else SILENT_WITHOUT_BEATS_S
    silent = now - run.last
    if alive is False or (alive is None and silent > patience) or (run.beats and silent > patience):
        return Standing("silent", "■", "stopped without saying so")
    if run.phase == "wait":
        return Standing("waiting", "…", "waiting for clients")
    return Standing("running", "▶", "running")
