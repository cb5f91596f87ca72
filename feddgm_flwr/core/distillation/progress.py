"""Telling how far distillation is, as events, wherever the engine runs it."""

from collections.abc import Sequence
from dataclasses import asdict

from feddgm_flwr.core.distillation.distill import DistillJob, DistillResult
from feddgm_flwr.core.distillation.engine import Engine
from feddgm_flwr.core.telling import Pace
from feddgm_flwr.events import Distilled, DistillProgress, Emit


def distilled(
    jobs: Sequence[DistillJob], engine: Engine, server_round: int, emit: Emit
) -> list[DistillResult]:
    """Distil all jobs, telling how far along they are."""
    done, pace = dict.fromkeys((j.partition_id for j in jobs), 0.0), Pace()

    def left_s() -> float:
        return pace.left_s(sum(done.values()) / len(done))

    def on_progress(partition_id: int, iteration: int, iterations: int, loss: float) -> None:
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

    def on_result(result: DistillResult) -> None:
        done[result.report.partition_id] = 1.0
        emit(Distilled(round=server_round, **asdict(result.report), eta_s=left_s()))

    return engine.run(jobs, on_progress, on_result)
