"""A run's scalars as TensorBoard's event files, by TensorBoard's own writer, which is optional."""

from pathlib import Path

from flwr_dashboard.state import Run


def write(run: Run, folder: Path) -> int:
    """Write a run's numbers by round below ``folder``; return how many.

    Raises
    ------
    ValueError
        TensorBoard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs TensorBoard's writer ({error}); pip install tensorboard"
        ) from error
    writer, count = EventFileWriter(str(folder)), 0
    for number, this in sorted(run.rounds.items()):
        moment = (run.began or 0.0) + _until(run, number)
        for tag, value in scalars(run, number).items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(wall_time=moment, step=this.number, summary=summary))
            count += 1
    writer.close()
    return count


def scalars(run: Run, number: int) -> dict[str, float]:
    """Return a round's numbers by TensorBoard's tags."""
    this = run.rounds[number]
    found = {f"accuracy/{name}": value for name, value in this.accuracy.items()}
    found |= {f"loss/{name}": value for name, value in this.loss.items()}
    for measure, values in this.metrics.items():
        found |= {f"{measure}/{name}": value for name, value in values.items()}
    found |= {f"seconds/{name}": value for name, value in this.phases.items()}
    if this.ended:
        found |= {"bytes/up": float(this.bytes_up), "bytes/down": float(this.bytes_down)}
    return found


def _until(run: Run, number: int) -> float:
    return sum(r.seconds or 0.0 for n, r in run.rounds.items() if n <= number)
