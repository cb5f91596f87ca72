"""Whole runs in one process: both apps, as Flower would call them, without Flower's runtime."""

import json
import logging
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.common.config import flatten_dict
from inline_grid import InlineGrid, simulated

import client_app
import server_app

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = flatten_dict(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
)
FAST = {
    "num-server-rounds": 2,
    "data.name": "digits",
    "data.alpha": 0.5,
    "client.epochs": 1,
    "surrogate.depth": 2,
    "surrogate.width": 8,
    "prior.kind": "pixel",
    "distill.images-per-class": 1,
    "distill.iterations": 2,
    "distill.warm-iterations": 2,
    "distill.student-steps": 2,
    "distill.engine": "serial",
    "union.epochs": 2,
    "start.control": False,
    "rounds.node-wait-s": 0.05,
}
BASELINES = [
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
]


class Ended:
    """What a run left behind."""

    def __init__(self, folder, grid):
        self.folder, self.grid = folder, grid
        self.result = json.loads((folder / "result.json").read_text())
        lines = (folder / "events.jsonl").read_text().splitlines()
        self.events = [json.loads(line) for line in lines]

    def of(self, kind):
        return [e for e in self.events if e["kind"] == kind]

    @property
    def models(self):
        saved = sorted((self.folder / "models").glob("*.safetensors"))
        return {file.stem: safetensors.torch.load_file(file) for file in saved}

    def numbers(self):
        """Return all that must not depend on when and how fast."""
        keys = ("round", "accuracy", "loss", "bytes_up", "bytes_down", "replies")
        return [{k: r[k] for k in keys} for r in self.result["rounds"]]


def run(folder, *, clients=3, nodes=None, tamper=None, order=0, **overrides):
    said = {k.replace("__", ".").replace("_", "-"): v for k, v in overrides.items()}
    config = {**DEFAULTS, **FAST, "out-dir": str(folder), **said}
    nodes = simulated(clients) if nodes is None else nodes
    grid = InlineGrid(client_app.app, config, nodes, tamper=tamper, order=order)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    server_app.app(grid, context)
    return Ended(folder, grid)


def same_models(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name][key], b[name][key]) for name in a for key in a[name]
    )


def trained(message):
    return message.metadata.message_type == "train"


@pytest.fixture(autouse=True)
def heard(caplog):
    """Hear this package's log lines."""
    caplog.set_level(logging.INFO, logger="feddgm_flwr")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return an undisturbed run of two rounds."""
    return run(tmp_path_factory.mktemp("plain") / "run")


def test_a_run_leaves_what_a_user_looks_for(plain):
    result = plain.result
    assert result["method"] == "feddgm"
    assert result["clients"] == 3
    assert [r["round"] for r in result["rounds"]] == [1, 2]
    for done in result["rounds"]:
        assert 0 <= done["accuracy"]["surrogate"] <= 1
        assert done["loss"]["surrogate"] > 0
        assert done["bytes_up"] > 1000 < done["bytes_down"]
    assert {"surrogate"} == set(result["initial"]["accuracy"])
    assert {"flwr", "torch"} < set(result["versions"])
    for file in (
        "owners.png",
        "accuracy.png",
        "images/round_001.png",
        "images/round_002.png",
        "images/over_rounds.png",
    ):
        assert (plain.folder / file).stat().st_size > 1000
    assert set(plain.models) == {"surrogate"}


def test_events_tell_the_run_in_order(plain):
    kinds = [e["kind"] for e in plain.events if not e["kind"].endswith("-progress")]
    one = [
        "round-start",
        *["client-reply"] * 3,
        *["distilled"] * 3,
        "trained",
        "models-trained",
        "round-end",
    ]
    assert kinds == [*one, *one, "run-end"]
    assert plain.of("run-end")[0]["status"] == "completed"
    ends = plain.of("round-end")
    assert ends[0]["eta_s"] > 0 == ends[1]["eta_s"]
    assert plain.of("distill-progress")[0].keys() >= {
        "partition_id",
        "iteration",
        "iterations",
        "loss",
        "eta_s",
    }


def test_order_of_replies_and_node_ids_leave_no_trace(plain, tmp_path):
    other = run(tmp_path / "run", order=12345)
    assert other.numbers() == plain.numbers()
    assert same_models(other.models, plain.models)


def test_clients_are_sampled_by_partition_id_and_seed(tmp_path):
    def sampled(name, **how):
        ended = run(
            tmp_path / name,
            clients=6,
            method="fedavg",
            num_server_rounds=3,
            rounds__fraction_train=0.5,
            **how,
        )
        return [e["clients"] for e in ended.of("round-start")]

    first = sampled("a", order=1)
    assert first == sampled("b", order=2)
    assert first != sampled("c", seed=1)
    assert all(len(set(c)) == 3 and c == sorted(c) for c in first)


def break_reply(message, reply, how):
    """Return a client's reply made bad in one way."""
    match how:
        case "error":
            return Message(Error(code=2, reason="out of battery"), reply_to=message)
        case "late":
            return None
        case "impostor":
            reply.content["metrics"]["partition-id"] = 0
        case "count":
            reply.content["metrics"]["num-examples"] = -5
        case "stuck":
            reply.content["arrays"] = message.content["arrays"]
        case "empty":
            reply.content = RecordDict()
        case _:
            break_array(reply.content["arrays"], how)
    return reply


