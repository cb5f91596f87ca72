"""A run's numbers as CSV and JSON, for other programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence

from flwr_dashboard.state import Run
from flwr_dashboard.views import order

PART: tuple[str, ...] = (
    "outcome",
    "examples",
    "seconds",
    "loss",
    "bytes_up",
    "moved",
    "images",
    "first_loss",
)
PART += ("last_loss", "distill_seconds", "reason")


def rounds_csv(run: Run) -> str:
    """Return a line a round: seconds, bytes, accuracy and loss of each model, each phase."""
    rounds = [r for _, r in sorted(run.rounds.items())]
    models = list(dict.fromkeys(name for r in rounds for name in r.accuracy))
    phases = list(dict.fromkeys(name for r in rounds for name in r.phases))
    head = ["round", "seconds", "bytes_up", "bytes_down"]
    head += [f"accuracy {m}" for m in models] + [f"loss {m}" for m in models]
    head += [f"seconds {p}" for p in phases]
    rows = [
        [
            r.number,
            r.seconds,
            r.bytes_up,
            r.bytes_down,
            *(r.accuracy.get(m) for m in models),
            *(r.loss.get(m) for m in models),
            *(r.phases.get(p) for p in phases),
        ]
        for r in rounds
    ]
    return _csv(head, rows)


def clients_csv(run: Run) -> str:
    """Return a line a client and round."""
    rows = [
        [r.number, name, *(getattr(r.parts[name], key) for key in PART)]
        for _, r in sorted(run.rounds.items())
        for name in sorted(r.parts, key=order)
    ]
    return _csv(["round", "client", *PART], rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_field, head))
    writer.writerows([_field(value) for value in row] for row in rows)
    return file.getvalue()


def _field(value: object) -> object:
    # A spreadsheet would take such a text for a formula.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value


def run_json(run: Run) -> str:
    """Return what is known of the run, without its latest events."""
    said = {
        f.name: getattr(run, f.name)
        for f in dataclasses.fields(run)
        if f.name
        not in ("latest", "warnings", "num_parts", "left_out", "said", "given", "rounds", "clients")
    }
    said["config"] = run.config
    said["faults"] = list(run.faults)
    said["rounds"] = [dataclasses.asdict(r) for _, r in sorted(run.rounds.items())]
    said["clients"] = [dataclasses.asdict(c) for c in run.clients.values()]
    return json.dumps(said, indent=1)
