"""The runs of a folder: found by their logs, summed up from both ends, followed when opened.

A run is a folder with ``events.jsonl``; its name is its path below the folder looked in. Names that
come from a request are only ever looked up among those found. Links are not followed.
"""

import hashlib
import json
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
from flwr_dashboard.log import Tail, parse_all
from flwr_dashboard.state import Run, Standing, standing, take

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
    rb"|client-rejected|training-failed)"
)
"""Of those bytes, the events that are read for a summary, beside the last."""
RESULT_BYTES = 1 << 20
"""A larger ``result.json`` is not read for the list."""
REFRESH_S = 0.25
"""A log is looked at no more often, however many ask."""
ORDER_S = 10.0
"""How often the runs are put in order for their colours."""
BACKLOG_S = 0.15
"""Time that one request spends on a long log before it shows what it has."""


@dataclass(frozen=True)
class Summary:
    """One line of the list.

    Attributes
    ----------
    order
        The run's place by age, the oldest 0: its colour on every page.
    curve
        Accuracy by round, as far as ``result.json`` says.
    """

    id: str
    run: Run
    standing: Standing
    order: int
    curve: tuple[tuple[int, float], ...]
    changed: float

    @property
    def best(self) -> float | None:
        """The best accuracy; None where nothing was scored."""
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
    looked: float = 0.0


class Library:
    """The runs below one folder; to be used under its ``lock`` from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._heads: dict[str, tuple[object, Run, tuple[tuple[int, float], ...]]] = {}
        self._found: dict[str, Path] = {}
        self._found_at = self._ordered_at = float("-inf")
        self._order: dict[str, int] = {}

    def folders(self) -> dict[str, Path]:
        """Return the runs' folders by id."""
        if time.monotonic() - self._found_at > 1.0:
            found = sorted(_find(self.folder, MAX_DEPTH), key=str)[:MAX_RUNS]
            self._found = {self._id(path): path for path in found}
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
        if opened.tail.behind or time.monotonic() - opened.looked > REFRESH_S:
            _follow(opened)
        return opened

    def summaries(self, now: float) -> list[Summary]:
        """Return all runs, the newest first."""
        rows = []
        for run_id, folder in self.folders().items():
            read = self._head(run_id, folder)
            if read is not None:
                rows.append((run_id, *read))
        rows.sort(key=lambda row: (row[1].began or row[3], row[0]))
        found = [
            Summary(run_id, run, standing(run, now, alive=alive(run)), order, curve, changed)
            for order, (run_id, run, curve, changed) in enumerate(rows)
        ]
        return found[::-1]

    def order(self, run_id: str) -> int:
        """Return a run's place by age, the oldest 0: its colour on every page."""
        if run_id not in self._order or time.monotonic() - self._ordered_at > ORDER_S:
            self._order = {s.id: s.order for s in self.summaries(time.time())}
            self._ordered_at = time.monotonic()
        return self._order.get(run_id, 0)

    def _head(
        self, run_id: str, folder: Path
    ) -> tuple[Run, tuple[tuple[int, float], ...], float] | None:
        try:
            status = (folder / LOG).lstat()
        except OSError:
            return None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, _stamp(folder / RESULT))
        kept = self._heads.get(run_id)
        if kept is None or kept[0] != stamp:
            run = _ends(folder / LOG)
            kept = self._heads[run_id] = (stamp, run, _curve(folder / RESULT, run))
        return kept[1], kept[2], status.st_mtime


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


def _stamp(path: Path) -> object:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


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
        run.left_out.add("the middle of the log")
    return run


def _curve(path: Path, run: Run) -> tuple[tuple[int, float], ...]:
    """Return accuracy by round from ``result.json``, or else from what is known of the log."""
    try:
        if path.is_symlink() or path.stat().st_size > RESULT_BYTES:
            raise ValueError("too large for a list")
        result = json.loads(path.read_bytes())
        rounds = {0: words.numbers(result["initial"]["accuracy"])}
        rounds |= {int(r["round"]): words.numbers(r["accuracy"]) for r in result["rounds"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return tuple(run.accuracy(run.model))
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
    found = library.summaries(time.time())
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
    while opened is not None and opened.tail.behind and not opened.tail.missing:
        opened = library.open(run_id)
    if opened is None:
        raise ValueError(f"there is no run {run_id!r}; name one of those that the dashboard lists")
    return opened.run
