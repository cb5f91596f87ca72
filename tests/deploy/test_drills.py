"""What befalls a deployment, tried on a real one: killed, cut off, slow, full, gone, twice."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import numpy as np
import pytest
import safetensors.torch
from federation import TINY, kill, until
from inprocess_run import run as in_process
from inprocess_run import same_models

pytestmark = [pytest.mark.slow, pytest.mark.deploy]

LONG = {"distill__iterations": 60, "distill__warm_iterations": 60}
"""A distillation that lasts long enough to be cut off in its midst."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the models of a run of these settings to which nothing happens, in one process."""
    done = {}

    def models(**said):
        key = tuple(sorted(said.items()))
        if key not in done:
            settings = {k.replace(".", "__").replace("-", "_"): v for k, v in TINY.items()} | said
            done[key] = in_process(tmp_path_factory.mktemp("whole"), clients=2, **settings).models
        return done[key]

    return models


def slow_node(federation, folder):
    """Return node 1 with images of its own, of which a training takes seconds, and their file."""
    file = folder / "own.npz"
    images = np.random.default_rng(1).integers(0, 256, (3000, 16, 16), dtype=np.uint8)
    np.savez(file, train_images=images, train_labels=np.arange(3000) % 10)
    os.utime(file, (0, time.time()))
    return federation.join(1, f'partition-id=1 data-dir="{file}"'), file


def in_mid_training(file):
    """Wait until the images were read, the last thing that a device does before it trains."""
    until(lambda: file.stat().st_atime > 0, "the device has read its images")


def models_of(run):
    saved = sorted((run.folder / "models").glob("*.safetensors"))
    return {file.stem: safetensors.torch.load_file(file) for file in saved}


def test_a_server_app_killed_in_mid_distillation_goes_on_bit_for_bit(
    federation, undisturbed, tmp_path
):
    federation.whole(0, 1)
    cut = federation.submit(tmp_path / "run", **LONG)
    cut.event("distill-progress", round=2)
    os.kill(cut.pid, signal.SIGKILL)
    assert not cut.all("phase-end", phase="distill", round=2), "it was over before the kill"
    resumed = federation.submit(cut.folder, resume=True, **LONG)
    assert resumed.ended() == "finished:completed", resumed.tell()
    assert [e["round"] for e in resumed.all("round-start")] == [2]
    assert same_models(models_of(resumed), undisturbed(**LONG))
    assert cut.ended() == "finished:failed"


def test_a_super_link_killed_with_its_children_in_mid_round_goes_on_bit_for_bit(
    federation, undisturbed, tmp_path
):
    federation.whole(0, 1)
    cut = federation.submit(tmp_path / "run")
    cut.event("client-asked", round=2)
    kill(federation.server)
    assert not cut.all("round-end", round=2), "the round was over before the kill"
    federation.whole(0, 1)
    cut.stop()  # devices that were fetching its message would wait for it, for a minute
    resumed = federation.submit(cut.folder, resume=True)
    assert resumed.ended() == "finished:completed", resumed.tell()
    assert [e["round"] for e in resumed.all("round-start")] == [2]
    assert same_models(models_of(resumed), undisturbed())


def test_a_server_app_that_outlives_its_super_link_keeps_the_folder_until_it_is_killed(
    federation, undisturbed, tmp_path
):
    federation.whole(0, 1)
    cut = federation.submit(tmp_path / "run")
    cut.event("client-asked", round=2)
    orphan = cut.pid
    os.kill(orphan, signal.SIGSTOP)  # heeds no SIGTERM from now on
    try:
        kill(federation.server, whole_group=False)
        federation.serve()
        cut.stop()
        refused = federation.submit(cut.folder, resume=True)
        assert refused.ended() == "finished:failed", refused.tell()
        assert f"process {orphan} on " in refused.log, refused.tell()
        assert "kill -9 the process" in refused.log
        assert "Traceback" not in refused.log, refused.tell()
    finally:
        os.kill(orphan, signal.SIGKILL)
    resumed = federation.submit(cut.folder, resume=True)
    assert resumed.ended() == "finished:completed", resumed.tell()
    assert [e["round"] for e in resumed.all("round-start")] == [2]
    assert same_models(models_of(resumed), undisturbed())


def test_two_runs_with_one_folder_are_one_run_and_a_refusal(federation, undisturbed, tmp_path):
    federation.whole()
    first = federation.submit(tmp_path / "run", num_server_rounds=1, rounds__partitions=2)
    first.says("waiting: 0 of rounds.min-clients")  # it cannot be over before the second comes
    second = federation.submit(tmp_path / "run", num_server_rounds=1)
    second.says("this run cannot go on: out-dir must be one run's alone, got ")
    second.says(f"process {first.pid} on ")
    second.says("wait for the end of that run or stop it")
    assert second.ended() == "finished:failed"
    federation.whole(0, 1)
    assert first.ended() == "finished:completed", first.tell()
    assert "Traceback" not in first.log, first.tell()
    assert not second.all("run-start")
    assert same_models(models_of(first), undisturbed(num_server_rounds=1))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_costs_no_round(federation, undisturbed, small_disk):
    federation.whole(0, 1)
    run = federation.submit(small_disk / "run")
    run.event("round-start", round=1)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    run.says(f"round 1 cannot be written to out-dir '{run.folder}' (No space left on device)")
    run.says("the last round cannot be written to out-dir")
    ballast.unlink()
    run.says("the last round: written after all")
    assert run.ended() == "finished:completed", run.tell()
    assert "Traceback" not in run.log, run.tell()
    assert [r["round"] for r in run.result()["rounds"]] == [1, 2]
    assert same_models(models_of(run), undisturbed())


