"""Tables of a comparison in Markdown: accuracy, cost and paired differences by row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from comparing.entries import OURS
from comparing.spending import WHOM, of_one_device, seconds
from comparing.statistics import Estimate, estimate, paired, winner
from comparing.store import Record

SHOWN = (1, 2, 3, 5, 10, 15, 20)
"""Rounds that have a column."""

EXPLAINED = """\
Accuracy on the test images after each round, in per cent: mean ± standard deviation between seeds.
Bold: the highest mean of its column, where the 95 % interval of its paired difference from every
other row excludes zero, or rows of one or two seeds are behind on these. MB: to and from each
client that is asked, a round. Seconds: of a processor, or on the clock where a GPU computed, a
round, all clients together; of runs on one device only, "-" for others. Below, differences paired
by seed with their intervals (Student's t); "none" where the interval holds zero.
"""

BySeed = dict[int, float]


@dataclass
class Row:
    """All runs of one model of one row.

    Attributes
    ----------
    accuracy
        Round -> seed -> accuracy; NaN from where a run diverged. Round 0 is the start.
    costs
        Name -> seed -> mean over the rounds.
    ceiling
        Whether it is out of competition.
    """

    name: str
    accuracy: dict[int, BySeed] = field(default_factory=dict)
    costs: dict[str, BySeed] = field(default_factory=dict)
    ceiling: bool = False


def rows_of(records: Sequence[Record], ceilings: Sequence[str] = ()) -> list[Row]:
    """Return the rows of ``records`` in their order: each one's surrogate, then larger models.

    A run without rounds, a control, has the accuracy of its start in every round.
    """
    longest = max((record["length"] for record in records), default=0)
    rows: dict[str, Row] = {}
    timed = {f"{whom} s": of_one_device(records, whom) for whom in WHOM}
    for record in records:
        for model in record["start"]:
            label = record["label"]
            name = label if model == "surrogate" else f"{label}: {model}"
            row = rows.setdefault(name, Row(name, ceiling=label in ceilings))
            for number in range(longest + 1):
                reached = accuracy_at(record, model, number)
                row.accuracy.setdefault(number, {})[record["seed"]] = reached
            for cost, value in costs_of(record).items():
                if any(record is one for one in timed.get(cost, records)):
                    row.costs.setdefault(cost, {})[record["seed"]] = value
    return list(rows.values())


def accuracy_at(record: Record, model: str, number: int) -> float:
    """Return a model's accuracy after round ``number``; NaN where the run had diverged."""
    if not number or not record["length"]:
        return float(record["start"][model])
    rounds = record["rounds"]
    return float(rounds[number - 1]["accuracy"][model]) if number <= len(rounds) else math.nan


def costs_of(record: Record) -> dict[str, float]:
    """Return a run's means by round: megabytes a client, and seconds."""
    rounds = record["rounds"]
    if not rounds:
        return {}
    n = len(rounds)
    return {
        "MB": sum((r["down"] + r["up"]) / r["asked"] for r in rounds) / n / 1e6,
        "clients s": sum(seconds(r, "clients") for r in rounds) / n,
        "server s": sum(seconds(r, "server") for r in rounds) / n,
    }


def accuracy_table(rows: Sequence[Row]) -> str:
    """Return accuracy by round (mean, deviation between seeds) and cost by row.

    Bold is the highest mean of a column, if its paired interval against every other row's excludes
    zero; a ceiling's row is not compared.
    """
    columns = shown_rounds(rows)
    best = {
        number: winner({row.name: row.accuracy[number] for row in rows if not row.ceiling})
        for number in columns
    }
    head = ["method", *(f"r{n}" for n in columns), "MB", "clients s", "server s", "seeds"]
    lines = []
    for row in rows:
        cells = [_cell(row.accuracy[n].values(), bold=best[n] == row.name) for n in columns]
        costs = [_cost(row.costs.get(name)) for name in ("MB", "clients s", "server s")]
        name = f"{row.name} (ceiling)" if row.ceiling else row.name
        lines.append([name, *cells, *costs, str(len(row.accuracy[columns[0]]))])
    return markdown(head, lines)


def shown_rounds(rows: Sequence[Row]) -> list[int]:
    """Return the rounds that have a column: a few, and the last."""
    return _columns(max((max(row.accuracy) for row in rows), default=0))


def _columns(last: int) -> list[int]:
    return [n for n in range(1, last + 1) if n in SHOWN or n == last]


def difference_table(rows: Sequence[Row], ours: str = OURS) -> str:
    """Return ours minus each other row by round, paired by seed, with its interval."""
    our = next((row for row in rows if row.name == ours), None)
    if our is None:
        return ""
    columns = shown_rounds(rows)
    lines = [
        [row.name, *(lead_in_words(paired(our.accuracy[n], row.accuracy[n])) for n in columns)]
        for row in rows
        if row is not our
    ]
    return markdown([f"{ours} minus", *(f"r{n}" for n in columns)], lines)


def image_table(records: Sequence[Record]) -> str:
    """Return how distilled images look to the judge, by row and round, where there was one.

    A cell is the share that the judge puts in its class, and the distance to the nearest real
    image of it, means over seeds; the last column is the matching loss of round 1, before and after
    distillation, where it was stored.
    """
    rows: dict[str, list[Sequence[Record]]] = {}
    for record in records:
        if any("fidelity" in done for done in record["rounds"]):
            rows.setdefault(record["label"], []).append(record["rounds"])
    if not rows:
        return ""
    columns = _columns(max(len(rounds) for runs in rows.values() for rounds in runs))
    lines = []
    for label, runs in rows.items():
        cells = [
            ", ".join(_mean_of(runs, n, "fidelity", name) for name in ("in-class", "nearest"))
            for n in columns
        ]
        first, left = (_mean_of(runs, 1, "matching", name) for name in ("first", "last"))
        lines.append([label, *cells, "-" if first == "-" else f"{first} to {left}"])
    head = ["images: in class, nearest", *(f"r{n}" for n in columns), "matching loss, r1"]
    return markdown(head, lines)


def _mean_of(runs: Sequence[Sequence[Record]], number: int, what: str, name: str) -> str:
    done = [rounds[number - 1] for rounds in runs if len(rounds) >= number]
    values = [float(r[what][name]) for r in done if what in r]
    return f"{estimate(values).mean:.2f}" if values else "-"


def _cell(values: Iterable[float], *, bold: bool) -> str:
    found = estimate([100 * v for v in values])
    if math.isnan(found.mean):
        return "diverged"
    text = f"{found.mean:.1f}"
    text = f"**{text}**" if bold else text
    return f"{text} ± {found.deviation:.1f}" if found.count > 1 else text


def lead_in_words(lead: Estimate | None) -> str:
    """Return a difference in points with its interval; "none" where that holds zero."""
    if lead is None or math.isnan(lead.mean):
        return "-"
    mean = f"{100 * lead.mean:+.1f}"
    if lead.count < 2:
        return f"{mean} (one seed)"
    text = f"{mean} [{100 * lead.low:.1f}, {100 * lead.high:.1f}]"
    return text if lead.is_certain else f"none: {text}"


def _cost(by_seed: Mapping[int, float] | None) -> str:
    return f"{estimate(list(by_seed.values())).mean:.3g}" if by_seed else "-"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
