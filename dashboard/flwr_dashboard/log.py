"""The tail of an event log that may grow, be cut, be replaced, or be no log at all.

Gives events as plain mappings, whatever their kind, since another app's kinds are shown too. Knows
lines of JSON and nothing of what they mean.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
"""What one ``poll`` reads at most."""
LINE_BYTES = 4 << 20
"""A longer line is no event."""
TAIL_BYTES = 256
"""How much of what was read is kept, to tell a file that was cut and has grown again."""

LARGEST = 1e100
"""A number beyond is none: sums, differences and per cents of those up to it are still floats."""

_DECODER = json.JSONDecoder(parse_constant=lambda _: None)

Record = Mapping[str, Any]
"""One event: ``kind`` is a text, ``time`` a finite number, ``round`` an integer from 0."""


class Tail:
    """Reads what is new in a log.

    Attributes
    ----------
    offset, size
        Bytes read, and bytes there at the last poll.
    broken
        Lines of the present file that are no events.
    restarted
        How often the file was cut or replaced; what was read before is then void.
    missing
        Why there is nothing to read, in words; empty while there is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.restarted = 0
        self.missing = ""
        self._begin(None)

    def _begin(self, identity: tuple[int, int] | None) -> None:
        self._identity = identity
        self.offset = self.size = self.broken = 0
        self._tail = self._half = b""
        self._dropping = False

    @property
    def behind(self) -> bool:
        """Whether the last poll left bytes for the next."""
        return self.offset < self.size

    def poll(self) -> list[Record]:
        """Return the events that are new, of a large file as many as one chunk holds."""
        try:
            chunk = self._new_bytes()
        except OSError as error:
            self.missing = (
                f"The log cannot be read: {(error.strerror or 'no reason given').lower()}."
            )
            # The next file may get the number of this one.
            self._identity = None
            return []
        self.missing = ""
        return self._events(self._lines(chunk))

    def _new_bytes(self) -> bytes:
        # Without waiting, or a pipe under this name would hold the page for ever.
        number = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(number, "rb") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "It is no ordinary file")
            identity = (status.st_dev, status.st_ino)
            file.seek(self.offset - len(self._tail))
            before, chunk = file.read(len(self._tail)), file.read(CHUNK_BYTES)
            if identity != self._identity or before != self._tail:
                self.restarted += self.offset > 0
                self._begin(identity)
                file.seek(0)
                chunk = file.read(CHUNK_BYTES)
        self.size = status.st_size
        self.offset += len(chunk)
        self._tail = (self._tail + chunk[-TAIL_BYTES:])[-TAIL_BYTES:]
        return chunk

    def _lines(self, chunk: bytes) -> list[bytes]:
        """Return the lines that ``chunk`` completes; keep the half one after them."""
        *lines, self._half = (self._half + chunk).split(b"\n")
        if self._dropping and lines:
            # The rest of a line that was counted when it grew too long.
            lines, self._dropping = lines[1:], False
        if len(self._half) > LINE_BYTES or self._dropping:
            self.broken += not self._dropping
            self._half, self._dropping = b"", True
        return [line for line in lines if line.strip()]

    def _events(self, lines: list[bytes]) -> list[Record]:
        found = [event for line in lines if (event := parse(line)) is not None]
        self.broken += len(lines) - len(found)
        return found


def decode(data: bytes) -> Any:  # noqa: ANN401 - JSON says what it likes
    """Return what JSON says, nothing in place of NaN and Infinity.

    Raises
    ------
    ValueError, RecursionError
        It is none, or goes too deep.
    """
    return _DECODER.decode(data.decode(errors="replace"))


def parse(line: bytes) -> Record | None:
    """Return the event of a line, or None if it is none."""
    try:
        said = decode(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    number = said.get("round", 0)
    fine = (
        isinstance(said.get("kind"), str)
        and is_number(said.get("time"))
        and type(number) is int
        and 0 <= number < 1 << 31
    )
    said["round"] = number
    return said if fine else None


def parse_all(lines: Iterable[bytes]) -> list[Record]:
    """Return the events among ``lines``."""
    return [event for line in lines if (event := parse(line)) is not None]


def is_number(value: object) -> bool:
    """Whether ``value`` is a number that can be drawn: no boolean, not beyond all reckoning."""
    return type(value) in (int, float) and abs(value) <= LARGEST  # type: ignore[arg-type]
