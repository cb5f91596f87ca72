"""Every engine gives the same images, and a worker that dies ends nothing."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dying
import pytest
import torch
import toy

from feddgm_flwr.core.algorithm import apply_round, distill_job
from feddgm_flwr.core.distillation.engine import ProcessEngine, SerialEngine, own_cores
from feddgm_flwr.core.distillation.progress import distilled
from feddgm_flwr.events import Distilled, DistillProgress


@pytest.mark.slow
def test_processes_equal_serial_bitwise_and_survive_a_dead_worker():
    server = toy.server()
    state, updates = toy.federation(server)
    jobs = [distill_job(u, state, server.shop) for u in updates]
    serial = SerialEngine(server.shop.bench).run(jobs, lambda *_: None, lambda _: None)
    engine = ProcessEngine(server.shop.bench, workers=2)
    killed = []

    def kill_once(*_):
        if not killed and engine._pool is not None:
            victim = next(iter(engine._pool._processes))
            killed.append(victim)
            os.kill(victim, 9)

    try:
        parallel = engine.run(jobs, kill_once, lambda _: None)
    finally:
        engine.close()
    assert killed
    for a, b in zip(serial, parallel, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.report.last_loss == b.report.last_loss


@pytest.mark.slow
def test_a_job_that_kills_its_workers_costs_no_other():
    made = dying.bench(dying.DiesOfMany(dying.GREY), dying.GREY)
    jobs = [dying.job(made, i, {0: 4 if i == 0 else 1}) for i in range(5)]
    engine, ended = ProcessEngine(made, workers=2), []
    try:
        results = engine.run(jobs, lambda *_: None, ended.append)
    finally:
        engine.close()
    assert [r.report.partition_id for r in results] == list(range(5))
    assert [len(r.images) for r in results] == [0, 1, 1, 1, 1]
    assert results[0].report.stopped == "its worker process died 3 times"
    assert sorted(r.report.partition_id for r in ended) == list(range(5))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_that_dies_while_it_tells_holds_up_nobody(tmp_path):
    """Ten pictures of 64 pixels are more than a pipe holds, so that half of a message is left."""
    prior = dying.DiesWhileItTells(dying.COLOUR, tmp_path / "died")
    made = dying.bench(prior, dying.COLOUR)
    jobs = [dying.job(made, i, {0: 5, 1: 5}, glimpses=10) for i in range(2)]
    engine, heard = ProcessEngine(made, workers=2), []
    run = threading.Thread(
        target=lambda: heard.append(engine.run(jobs, lambda *_: None, lambda _: None)), daemon=True
    )
    run.start()
    run.join(120)
    assert not run.is_alive()
    engine.close()
    assert prior.mark.exists()
    assert [len(r.images) for r in heard[0]] == [10, 10]


def test_an_error_of_the_machine_fails_one_client_with_the_reason(monkeypatch):
    server = toy.server()
    state, updates = toy.federation(server)
    jobs = [distill_job(u, state, server.shop) for u in updates]

    def out_of_memory(self, labels, *, rng):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(server.shop.bench.prior), "sample", out_of_memory)
    results = server.shop.engine.run(jobs, lambda *_: None, lambda _: None)
    assert all("out of memory" in r.report.stopped and not len(r.images) for r in results)


def test_progress_tells_time_left():
    server = toy.server()
    state, updates = toy.federation(server)
    events = []
    apply_round(state, updates, server.shop, emit=events.append)
    progress = [e for e in events if isinstance(e, DistillProgress)]
    assert len(progress) == 2 * server.config.distill.iterations
    assert all(e.eta_s >= 0 for e in progress)
    done = [e for e in events if isinstance(e, Distilled)]
    assert [e.partition_id for e in done] == [0, 1]
    assert all(e.eta_s == 0 for e in done[-1:])
    assert progress[-1].iteration == server.config.distill.iterations


def test_what_comes_before_the_first_news_does_not_count_for_the_time_left(monkeypatch):
    server = toy.server()
    state, updates = toy.federation(server)
    jobs = [distill_job(u, state, server.shop) for u in updates]
    clock, told = [0.0], []
    monkeypatch.setattr("feddgm_flwr.core.telling.time.monotonic", lambda: clock[0])

    class Late:
        def run(self, jobs, on_progress, on_result):
            clock[0] = 100.0  # its workers start
            for iteration in range(1, 11):
                clock[0] += 1.0
                on_progress(0, iteration, 10, 0.5, None)
            return []

        def close(self):
            pass

    distilled(jobs, Late(), 1, lambda event: told.append(event.eta_s))
    # One of two clients alone, so that half of the work is left at the end.
    assert told[0] == 0.0
    assert told[1:] == pytest.approx([20.0 - i for i in range(2, 11)])


ORPHANS = """
import os, signal, sys
import toy
from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.engine import ProcessEngine

if __name__ == "__main__":
    server = toy.server()
    state, updates = toy.federation(server)
    engine = ProcessEngine(server.shop.bench, workers=2)
    jobs = [distill_job(u, state, server.shop) for u in updates]
    engine.run(jobs, lambda *_: None, lambda _: None)
    print(*engine._pool._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_workers_end_with_a_server_that_is_killed(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(ORPHANS)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    # Workers inherit the output, so it ends with the last of them.
    with subprocess.Popen(
        [sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True
    ) as server:
        said, _ = server.communicate(timeout=60)
    assert len(said.split()) == 2
    assert server.returncode == -signal.SIGKILL


def test_cores_are_counted_where_the_system_does_not_say_which_are_ours(monkeypatch):
    assert own_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert own_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cores() == 1
