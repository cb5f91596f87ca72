"""Distillation over a Ray cluster of two nodes: the bits of one process, whatever dies."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import toy
from nodes import two_nodes

from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.engine import SerialEngine
from feddgm_flwr.priors.pixel import PixelPrior

pytestmark = [
    pytest.mark.slow,
    # Ray leaves the files it starts its servers with to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


@dataclass(frozen=True)
class DeadlyPrior(PixelPrior):
    """Kills its own process for want of a class's images, the first ``deaths`` times."""

    diary: str = ""
    victim: int = -1
    deaths: int = 0

    def sample(self, labels, *, rng):
        diary = Path(self.diary)
        with diary.open("a") as file:
            file.write(f"{os.getpid()}\n")
        died = diary.with_suffix(".deaths")
        past = int(died.read_text()) if died.exists() else 0
        if self.victim in labels.tolist() and past < self.deaths:
            died.write_text(str(past + 1))
            os.kill(os.getpid(), 9)
        return super().sample(labels, rng=rng)


@pytest.fixture(scope="module")
def address():
    with two_nodes() as address:
        yield address


@pytest.fixture
def federation():
    server = toy.server()
    state, updates = toy.federation(server)
    return server, [distill_job(update, state, server.shop) for update in updates]


def over_ray(bench, jobs, address, monkeypatch, on_progress=lambda *_: None):
    from feddgm_flwr.cluster import RayEngine

    monkeypatch.setenv("RAY_ADDRESS", address)
    engine = RayEngine(bench, workers=0)
    told = []
    try:
        return engine.run(jobs, on_progress, told.append), told
    finally:
        engine.close()


def test_two_nodes_give_the_bits_of_one_process_and_a_killed_worker_is_retried(
    federation, address, monkeypatch, tmp_path
):
    server, jobs = federation
    serial = SerialEngine(server.shop.bench).run(jobs, lambda *_: None, lambda _: None)
    diary = tmp_path / "diary"
    prior = DeadlyPrior(toy.SPEC, diary=str(diary), victim=2, deaths=1)
    progress = []
    results, told = over_ray(
        replace(server.shop.bench, prior=prior),
        jobs,
        address,
        monkeypatch,
        lambda *news: progress.append(news),
    )
    assert diary.with_suffix(".deaths").read_text() == "1"
    assert len(diary.read_text().split()) == len(jobs) + 1
    for a, b in zip(serial, results, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.latents.values, b.latents.values)
        assert a.report.last_loss == b.report.last_loss
    assert {r.report.partition_id for r in told} == {0, 1}
    iterations = server.config.distill.iterations
    for partition_id in (0, 1):
        seen = [i for who, i, *_ in progress if who == partition_id]
        assert seen == list(range(1, iterations + 1))


def test_a_worker_that_keeps_dying_fails_its_client_alone(
    federation, address, monkeypatch, tmp_path
):
    monkeypatch.setattr("feddgm_flwr.cluster.ATTEMPTS", 2)  # each costs the start of a worker
    server, jobs = federation
    diary = tmp_path / "diary"
    prior = DeadlyPrior(toy.SPEC, diary=str(diary), victim=2, deaths=99)
    results, _ = over_ray(replace(server.shop.bench, prior=prior), jobs, address, monkeypatch)
    assert diary.with_suffix(".deaths").read_text() == "2"
    assert len(results[0].images)
    assert not len(results[1].images)
    assert "died 2 times" in results[1].report.stopped


def test_where_clients_hold_every_cpu_distillation_still_runs(federation, address):
    import ray

    from feddgm_flwr.cluster import RayEngine

    server, jobs = federation
    ray.init(address=address, log_to_driver=False)
    try:
        holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(2)]
        ray.get([holder.here.remote() for holder in holders])
        engine = RayEngine(server.shop.bench, workers=0)
        results = engine.run(jobs, lambda *_: None, lambda _: None)
        engine.close()
        assert ray.is_initialized(), "who found Ray running must leave it running"
    finally:
        ray.shutdown()
    assert all(len(r.images) for r in results)


class Holder:
    """A client's actor: keeps its CPU, does nothing."""

    def here(self):
        return True
