"""Laws of resuming: the uninterrupted run bit for bit, and none but the same run goes on."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from inline_grid import simulated
from inprocess_run import events_of, power_cut, round_of, run, said, same_models, trained

from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.screening import NoReplyError
from feddgm_flwr.priors.glyphs import shipped

HERE = Path(__file__).parent

GLYPHS = {
    "method": "fedavg",
    "clients": 2,
    "prior__kind": "glyphs",
    "start__weights": "prior",
    "start__epochs": 1,
}


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")


@pytest.fixture(scope="module")
def one_round(tmp_path_factory):
    """Return the folder of a finished run of one round of FedAvg."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return run(folder, method="fedavg", clients=2, num_server_rounds=1).folder


@pytest.fixture(scope="module")
def from_prior(tmp_path_factory):
    """Return the folder of a run of one round from models that the glyph prior taught."""
    folder = tmp_path_factory.mktemp("prior") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feddgm_flwr.core.start.IMAGES_PER_CLASS", 2)
        return run(folder, num_server_rounds=1, **GLYPHS).folder


@pytest.fixture
def copied(tmp_path):
    """Return what copies a run folder, so that each test goes on with one of its own."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.mark.parametrize(
    "method",
    [
        "feddgm",
        "fedprox",
        "scaffold",
        "moon",
        "ccvr",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, tmp_path):
    how = {
        "clients": 3,
        "method": method,
        "num_server_rounds": 3,
        "rounds__fraction_train": 0.67,
        "distill__labels": "soft",
        "global_model__names": "convnet",
        "global_model__steps": 20,
    }
    whole = run(tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(3), **how)
    resumed = run(tmp_path / "parts", resume=True, order=9, **how)
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)
    assert [e["status"] for e in resumed.of("run-end")] == ["stopped", "completed"]
    assert [(e["round"], e["resumed"]) for e in resumed.of("run-start")] == [(0, False), (2, True)]
    assert [e["round"] for e in resumed.of("round-end")] == [1, 2, 3]


def test_a_finished_run_can_grow(one_round, copied, tmp_path):
    how = {"method": "fedavg", "clients": 2, "num_server_rounds": 2}
    grown = run(copied(one_round), resume=True, **how)
    assert grown.numbers() == run(tmp_path / "whole", **how).numbers()


def test_a_result_that_a_crash_has_cost_is_written_by_a_resume(one_round, copied):
    folder = copied(one_round)
    whole = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    again = run(folder, method="fedavg", clients=2, num_server_rounds=1, resume=True)
    assert again.result == whole


def test_a_finished_run_that_is_resumed_asks_nobody(one_round, copied):
    again = run(copied(one_round), method="fedavg", clients=2, num_server_rounds=1, resume=True)
    assert again.asked_to_train() == []
    assert len(again.rounds) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"distill__memory_budget_mb": 64},
        {"rounds__min_clients": 2, "rounds__node_wait_s": 5.0},
        {"rounds__timeout_s": 60.0, "rounds__federated_evaluation": True},
        {"distill__engine": "processes", "distill__workers": 1},
    ],
)
def test_where_and_how_fast_may_change(changed, one_round, copied):
    folder = copied(one_round)
    ended = run(folder, method="fedavg", clients=2, num_server_rounds=2, resume=True, **changed)
    assert [r["round"] for r in ended.rounds] == [1, 2]
    told = ended.of("run-start")[1]["config"]
    keys = [k.replace("__", ".").replace("_", "-") for k in changed]
    assert [told[k] for k in keys] == list(changed.values())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"client__lr": 0.5, "seed": 3}, "client.lr = 0.5 (was 0.05), seed = 3 (was 0)"),
        ({"method": "fedprox"}, "method = 'fedprox' (was 'fedavg')"),
        ({"fedprox__mu": 0.5}, "fedprox.mu = 0.5 (was 0.01)"),
        ({"rounds__fraction_train": 0.5}, "rounds.fraction-train = 0.5 (was 1.0)"),
        ({"client__threads": 2}, "client.threads = 2 (was 1)"),
        ({"distill__labels": "soft"}, "distill.labels = 'soft' (was 'hard')"),
        ({"prior__kind": "glyphs"}, "prior.kind = 'glyphs' (was 'pixel')"),
    ],
)
def test_what_changes_the_numbers_may_not(changed, sentence, one_round, copied):
    folder = copied(one_round)
    before = (folder / checkpoint.FILE).read_bytes()
    how = {"method": "fedavg", "clients": 2, "resume": True} | changed
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(folder, **how)
    assert (folder / checkpoint.FILE).read_bytes() == before


def test_a_run_cannot_shrink(tmp_path):
    run(tmp_path / "run", method="fedavg", clients=2)
    with pytest.raises(ValueError, match=r"num-server-rounds = 1 \(was 2\)"):
        run(tmp_path / "run", method="fedavg", clients=2, num_server_rounds=1, resume=True)


def test_an_earlier_run_is_never_overwritten(one_round, copied):
    with pytest.raises(ValueError, match="holds a run"):
        run(copied(one_round), method="fedavg")


def test_a_prior_may_move(from_prior, copied, tmp_path):
    moved = shutil.copytree(shipped("glyphs"), tmp_path / "moved")
    folder = copied(from_prior)
    ended = run(folder, num_server_rounds=2, resume=True, prior__path=str(moved), **GLYPHS)
    assert [r["round"] for r in ended.rounds] == [1, 2]


def test_another_prior_is_refused_in_one_sentence(from_prior, copied, tmp_path, caplog):
    other = Path(shutil.copytree(shipped("glyphs"), tmp_path / "other"))
    file = other / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(n for n, w in weights.items() if w.is_floating_point())
    weights[name] = torch.nextafter(weights[name], weights[name] + 1)
    safetensors.torch.save_file(weights, file)
    folder = copied(from_prior)
    with pytest.raises(ValueError, match="needs the prior that the run began with"):
        run(folder, num_server_rounds=2, resume=True, prior__path=str(other), **GLYPHS)
    [line] = said(caplog, logging.ERROR)
    assert re.search(r"fingerprint is '\w{16}', got '\w{16}'; point prior.path at it", line)
    assert events_of(folder)[-1]["status"] == "failed"


def test_a_checkpoint_of_another_version_is_refused_in_one_sentence(one_round, copied, caplog):
    folder = copied(one_round)
    torch.save({"format": 1}, folder / checkpoint.FILE)
    with pytest.raises(ValueError, match="needs a sound checkpoint"):
        run(folder, method="fedavg", clients=2, resume=True)
    [line] = said(caplog, logging.ERROR)
    assert "of another kind or version" in line


def test_a_damaged_checkpoint_costs_one_round_and_no_bit(tmp_path):
    how = {"clients": 2, "distill__labels": "soft"}
    whole = run(tmp_path / "whole", num_server_rounds=3, **how)
    run(tmp_path / "cut", num_server_rounds=2, **how)
    newest = tmp_path / "cut" / checkpoint.FILE
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = run(tmp_path / "cut", num_server_rounds=3, resume=True, **how)
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)


def test_a_run_goes_on_with_as_many_clients_as_it_began_with(one_round, copied):
    how = {"method": "fedavg", "num_server_rounds": 2, "resume": True}
    with pytest.raises(ValueError, match=r"divided into 2 parts, .* num-partitions = 3; start 2"):
        run(copied(one_round), clients=3, **how)


def test_another_division_than_that_of_the_rounds_done_is_refused(one_round, copied):
    how = {"method": "fedavg", "num_server_rounds": 2, "resume": True}
    with pytest.raises(ValueError, match=r"rounds.partitions = 3, .* divided into 2 parts; leave"):
        run(copied(one_round), clients=3, rounds__partitions=3, **how)


def test_a_division_on_which_no_model_rests_may_change(tmp_path):
    def silent(message, reply, partition_id):
        return None if trained(message) else reply

    how = {"method": "fedavg", "num_server_rounds": 1}
    with pytest.raises(NoReplyError):
        run(tmp_path, clients=3, tamper=silent, **how)
    assert checkpoint.load(tmp_path).known.partitions == 0
    resumed = run(tmp_path, clients=2, resume=True, **how | {"num_server_rounds": 2})
    assert resumed.of("round-start")[-1]["clients"] == [0, 1]
    assert checkpoint.load(tmp_path).known.partitions == 2


def test_nodes_that_contradict_each_other_begin_nothing(tmp_path):
    nodes = [
        {"partition-id": 0, "num-partitions": 2},
        {"partition-id": 1, "num-partitions": 3},
    ]
    with pytest.raises(ValueError, match="must be the same for all nodes, got 2 and 3"):
        run(tmp_path / "run", nodes=nodes, method="fedavg")


def test_one_node_that_contradicts_the_others_is_left_out(tmp_path, caplog):
    nodes = [*simulated(2), {"partition-id": 2, "num-partitions": 9}]
    ended = run(tmp_path / "run", nodes=nodes, method="fedavg", num_server_rounds=1)
    assert ended.of("round-start")[0]["clients"] == [0, 1]
    assert "is left out: it says num-partitions = 9, the others 2" in caplog.text


@pytest.mark.slow
def test_a_machine_with_other_cores_goes_on_with_the_same_run(tmp_path):
    """The threads are those of the machine that began, whatever the next one has."""

    def on(cores, folder, rounds, resume):
        code = (
            "from pathlib import Path; import sys; from inprocess_run import run; "
            f"run(Path(sys.argv[1]), clients=2, num_server_rounds={rounds}, resume={resume}, "
            "global_model__names='convnet', global_model__steps=20)"
        )
        env = {**os.environ, "OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-c", code, str(folder)]
        subprocess.run(command, cwd=HERE.parent, env=env, check=True, capture_output=True)
        models = sorted((folder / "models").glob("*.safetensors"))
        return {m.stem: safetensors.torch.load_file(m) for m in models}

    whole = on(2, tmp_path / "whole", 2, False)
    on(2, tmp_path / "parts", 1, False)
    assert same_models(on(1, tmp_path / "parts", 2, True), whole)
    assert not same_models(on(1, tmp_path / "other", 2, False), whole), "threads decide nothing?"


def own(folder, number):
    file = folder / f"{number}.npz"
    images = np.random.default_rng(number).integers(0, 256, (20, 16, 16), dtype=np.uint8)
    np.savez(file, train_images=images, train_labels=np.arange(20) % 10)
    return {"partition-id": number, "data-dir": str(file)}


def test_a_division_is_remembered_where_some_devices_have_data_of_their_own(tmp_path):
    mine, how = own(tmp_path, 7), {"method": "fedavg", "num_server_rounds": 2}
    nodes = [mine, *simulated(2)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", nodes=nodes, tamper=power_cut(2), **how)
    with pytest.raises(ValueError, match="divided into 2 parts"):
        run(tmp_path / "run", nodes=[mine, *simulated(3)], resume=True, **how)


def test_a_client_that_left_before_a_resume_is_still_one_of_all(tmp_path):
    """SCAFFOLD divides by the number of all clients, known to this process or not."""
    how = {"method": "scaffold", "num_server_rounds": 3}
    nodes = [own(tmp_path, i) for i in range(4)]

    def leaves(message, reply, partition_id):
        gone = partition_id == 3 and trained(message) and round_of(message) > 1
        return None if gone else reply

    def leaves_and_dies(message, reply, partition_id):
        if trained(message) and round_of(message) == 2:
            raise KeyboardInterrupt
        return leaves(message, reply, partition_id)

    whole = run(tmp_path / "whole", nodes=nodes, tamper=leaves, **how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", nodes=nodes, tamper=leaves_and_dies, **how)
    parts = run(tmp_path / "parts", nodes=nodes[:3], resume=True, **how)
    assert same_models(parts.models, whole.models)


def test_a_refused_resume_leaves_a_finished_runs_log_alone(one_round, copied):
    folder = copied(one_round)
    before = (folder / "events.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"seed = 5 \(was 0\)"):
        run(folder, method="fedavg", clients=2, resume=True, seed=5)
    assert (folder / "events.jsonl").read_bytes() == before
