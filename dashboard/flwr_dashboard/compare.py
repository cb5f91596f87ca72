"""Runs side by side: curves, a table with the best marked, and only the settings that differ.

Knows no HTML. Runs that differ in nothing but their seed are also given as mean and spread.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr_dashboard import svg, words
from flwr_dashboard.state import Run
from flwr_dashboard.views import NARROW, Chart

SEED = "seed"
PLACES = ("out-dir", "resume")
"""Settings that differ between runs without making them different."""


@dataclass(frozen=True)
class Compared:
    """One of the runs that are compared; ``colour`` is its own on every page."""

    id: str
    run: Run
    colour: int


@dataclass(frozen=True)
class Cell:
    """A value of the table, and whether it is the best of its row."""

    value: str
    best: bool = False


def curves(runs: Sequence[Compared]) -> Chart | None:
    """Return the accuracy of each run's model by round; None where nothing was scored."""
    lines = [
        svg.Line(words.clean(c.id, 24), [(n, a) for n, a in c.run.accuracy(c.run.model)], c.colour)
        for c in runs
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    last = max(max(c.run.rounds_planned, c.run.round) for c in runs)
    title = "Test accuracy by round: " + "; ".join(
        f"{line.name} reaches {words.percent(line.points[-1][1])}" for line in lines
    )
    wide, narrow = (
        svg.line_chart(lines, title=title, width=width, height=height, x_last=last)
        for width, height in ((1100, 340), (NARROW, 260))
    )
    rounds = sorted({n for line in lines for n, _ in line.points})
    values = [dict(line.points) for line in lines]
    rows = [[f"{n:g}", *(words.percent(v.get(n)) for v in values)] for n in rounds]
    return Chart(wide, narrow, ["round", *(line.name for line in lines)], rows)


def table(runs: Sequence[Compared]) -> list[tuple[str, list[Cell]]]:
    """Return measures by run, the best of each in bold."""
    best = [b[1] if (b := c.run.best()) else None for c in runs]
    last = [p[-1][1] if (p := c.run.accuracy(c.run.model)) else None for c in runs]
    control = [c.run.control.get(c.run.model) for c in runs]
    over = [
        b - k if b is not None and k is not None else None
        for b, k in zip(best, control, strict=True)
    ]
    up = [float(sum(r.bytes_up for r in c.run.done())) for c in runs]
    took = [sum(r.seconds or 0.0 for r in c.run.done()) for c in runs]
    return [
        ("best accuracy", _row(best, words.percent, max)),
        ("last accuracy", _row(last, words.percent, max)),
        ("over the prior alone", _row(over, words.points, max)),
        ("rounds done", [Cell(f"{len(c.run.done())}") for c in runs]),
        ("sent up", _row(up, words.size, min)),
        ("time in rounds", _row(took, words.duration, min)),
        ("replies set aside", _row([float(c.run.set_aside()) for c in runs], "{:.0f}".format, min)),
    ]


def _row(
    values: Sequence[float | None],
    say: Callable[[float], str],
    better: Callable[[Sequence[float]], float],
) -> list[Cell]:
    known = [v for v in values if v is not None]
    goal = better(known) if len(set(known)) > 1 else None
    return [Cell("–" if v is None else say(v), v is not None and v == goal) for v in values]


def differing(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the runs differ, with each run's value."""
    configs = [c.run.config for c in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [(key, [config.get(key, "–") for config in configs]) for key in keys]
    method = ("method", [c.run.method for c in runs])
    rows = rows if "method" in keys else [method, *rows]
    return [(key, values) for key, values in rows if len(set(values)) > 1 and key not in PLACES]


def spread(runs: Sequence[Compared]) -> str:
    """Return mean and standard deviation where only the seed differs; empty otherwise."""
    best = [b[1] for c in runs if (b := c.run.best())]
    if len(best) < 2 or len(best) < len(runs) or {k for k, _ in differing(runs)} != {SEED}:
        return ""
    mean, deviation = statistics.fmean(best), statistics.stdev(best)
    return (
        f"Only the seed differs: best accuracy {words.percent(mean)} ± "
        f"{100 * deviation:.1f} points (standard deviation over {len(best)} runs)."
    )
