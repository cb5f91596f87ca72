"""Metrics of the runs of a folder in Prometheus' text format.

The numbers are read from the logs at each scrape, so there is no registry: a gauge says what stands
there, a counter what has added up since the run began. Names and help end up in a scrape once each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from flwr_dashboard.state import Run, Standing

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


def sample(found: dict[str, Family], name: str, run: Run, stands: Standing) -> None:
    """Add a run's samples."""

    def put(metric: str, value: float | None, **labels: str) -> None:
        if value is not None:
            found[metric].samples.append(({"run": name, **labels}, value))

    for state in STATES:
        put("flwr_run_state", float(stands.key == state), state=state)
    done, scored, best = run.done(), run.scored(), run.best()
    put("flwr_run_round", done[-1].number if done else 0)
    put("flwr_run_rounds", run.rounds_planned)
    put("flwr_run_best_accuracy", best[1] if best else None)
    for model, value in (scored[-1].accuracy if scored else {}).items():
        put("flwr_run_accuracy", value, model=model)
    for model, value in (scored[-1].loss if scored else {}).items():
        put("flwr_run_loss", value, model=model)
    for model, value in run.control.items():
        put("flwr_run_control_accuracy", value, model=model)
    put("flwr_run_clients_online", run.online)
    states = [client.state for client in run.clients.values()]
    for state in sorted(set(states)):
        put("flwr_run_clients", states.count(state), state=state)
    outcomes = [part.outcome for r in run.rounds.values() for part in r.parts.values()]
    for outcome in sorted(set(outcomes) - {"asked"}):
        put("flwr_run_replies_total", outcomes.count(outcome), outcome=outcome)
    put("flwr_run_bytes_total", sum(r.bytes_up for r in done), direction="up")
    put("flwr_run_bytes_total", sum(r.bytes_down for r in done), direction="down")
    for phase, seconds in _phases(run).items():
        put("flwr_run_phase_seconds_total", seconds, phase=phase)
    put("flwr_run_round_seconds", done[-1].seconds if done else None)
    put("flwr_run_last_event_seconds", run.last)
    rss = run.load.get("rss_mb")
    put("flwr_run_server_rss_bytes", rss * 1e6 if rss is not None else None)


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
        sample(found, name, run, stands)
    return render(found)
