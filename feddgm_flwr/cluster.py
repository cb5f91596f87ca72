"""Distillation spread over a Ray cluster: the same jobs as Ray tasks, the same results.

An already initialised Ray is joined (in simulation, the one that runs the clients), else the
cluster at the given address or ``RAY_ADDRESS``, else a local one is started. A task whose worker or
node dies is started again by Ray. Knows nothing of what a job does.
"""

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from feddgm_flwr.core.distillation.distill import Bench, DistillJob, DistillResult, failed_result
from feddgm_flwr.core.distillation.engine import (
    ATTEMPTS,
    News,
    OnProgress,
    OnResult,
    run_job,
)
from feddgm_flwr.core.distillation.glimpse import Glimpse

POLL_S = 0.5
"""Seconds between looks at the tasks' progress."""


class RayEngine:
    """Each job a Ray task; the bench is put into the object store once.

    Parameters
    ----------
    workers
        Tasks at a time; 0 is one a CPU of the cluster.
    address
        ``HOST:PORT`` of a cluster; "" as the module says.
    gpus
        That a task takes, where the bench is on CUDA.
    """

    def __init__(self, bench: Bench, *, workers: int, address: str = "", gpus: float = 1.0) -> None:
        self._bench, self._workers, self._address = bench, workers, address
        self._gpus = gpus if bench.device.type == "cuda" else 0.0
        self._crew: _Crew | None = None

    def run(
        self, jobs: Sequence[DistillJob], on_progress: OnProgress, on_result: OnResult
    ) -> list[DistillResult]:
        """Distil every job."""
        # Not before the first jobs: a simulation's own Ray is running by then, and is joined.
        self._crew = crew = self._crew or _Crew(
            self._bench, self._workers, self._address, self._gpus
        )
        waiting: dict[Any, int] = {}
        results: dict[int, DistillResult] = {}
        started = 0
        while len(results) < len(jobs):
            while started < len(jobs) and len(waiting) < crew.most:
                task = crew.start(jobs[started])
                waiting[task] = started
                started += 1
            done, _ = ray.wait(list(waiting), timeout=POLL_S)
            for item in crew.news():
                on_progress(*item)
            for task in done:
                index = waiting.pop(task)
                results[index] = self._get(task, jobs[index])
                on_result(results[index])
        return [results[i] for i in range(len(jobs))]

    def _get(self, task: Any, job: DistillJob) -> DistillResult:  # noqa: ANN401
        try:
            result: DistillResult = ray.get(task)
        except ray.exceptions.RayTaskError:
            raise  # a defect of the code, not of the cluster
        except ray.exceptions.RayError as error:
            return failed_result(job, self._bench, f"its Ray worker died {ATTEMPTS} times: {error}")
        return result

    def close(self) -> None:
        """Leave the cluster, if this engine joined it."""
        if self._crew is not None:
            self._crew.leave()
            self._crew = None


class _Crew:
    """What an engine holds in a cluster: the bench, the task and the board for its progress."""

    def __init__(self, bench: Bench, workers: int, address: str, gpus: float) -> None:
        self._owner = not ray.is_initialized()
        if self._owner:
            address = address or os.environ.get("RAY_ADDRESS", "")
            # "local": without an address Ray would join any cluster that it finds running.
            ray.init(
                address=address or "local",
                log_to_driver=False,
                num_cpus=None if address else workers or None,
            )
        elif address and address != (joined := ray.get_runtime_context().gcs_address):
            raise ValueError(
                f"distill.ray-address = {address!r} is not the Ray that this process has joined, "
                f"{joined}; leave it empty, or start the simulation with RAY_ADDRESS={address}"
            )
        cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free = cluster.get("GPU", 0) / gpus if gpus else cluster.get("CPU", 1)
        self.most = workers or max(1, int(free))
        self._reference = ray.put(bench)
        # Flower's client actors hold their CPUs through the whole run, idle while the server
        # distils: a task that asked for one there would wait for ever.
        self._task = ray.remote(
            num_cpus=1 if self._owner else 0,
            num_gpus=gpus,
            max_retries=ATTEMPTS - 1,
            scheduling_strategy="SPREAD",
        )(_work)
        # On the node that asks, so that it lives as long as who reads it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board: Any = ray.remote(_Board)
        self._board = board.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()

    def start(self, job: DistillJob) -> Any:  # noqa: ANN401
        return self._task.remote(job, self._reference, self._board)

    def news(self) -> list[News]:
        try:
            news: list[News] = ray.get(self._board.take.remote())
        except ray.exceptions.RayActorError:
            return []  # it is being started again; only progress was lost
        return news

    def leave(self) -> None:
        if self._owner:
            ray.shutdown()
        else:
            ray.kill(self._board)


class _Board:
    """An actor on the driver's node, on which tasks write how far they are."""

    def __init__(self) -> None:
        self._news: list[News] = []

    def tell(self, item: News) -> None:
        self._news.append(item)

    def take(self) -> list[News]:
        news, self._news = self._news, []
        return news


def _work(job: DistillJob, bench: Bench, board: Any) -> DistillResult:  # noqa: ANN401
    told: list[Any] = []

    def progress(iteration: int, iterations: int, loss: float, seen: Glimpse | None) -> None:
        # Nobody waits for the answer, so the descent does not slow down.
        told[:] = [board.tell.remote((job.partition_id, iteration, iterations, loss, seen))]

    result = run_job(job, bench, progress)
    # Calls arrive in order: with the last one, all are there before the result is.
    ray.wait(told, timeout=POLL_S) if told else None
    return result
