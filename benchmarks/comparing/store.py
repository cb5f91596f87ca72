"""Finished runs on disk, one JSON file each, whole or absent. Runs nothing."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comparing.units import Unit, still_so
from feddgm_flwr.files import write_atomically

Record = dict[str, Any]
"""A finished run, as ``work.run_unit`` makes it."""


def folder_of(out: Path) -> Path:
    """Return where the finished runs of ``out`` are."""
    return out / "units"


def stored(out: Path, unit: Unit) -> Record | None:
    """Return the finished run of ``unit``, or None where there is none with today's settings."""
    file = folder_of(out) / f"{unit.name}.json"
    if not file.is_file():
        return None
    record: Record = json.loads(file.read_text(encoding="utf-8"))
    return record if still_so(record, unit) else None


def all_stored(out: Path, units: Iterable[Unit]) -> dict[str, Record]:
    """Return unit name -> finished run, of those that are finished."""
    found = {unit.name: stored(out, unit) for unit in units}
    return {name: record for name, record in found.items() if record is not None}


def seeds_in(out: Path) -> set[int]:
    """Return the seeds of which any run is finished, whatever its settings."""
    files = folder_of(out).glob("*.json")
    return {json.loads(file.read_text(encoding="utf-8"))["seed"] for file in files}


def keep(out: Path, unit: Unit, record: Record) -> None:
    """Write a finished run."""
    text = json.dumps(record, indent=1, allow_nan=False)
    write_atomically(folder_of(out) / f"{unit.name}.json", text.encode())