def break_array(arrays, how):
    """Spoil the first of a reply's tensors."""
    name = next(iter(arrays))
    good = arrays.pop(name).numpy()
    bad = {
        "nan": lambda: good * float("nan"),
        "shape": lambda: good.reshape(-1),
        "dtype": lambda: good.astype("float64"),
    }
    if how in bad:
        arrays[name] = Array(bad[how]())


BAD = {
    "error": "failed",
    "late": "late",
    "nan": "malformed",
    "shape": "malformed",
    "keys": "malformed",
    "dtype": "malformed",
    "count": "malformed",
    "impostor": "malformed",
    "stuck": "malformed",
    "empty": "malformed",
}


@pytest.mark.parametrize("how", BAD)
def test_one_bad_reply_is_named_counted_and_absent(how, tmp_path, caplog):
    def tamper(message, reply, partition_id):
        bad = trained(message) and partition_id == 1
        return break_reply(message, reply, how) if bad else reply

    ended = run(tmp_path / "run", tamper=tamper, num_server_rounds=1)
    [rejected] = ended.of("client-rejected")
    assert (rejected["partition_id"], rejected["reply"]) == (1, BAD[how])
    assert "client 1 is set aside" in caplog.text
    assert [e["partition_id"] for e in ended.of("client-reply")] == [0, 2]
    assert [e["partition_id"] for e in ended.of("distilled")] == [0, 2]
    replies = ended.result["rounds"][0]["replies"]
    assert replies == {
        "accepted": 2,
        "failed": 0,
        "malformed": 0,
        "late": 0,
        BAD[how]: 1,
    }


def test_a_bad_reply_changes_nothing_for_the_others(tmp_path):
    """However client 1 fails, the rest of the round comes out the same: absent, not zero."""

    def run_with(how):
        def tamper(message, reply, partition_id):
            bad = trained(message) and partition_id == 1
            return break_reply(message, reply, how) if bad else reply

        return run(tmp_path / how, tamper=tamper, num_server_rounds=1).models

    assert same_models(run_with("late"), run_with("nan"))


def test_a_round_without_a_usable_reply_keeps_the_old_model(tmp_path, caplog):
    def tamper(message, reply, partition_id):
        first = trained(message) and message.content["config"]["server-round"] == 1
        return break_reply(message, reply, "nan") if first else reply

    ended = run(tmp_path / "run", tamper=tamper)
    before, first, second = (ended.result["initial"], *ended.result["rounds"])
    assert first["accuracy"] == before["accuracy"] != second["accuracy"]
    assert "keeps the old model" in caplog.text
    assert ended.of("round-end")[0]["kept"] == "no reply could be used"


