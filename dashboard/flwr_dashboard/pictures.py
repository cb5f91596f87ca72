"""Pictures of a run: which cell shows which client and class, and the files that may be handed out.

Knows sprites (``docs/events.md``) and folders; decodes no picture. A path comes from a log, so only
an ordinary PNG below the run's folder is given, whatever the path says.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flwr_dashboard.state import Round, Run, Sprite

MAX_BYTES = 32 << 20
"""A larger picture is not handed out."""
MAX_FRAMES = 12
"""Rounds of a film strip or a report; of more, some evenly spread, first and last among them."""
_PATH = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*){0,3}\.png", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"


def read(folder: Path, path: str) -> bytes | None:
    """Return a picture's bytes; None if ``path`` is not a plain PNG below ``folder``."""
    if not _PATH.fullmatch(path):
        return None
    try:
        # Step by step, so that no link on the way leads out of the folder.
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in path.split("/"):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                inner = os.open(name, flags, dir_fd=here)
                os.close(here)
                here = inner
            status = os.fstat(here)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                return None
            with os.fdopen(os.dup(here), "rb") as file:
                data = file.read(MAX_BYTES)
        finally:
            os.close(here)
    except OSError:
        return None
    return data if data.startswith(_PNG) else None


def spread(items: Sequence[int], most: int = MAX_FRAMES) -> list[int]:
    """Return at most ``most`` of ``items``, evenly spread, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def drawn_rounds(run: Run) -> list[int]:
    """Return the rounds that have a sprite, in order."""
    return [n for n, r in sorted(run.rounds.items()) if r.sprite is not None]


class Cell(NamedTuple):
    """A cell of a sprite: where it stands, in pixels, and what it shows."""

    round: int
    x: int
    y: int
    side: int
    label: int
    weight: float


Cells = dict[tuple[str, int], list[Cell]]
"""Client and class -> the cells of a sprite that show them."""


def cells(this: Round) -> Cells:
    """Return the cells of a round's sprite by client and class."""
    found: Cells = {}
    sprite = this.sprite
    if sprite is None:
        return found
    for i, (owner, label, weight) in enumerate(sprite.cells):
        row, column = divmod(i, sprite.across)
        cell = Cell(
            this.number, column * sprite.side, row * sprite.side, sprite.side, label, weight
        )
        found.setdefault((owner, label), []).append(cell)
    return found


def extent(sprite: Sprite) -> tuple[int, int]:
    """Return a sprite's width and height in pixels."""
    return sprite.across * sprite.side, sprite.down * sprite.side
