"""Laws of a client's checkpoints on the wire: as many as asked for, whole, or set aside."""

import math
from itertools import pairwise

import pytest
import torch
from flwr.app import Array
from inprocess_run import run, spoil

TWO = {"client__checkpoints": 2, "num_server_rounds": 1}


@pytest.mark.parametrize("method", ["feddgm", "fedavg"])
def test_a_reply_carries_its_checkpoints(method, tmp_path):
    sent = []

    def keep(message, reply):
        sent.append(reply.content)
        return reply

    plain = run(tmp_path / "plain", method=method, num_server_rounds=1)
    ended = run(tmp_path / "run", method=method, tamper=spoil(keep), **TWO)
    [content] = sent
    assert set(content) == {"arrays", "metrics", "checkpoint-0", "checkpoint-1"}
    ways = [content[name].to_torch_state_dict() for name in ("checkpoint-0", "checkpoint-1")]
    end = content["arrays"].to_torch_state_dict()
    assert list(ways[0]) == list(ways[1]) == list(end)
    for a, b in pairwise([*ways, end]):
        assert not all(torch.equal(a[k], b[k]) for k in end)
    grown = ended.rounds[0]["bytes_up"] / plain.rounds[0]["bytes_up"]
    assert 2.8 < grown < 3.05
    assert ended.rounds[0]["bytes_down"] == plain.rounds[0]["bytes_down"]
    assert ended.rounds[0]["replies"]["accepted"] == 3


def test_distillation_matches_the_path_and_averaging_ignores_it(tmp_path):
    def made(method, **how):
        name = f"{method}{how}"
        return run(tmp_path / name, method=method, num_server_rounds=1, **how)

    def losses(ended):
        return [d["first_loss"] for d in ended.rounds[0]["distilled"]]

    assert losses(made("feddgm")) != losses(made("feddgm", client__checkpoints=2))
    plain, more = made("fedavg"), made("fedavg", client__checkpoints=2)
    assert plain.rounds[0]["loss"] == more.rounds[0]["loss"]


def few(content):
    del content["checkpoint-1"]


def many(content):
    content["checkpoint-2"] = content["checkpoint-1"]


def hole(content):
    content["checkpoint-5"] = content["checkpoint-1"]
    del content["checkpoint-1"]


def changed(how):
    def change(content):
        arrays = content["checkpoint-1"]
        name = next(iter(arrays))
        arrays[name] = Array(how(arrays[name].numpy()))

    return change


def unnamed(content):
    arrays = content["checkpoint-0"]
    del arrays[next(iter(arrays))]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (few, "it must send 2 checkpoints, got 1"),
        (many, "it must send 2 checkpoints, got 3"),
        (hole, "the reply cannot be read (KeyError: 'checkpoint-1')"),
        (changed(lambda v: v.reshape(-1)), "a checkpoint: block1.0.weight must have shape"),
        (changed(lambda v: v.astype("float64")), "a checkpoint: block1.0.weight must be"),
        (changed(lambda v: v * math.nan), "a checkpoint: its parameters hold NaN or infinity"),
        (unnamed, "a checkpoint: it has other parameters: missing ["),
    ],
)
def test_bad_checkpoints_are_set_aside_with_their_reason(harm, reason, tmp_path):
    def tampered(message, reply):
        harm(reply.content)
        return reply

    ended = run(tmp_path / "run", method="fedavg", tamper=spoil(tampered), **TWO)
    [rejected] = ended.of("client-rejected")
    assert (rejected["partition_id"], rejected["reply"]) == (1, "malformed")
    assert reason in rejected["reason"]
    assert ended.rounds[0]["replies"] == {"accepted": 2, "failed": 0, "malformed": 1, "late": 0}


def test_checkpoints_that_nobody_asked_for_are_set_aside(tmp_path):
    def tampered(message, reply):
        reply.content["checkpoint-0"] = reply.content["arrays"]
        return reply

    ended = run(tmp_path / "run", method="fedavg", num_server_rounds=1, tamper=spoil(tampered))
    [rejected] = ended.of("client-rejected")
    assert rejected["reason"] == "it must send 0 checkpoints, got 1"
