"""Distillation spread over a Ray cluster: the same jobs as Ray tasks, the same results.

The address comes from ``RAY_ADDRESS`` or from an already initialised Ray (in simulation, the one
that runs the clients); without either a local cluster is started. A task whose worker dies is
started again by Ray. Knows nothing of what a job does.
"""

import os
from collections.abc import Sequence
from typing import Any

import ray

from feddgm_flwr.distill import Bench, DistillJob, DistillResult, failed_result
from feddgm_flwr.engine import ATTEMPTS, OnProgress, OnResult, run_job


class RayEngine:
    """Each job a Ray task; the bench is put into the object store once."""

    def __init__(self, bench: Bench, *, workers: int) -> None:
        self._bench = bench
        self._owner = not ray.is_initialized()
        if self._owner:
            address = os.environ.get("RAY_ADDRESS")
            ray.init(
                address=address,
                log_to_driver=False,
                num_cpus=None if address else workers or None,
            )
        gpus = 1 if bench.device.type == "cuda" else 0
        self._reference = ray.put(bench)
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS)(_work)

    def run(
        self, jobs: Sequence[DistillJob], on_progress: OnProgress, on_result: OnResult
    ) -> list[DistillResult]:
        """Distil every job."""
        waiting = {self._task.remote(job, self._reference): i for i, job in enumerate(jobs)}
        results: dict[int, DistillResult] = {}
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=None)
            index = waiting.pop(done[0])
            results[index] = self._get(done[0], jobs[index])
            on_result(results[index])
        return [results[i] for i in range(len(jobs))]

    def _get(self, reference: Any, job: DistillJob) -> DistillResult:  # noqa: ANN401
        try:
            result: DistillResult = ray.get(reference)
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
        ) as error:
            return failed_result(job, self._bench, f"its Ray worker died: {error}")
        return result

    def close(self) -> None:
        """Leave the cluster, if this engine joined it."""
        if self._owner:
            ray.shutdown()


def _work(job: DistillJob, bench: Bench) -> DistillResult:
    return run_job(job, bench, lambda *_: None)
