"""Laws of what a run tells: every line can be read back, phases pair up, the end is said."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord
from inline_grid import simulated
from inprocess_run import break_reply, events_of, power_cut, run, spoil, trained

import server_app
from feddgm_flwr import events
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.federation.flower_strategies import FlowerArithmetic
from feddgm_flwr.federation.screening import NoReplyError

PARTS = ("device_of", "draw_owners", "add_control", "save_models")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return an undisturbed run of two rounds, with its pictures."""
    return run(tmp_path_factory.mktemp("plain") / "run", pictures=True)


def phase(name, *inside):
    return [("phase-start", name), *inside, ("phase-end", name)]


SCORE = [*phase("score"), "scored"]
ROUND = [
    *phase("wait"),
    "round-start",
    *phase(
        "clients",
        *[("client-asked", "clients")] * 3,
        *[("reply-arrived", "clients")] * 3,
    ),
    *["client-reply"] * 3,
    *phase("distill", *["distilled"] * 3),
    *phase("learn", "trained"),
    *SCORE,
    *phase("save"),
    "sprite-written",
    "images-drawn",
    "round-end",
]


def test_events_tell_the_run_in_order(plain):
    told = [
        (e["kind"], e["phase"]) if "phase" in e else e["kind"]
        for e in plain.events
        # A busy machine takes longer than a heartbeat.
        if not e["kind"].endswith("-progress") and e["kind"] not in ("growth-written", "heartbeat")
    ]
    before = ["run-start", *phase("wait"), "clients-online", *SCORE]
    assert told == [*before, *ROUND, *ROUND, "run-end"]
    assert [e["round"] for e in plain.events] == sorted(e["round"] for e in plain.events)
    assert {e["round"] for e in plain.events} == {0, 1, 2}
    ends = plain.of("round-end")
    assert ends[0]["eta_s"] > 0 == ends[1]["eta_s"]


def test_every_line_of_a_run_can_be_read_back(plain):
    follower = events.Follower(plain.folder / "events.jsonl")
    read = follower.poll()
    assert follower.broken == 0
    assert len(read) == len(plain.events)
    assert not any(isinstance(r.event, events.Unknown) for r in read)


def test_a_run_says_first_what_it_is(plain):
    [start] = plain.of("run-start")
    assert plain.events[0] == start
    assert (start["round"], start["rounds"], start["seed"]) == (0, 2, 0)
    assert (start["method"], start["resumed"]) == ("feddgm", False)
    config = start["config"]
    assert "auto" not in {v for k, v in config.items() if not k.endswith(".device")}
    assert config["client.lr"] == 0.05
    assert config["distill.iterations"] == 2
    assert config["scaffold.server-lr"] == 1.0
    assert all(isinstance(v, Scalar) for v in config.values())
    assert start["classes"] == list("0123456789")
    assert {"python", "torch", "flwr", "feddgm-flwr"} <= start["versions"].keys()
    known = {"host", "user", "platform", "cpus", "memory_mb", "device"}
    assert start["machine"].keys() == known
    assert start["pid"] > 0


def test_phases_begin_and_end_in_pairs_with_their_round(plain):
    open_phases = []
    for e in plain.events:
        if e["kind"] == "phase-start":
            assert e["phase"] in events.PHASES
            open_phases.append((e["phase"], e["round"]))
        elif e["kind"] == "phase-end":
            assert open_phases.pop() == (e["phase"], e["round"])
            assert e["seconds"] >= 0
    assert open_phases == []


def test_who_is_asked_who_answers_and_how_much_travels(plain):
    for done in plain.rounds:
        asked = [e for e in plain.of("client-asked") if e["round"] == done["round"]]
        replied = [e for e in plain.of("client-reply") if e["round"] == done["round"]]
        assert [e["partition_id"] for e in asked] == [e["partition_id"] for e in replied]
        assert sum(e["num_bytes"] for e in asked) == done["bytes_down"]
        assert sum(e["num_bytes"] for e in replied) == done["bytes_up"]


