"""Telling how far distillation is, as events, and showing how images grow, wherever it runs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from feddgm_flwr.core.distillation.distill import DistillJob, DistillResult
from feddgm_flwr.core.distillation.engine import Engine
from feddgm_flwr.core.distillation.glimpse import Glimpse, glimpse
from feddgm_flwr.core.telling import Pace
from feddgm_flwr.events import Distilled, DistillProgress, Emit

Show = Callable[[int, int, Glimpse], None]
"""``show(server_round, partition_id, glimpse)``."""


def _to_nobody(server_round: int, partition_id: int, seen: Glimpse) -> None:
    pass


@dataclass(frozen=True)
class Gallery:
    """Where images are shown while they grow.

    Attributes
    ----------
    room
        Images a round that are shown, shared out among the clients; of 0 none are.
    show
        Gets each client's at 0, 25, 50 and 100 % of its iterations.
    """

    room: int = 0
    show: Show = _to_nobody


def distilled(
    jobs: Sequence[DistillJob],
    engine: Engine,
    server_round: int,
    emit: Emit,
    gallery: Gallery = Gallery(),
) -> list[DistillResult]:
    """Distil all jobs, telling how far along they are."""
    done, pace = dict.fromkeys((j.partition_id for j in jobs), 0.0), Pace()
    jobs = [
        replace(job, glimpses=_share(gallery.room, len(jobs), index))
        for index, job in enumerate(jobs)
    ]
    glimpses = {job.partition_id: job.glimpses for job in jobs}

    def left_s() -> float:
        return pace.left_s(sum(done.values()) / len(done))

    def on_progress(
        partition_id: int, iteration: int, iterations: int, loss: float, seen: Glimpse | None
    ) -> None:
        done[partition_id] = iteration / iterations
        emit(
            DistillProgress(
                round=server_round,
                partition_id=partition_id,
                iteration=iteration,
                iterations=iterations,
                loss=loss,
                eta_s=left_s(),
            )
        )
        if seen is not None:
            gallery.show(server_round, partition_id, seen)

    def on_result(result: DistillResult) -> None:
        report = result.report
        done[report.partition_id] = 1.0
        emit(Distilled(round=server_round, **asdict(report), eta_s=left_s()))
        count = glimpses[report.partition_id]
        if count and result.latents is not None and len(result.images):
            labels = result.latents.labels
            seen = glimpse(result.images, labels, iteration=report.iterations, count=count)
            gallery.show(server_round, report.partition_id, seen)

    return engine.run(jobs, on_progress, on_result)


def _share(room: int, count: int, index: int) -> int:
    """Return how much of ``room`` the ``index``-th of ``count`` gets."""
    return room // count + (index < room % count)
