"""Metrics of the runs of a folder in Prometheus' text format.

The numbers are read from the logs at each scrape, so there is no registry: a gauge says what stands
there, a counter what has added up since the run began. Names and help end up in a scrape once each.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr_dashboard.state import MIDDLE, Run, Standing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("running", "waiting", "completed", "failed", "stopped", "silent", "empty")


@dataclass
class Family:
    """A metric: its kind, what it means, its samples as (labels, value)."""

    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def families() -> dict[str, Family]:
    """Return every metric, without samples."""
    gauge, counter = "gauge", "counter"
    return {
        "flwr_run_state": Family(gauge, "1 for the state that the run is in, 0 for the others."),
        "flwr_run_round": Family(gauge, "Last round that is done."),
        "flwr_run_rounds": Family(gauge, "Rounds in all."),
        "flwr_run_accuracy": Family(gauge, "Test accuracy of a model after the last scored round."),
        "flwr_run_best_accuracy": Family(gauge, "Best test accuracy of the model judged by."),
        "flwr_run_control_accuracy": Family(gauge, "Test accuracy of a model without any client."),
        "flwr_run_loss": Family(gauge, "Test loss of a model after the last scored round."),
        "flwr_run_clients_online": Family(gauge, "Clients that can be asked."),
        "flwr_run_clients": Family(gauge, "Clients by their present state."),
        "flwr_run_replies_total": Family(counter, "Replies by how they ended."),
        "flwr_run_bytes_total": Family(counter, "Bytes of records, up from and down to clients."),
        "flwr_run_phase_seconds_total": Family(counter, "Seconds spent in each phase."),
        "flwr_run_round_seconds": Family(gauge, "Seconds of the last round that is done."),
        "flwr_run_last_event_seconds": Family(gauge, "Time of the last event since the epoch."),
        "flwr_run_server_rss_bytes": Family(gauge, "Resident memory of the run's server."),
    }


def samples(run: Run, stands: Standing) -> Iterator[tuple[str, float | None, dict[str, str]]]:
    """Yield a run's samples: name, value or None where there is none, labels."""
    done, scored = run.done(), run.scored()
    for state in STATES:
        yield "state", float(stands.key == state), {"state": state}
    yield "round", done[-1].number if done else 0, {}
    yield "rounds", run.rounds_planned or None, {}  # 0 until the run has said it
    yield from _each("accuracy", "model", scored[-1].accuracy if scored else {})
    yield from _each("loss", "model", scored[-1].loss if scored else {})
    yield from _each("control_accuracy", "model", run.control)
    yield "clients_online", run.online, {}
    yield from _each("clients", "state", Counter(c.state for c in run.clients.values() if c.is_one))
    if MIDDLE not in run.left_out:
        yield from _of_all_rounds(run)
    yield "round_seconds", done[-1].seconds if done else None, {}
    yield "last_event_seconds", run.last, {}
    rss = run.load.get("rss_mb")
    yield "server_rss_bytes", rss * 1e6 if rss is not None else None, {}


def _of_all_rounds(run: Run) -> Iterator[tuple[str, float | None, dict[str, str]]]:
    """Yield what would be another number if rounds were left out."""
    done, best = run.done(), run.best()
    yield "best_accuracy", best[1] if best else None, {}
    ended = (p.outcome for r in run.rounds.values() for p in r.parts.values())
    yield from _each("replies_total", "outcome", Counter(o for o in ended if o != "asked"))
    up, down = sum(r.bytes_up for r in done), sum(r.bytes_down for r in done)
    yield from _each("bytes_total", "direction", {"up": up, "down": down})
    yield from _each("phase_seconds_total", "phase", _phases(run))


def _each(
    name: str, label: str, values: Mapping[str, float]
) -> Iterator[tuple[str, float | None, dict[str, str]]]:
    for key, value in values.items():
        yield name, value, {label: key}


def _phases(run: Run) -> dict[str, float]:
    total: dict[str, float] = {}
    for this in run.rounds.values():
        for name, seconds in this.phases.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def render(found: dict[str, Family]) -> str:
    """Return the families that have samples, as Prometheus reads them."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: dict[str, Family]) -> Iterator[str]:
    for name, family in found.items():
        if family.samples:
            yield f"# HELP {name} {family.help}"
            yield f"# TYPE {name} {family.kind}"
            for labels, value in family.samples:
                said = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
                yield f"{name}{{{said}}} {float(value)!r}"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def scrape(runs: Sequence[tuple[str, Run, Standing]]) -> str:
    """Return the metrics of some runs."""
    found = families()
    for name, run, stands in runs:
        for metric, value, labels in samples(run, stands):
            if value is not None:
                found[f"flwr_run_{metric}"].samples.append(({"run": name, **labels}, value))
    return render(found)