def test_progress_tells_how_far_a_client_is(plain):
    first = plain.of("distill-progress")[0]
    assert first.keys() >= {"partition_id", "iteration", "iterations", "loss", "eta_s"}


def test_the_result_holds_each_clients_distillation(plain):
    for done in plain.rounds:
        assert [d["partition_id"] for d in done["distilled"]] == [0, 1, 2]
        for figures in done["distilled"]:
            assert figures.keys() == {
                *("partition_id", "num_images", "iterations", "first_loss", "last_loss"),
                *("student_lr", "seconds", "stopped"),
            }
            assert figures["last_loss"] < figures["first_loss"]
            assert figures["num_images"] > 0 < figures["student_lr"]
            assert figures["seconds"] > 0
    events_say = [e["last_loss"] for e in plain.of("distilled")]
    assert events_say == [d["last_loss"] for r in plain.rounds for d in r["distilled"]]


def test_clients_that_score_are_a_phase_too(tmp_path):
    ended = run(
        tmp_path / "run",
        method="fedavg",
        num_server_rounds=1,
        rounds__federated_evaluation=True,
    )
    phases = [(e["kind"], e["phase"]) for e in ended.events if "phase" in e]
    assert phases.count(("phase-start", "evaluate")) == 1
    assert phases.count(("phase-end", "evaluate")) == 1
    assert ended.of("round-end")[0]["federated"] == ended.rounds[0]["federated"]


def test_a_reply_that_is_set_aside_is_told_with_its_reason(tmp_path):
    tamper = spoil(lambda message, reply: None)
    ended = run(tmp_path / "run", method="fedavg", num_server_rounds=1, tamper=tamper)
    [rejected] = ended.of("client-rejected")
    assert rejected["reason"] == "it did not answer in time"
    assert ended.of("run-end")[0]["status"] == "completed"


@pytest.mark.parametrize("how", ["an empty text", "a name of 3 MB", "2**63 examples", "1e308 loss"])
def test_a_hostile_reply_neither_ends_a_run_nor_fills_its_log(how, tmp_path):
    def spoiler(message, reply):
        match how:
            case "an empty text":
                reply.content["more"] = ConfigRecord({"": ""})
            case "a name of 3 MB":
                reply.content["arrays"]["x" * 3_000_000] = Array(np.ones(1, np.float32))
                reply.content["metrics"]["y" * 3_000_000] = 1.0
            case "2**63 examples":
                reply.content["metrics"]["num-examples"] = 2**63
            case "1e308 loss":
                reply.content["metrics"]["train-loss"] = 1.7e308
        return reply

    ended = run(tmp_path / "run", method="fedavg", num_server_rounds=1, tamper=spoil(spoiler))
    assert ended.of("run-end")[0]["status"] == "completed"
    honest = {e["partition_id"] for e in ended.of("client-reply")} - {1}
    assert honest == {0, 2}
    set_aside = how in ("a name of 3 MB", "2**63 examples")
    assert bool(ended.of("client-rejected")) == set_aside
    assert (tmp_path / "run" / "events.jsonl").stat().st_size < 60_000


def test_replies_that_make_no_sum_keep_the_old_model(tmp_path, monkeypatch):
    def fail(self, state, updates, population):
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(FlowerArithmetic, "__call__", fail)
    with pytest.raises(NoReplyError, match="failed on the replies: not positive definite"):
        run(tmp_path / "run", method="fedavg", num_server_rounds=2)
    assert len([e for e in events_of(tmp_path / "run") if e["kind"] == "round-end"]) == 2


def test_a_run_without_any_reply_is_told_as_failed(tmp_path):
    with pytest.raises(NoReplyError, match="no round of 1 made a new model"):
        run(
            tmp_path / "run",
            method="fedavg",
            num_server_rounds=1,
            tamper=lambda message, reply, sender: None if trained(message) else reply,
        )
    end = events_of(tmp_path / "run")[-1]
    assert (end["kind"], end["status"]) == ("run-end", "failed")
    assert "resume = true and a higher num-server-rounds" in end["reason"]


