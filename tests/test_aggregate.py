"""Laws of distilling the mean of the replies alone: no single reply goes further than its mean."""

import dataclasses
import json
from functools import partial

import pytest
import torch
import toy
from inprocess_run import break_reply, power_cut, run, same_models, spoil
from toy import quiet, same

from feddgm_flwr.core.algorithm import aggregates, apply_round
from feddgm_flwr.core.distillation.engine import SerialEngine
from feddgm_flwr.core.params import weighted_mean
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.seeding import derive_seed
from feddgm_flwr.federation import messages
from feddgm_flwr.federation.screening import NoReplyError
from feddgm_flwr.monitoring.plots import owner_name

ALONE = {"distill__of": "aggregate"}


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def distilled(monkeypatch):
    """Return the jobs that any engine in this process gets."""
    seen, plain = [], SerialEngine.run

    def run_and_see(self, jobs, *told):
        seen.extend(jobs)
        return plain(self, jobs, *told)

    monkeypatch.setattr(SerialEngine, "run", run_and_see)
    return seen


def test_the_engine_gets_the_mean_and_no_clients_update(distilled):
    server = toy.server(**ALONE)
    state, updates = toy.federation(server)
    after, report = apply_round(state, updates, server.shop, emit=quiet)
    (job,) = distilled
    counts = [u.num_examples for u in updates]
    mean = weighted_mean([u.params for u in updates], counts)
    assert equal(job.target, mean)
    assert not any(equal(job.target, u.params) for u in updates)
    assert job.partition_id < 0
    assert set(job.images_per_class) == {0, 1, 2}
    assert report.fresh.owner.unique().tolist() == [job.partition_id] == list(after.latents)


def test_what_a_client_did_alone_changes_nothing_as_long_as_the_mean_is_the_same():
    """Were anything read off a single reply, these two rounds would differ."""
    server = toy.server(**ALONE, union__teacher_share=0.5, global_model__names="convnet")
    state, updates = toy.federation(server)
    first, second = updates
    first = dataclasses.replace(first, num_examples=24)
    second = dataclasses.replace(second, num_examples=24)
    # Both moved by a power of two, so that the mean stays to the last bit.
    swapped = [
        dataclasses.replace(first, params=second.params),
        dataclasses.replace(second, params=first.params),
    ]
    there, _ = apply_round(state, [first, second], server.shop, emit=quiet)
    here, _ = apply_round(state, swapped, server.shop, emit=quiet)
    assert same(there, here)


def test_counts_that_all_share_are_summed_and_say_which_classes_there_are(distilled):
    server = toy.server(**ALONE, client__share_label_counts=True)
    state, updates = toy.federation(server)
    shared = [
        dataclasses.replace(u, label_counts=c)
        for u, c in zip(updates, [(12, 0, 0), (0, 0, 12)], strict=True)
    ]
    apply_round(state, shared, server.shop, emit=quiet)
    assert [set(job.images_per_class) for job in distilled] == [{0, 2}]
    one_shares = aggregates(state, [shared[0], updates[1]], Mean())
    assert one_shares[0].label_counts is None


def test_a_reply_alone_is_not_distilled_for_its_mean_is_itself(distilled):
    server = toy.server(**ALONE)
    state, updates = toy.federation(server)
    apply_round(state, updates[:1], server.shop, emit=quiet)
    assert distilled == []


def test_every_width_has_a_mean_of_its_own(distilled):
    server = toy.server(**ALONE, surrogate__narrow_widths="4")
    state, _ = toy.federation(server)
    updates = [toy.update(server, state, i, toy.images([i % 3] * 8, i)) for i in range(4)]
    apply_round(state, updates, server.shop, emit=quiet)
    assert [(j.partition_id, j.surrogate) for j in distilled] == [
        (-1, "surrogate"),
        (-2, "surrogate-4"),
    ]


def test_an_aggregates_address_is_one_of_its_own():
    at = [derive_seed(0, "latents", 1, who) for who in (-2, -1, 0, 1)]
    assert len(set(at)) == 4


def test_a_whole_run_distils_no_clients_reply(tmp_path, distilled):
    replied = []

    def listen(message, reply, sender):
        if message.metadata.message_type == "train":
            replied.append(messages.from_record(reply.content["arrays"]))
        return reply

    ended = run(tmp_path / "run", tamper=listen, pictures=True, **ALONE)
    assert len(distilled) == 2
    assert len(replied) == 6
    assert not any(equal(job.target, theta) for job in distilled for theta in replied)
    assert {e["partition_id"] for e in ended.of("distilled")} == {-1}
    assert {d["partition_id"] for r in ended.rounds for d in r["distilled"]} == {-1}
    assert json.loads((ended.folder / "result.json").read_text())["rounds"][1]["accuracy"]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    how = {**ALONE, "num_server_rounds": 3}
    whole = run(tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(3), **how)
    resumed = run(tmp_path / "parts", resume=True, **how)
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)


@pytest.mark.parametrize("widths", ["", "4"])
def test_a_round_of_one_usable_reply_of_each_width_keeps_the_old_model(tmp_path, widths):
    how = {**ALONE, "clients": 2, "num_server_rounds": 1, "surrogate__narrow_widths": widths}
    spoiled = None if widths else spoil(partial(break_reply, how="count"))
    with pytest.raises(NoReplyError, match="'aggregate' needs 2 usable replies of one width"):
        run(tmp_path / "run", tamper=spoiled, **how)


def test_pictures_name_whose_images_they_are():
    assert [owner_name(o) for o in (3, -1)] == ["client 3", "all clients"]