def test_a_silent_node_is_left_out(tmp_path, caplog):
    def tamper(message, reply, partition_id):
        return None if partition_id == 2 else reply

    ended = run(tmp_path / "run", tamper=tamper, method="fedavg")
    assert [e["clients"] for e in ended.of("round-start")] == [[0, 1], [0, 1]]
    assert "is left out" in caplog.text


def test_of_two_nodes_with_one_partition_id_the_first_takes_part(tmp_path, caplog):
    nodes = [*simulated(2), {"partition-id": 1, "num-partitions": 2}]
    ended = run(tmp_path / "run", nodes=nodes, method="fedavg", num_server_rounds=1)
    assert ended.of("round-start")[0]["clients"] == [0, 1]
    assert "both say partition-id = 1" in caplog.text


def test_too_few_clients_end_the_run_after_a_bounded_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("feddgm_flwr.federation.roster.POLL_S", 0.01)
    with pytest.raises(RuntimeError, match="min-clients = 5 clients must come online"):
        run(tmp_path / "run", rounds__min_clients=5)


@pytest.mark.parametrize("strategy", BASELINES)
def test_flowers_own_strategies_run_on_the_same_clients(strategy, tmp_path):
    ended = run(tmp_path / "run", method=strategy, clients=4)
    assert [r["round"] for r in ended.result["rounds"]] == [1, 2]
    assert ended.result["method"] == strategy
    assert ended.result["generator_only"] == {}
    assert ended.result["initial"] != ended.result["rounds"][0]["accuracy"]
    assert all(torch.isfinite(v).all() for v in ended.models["surrogate"].values())


def test_fedavg_is_the_mean_weighted_by_examples(tmp_path):
    replies = []

    def tamper(message, reply, partition_id):
        if trained(message):
            replies.append(reply)
        return reply

    ended = run(tmp_path / "run", tamper=tamper, method="fedavg", num_server_rounds=1)
    weights = [r.content["metrics"]["num-examples"] for r in replies]
    for name, value in ended.models["surrogate"].items():
        parts = [torch.from_numpy(r.content["arrays"][name].numpy()) for r in replies]
        mean = sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)
        torch.testing.assert_close(value, mean)


