"""Laws of a federation whose devices bear surrogates of several widths."""

import contextlib
import dataclasses
import logging
import re
from unittest.mock import patch

import numpy as np
import pytest
import torch
import toy
from inline_grid import simulated
from inprocess_run import power_cut, run, same_models, spoil
from toy import quiet, same

from feddgm_flwr import methods
from feddgm_flwr.build import build_engine, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import apply_round, distill_job
from feddgm_flwr.core.distillation.distill import distill_client
from feddgm_flwr.core.learning import Learner
from feddgm_flwr.core.models import HEAD, SurrogateConfig
from feddgm_flwr.events import Trained

WIDE, NARROW = "surrogate", "surrogate-4"
MIXED = {"surrogate__narrow_widths": "4"}


def mixed(**said):
    """Return a toy server of widths 8 and 4, where every second client has 4."""
    return toy.server(**MIXED, **said)


def federation(server):
    """Return round 0 and four replies: 0 and 2 of width 8, 1 and 3 of width 4."""
    state = first_state(server.config, server.tools, quiet)
    labels = {0: [0, 1] * 12, 1: [2] * 12, 2: [0] * 8, 3: [1, 2] * 8}
    return state, [toy.update(server, state, i, toy.images(own, i)) for i, own in labels.items()]


def shapes(params):
    return {name: tuple(p.shape) for name, p in params.items()}


# The settings.


def test_clients_take_turns_unless_their_device_says_a_width():
    config = SurrogateConfig(width=32, narrow_widths="16, 8,16")
    names = [config.name_for(i) for i in range(5)]
    assert names == [WIDE, "surrogate-16", "surrogate-8", "surrogate-16", WIDE]
    assert config.name_for(0, 8) == "surrogate-8"
    assert config.name_for(1, 32) == WIDE
    built = {name: c.width for name, c in config.architectures.items()}
    assert list(built.items()) == [(WIDE, 32), ("surrogate-16", 16), ("surrogate-8", 8)]


def test_one_width_is_the_surrogate_and_nothing_else():
    config = SurrogateConfig(width=32, depth=2)
    assert config.architectures == {WIDE: config}
    assert {config.name_for(i) for i in range(4)} == {WIDE}
    server = toy.server()
    state = first_state(server.config, server.tools, quiet)
    assert list(state.surrogates) == list(server.tools.learners.surrogates) == [WIDE]
    assert state.of(WIDE) == state
    assert server.shop.of(WIDE) == server.shop


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ("32", "widths below surrogate.width = 32, got '32'"),
        ("16,64", "widths below surrogate.width = 32, got '16,64'"),
        ("16,", "whole numbers >= 1 joined by ','"),
        ("0", "whole numbers >= 1 joined by ','"),
        ("-8", "whole numbers >= 1 joined by ','"),
        ("half", "whole numbers >= 1 joined by ','"),
    ],
)
def test_widths_that_are_none_or_not_narrower_are_refused(widths, expected):
    with pytest.raises(ValueError, match=r"surrogate\.narrow-widths must be") as caught:
        RunConfig.from_run_config({"surrogate.narrow-widths": widths})
    assert expected in str(caught.value)


@pytest.mark.parametrize("method", sorted(set(methods.names()) - {"feddgm"}))
def test_methods_that_average_parameters_refuse_several_widths_in_one_sentence(method):
    said = {"surrogate.narrow-widths": "16", "method": method}
    sentence = f"surrogate.narrow-widths = '16' needs method = 'feddgm', got '{method}'"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        RunConfig.from_run_config(said)


# A round.


def test_each_reply_is_matched_by_a_student_of_its_own_width():
    server = mixed()
    state, updates = federation(server)
    assert [u.surrogate for u in updates] == [WIDE, NARROW, WIDE, NARROW]
    for update in updates:
        job = distill_job(update, state, server.shop)
        assert same(job.start, state.surrogates[update.surrogate])
        # A federation of that width alone has the same bench but for its only student.
        alone = toy.server(surrogate__width=8 if update.surrogate == WIDE else 4).shop.bench
        own = distill_client(dataclasses.replace(job, surrogate=WIDE), alone)
        among = distill_client(job, server.shop.bench)
        assert same(among.latents, own.latents)
        assert torch.equal(among.images, own.images)
        assert among.report.last_loss < 0.9 * among.report.first_loss


