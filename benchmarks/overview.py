"""Several comparisons on one picture and in one table: data sets and skews side by side.

Claim: README, "Results". A panel, and a line of the table, is one folder that ``compare.py`` made;
nothing is run. The table has our row by round, and what it is ahead of each other row by, paired by
seed, with the 95 % interval ("none" where it holds zero).

    python benchmarks/overview.py FOLDER FOLDER --out x.png
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from comparing.entries import OURS
from comparing.job import RESULTS
from comparing.plots import OTHERS, OUR_COLOUR, curves, draw_line, dress
from comparing.presets import division_name
from comparing.statistics import paired
from comparing.store import Record
from comparing.tables import accuracy_at, lead_in_words, markdown

from feddgm_flwr.monitoring.plots import save_figure

ROWS = (OURS, "fedavg", "fedadam", "ccvr")
ROUNDS = (1, 2, 3, 5, 10)
COLUMNS = 2
"""Panels side by side."""


@dataclass(frozen=True)
class Comparison:
    """One table of ``compare.py``: its name and the records of the rows that are shown."""

    name: str
    records: tuple[Record, ...]

    @classmethod
    def read(cls, folder: Path, labels: Sequence[str]) -> "Comparison":
        """Return what ``folder`` holds of the rows ``labels``."""
        whole = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        how = division_name(whole["division"]).replace("-", " ")
        runs = [run for label in labels for run in whole["runs"] if run["label"] == label]
        return cls(f"{whole['title'].split(',')[0]}, {how}", tuple(runs))

    def accuracy(self, label: str, number: int) -> dict[int, float]:
        """Return seed -> accuracy of a row after round ``number``."""
        own = [run for run in self.records if run["label"] == label and run["length"] >= number]
        return {run["seed"]: accuracy_at(run, "surrogate", number) for run in own}


def lead_table(told: Sequence[Comparison], ours: str, labels: Sequence[str]) -> str:
    """Return our accuracy by round, and its lead on each of ``labels``, in Markdown."""
    lines = []
    for one in told:
        mine = {n: one.accuracy(ours, n) for n in ROUNDS}
        means = [_percent(mine[n]) for n in ROUNDS]
        lines.append([f"**{one.name}**: {ours}", *means])
        for label in (label for label in labels if label != ours):
            if one.accuracy(label, 1):
                leads = [lead_in_words(paired(mine[n], one.accuracy(label, n))) for n in ROUNDS]
                lines.append([f"minus {label}", *leads])
    return markdown(["", *(f"r{n}" for n in ROUNDS)], lines)


def _percent(by_seed: dict[int, float]) -> str:
    return f"{100 * sum(by_seed.values()) / len(by_seed):.1f}" if by_seed else "-"


def draw(told: Sequence[Comparison], labels: Sequence[str], path: Path) -> None:
    """Draw accuracy by round, a panel a comparison; bands are the means' intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    others = (label for label in labels if label != OURS)
    # Beyond these, rows share a colour; the legend has them in the order of the lines.
    colours = {OURS: OUR_COLOUR, **dict(zip(others, cycle(OTHERS), strict=False))}
    deep = math.ceil(len(told) / COLUMNS)
    figure = Figure(figsize=(4.6 * COLUMNS, 3.2 * deep), dpi=110, layout="constrained")
    panels = figure.subplots(deep, COLUMNS, squeeze=False).flatten()
    for axes, one in zip(panels, told, strict=False):
        lines = [line.without_start() for line in curves(one.records, "round")]
        for line in reversed(lines):
            draw_line(axes, line, colours[line.name])
        axes.legend(
            axes.get_lines()[::-1],
            [line.name for line in lines],
            fontsize=8,
            loc="lower right",
            frameon=False,
        )
        axes.set_title(one.name, fontsize=10, parse_math=False)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        dress(axes)
    for axes in panels[len(told) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of compare.py's tables")
    parser.add_argument("--methods", nargs="+", metavar="LABEL", default=list(ROWS))
    parser.add_argument("--out", type=Path, required=True, help="of the picture")
    chosen = parser.parse_args()
    told = [Comparison.read(folder, chosen.methods) for folder in chosen.folders]
    draw(told, chosen.methods, chosen.out)
    print(lead_table(told, OURS, chosen.methods))


if __name__ == "__main__":
    main()
