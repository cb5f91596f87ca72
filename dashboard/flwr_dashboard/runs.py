"""The runs of a folder: found by their logs, summed up from both ends, followed when opened.

A run is a folder with ``events.jsonl``; its name is its path below the folder looked in. Names that
come from a request are only ever looked up among those found. Links are not followed.
"""

import hashlib
import os
import re
import socket
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr_dashboard import words
from flwr_dashboard.log import Tail, decode, parse, parse_all
from flwr_dashboard.state import MIDDLE, Run, Standing, standing, take

LOG = "events.jsonl"
RESULT = "result.json"
MAX_DEPTH = 3
"""Folders below the one looked in."""
MAX_RUNS = 5000
MAX_OPEN = 16
"""Runs followed at once; the one looked at longest ago is forgotten first."""
HEAD_BYTES, END_BYTES = 16_384, 16_384
"""What a summary looks at of a log: its first line holds the configuration, its last the state."""
_TELLING = re.compile(
    rb'"kind": ?"(?:run-|round-|control-scored|scored|clients-online|heartbeat'
    rb"|client-rejected|client-clipped|client-disbelieved|training-failed)"
)
"""Of those bytes, the events that are read for a summary, beside the last."""
RESULT_BYTES = 1 << 20
"""A larger ``result.json`` is not read for the list."""
REFRESH_S = 0.15
"""A log is looked at no more often; a page that shows a long one as it is read asks each 0.2 s."""
ORDER_S = 10.0
"""How often the runs are put in order for their colours."""
BACKLOG_S = 0.15
"""Time that one request spends on a long log before it shows what it has."""


@dataclass(frozen=True)
class Place:
    """A run of the list, not looked into yet.

    Attributes
    ----------
    order
        The run's place by age, the oldest 0: its colour on every page.
    """

    id: str
    folder: Path
    order: int


@dataclass(frozen=True)
class Summary:
    """One line of the list.

    Attributes
    ----------
    order
        As its place has it.
    curve
        Accuracy by round, by ``result.json`` or else as far as the log was read.
    partial
        Whether ``curve`` may lack rounds.
    """

    id: str
    run: Run
    standing: Standing
    order: int
    curve: tuple[tuple[int, float], ...]
    partial: bool
    changed: float

    @property
    def best(self) -> float | None:
        """The best accuracy of ``curve``; None where nothing was scored."""
        return max((a for _, a in self.curve), default=None)


@dataclass
class Opened:
    """A run that is followed.

    Attributes
    ----------
    version
        Grows whenever anything of the run has changed.
    """

    id: str
    folder: Path
    tail: Tail
    run: Run
    version: int = 0
    looked: float = float("-inf")


class Library:
    """The runs below one folder; to be used under its ``lock`` from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._began: dict[str, tuple[Stamp, float | None]] = {}
        self._summed: dict[str, tuple[object, Run, Curve]] = {}
        self._found: dict[str, Path] = {}
        self._found_at = self._ordered_at = float("-inf")
        self._order: dict[str, int] = {}

    def folders(self) -> dict[str, Path]:
        """Return the runs' folders by id."""
        if time.monotonic() - self._found_at > 1.0:
            found = sorted(_find(self.folder, MAX_DEPTH), key=str)[:MAX_RUNS]
            self._found = {self._id(path): path for path in found}
            for kept in (self._began, self._summed):
                for run_id in kept.keys() - self._found.keys():
                    del kept[run_id]
            self._found_at = time.monotonic()
        return self._found

    def _id(self, folder: Path) -> str:
        name = folder.relative_to(self.folder).as_posix()
        if name == ".":
            name = folder.resolve().name or "run"
        if name.isprintable() and len(name) <= 200:
            return name
        # Such a name can neither be shown nor come back whole in a URL.
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        return f"{words.clean(name, 60)}~{digest}"

    def open(self, run_id: str) -> Opened | None:
        """Return a run, read as far as time allows; None if there is none of that name."""
        opened = self._opened.get(run_id)
        if opened is None:
            folder = self.folders().get(run_id)
            if folder is None:
                return None
            opened = Opened(run_id, folder, Tail(folder / LOG), Run())
            self._opened[run_id] = opened
            if len(self._opened) > MAX_OPEN:
                self._opened.popitem(last=False)
        self._opened.move_to_end(run_id)
        if time.monotonic() - opened.looked > REFRESH_S:
            _follow(opened)
        return opened

    def follows(self, run_id: str) -> bool:
        """Return whether a run is being followed already."""
        return run_id in self._opened

    def places(self) -> list[Place]:
        """Return all runs, the newest first."""
        began = {run_id: self._age(run_id, folder) for run_id, folder in self.folders().items()}
        rows = sorted((when, run_id) for run_id, when in began.items() if when is not None)
        found = [Place(run_id, self._found[run_id], n) for n, (_, run_id) in enumerate(rows)]
        return found[::-1]

    def order(self, run_id: str) -> int:
        """Return a run's place by age, the oldest 0: its colour on every page."""
        if run_id not in self._order or time.monotonic() - self._ordered_at > ORDER_S:
            self._order = {place.id: place.order for place in self.places()}
            self._ordered_at = time.monotonic()
        return self._order.get(run_id, 0)

    def summary(self, place: Place, now: float) -> Summary:
        """Return what the list says of a run, read anew if its files have changed."""
        log, result = stamp(place.folder / LOG), stamp(place.folder / RESULT)
        kept = self._summed.get(place.id)
        if kept is None or kept[0] != (log, result):
            run = _ends(place.folder / LOG)
            kept = ((log, result), run, _curve(place.folder / RESULT))
            self._summed[place.id] = kept
        _, run, told = kept
        stands = standing(run, now, alive=alive(run))
        curve = tuple(run.accuracy(run.model)) if told is None else told
        partial = told is None and MIDDLE in run.left_out
        changed = log.changed if log else now
        return Summary(place.id, run, stands, place.order, curve, partial, changed)

    def _age(self, run_id: str, folder: Path) -> float | None:
        """Return when a run began, or else when its log was last written; None if it is gone."""
        log = stamp(folder / LOG)
        if log is None:
            return None
        kept = self._began.get(run_id)
        if kept is None or kept[0] != log:
            kept = self._began[run_id] = (log, _began(folder / LOG))
        return log.changed if kept[1] is None else kept[1]


