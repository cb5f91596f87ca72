"""Runs that are no row of a comparison, one JSON file each: where they lie, and what is refused.

For ``hostile.py`` and ``privacy.py``, whose runs are named by row and seed and not by settings.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol


class Case(Protocol):
    """One run."""

    @property
    def name(self) -> str:
        """A file's name."""
        ...


def file_of(out: Path, case: Case) -> Path:
    """Return where a finished run is kept."""
    return out / "units" / f"{case.name}.json"


def refuse_to_overwrite(out: Path, left: Iterable[Case]) -> None:
    """End where a run that is left to do would take the place of one of other settings."""
    if others := [case.name for case in left if file_of(out, case).exists()]:
        raise SystemExit(
            f"--out {str(out)!r} holds runs of other settings, such as {others[0]}, which these "
            "would overwrite; name another --out"
        )


def refuse_to_report_nothing(out: Path, done: Sequence[object]) -> None:
    """End where no run is done, before a table is made of none."""
    if not done:
        raise SystemExit(
            f"--out {str(out)!r} holds no finished run of these settings; say those that it was "
            "made with (--preset, --rounds, --quick)"
        )
