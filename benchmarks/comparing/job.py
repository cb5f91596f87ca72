"""A comparison from its command: prepare, plan, run what is left, report.

Puts the other modules together and computes nothing itself.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comparing import plots, spending, tables, tuning
from comparing.entries import ENTRIES, Entry, roster
from comparing.images import Prepared, prepared
from comparing.presets import PRESETS, Preset, Said, division_name
from comparing.store import Record, all_stored
from comparing.units import Unit, comparison, grids
from comparing.work import Progress, duration, run_all
from feddgm_flwr.config import RunConfig
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.files import write_atomically
from feddgm_flwr.priors import build_prior

logger = logging.getLogger(__name__)

RESULTS = "results.json"
"""A table's file for programs: its title, division and the records of all its runs."""


def runs_of(folder: Path) -> list[Record]:
    """Return the records of the table in ``folder``; none where there is no table."""
    file = folder / RESULTS
    if not file.is_file():
        return []
    runs: list[Record] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    return runs


@dataclass(frozen=True)
class Job:
    """What is compared, on what, and where it is kept.

    Attributes
    ----------
    entries
        Rows that are tuned or run.
    among
        All rows that there are, of which the table keeps those it had.
    committed
        Where tuned settings are looked for after ``out``.
    table
        Name of the table's folder, after the division; "" for the comparison's own.
    device
        Where runs are made; "" as the preset says.
    """

    preset: Preset
    division: Said
    entries: list[Entry]
    among: Sequence[Entry]
    out: Path
    committed: Path
    data: Path | None
    table: str = ""
    device: str = ""

    @classmethod
    def of(
        cls,
        preset: Preset,
        division: Said,
        *,
        out: Path,
        committed: Path,
        data: Path | None,
        prior: Path | None,
        labels: Sequence[str] | None,
        among: Sequence[Entry] = ENTRIES,
        table: str = "",
        device: str = "",
        said: Said | None = None,
    ) -> "Job":
        """Return the job; rows that cannot be run are left out, with a line each."""
        where = {} if prior is None else {"prior.path": str(prior.resolve())}
        preset = preset.with_said(where).with_trial(said or {})
        images = prepared(preset, "report", data, out / "data")
        config = RunConfig.from_run_config({**preset.common, **images.said})
        knows = build_prior(config.prior, spec_of(config.data)).conditional
        entries = roster(among, wanted=labels, conditional=knows)
        return cls(preset, division, entries, among, out, committed, data, table, device)

    @property
    def folder(self) -> Path:
        """Where the table is; another's must not take the place of the preset's own."""
        rounds = "" if self._has_its_rounds else f"{self.preset.rounds}-rounds"
        words = (
            division_name(self.division),
            self.table,
            rounds,
            "trial" if self.preset.trial else "",
        )
        return self.out / "-".join(filter(None, words))

    @property
    def _has_its_rounds(self) -> bool:
        return self.preset.rounds == PRESETS[self.preset.name].rounds

    def tune(self, workers: int, *, only_list: bool) -> None:
        """Choose settings by every row's grid, and record all that was tried."""
        images = prepared(self.preset, "tuning", self.data, self.out / "data")
        units = grids(self.preset, self.entries, images, self.division)
        if only_list:
            self._list(units)
            return
        done = self.run(units, workers)
        about = {
            "preset": self.preset.name,
            "data": images.title,
            "images": images.sizes,
            "division": dict(self.division),
            "rounds": max((unit.length for unit in units), default=0),
        }
        path = tuning.save(self.out, tuning.chosen(units, done), about)
        logger.info("settings chosen: %s", path)

    def compare(
        self,
        seeds: Sequence[int],
        workers: int,
        *,
        untuned: bool,
        only_list: bool,
        only_report: bool,
    ) -> None:
        """Run what is left of these rows and seeds, and make the table of them and of those it had.

        Raises
        ------
        ValueError
            A row was not tuned.
        """
        tuned = tuning.settings_of([self.out, self.committed])
        lacking = tuning.untuned(self.entries, tuned)
        if lacking and not (untuned or only_report):
            raise ValueError(
                f"every row must be tuned, and {lacking} are not; run --tune first, or say "
                "--untuned"
            )
        images = prepared(self.preset, "report", self.data, self.out / "data")
        units = comparison(self.preset, self.entries, images, self.division, seeds, tuned)
        if only_list:
            self._list(units)
            return
        if not only_report:
            self.run(units, workers)
        had = runs_of(self.folder)
        shown = {entry.label for entry in self.entries} | {run["label"] for run in had}
        rows = [entry for entry in self.among if entry.label in shown]
        seeds = sorted({*seeds, *(run["seed"] for run in had)})
        units = comparison(self.preset, rows, images, self.division, seeds, tuned)
        done = all_stored(self.out, units)
        records = [done[unit.name] for unit in units if unit.name in done]
        # A row of something that was deleted since can no longer be run, and is still an answer.
        records += [run for run in had if run["label"] not in {e.label for e in self.among}]
        if not records:
            logger.info("nothing of these rows and seeds is done; the table stays as it is")
        else:
            self._report(records, rows, images, tuning.untuned(rows, tuned))

    def run(self, units: Sequence[Unit], workers: int) -> dict[str, Record]:
        """Run what is left of ``units``; return unit name -> finished run, of all."""
        done = all_stored(self.out, units)
        left = [unit for unit in units if unit.name not in done]
        progress = Progress(units, done, workers)
        logger.info("%d runs, %d done before", len(units), len(units) - len(left))
        run_all([replace(u, device=self.device) for u in left], self.out, workers, progress)
        return all_stored(self.out, units)

    def _list(self, units: Sequence[Unit]) -> None:
        done = all_stored(self.out, units)
        for unit in units:
            tried = ", ".join(f"{key} = {value}" for key, value in unit.tried.items())
            state = f"done in {done[unit.name]['seconds']:.0f} s" if unit.name in done else "to do"
            print(f"{unit.label}, seed {unit.seed} ({tried or 'as the preset says'}): {state}")
        left = duration(Progress(units, done, 1).left_s())
        print(f"{len(done)} of {len(units)} done; {left} left on one core")

    def _report(
        self,
        records: Sequence[Record],
        entries: Sequence[Entry],
        images: Prepared,
        lacking: Sequence[str],
    ) -> None:
        folder = self.folder
        ceilings = [entry.label for entry in entries if entry.ceiling]
        rows = tables.rows_of(records, ceilings)
        title = self._title(images, sorted({record["seed"] for record in records}))
        note = f"\nNot tuned: {', '.join(lacking)}.\n" if lacking else ""
        preset, division = tuning.where_chosen([self.out, self.committed])
        if preset and (preset, division) != (self.preset.name, self.division):
            at = division_name(division).replace("-", " ")
            note += f"\nAll settings were chosen on {preset} at {at}.\n"
        table = tables.accuracy_table(rows)
        made = f"\nMade with {where}\n" if (where := spending.where_made(records)) else ""
        differences = tables.difference_table(rows)
        pictures = tables.image_table(records)
        parts = [f"# {title}\n", tables.EXPLAINED, table, made, note, differences, pictures]
        write_atomically(folder / "table.md", "\n".join(parts).encode())
        whole = {"title": title, "division": dict(self.division), "runs": list(records)}
        text = json.dumps(whole, separators=(",", ":"), allow_nan=False)
        write_atomically(folder / RESULTS, text.encode())
        plots.draw_all(records, title, folder)
        print("\n".join(filter(None, (table, pictures))))
        logger.info("tables and plots: %s", folder)

    def _title(self, images: Prepared, seeds: Sequence[int]) -> str:
        sizes = f"{images.sizes['train']:,} + {images.sizes['test']:,} images"
        how = division_name(self.division).replace("-", " ")
        else_said = "".join(f", {key} = {value}" for key, value in self.preset.trial.items())
        clients = f"{self.preset.clients} clients"
        rounds = "" if self._has_its_rounds else f", {self.preset.rounds} rounds"
        return f"{images.title}, {sizes}, {clients}, {how}{rounds}, seeds {seeds}{else_said}"
