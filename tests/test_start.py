"""What there is before any client is asked."""

import logging

import pytest
import torch
import toy
from toy import quiet, same

from feddgm_flwr.build import control_state, first_state
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.params import load_params, params_of
from feddgm_flwr.core.start import IMAGES_PER_CLASS, fresh_state, prior_set
from feddgm_flwr.events import Trained

PRIOR = {"start__weights": "prior", "global_model__names": "convnet"}


def fresh(server):
    return fresh_state(server.tools.learners, seed=server.config.seed)


def start(server, emit=quiet):
    return first_state(server.config, server.tools, emit)


def test_fresh_weights_follow_the_seed_alone():
    one, again, other = (
        fresh(toy.server(seed=seed, global_model__names="convnet,vit")) for seed in (0, 0, 1)
    )
    assert same(one, again)
    assert not same(one.surrogate, other.surrogate)
    assert not same(one.global_models, other.global_models)
    assert (one.server_round, one.latents, one.memory) == (0, {}, {})


def test_another_global_model_beside_it_changes_no_weight_of_the_first():
    alone, beside = (
        fresh(toy.server(global_model__names=names)) for names in ("convnet", "convnet,vit")
    )
    assert same(alone.surrogate, beside.surrogate)
    assert same(alone.global_models["convnet"], beside.global_models["convnet"])


def test_a_prior_that_knows_the_classes_teaches_the_first_models():
    server = toy.under(toy.server(**PRIOR), toy.Telling())
    first, again = start(server), start(server)
    assert same(first, again)
    assert not same(first.surrogate, fresh(server).surrogate)
    assert not same(first.global_models, fresh(server).global_models)
    assert (first.server_round, first.latents) == (0, {})

    test, model = toy.images([0, 1, 2] * 20, seed=7), server.tools.learners.surrogate.module
    accuracy = {}
    for name, params in (("taught", first.surrogate), ("fresh", fresh(server).surrogate)):
        load_params(model, params)
        accuracy[name] = evaluate(model, test.images, test.labels).accuracy
    assert accuracy["taught"] >= 0.9 > accuracy["fresh"]


def test_a_prior_that_does_not_know_them_teaches_nothing_and_the_log_says_so(caplog):
    server, events = toy.server(**PRIOR), []
    with caplog.at_level(logging.INFO, "feddgm_flwr.core.start"):
        assert same(start(server, events.append), fresh(server))
    assert events == []
    assert "does not know the classes" in caplog.text


def test_random_weights_are_fresh_even_where_the_prior_could_teach():
    server = toy.under(toy.server(), toy.Telling())
    assert same(start(server), fresh(server))


@pytest.mark.slow
def test_the_control_is_what_the_start_from_the_prior_is():
    server = toy.under(toy.server(**PRIOR), toy.Telling())
    control = control_state(server.config, server.tools, fresh(server), quiet)
    assert same(control, start(server))


def test_the_start_trains_as_long_and_as_fast_as_its_own_settings_say():
    def taught(**said):
        events = []
        server = toy.server(**PRIOR, start__epochs=2, start__global_model_epochs=1, **said)
        state = start(toy.under(server, toy.Telling()), events.append)
        return state, {e.model: (e.epochs, e.images) for e in events if isinstance(e, Trained)}

    state, told = taught()
    assert told == {"surrogate": (2, 3 * IMAGES_PER_CLASS), "convnet": (1, 3 * IMAGES_PER_CLASS)}
    faster, _ = taught(start__lr=0.05)
    assert not same(faster.surrogate, state.surrogate)
    assert same(faster.global_models, state.global_models)
    # The union's own pace is another matter.
    unmoved, _ = taught(union__lr=0.5)
    assert same(unmoved, state)


def test_the_start_takes_more_samples_where_the_union_has_more():
    for count, taken in ((IMAGES_PER_CLASS + 3, IMAGES_PER_CLASS + 3), (3, IMAGES_PER_CLASS)):
        events, said = [], {"union__prior_images_per_class": count, "start__epochs": 1}
        server = toy.server(start__weights="prior", **said)
        start(toy.under(server, toy.Telling()), events.append)
        assert [e.images for e in events if isinstance(e, Trained)] == [3 * taken]


def test_no_epochs_leave_fresh_weights():
    server = toy.server(**PRIOR, start__epochs=0, start__global_model_epochs=0)
    assert same(start(toy.under(server, toy.Telling())), fresh(server))


def test_samples_of_the_prior_are_as_many_a_class_as_asked_and_nobodys():
    bench = toy.under(toy.server(), toy.Telling()).shop.bench
    samples = prior_set(bench, 3, 2, seed=0)
    assert samples.targets.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.owner.tolist() == [-1] * 6
    assert samples.weights.tolist() == [1.0] * 6
    assert 0 <= float(samples.images.min()) <= float(samples.images.max()) <= 1
    assert same(samples, prior_set(bench, 3, 2, seed=0))
    assert not same(samples, prior_set(bench, 4, 2, seed=0))
    assert len(prior_set(bench, 3, 0, seed=0)) == 0


def test_the_weights_of_the_start_are_not_the_models_own():
    server = toy.server(global_model__names="convnet")
    state = start(server)
    before = params_of(server.tools.learners.surrogate.module)
    for learner in (server.tools.learners.surrogate, *server.tools.learners.global_models.values()):
        with torch.no_grad():
            for p in learner.module.parameters():
                p.zero_()
    assert same(state.surrogate, before)
    assert any(bool(v.any()) for v in state.global_models["convnet"].values())
