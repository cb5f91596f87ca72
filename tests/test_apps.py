"""Laws of a whole run: what it leaves, who is asked, which replies count."""

import logging
import re

import numpy as np
import pytest
import torch
from inline_grid import simulated
from inprocess_run import break_reply, round_of, run, said, same_models, spoil, trained

from feddgm_flwr.core.robust import Mean

BASELINES = [
    "fedavg",
    "fedprox",
    "scaffold",
    "fednova",
    "fedrs",
    "fedlc",
    "moon",
    "ccvr",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
]


@pytest.fixture(autouse=True)
def heard(caplog):
    """Hear this package's log lines."""
    caplog.set_level(logging.INFO, logger="feddgm_flwr")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return an undisturbed run of two rounds."""
    return run(tmp_path_factory.mktemp("plain") / "run", pictures=True)


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
    tamper = spoil(lambda message, reply: break_reply(message, reply, how))
    ended = run(tmp_path / "run", tamper=tamper, num_server_rounds=1)
    [rejected] = ended.of("client-rejected")
    assert (rejected["partition_id"], rejected["reply"]) == (1, BAD[how])
    assert "client 1 is set aside" in caplog.text
    assert [e["partition_id"] for e in ended.of("client-reply")] == [0, 2]
    assert [e["partition_id"] for e in ended.of("distilled")] == [0, 2]
    replies = ended.rounds[0]["replies"]
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
        tamper = spoil(lambda message, reply: break_reply(message, reply, how))
        return run(tmp_path / how, tamper=tamper, num_server_rounds=1).models

    assert same_models(run_with("late"), run_with("nan"))


def test_a_round_without_a_usable_reply_keeps_the_old_model(tmp_path, caplog):
    def tamper(message, reply, partition_id):
        first = trained(message) and round_of(message) == 1
        return break_reply(message, reply, "nan") if first else reply

    ended = run(tmp_path / "run", tamper=tamper)
    before, first, second = (ended.result["initial"], *ended.rounds)
    assert first["accuracy"] == before["accuracy"] != second["accuracy"]
    assert first["loss"] == before["loss"] != second["loss"]
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
    with pytest.raises(RuntimeError, match=r"rounds.min-clients = 5 clients must come online"):
        run(tmp_path / "run", rounds__min_clients=5)


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_runs_on_the_same_clients(method, tmp_path):
    ended = run(tmp_path / "run", method=method, clients=4)
    assert [r["round"] for r in ended.rounds] == [1, 2]
    assert ended.result["method"] == method
    assert ended.result["generator_only"] == {}
    losses = [s["loss"]["surrogate"] for s in (ended.result["initial"], *ended.rounds)]
    assert len(set(losses)) == 3, "each round makes another model"
    assert [r["distilled"] for r in ended.rounds] == [[], []]
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


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"out_dir": "runs/here"}, "out-dir must be an absolute path, got 'runs/here'"),
        ({"resume": True}, "needs a checkpoint in out-dir"),
        ({"resume": True, "out_dir": ""}, "resume = true needs out-dir"),
        ({"server__device": "abacus"}, "server.device must be auto, cpu"),
        ({"method": "fedmagic"}, "method must be one of"),
        ({"data__alpha": -1.0}, "data.alpha must be greater than 0, got -1.0"),
        ({"distill__iteration": 3}, "unknown run-config keys"),
        ({"distill__compile": True, "server__device": "cpu"}, "needs a C++ compiler, and none"),
    ],
)
def test_wrong_settings_end_the_run_with_one_sentence(
    wrong, sentence, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("CXX", "none")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(tmp_path / "run", **wrong)
    [line] = said(caplog, logging.ERROR)
    assert sentence in line


def test_clients_score_the_surrogate_where_asked(tmp_path):
    ended = run(tmp_path / "run", method="fedavg", rounds__federated_evaluation=True)
    for done in ended.rounds:
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
    assert [r["accuracy"] for r in ended.rounds] == [{}, {}]
    assert "the server has no test images: data.root is empty" in caplog.text
    assert set(ended.models) == {"surrogate"}


@pytest.mark.parametrize("method", ["feddgm", "scaffold", "moon", "ccvr", "dynafed", "feddf"])
def test_every_method_that_takes_a_mean_takes_the_robust_one(method, tmp_path, monkeypatch):
    taken = []
    plain = Mean.__call__

    def noting(self, replies, weights, start):
        taken.append(self)
        return plain(self, replies, weights, start)

    monkeypatch.setattr(Mean, "__call__", noting)
    said = {"server__aggregate": "trimmed", "server__trim": 0.4, "num_server_rounds": 1}
    run(tmp_path / "run", method=method, feddf__steps=1, **said)
    assert set(taken) == {Mean("trimmed", 0.4)}
