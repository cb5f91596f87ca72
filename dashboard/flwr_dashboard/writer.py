"""The writing end of an event log: a line an event, whole or absent, and a heartbeat beside it.

A run outlives its log: once the file is open, no error of the disk or of a listener gets out of
here. Knows lines, not what they mean (``docs/events.md`` says that); needs the standard library
alone.
"""

import getpass
import json
import logging
import os
import platform
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the format."""
FILE = "events.jsonl"
"""Name of the log in a run's folder."""
BEAT_S = 15.0
"""Seconds from heartbeat to heartbeat."""

Listener = Callable[[Mapping[str, Any]], None]
"""Told of every event, as its line has it."""


class EventFile:
    """Appends lines to a file, from any thread; each is on the disk at once.

    A file that was removed or moved away meanwhile is begun anew.

    Raises
    ------
    OSError
        The file cannot be opened: a run that cannot write there should not begin.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._open()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that a line is one write.
        self._file = self._path.open("ab", buffering=0)
        self._torn = _is_cut(self._path)

    def _is_gone(self) -> bool:
        """Whether the path is no longer the open file's: what is written is then lost."""
        try:
            there = self._path.stat()
        except OSError:
            return True
        return not os.path.samestat(there, os.fstat(self._file.fileno()))

    def append(self, line: str) -> None:
        """Write one line, given without its end."""
        with self._lock:
            if self._is_gone():
                gone = self._file
                self._open()
                gone.close()
            # Glued to half a line, this one would be lost as well.
            data = (b"\n" if self._torn else b"") + line.encode() + b"\n"
            self._torn = True
            while data:
                data = data[self._file.write(data) :]
            self._torn = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_cut(path: Path) -> bool:
    """Whether the file ends within a line, as a crash leaves it."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


class Heart:
    """Calls ``beat`` every so often, from a thread of its own."""

    def __init__(self, beat: Callable[[], None], every_s: float = BEAT_S) -> None:
        self._beat, self._every_s = beat, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self._beat()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()


class Load:
    """What this process uses: ``rss_mb``, and ``cpu_percent`` of one core since the last look."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        spent = os.times()
        return time.monotonic(), spent.user + spent.system

    def __call__(self) -> dict[str, float]:
        """Return it; without ``rss_mb`` where the system does not tell."""
        (was, spent), (now, spends) = self._before, self._now()
        self._before = now, spends
        share = (spends - spent) / (now - was) if now > was else 0.0
        return {"cpu_percent": round(100 * share, 1), **_rss()}


def _rss() -> dict[str, float]:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return {}
    return {"rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)}


def machine() -> dict[str, str | int]:
    """Return what is known of this machine: host, user, platform, CPUs, memory."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = ""
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    page_bytes = os.sysconf("SC_PAGE_SIZE") if pages else 0
    return {
        "host": socket.gethostname(),
        "user": user,
        "platform": platform.platform(),
        "cpus": os.cpu_count() or 0,
        "memory_mb": pages * page_bytes // 2**20,
    }


class OpenLog(ABC):
    """What the log of a run does while it is open: it beats, warns once, and tells how it ended."""

    def __init__(self, folder: Path, beat_s: float) -> None:
        self._file = EventFile(folder / FILE)
        self._heart, self._load = Heart(self._beat, beat_s), Load()
        self._round = 0
        self._warned: set[object] = set()

    @abstractmethod
    def _beat(self) -> None:
        """Tell that the run is alive."""

    @abstractmethod
    def _end(self, status: "Status", reason: str) -> None:
        """Tell how the run ended."""

    @abstractmethod
    def _warn(self, what: object, error: Exception) -> None:
        """Say that ``what`` misses events."""

    def _warn_once(self, what: object, error: Exception) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(what, error)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say how the run ended, whatever happened, and close the file."""
        self._heart.stop()
        self._end(*ending(error))
        try:
            self._file.close()
        except OSError as failure:
            self._warn_once(FILE, failure)


class RunLog(OpenLog):
    """The log of one run: ``tell`` appends an event, leaving the block says how it ended.

    Attributes
    ----------
    folder
        The run's folder, made if it is not there.
    """

    def __init__(self, folder: Path, *listeners: Listener, beat_s: float = BEAT_S) -> None:
        super().__init__(folder, beat_s)
        self.folder = folder
        self._listeners = listeners

    def tell(self, kind: str, server_round: int, **fields: object) -> None:
        """Append one event and tell the listeners; a number must be finite."""
        self._round = server_round
        record = {"v": SCHEMA, "time": time.time(), "kind": kind, "round": server_round, **fields}
        for what in (self._append, *self._listeners):
            try:
                what(record)
            except Exception as error:
                self._warn_once(what, error)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.append(json.dumps(record, allow_nan=False))

    def _beat(self) -> None:
        self.tell("heartbeat", self._round, pid=os.getpid(), load=self._load())

    def _end(self, status: "Status", reason: str) -> None:
        self.tell("run-end", self._round, status=status, reason=reason)

    def _warn(self, what: object, error: Exception) -> None:
        logger.warning("an event is lost, and the run goes on: %r", error)


Status = Literal["completed", "failed", "stopped"]


def ending(error: BaseException | None) -> tuple[Status, str]:
    """Return the status of a run that ended by ``error``, or by none, and the reason in words."""
    if error is None:
        return "completed", ""
    from_outside = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return ("stopped" if from_outside else "failed"), reason