@pytest.mark.parametrize("part", PARTS)
def test_an_error_is_the_end_that_is_told(part, tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("not this time")

    monkeypatch.setattr(server_app, part, fail)
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="not this time"):
        run(folder, method="fedavg", num_server_rounds=1)
    if part == "device_of":  # there is no log yet
        assert not (folder / "events.jsonl").exists()
        return
    end = events_of(folder)[-1]
    assert (end["kind"], end["status"], end["reason"]) == (
        "run-end",
        "failed",
        "ValueError: not this time",
    )


def test_a_stop_from_outside_is_the_end_that_is_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", method="fedavg", tamper=power_cut(2))
    end = events_of(tmp_path / "run")[-1]
    assert (end["kind"], end["status"], end["round"]) == ("run-end", "stopped", 2)


def test_scores_of_clients_are_told_and_unbelievable_ones_set_aside(tmp_path):
    def tamper(message, reply, partition_id):
        if message.metadata.message_type == "evaluate" and partition_id != 1:
            reply.content["metrics"]["loss"] = 1.7e308
        return reply

    ended = run(
        tmp_path / "run",
        tamper=tamper,
        method="fedavg",
        num_server_rounds=1,
        rounds__federated_evaluation=True,
    )
    asked = [(e["partition_id"], e["phase"]) for e in ended.of("client-asked")]
    assert asked == [(i, phase) for phase in ("clients", "evaluate") for i in range(3)]
    [scored] = ended.of("client-scored")
    assert scored["partition_id"] == 1
    assert [e["partition_id"] for e in ended.of("client-rejected")] == [0, 2]
    federated = ended.rounds[0]["federated"]
    assert (federated["clients"], federated["accuracy"]) == (1, scored["accuracy"])


def test_a_reply_is_told_when_it_comes_and_again_when_it_counts(plain):
    for reply in plain.of("client-reply"):
        here = {"round": reply["round"], "partition_id": reply["partition_id"]}
        [came] = [e for e in plain.of("reply-arrived") if here.items() <= e.items()]
        assert came["time"] <= reply["time"]
        assert came["num_bytes"] == reply["num_bytes"]
        assert came["metrics"]["train-loss"] == reply["train_loss"]
        assert came["error"] == ""
        assert came["seconds"] > 0
        assert reply["moved"] > 0
        assert reply["label_counts"] is None


def test_who_is_online_is_told_with_the_nodes_behind(plain):
    [online] = plain.of("clients-online")
    assert list(online["nodes"]) == ["0", "1", "2"]
    assert set(online["nodes"].values()) == {str(node) for node in plain.grid.contexts}
    assert online["left_out"] == {}


def test_a_run_says_which_settings_are_the_users(plain):
    [start] = plain.of("run-start")
    assert {"client.epochs", "out-dir"} <= set(start["said"])
    assert "client.lr" not in start["said"]
    assert start["image"] == {"channels": 1, "size": 16}
    assert start["flower_run"] == "1"


def test_what_a_client_shares_and_what_went_wrong_is_told(tmp_path):
    broken = spoil(lambda message, reply: break_reply(message, reply, "error"))
    ended = run(
        tmp_path / "run",
        nodes=[*simulated(2), {"partition-id": 1, "num-partitions": 2}, simulated(9)[3]],
        tamper=broken,
        method="fedavg",
        client__share_label_counts=True,
        num_server_rounds=1,
    )
    [online] = ended.of("clients-online")
    assert sorted(online["nodes"]) == ["0", "1"]
    assert sorted(reason.split(" says ")[-1] for reason in online["left_out"].values()) == [
        "num-partitions = 9, the others 2",
        "partition-id = 1 too",
    ]
    errors = {e["partition_id"]: e["error"] for e in ended.of("reply-arrived")}
    assert errors == {0: "", 1: "out of battery"}
    [reply] = ended.of("client-reply")
    assert sum(reply["label_counts"]) == reply["num_examples"]
