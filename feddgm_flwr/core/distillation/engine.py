"""Where distillation jobs run: the ``map`` over clients that Algorithm 1 takes as a parameter.

Every engine gives the same results for the same jobs, bit for bit on a CPU: a job carries its own
seed, and computes on one thread. Workers that each took all threads would fight for cores.
Knows nothing of rounds or clients beyond a job.
"""

import multiprocessing
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Protocol, runtime_checkable

import torch

from feddgm_flwr.core.distillation.distill import (
    Bench,
    DistillJob,
    DistillResult,
    Progress,
    distill_client,
    failed_result,
)
from feddgm_flwr.core.distillation.glimpse import Glimpse
from feddgm_flwr.core.memory import kept_memory

News = tuple[int, int, int, float, Glimpse | None]
"""Partition id, and what ``distill.Progress`` is told."""
OnProgress = Callable[[int, int, int, float, Glimpse | None], None]
"""Called with each item of news."""
OnResult = Callable[[DistillResult], None]
"""Called as each job ends, in any order."""

ATTEMPTS = 3
"""Times that a job is in flight when a worker dies, before it is a failed one."""


@runtime_checkable
class Engine(Protocol):
    """Runs jobs; results come back in the order of the jobs."""

    def run(
        self, jobs: Sequence[DistillJob], on_progress: OnProgress, on_result: OnResult
    ) -> list[DistillResult]:
        """Distil every job."""
        ...

    def close(self) -> None:
        """Release workers."""
        ...


def default_workers(device: torch.device) -> int:
    """Return one worker a core this process may use, or a single one on a GPU."""
    return 1 if device.type == "cuda" else own_cores()


def own_cores() -> int:
    """Return the CPU cores that this process may use, or all where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_job(job: DistillJob, bench: Bench, progress: Progress) -> DistillResult:
    """Distil one job on one thread; an error of the machine fails this client alone."""
    try:
        with threads(1), kept_memory():
            return distill_client(job, bench, progress=progress)
    except (RuntimeError, MemoryError, ArithmeticError) as error:
        return failed_result(job, bench, f"{type(error).__name__}: {error}")


class SerialEngine:
    """One job after the other, in this process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def run(
        self, jobs: Sequence[DistillJob], on_progress: OnProgress, on_result: OnResult
    ) -> list[DistillResult]:
        """Distil every job."""
        results = []
        for job in jobs:
            progress = partial(on_progress, job.partition_id)
            results.append(run_job(job, self._bench, progress))
            on_result(results[-1])
        return results

    def close(self) -> None:
        """Nothing to release."""


class ProcessEngine:
    """A pool of processes that lives as long as the run, or until a worker of it dies."""

    def __init__(self, bench: Bench, workers: int) -> None:
        self._bench, self._workers = bench, workers
        self._context = _process_context(type(bench.prior).__module__)
        self._told: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._news: multiprocessing.Queue[News | None] | None = None
        self._pool: ProcessPoolExecutor | None = None

    def run(
        self, jobs: Sequence[DistillJob], on_progress: OnProgress, on_result: OnResult
    ) -> list[DistillResult]:
        """Distil every job.

        When a worker dies its pool dies with it. The jobs that were in flight are started again,
        each alone, so that one which kills its workers costs no other.
        """
        self._pass_on(lambda *_: None)  # what an earlier round's last steps told after their end
        results: dict[int, DistillResult] = {}
        died: Counter[int] = Counter()
        new, again = list(range(len(jobs))), list[int]()
        while again or new:
            todo = [again.pop(0)] if again else new
            for i in self._attempt(jobs, todo, results, on_progress, on_result):
                died[i] += 1
                if died[i] < ATTEMPTS:
                    again.append(i)
                else:
                    reason = f"its worker process died {ATTEMPTS} times"
                    results[i] = failed_result(jobs[i], self._bench, reason)
                    on_result(results[i])
        return [results[i] for i in range(len(jobs))]

    def _attempt(
        self,
        jobs: Sequence[DistillJob],
        todo: list[int],
        results: dict[int, DistillResult],
        on_progress: OnProgress,
        on_result: OnResult,
    ) -> list[int]:
        """Work ``todo`` off, and return which of it was in flight if a worker died."""
        pool = self._start()
        waiting: dict[Future[DistillResult], int] = {}
        try:
            while todo or waiting:
                while todo and len(waiting) < self._workers:
                    # Taken off only then: where the pool is broken it was not in flight.
                    waiting[pool.submit(_work, jobs[todo[0]])] = todo[0]
                    del todo[0]
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                self._pass_on(on_progress)
                for future in done:
                    index = waiting[future]
                    results[index] = future.result()
                    del waiting[future]
                    on_result(results[index])
        except BrokenProcessPool:
            self.close()
        return list(waiting.values())

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._news = self._context.Queue()
            self._news.cancel_join_thread()
            # A worker that dies while it tells leaves half a message, for whose end one waits for
            # ever, and a lock that nobody opens: this thread may, and the next pool has its own.
            listen = partial(_listen, self._news, self._told)
            threading.Thread(target=listen, name="news", daemon=True).start()
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=self._context,
                initializer=_init_worker,
                initargs=(self._bench, self._news),
            )
        return self._pool

    def _pass_on(self, on_progress: OnProgress) -> None:
        while True:
            try:
                on_progress(*self._told.get_nowait())
            except queue.Empty:
                return

    def close(self) -> None:
        """Stop the workers at once, whatever they are at."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        # Not asked but told, as ``terminate_workers`` does from Python 3.14 on: a worker that waits
        # for a lock of one that was killed would never hear that it may go, nor would one whose
        # pool ends with the process.
        for worker in list((pool._processes or {}).values()):
            worker.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        assert self._news is not None
        self._news.put(None)  # the thread that listens may go


def _listen(news: "multiprocessing.Queue[News | None]", told: "queue.SimpleQueue[News]") -> None:
    """Pass on what comes until None does."""
    while (item := news.get()) is not None:
        told.put(item)


def _process_context(prior_module: str) -> BaseContext:
    """Return where workers come from: copies of one process that begins to import what they need.

    They start at once, and share its memory. Where there is no forking, each imports for itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, prior_module])
    before = os.environ.get("PYTHONPATH")
    # Until Python 3.13 the server is not told where this process looks for modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


_worker: tuple[Bench, "multiprocessing.Queue[News | None]"] | None = None


def _init_worker(bench: Bench, news: "multiprocessing.Queue[News | None]") -> None:
    global _worker
    news.cancel_join_thread()  # nobody may be left to read progress
    threading.Thread(target=_end_with_server, daemon=True).start()
    _worker = bench, news


def _end_with_server() -> None:
    # A worker holds both ends of its queue of jobs, so it would wait for a killed server for ever.
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _work(job: DistillJob) -> DistillResult:
    assert _worker is not None
    bench, news = _worker

    def progress(iteration: int, iterations: int, loss: float, seen: Glimpse | None) -> None:
        news.put((job.partition_id, iteration, iterations, loss, seen))

    return run_job(job, bench, progress)