def test_every_width_learns_from_the_images_of_all():
    server, events = mixed(), []
    state, updates = federation(server)
    after, report = apply_round(state, updates, server.shop, emit=events.append)
    assert [d.classes for d in report.distilled] == [(0, 1), (2,), (0,), (1, 2)]
    learned = {e.model: e.images for e in events if isinstance(e, Trained)}
    assert learned == dict.fromkeys((WIDE, NARROW), len(report.fresh))
    for name, params in after.surrogates.items():
        assert shapes(params) == shapes(state.surrogates[name])
        assert not same(params, state.surrogates[name])
    assert shapes(after.surrogate)["block1.0.weight"] == (8, 1, 3, 3)
    assert shapes(after.narrow[NARROW])["block1.0.weight"] == (4, 1, 3, 3)


def test_the_mean_of_each_width_is_over_its_own_clients():
    server = mixed(union__surrogate_update="aggregate")
    state, updates = federation(server)
    after, _ = apply_round(state, updates, server.shop, emit=quiet)
    for name, (a, b), (n, m) in ((WIDE, updates[::2], (24, 8)), (NARROW, updates[1::2], (12, 16))):
        for k, value in after.surrogates[name].items():
            torch.testing.assert_close(value, (n * a.params[k] + m * b.params[k]) / (n + m))


def test_the_share_of_a_widths_mean_is_that_of_its_clients_images():
    results = {}
    for share in (0.0, 0.5, 1.0):
        server = mixed(union__aggregate_share=share)
        state, updates = federation(server)
        results[share], _ = apply_round(state, updates, server.shop, emit=quiet)
    learned = results[0.0].surrogates
    for name, (a, b), (n, m) in ((WIDE, updates[::2], (24, 8)), (NARROW, updates[1::2], (12, 16))):
        for k, before in learned[name].items():
            mean = (n * a.params[k] + m * b.params[k]) / (n + m)
            for share in (0.5, 1.0):
                expected = torch.lerp(before, mean, share * (n + m) / 60)
                torch.testing.assert_close(results[share].surrogates[name][k], expected)


def test_every_width_hears_the_replies_of_all():
    server = mixed(union__teacher_share=0.25)
    state, updates = federation(server)
    with patch.object(Learner, "learn", autospec=True, side_effect=lambda *a, **_: a[1]) as learn:
        _, report = apply_round(state, updates, server.shop, emit=quiet)
    told = 0
    for u in updates:
        module = server.tools.learners.surrogates[u.surrogate].module
        module.load_state_dict(u.params)
        told = told + u.num_examples / 60 * module(report.fresh.images).softmax(1).detach()
    assert len(learn.call_args_list) == 2
    for call in learn.call_args_list:
        expected = 0.75 * report.fresh.targets + 0.25 * told
        torch.testing.assert_close(call.args[2].targets, expected)


def test_a_width_of_which_nobody_answered_learns_from_the_others_images():
    server, events = mixed(union__teacher_share=0.0), []
    state, updates = federation(server)
    after, report = apply_round(state, updates[::2], server.shop, emit=events.append)
    alone = server.tools.learners.narrow[NARROW].learn(
        state.narrow[NARROW],
        report.fresh.balanced(),
        rng=toy.derive(server.config.seed, "surrogate-training", 1),
        server_round=1,
        emit=quiet,
        part=HEAD,
    )
    assert same(after.narrow[NARROW], alone)


def test_a_round_in_which_only_the_widest_answer_is_that_of_a_federation_without_the_others():
    many, one = mixed(), toy.server()
    state, updates = federation(many)
    first = first_state(one.config, one.tools, quiet)
    assert same(first.surrogate, state.surrogate)
    among, told = apply_round(state, updates[::2], many.shop, emit=quiet)
    single, alone = apply_round(first, updates[::2], one.shop, emit=quiet)
    assert same(among.surrogate, single.surrogate)
    assert same(among.latents, single.latents)
    assert same(told.fresh, alone.fresh)