def test_the_proximal_term_holds_clients_back(tmp_path):
    def moved(mu):
        name = f"mu{mu}"
        ended = run(
            tmp_path / name,
            method="fedprox",
            num_server_rounds=1,
            fedprox__mu=mu,
        )
        start = ended.grid.asked[-1].content["arrays"].to_torch_state_dict()
        end = ended.models["surrogate"]
        return sum(float((end[k] - start[k]).square().sum()) for k in end)

    assert moved(5.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize("strategy", ["feddgm", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(strategy, tmp_path):
    how = {
        "clients": 2,
        "method": strategy,
        "union__replay_rounds": 2,
        "distill__labels": "soft",
        "global_model__names": "convnet",
        "global_model__epochs": 1,
    }
    whole = run(tmp_path / "whole", num_server_rounds=3, **how)

    def power_cut(message, reply, partition_id):
        if trained(message) and message.content["config"]["server-round"] == 3:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", num_server_rounds=3, tamper=power_cut, **how)
    resumed = run(tmp_path / "parts", num_server_rounds=3, resume=True, order=9, **how)
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)
    assert resumed.of("run-end")[0]["status"] == "failed"
    assert [e["round"] for e in resumed.of("round-end")] == [1, 2, 3]


def test_a_finished_run_can_grow(tmp_path):
    whole = run(tmp_path / "whole", method="fedavg", num_server_rounds=3)
    run(tmp_path / "grown", method="fedavg", num_server_rounds=1)
    grown = run(tmp_path / "grown", method="fedavg", num_server_rounds=3, resume=True)
    assert grown.numbers() == whole.numbers()


def test_resuming_with_other_settings_names_them(tmp_path):
    run(tmp_path / "run", method="fedavg", num_server_rounds=1)
    with pytest.raises(ValueError, match=r"client.lr = 0.5 \(was .*seed = 3 \(was 0\)"):
        run(tmp_path / "run", method="fedavg", resume=True, client__lr=0.5, seed=3)


def test_an_earlier_run_is_never_overwritten(tmp_path):
    run(tmp_path / "run", method="fedavg", num_server_rounds=1)
    with pytest.raises(ValueError, match="holds a run"):
        run(tmp_path / "run", method="fedavg")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"out_dir": "runs/here"}, "out-dir must be an absolute path, got 'runs/here'"),
        ({"resume": True}, "needs a checkpoint in out-dir"),
        ({"resume": True, "out_dir": ""}, "resume = true needs out-dir"),
        ({"server__device": "abacus"}, "server.device must be auto, cpu"),
        ({"method": "fedmagic"}, "strategy must be one of"),
        ({"data__alpha": -1.0}, "data.alpha must be greater than 0, got -1.0"),
        ({"distill__iteration": 3}, "unknown run-config keys"),
        ({"distill__compile": True, "server__device": "cpu"}, "needs a C++ compiler, and none"),
    ],
)
def test_wrong_settings_end_the_run_with_one_sentence(
    said, sentence, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("CXX", "none")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(tmp_path / "run", **said)
    [line] = {r.getMessage() for r in caplog.records if r.levelno == logging.ERROR}
    assert sentence in line


def test_clients_score_the_surrogate_where_asked(tmp_path):
    ended = run(tmp_path / "run", method="fedavg", rounds__federated_evaluation=True)
    for done in ended.result["rounds"]:
        assert done["federated"]["clients"] == 3
        assert 0 <= done["federated"]["accuracy"] <= 1


def test_label_counts_travel_only_when_shared(tmp_path):
    def sent(name, **how):
        found = []

        def tamper(message, reply, partition_id):
            if trained(message):
                found.append(reply.content["metrics"].get("label-counts"))
            return reply

        run(
            tmp_path / name,
            tamper=tamper,
            num_server_rounds=1,
            method="fedavg",
            **how,
        )
        return found

    assert sent("private") == [None] * 3
    shared = sent("shared", client__share_label_counts=True)
    assert all(len(counts) == 10 for counts in shared)


def test_the_control_and_a_second_architecture_are_reported(tmp_path):
    ended = run(
        tmp_path / "run",
        num_server_rounds=1,
        start__control=True,
        global_model__names="convnet",
        global_model__epochs=1,
    )
    expected = {"surrogate", "convnet"}
    assert set(ended.result["generator_only"]["accuracy"]) == expected
    assert set(ended.result["rounds"][0]["accuracy"]) == expected
    assert set(ended.models) == expected


def test_devices_bring_data_of_their_own(tmp_path, caplog):
    rng = np.random.default_rng(0)
    nodes = []
    for number in (3, 8):
        file = tmp_path / f"{number}.npz"
        images = rng.integers(0, 256, (20, 16, 16), dtype=np.uint8)
        np.savez(file, train_images=images, train_labels=np.arange(20) % 10)
        nodes.append({"partition-id": number, "data-dir": str(file)})
    ended = run(tmp_path / "run", nodes=nodes, method="fedavg", num_server_rounds=1)
    replies = ended.of("client-reply")
    assert [(e["partition_id"], e["num_examples"]) for e in replies] == [(3, 20), (8, 20)]
    assert not (ended.folder / "owners.png").exists()
    assert "the clients have data of their own" in caplog.text


def test_a_server_without_test_images_scores_nothing_and_goes_on(tmp_path, caplog):
    nodes = []
    for number in (0, 1):
        file = tmp_path / f"{number}.npz"
        images = np.random.default_rng(number).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)
        np.savez(file, train_images=images, train_labels=np.arange(20) % 2)
        nodes.append({"partition-id": number, "data-dir": str(file)})
    told = {"data__name": "npz", "data__channels": 1, "data__image_size": 16}
    ended = run(tmp_path / "run", nodes=nodes, **told, **{"data__class_names": "cat,dog"})
    assert [r["accuracy"] for r in ended.result["rounds"]] == [{}, {}]
    assert "the server has no test images: data.root is empty" in caplog.text
    assert set(ended.models) == {"surrogate"}