def _find(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders at or below ``folder`` that hold a log."""
    try:
        with os.scandir(folder) as entries:
            below = []
            for entry in entries:
                if entry.name == LOG and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    yield folder
                elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    below.append(Path(entry.path))
    except OSError:
        # Gone, or not ours to read: the other runs are.
        return
    if depth:
        for inner in below:
            yield from _find(inner, depth - 1)


def _follow(opened: Opened) -> None:
    began = time.monotonic()
    while True:
        restarted, broken, missing = opened.tail.restarted, opened.tail.broken, opened.tail.missing
        records = opened.tail.poll()
        if opened.tail.restarted != restarted:
            opened.run = Run()
        for record in records:
            take(opened.run, record)
        same = (restarted, broken, missing) == (
            opened.tail.restarted,
            opened.tail.broken,
            opened.tail.missing,
        )
        opened.version += bool(records) or not same
        if not opened.tail.behind or opened.tail.missing or time.monotonic() - began > BACKLOG_S:
            break
    opened.looked = time.monotonic()


@dataclass(frozen=True)
class Stamp:
    """What of a file differs when its content does; ``changed`` in seconds since the epoch."""

    inode: int
    size: int
    changed: float


def stamp(path: Path) -> Stamp | None:
    """Return a file's stamp; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime)


def _began(path: Path) -> float | None:
    """Return the time of a log's first event; None if it does not stand near the beginning."""
    try:
        with path.open("rb") as file:
            lines = file.read(HEAD_BYTES).split(b"\n")
    except OSError:
        return None
    first = next((event for line in lines if (event := parse(line)) is not None), None)
    return None if first is None else float(first["time"])


def _ends(path: Path) -> Run:
    """Return a run from the two ends of its log."""
    run = Run()
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
            start = max(len(head), size - END_BYTES)
            file.seek(start)
            end = file.read(END_BYTES)
    except OSError:
        return run
    if start > len(head):
        # The last line of the head and the first of the end are halves.
        head, end = head.rpartition(b"\n")[0], end.partition(b"\n")[2]
        end = b"\n" + end
    lines = (head + end).split(b"\n")
    # The last is told of whatever it says, since the run was alive then.
    chosen = [line for line in lines[:-2] if _TELLING.search(line, 0, 120)]
    for record in parse_all([*chosen, *lines[-2:]]):
        take(run, record)
    if start > HEAD_BYTES:
        run.left_out.add(MIDDLE)
    return run


Curve = tuple[tuple[int, float], ...] | None
"""Accuracy by round, as ``result.json`` says; None where it does not."""


def _curve(path: Path) -> Curve:
    """Return accuracy by round from ``result.json``; None where there is none to be read."""
    try:
        if path.is_symlink() or path.stat().st_size > RESULT_BYTES:
            raise ValueError("too large for a list")
        result = decode(path.read_bytes())
        rounds = {0: words.numbers(result["initial"]["accuracy"])}
        rounds |= {words.whole(r, "round"): words.numbers(r["accuracy"]) for r in result["rounds"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    names = list(rounds[max(rounds)] or rounds[0])
    model = next((n for n in names if n != "surrogate"), names[0] if names else "")
    return tuple((n, a[model]) for n, a in sorted(rounds.items()) if model in a)


def alive(run: Run) -> bool | None:
    """Return whether the run's process lives; None where it ran elsewhere or does not say."""
    if not run.pid or run.machine.get("host") != socket.gethostname():
        return None
    try:
        os.kill(run.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return None
    return True


def newest(library: Library) -> str:
    """Return the newest run's id.

    Raises
    ------
    ValueError
        There is none.
    """
    found = library.places()
    if not found:
        raise ValueError(f"{str(library.folder)!r} holds no run: no folder in it has an {LOG}")
    return found[0].id


def whole(library: Library, run_id: str) -> Run:
    """Return a run, read to the end of its log.

    Raises
    ------
    ValueError
        There is no such run.
    """
    opened = library.open(run_id)
    if opened is None:
        raise ValueError(f"there is no run {run_id!r}; name one of those that the dashboard lists")
    while opened.tail.behind and not opened.tail.missing:
        _follow(opened)
    return opened.run