def test_the_prior_teaches_every_width():
    server = toy.under(mixed(start__weights="prior"), toy.Telling())
    events = []
    state = first_state(server.config, server.tools, events.append)
    assert [e.model for e in events if isinstance(e, Trained)] == [WIDE, NARROW]
    fresh = first_state(mixed().config, server.tools, quiet)
    for name, params in state.surrogates.items():
        assert not same(params, fresh.surrogates[name])


@pytest.mark.slow
def test_workers_have_every_student():
    server = mixed(distill__engine="processes", distill__workers=2)
    state, updates = federation(server)
    engine = build_engine(server.config.distill, server.tools.bench)
    jobs = [distill_job(u, state, server.shop) for u in updates]
    with contextlib.closing(engine):
        spread = engine.run(jobs, lambda *_: None, lambda _: None)
    here = [distill_client(job, server.tools.bench) for job in jobs]
    assert all(torch.equal(a.images, b.images) for a, b in zip(spread, here, strict=True))


# A whole run.


def widths_sent(ended):
    """Return each trained client's width in the last round, by partition id."""
    last = max(e["round"] for e in ended.of("client-asked"))
    asked = [e for e in ended.of("client-asked") if e["round"] == last]
    sent = ended.asked_to_train()[-len(asked) :]
    return {
        e["partition_id"]: m.content["arrays"]["block1.0.weight"].numpy().shape[0]
        for e, m in zip(asked, sent, strict=True)
    }


def test_a_run_of_two_widths_trains_scores_and_saves_both(tmp_path):
    ended = run(tmp_path / "run", clients=4, distill__iterations=8, **MIXED)
    assert widths_sent(ended) == {0: 8, 1: 4, 2: 8, 3: 4}
    names = [e["surrogate"] for e in ended.of("client-asked")]
    assert names == [WIDE, NARROW, WIDE, NARROW] * 2
    assert [r["replies"]["accepted"] for r in ended.rounds] == [4, 4]
    for figures in ended.rounds[0]["distilled"]:
        assert figures["last_loss"] < figures["first_loss"]
    assert set(ended.models) == {WIDE, NARROW}
    assert ended.models[NARROW]["block2.0.weight"].shape == (4, 4, 3, 3)
    for score in (ended.result["initial"], *ended.rounds):
        assert set(score["accuracy"]) == {WIDE, NARROW}


def test_a_resumed_run_of_two_widths_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    how = {"clients": 4, "num_server_rounds": 3, "rounds__fraction_train": 0.75, **MIXED}
    whole = run(tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(3), **how)
    resumed = run(tmp_path / "parts", resume=True, order=9, **how)
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)


def test_a_reply_of_another_width_is_set_aside(tmp_path):
    def other(message, reply):
        for name, array in reply.content["arrays"].items():
            wider = np.repeat(array.numpy(), 2, axis=0)
            reply.content["arrays"][name] = type(array)(wider)
        return reply

    ended = run(tmp_path / "run", clients=4, num_server_rounds=1, tamper=spoil(other), **MIXED)
    [rejected] = ended.of("client-rejected")
    assert (rejected["partition_id"], rejected["reply"]) == (1, "malformed")
    assert rejected["reason"] == "block1.0.weight must have shape (4, 1, 3, 3), got (8, 1, 3, 3)"
    assert [e["partition_id"] for e in ended.of("client-reply")] == [0, 2, 3]
    assert ended.models[NARROW]["block1.0.weight"].shape == (4, 1, 3, 3)


def test_a_device_says_which_width_it_can_bear(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")
    nodes = simulated(4)
    for number, width in ((0, 4), (1, 8), (3, 5)):
        nodes[number]["surrogate-width"] = width
    ended = run(
        tmp_path / "run",
        nodes=nodes,
        num_server_rounds=1,
        rounds__federated_evaluation=True,
        **MIXED,
    )
    assert {e["partition_id"]: e["surrogate"] for e in ended.of("client-asked")} == {
        0: NARROW, 1: WIDE, 2: WIDE,
    }  # fmt: skip
    assert ended.rounds[0]["replies"]["accepted"] == 3
    assert ended.rounds[0]["federated"]["clients"] == 3
    assert "it says surrogate-width = 5, and this run's surrogates have 4 or 8" in caplog.text