def test_a_folder_that_is_removed_in_mid_run_comes_back(federation, undisturbed, tmp_path):
    federation.whole(0, 1)
    run = federation.submit(tmp_path / "run")
    run.event("client-reply", round=1)
    shutil.rmtree(run.folder)
    assert run.ended() == "finished:completed", run.tell()
    assert "Traceback" not in run.log, run.tell()
    assert [r["round"] for r in run.result()["rounds"]] == [1, 2]
    assert [e["round"] for e in run.events() if e["kind"] == "round-end"] == [1, 2]
    assert same_models(models_of(run), undisturbed())


def test_a_super_node_killed_in_mid_training_serves_again_in_the_same_run(federation, tmp_path):
    """Until the server has missed its heartbeats, for up to a minute, it is not taken again."""
    federation.whole(0)
    node, images = slow_node(federation, tmp_path)
    run = federation.submit(
        tmp_path / "run", num_server_rounds=12, rounds__min_clients=1, rounds__timeout_s=60
    )
    run.event("client-asked", round=1)
    in_mid_training(images)
    node.keep(pause_s=6)
    kill(node.process)
    lost = run.event("client-rejected", partition_id=1)
    without = run.event("round-end", round=lost["round"])
    assert without["replies"]["accepted"] == 1
    again = until(
        lambda: [e for e in run.all("client-reply", partition_id=1) if e["round"] > lost["round"]],
        "the killed SuperNode serves again",
        tell=run.tell,
    )
    both = run.event("round-end", round=again[0]["round"])
    assert both["replies"]["accepted"] == 2
    run.stop()
    # Its first end is the kill; then it is not taken, and leaves by itself, for a while.
    assert node.left[0] == -signal.SIGKILL
    assert {0, 1} >= set(node.left[1:]) != set(), node.left
    assert "could not be activated" in node.log()


def test_a_device_that_slept_through_a_round_is_late_once(federation, tmp_path):
    """Its last heartbeat is 30 s old at most, and Flower calls it gone 60 s after that one."""
    federation.whole(0)
    node, images = slow_node(federation, tmp_path)
    run = federation.submit(tmp_path / "run", num_server_rounds=3, rounds__timeout_s=30)
    run.event("client-asked", round=1)
    in_mid_training(images)
    kill(node.process, how=signal.SIGSTOP)
    run.event("client-rejected", round=1, partition_id=1, reply="late")
    kill(node.process, how=signal.SIGCONT)
    assert run.ended() == "finished:completed", run.tell()
    assert [(e["round"], e["reply"]) for e in run.all("client-rejected")] == [(1, "late")]
    assert [e["replies"]["accepted"] for e in run.all("round-end")] == [1, 2, 2]


def test_a_run_waits_for_its_first_clients_and_says_for_whom(federation, undisturbed, tmp_path):
    federation.whole()
    run = federation.submit(tmp_path / "run", num_server_rounds=1, rounds__partitions=2)
    waiting = "waiting: 0 of rounds.min-clients = 2 clients are online; missing: 0, 1; "
    until(lambda: run.log.count(waiting) >= 2, "two lines while it waits", tell=run.tell)
    federation.whole(0, 1)
    assert run.ended() == "finished:completed", run.tell()
    assert same_models(models_of(run), undisturbed(num_server_rounds=1))


def test_a_run_goes_on_with_other_nodes_down_to_the_minimum(federation, tmp_path):
    federation.whole()
    federation.whole(0, 1, 2, parts=3)
    begun = federation.submit(tmp_path / "run", num_server_rounds=1, rounds__min_clients=3)
    assert begun.ended() == "finished:completed", begun.tell()
    federation.whole(2, parts=3)
    federation.join(3, "partition-id=1 num-partitions=3")  # another key, another node id
    more = {"num_server_rounds": 2, "resume": True}
    refused = federation.submit(begun.folder, rounds__min_clients=3, rounds__node_wait_s=25, **more)
    refused.says("of rounds.min-clients = 3 clients are online; missing: 0")
    refused.says("this run cannot go on: rounds.min-clients = 3 clients must come online within ")
    assert refused.ended() == "finished:failed"
    assert "Traceback" not in refused.log, refused.tell()
    resumed = federation.submit(begun.folder, rounds__min_clients=2, **more)
    assert resumed.ended() == "finished:completed", resumed.tell()
    assert "the run goes on with 2 of 3 clients; missing: 0" in resumed.log, resumed.tell()
    assert [(e["round"], e["clients"]) for e in resumed.all("round-start")] == [(2, [1, 2])]
    federation.whole()
