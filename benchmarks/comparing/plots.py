"""Pictures of a comparison: accuracy by round and by what was spent, each line labelled at its end.

Ours is drawn in vermilion, the strongest others in Okabe and Ito's colours, both with the band of
the mean's interval; all others in grey. matplotlib is imported on first use. Numbers only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from comparing.entries import OURS
from comparing.spending import of_one_device, seconds, usual_device
from comparing.statistics import Estimate, estimate
from comparing.store import Record
from comparing.tables import accuracy_at
from feddgm_flwr.monitoring.plots import COLOURS, figure_of, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#8a8a8a"
OUR_COLOUR = "#d55e00"
OTHERS = tuple(c for c in COLOURS if c != OUR_COLOUR)
STRONGEST = 5
"""Rows drawn in colour beside ours."""
GAP = 0.032
"""Least distance of two labels, as a share of the axes' height."""

AXES = {
    "round": "round",
    "megabyte": "megabytes to and from a client, all rounds so far",
    "client_seconds": "seconds of all clients so far, on {}",
    "server_seconds": "seconds of the server so far, on {}",
}
"""File name -> what its horizontal axis says; a device's name goes where one counts."""
WHOSE = {"client_seconds": "clients", "server_seconds": "server"}
"""Axis -> whose seconds it shows: only runs of one device are drawn over it."""


@dataclass(frozen=True)
class Curve:
    """A line: where it passes, and its interval there."""

    name: str
    x: tuple[float, ...]
    y: tuple[Estimate, ...]

    def without_start(self) -> "Curve":
        """Return the line from the first round on: nothing was spent before it."""
        return Curve(self.name, self.x[1:], self.y[1:])


def spent(record: Record) -> dict[str, list[float]]:
    """Return what a run had spent after each of its rounds, by the names of ``AXES``."""
    rounds = record["rounds"]
    by_round = {
        "round": [1.0] * len(rounds),
        "megabyte": [(r["down"] + r["up"]) / r["asked"] / 1e6 for r in rounds],
        **{axis: [seconds(r, whom) for r in rounds] for axis, whom in WHOSE.items()},
    }
    return {name: np.cumsum(values).tolist() for name, values in by_round.items()}


def curves(records: Sequence[Record], axis: str) -> list[Curve]:
    """Return a curve a row: the surrogate's mean over seeds at what was spent on average.

    A row of which a run diverged ends where it did; one without rounds is a level line.
    """
    longest = max((record["length"] for record in records), default=0)
    found = []
    for label in dict.fromkeys(record["label"] for record in records):
        own = [record for record in records if record["label"] == label]
        if not own[0]["length"]:
            continue
        numbers = range(1, 1 + min(longest, *(len(record["rounds"]) for record in own)))
        points = [(0.0, 0), *((_mean([spent(r)[axis][n - 1] for r in own]), n) for n in numbers)]
        y = [estimate([100 * accuracy_at(r, "surrogate", n) for r in own]) for _, n in points]
        found.append(Curve(label, tuple(x for x, _ in points), tuple(y)))
    return found


def draw_all(records: Sequence[Record], title: str, folder: Path) -> list[Path]:
    """Draw accuracy over each axis into ``folder``."""
    drawn = []
    for axis, says in AXES.items():
        shown, device = list(records), ""
        if axis in WHOSE:
            shown = of_one_device(records, WHOSE[axis])
            device = usual_device(records, WHOSE[axis])
        lines = curves(shown, axis)
        drawn.append(draw(lines, title, says.format(device), folder / f"{axis}.png"))
    return drawn


def draw(lines: Sequence[Curve], title: str, says: str, path: Path) -> Path:
    """Draw ``lines`` with their names at their ends, over an axis that ``says`` what it is.

    What is spent differs between methods by powers of ten, so those axes are logarithmic.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = figure_of(8.0, 5.0)
    colours, by_round = _colours(lines), says == AXES["round"]
    if not by_round:
        lines = [line.without_start() for line in lines if len(line.x) > 1]
    for line in sorted(lines, key=lambda c: colours[c.name] != GREY):
        draw_line(axes, line, colours[line.name])
    axes.set_xlabel(says, parse_math=False)
    dress(axes)
    if by_round:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_title(title, fontsize=10, parse_math=False)
    _name_ends(axes, lines, colours)
    save_figure(figure, path)
    return path


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _colours(lines: Sequence[Curve]) -> dict[str, str]:
    others = [line for line in lines if line.name != OURS]
    strongest = sorted(others, key=lambda c: -_mean([e.mean for e in c.y[1:]] or [0.0]))
    colours = {line.name: GREY for line in lines}
    colours.update(zip((c.name for c in strongest[:STRONGEST]), OTHERS, strict=False))
    return {**colours, OURS: OUR_COLOUR}


def dress(axes: "Axes") -> None:
    """Give ``axes`` what every comparison's have: their measure, a grid, and no frame.

    Call it when all is drawn: an interval of two seeds may reach beyond what an accuracy can be.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(100.0, high))
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_line(axes: "Axes", line: Curve, colour: str) -> None:
    """Draw a row: ours thick, the band of the mean's interval unless the row is grey."""
    means = [e.mean for e in line.y]
    width = 2.4 if line.name == OURS else 1.6 if colour != GREY else 0.9
    axes.plot(line.x, means, color=colour, linewidth=width, marker="o", markersize=1.5 * width)
    sure = all(math.isfinite(e.half) for e in line.y)
    if sure and colour != GREY:
        low, high = [e.low for e in line.y], [e.high for e in line.y]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.13, linewidth=0)


def _name_ends(axes: "Axes", lines: Sequence[Curve], colours: Mapping[str, str]) -> None:
    """Write each name right of the axes at its line's last height, moved apart where they meet."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    heights = spread({line.name: (line.y[-1].mean - low) / (high - low) for line in lines})
    above = max([0.0, *(height - 1.0 for height in heights.values())])  # there is the title
    for line in lines:
        at, end = heights[line.name] - above, (line.x[-1], line.y[-1].mean)
        colour = colours[line.name]
        axes.annotate(
            line.name,
            xy=end,
            xytext=(1.03, at),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color=colour,
            weight="bold" if line.name == OURS else "normal",
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "alpha": 0.5,
                "linewidth": 0.6,
                "relpos": (0.0, 0.5),  # to the name, not through it
            },
            annotation_clip=False,
        )
    axes.set_xlim(right=right)


def spread(ends: Mapping[str, float], gap: float = GAP) -> dict[str, float]:
    """Return heights at least ``gap`` apart, in the same order and centred on the old ones."""
    order = sorted(ends, key=lambda name: ends[name])
    heights: list[float] = []
    for name in order:
        heights.append(max(ends[name], heights[-1] + gap if heights else -math.inf))
    shift = (sum(heights) - sum(ends.values())) / max(1, len(heights))
    return {name: height - shift for name, height in zip(order, heights, strict=True)}
