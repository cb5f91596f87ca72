"""Chooses each row's settings by its grid, on images that no table reports on.

The highest mean accuracy over the rounds wins; a diverged run wins never, a tie goes to the first.
"""

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparing.entries import Entry
from comparing.presets import Said
from comparing.store import Record
from comparing.units import TUNING_SEED, Unit
from feddgm_flwr.files import write_atomically

logger = logging.getLogger(__name__)

FILE = "tuned.json"


def score(record: Record) -> float:
    """Return the mean accuracy of a run's surrogate over its rounds; minus infinity if diverged."""
    if record["diverged"] or not record["rounds"]:
        return -math.inf
    return statistics.fmean(done["accuracy"]["surrogate"] for done in record["rounds"])


def chosen(units: Sequence[Unit], records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Return label -> its choice and all that was tried, of rows whose grids are finished.

    A row that diverged whatever was tried has no choice.
    """
    found: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(unit.label for unit in units):
        grid = [unit for unit in units if unit.label == label]
        if any(unit.name not in records for unit in grid):
            continue
        scores = [score(records[unit.name]) for unit in grid]
        best = scores.index(max(scores))
        if not math.isfinite(scores[best]):
            logger.warning("%s diverged whatever was tried: give it another grid", label)
            continue
        found[label] = {
            "chosen": grid[best].tried,
            "grid": [
                {"tried": unit.tried, "score": value if math.isfinite(value) else None}
                for unit, value in zip(grid, scores, strict=True)
            ],
        }
    return found


def save(out: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Add what was found to the file of ``out``; rows tuned before stay.

    Raises
    ------
    ValueError
        These were tuned on another preset, or under another division of the data.
    """
    path = out / FILE
    before = _read(path) if path.is_file() else {**about, "methods": {}}
    then, now = ([told[key] for key in ("preset", "division")] for told in (before, about))
    if then != now:
        raise ValueError(
            f"{path} holds settings chosen under {then}, got {now}; "
            "give these an --out of their own"
        )
    whole = {**about, "seed": TUNING_SEED, "methods": {**before["methods"], **found}}
    write_atomically(path, (json.dumps(whole, indent=1) + "\n").encode())
    return path


def settings_of(places: Sequence[Path]) -> dict[str, Said]:
    """Return label -> chosen settings, of the first of ``places`` that holds the file."""
    path = _first(places)
    if path is None:
        return {}
    return {label: row["chosen"] for label, row in _read(path)["methods"].items()}


def where_chosen(places: Sequence[Path]) -> tuple[str, Said]:
    """Return on which preset settings were chosen, and under which division; "" where nowhere."""
    path = _first(places)
    if path is None:
        return "", {}
    found = _read(path)
    return found["preset"], found["division"]


def untuned(entries: Sequence[Entry], tuned: Mapping[str, Said]) -> list[str]:
    """Return the labels of rows that have a grid and no choice."""
    needed = {e.tuned_as or e.label: e for e in entries if e.rounds}
    return [label for label in needed if label not in tuned]


def _first(places: Sequence[Path]) -> Path | None:
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
