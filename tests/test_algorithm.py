"""Laws of the server's half of a round."""

import dataclasses

import pytest
import torch
import toy

from feddgm_flwr.core.algorithm import apply_round, fresh_state, init_state, rehearsal_set
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.params import all_finite, load_params


def quiet(kind, **fields):
    pass


def same(a, b):
    """Whether two states are equal, bit for bit."""

    def equal(x, y):
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if dataclasses.is_dataclass(x):
            return all(equal(getattr(x, f.name), getattr(y, f.name)) for f in dataclasses.fields(x))
        if isinstance(x, dict):
            return list(x) == list(y) and all(equal(x[k], y[k]) for k in x)
        if isinstance(x, tuple):
            return len(x) == len(y) and all(map(equal, x, y))
        return x == y

    return equal(a, b)


def test_reply_order_does_not_matter():
    server = toy.setting()
    state, updates = toy.federation(server)
    forward, _ = apply_round(state, updates, server, emit=quiet)
    backward, _ = apply_round(state, updates[::-1], server, emit=quiet)
    assert same(forward, backward)


def test_same_seed_gives_the_same_round_and_another_seed_another():
    def one_round(seed):
        server = toy.setting(seed=seed)
        state, updates = toy.federation(server)
        return apply_round(state, updates, server, emit=quiet)[0]

    assert same(one_round(0), one_round(0))
    assert not same(one_round(0), one_round(1))


def test_an_absent_client_is_absent_not_zero():
    server = toy.setting()
    state, updates = toy.federation(server)
    _, report = apply_round(state, updates[:1], server, emit=quiet)
    assert report.union.owner.unique().tolist() == [0]
    assert report.union.targets.argmax(1).unique().tolist() == [0, 1]


def test_only_owned_classes_are_distilled_unless_all_are_asked_for():
    for classes, expected in (("owned", [(0, 1), (2,)]), ("all", [(0, 1, 2)] * 2)):
        server = toy.setting(distill__classes=classes)
        state, updates = toy.federation(server)
        _, report = apply_round(state, updates, server, emit=quiet)
        assert [d.classes for d in report.distilled] == expected


def test_training_on_the_union_beats_the_fresh_surrogate():
    server = toy.setting(distill__iterations=20)
    state, updates = toy.federation(server)
    after, _ = apply_round(state, updates, server, emit=quiet)
    test = toy.images([0, 1, 2] * 20, seed=7)

    def accuracy(params):
        load_params(server.surrogate, params)
        return evaluate(server.surrogate, test.images, test.labels).accuracy

    assert accuracy(after.surrogate) >= 0.9 > accuracy(state.surrogate)


def test_a_non_finite_reply_gives_up_that_client_alone():
    server = toy.setting()
    state, updates = toy.federation(server)
    poison = {k: torch.full_like(v, 1e30) for k, v in updates[0].params.items()}
    updates[0] = dataclasses.replace(updates[0], params=poison)
    after, report = apply_round(state, updates, server, emit=quiet)
    assert "non-finite" in report.distilled[0].stopped
    assert report.distilled[1].stopped == ""
    assert report.union.owner.unique().tolist() == [1]
    assert sorted(after.latents) == [1]
    assert all_finite(after.surrogate)


def test_training_that_diverges_keeps_the_models_and_says_so():
    server = toy.setting(union__lr=1e30, global_model__names="convnet", global_model__lr=1e30)
    state, updates = toy.federation(server)
    said = []
    after, _ = apply_round(state, updates, server, emit=lambda kind, **f: said.append((kind, f)))
    assert [f["model"] for k, f in said if k == "training-failed"] == [
        "surrogate",
        "convnet",
    ]
    assert all_finite(after.surrogate)
    assert same(after.global_models, state.global_models)


@pytest.mark.parametrize("how", ["synthetic", "aggregate", "aggregate+synthetic"])
def test_surrogate_is_updated_as_asked(how):
    server = toy.setting(union__surrogate_update=how)
    state, updates = toy.federation(server)
    after, _ = apply_round(state, updates, server, emit=quiet)
    weights = [u.num_examples for u in updates]
    mean = {
        k: sum(w * u.params[k] for w, u in zip(weights, updates, strict=True)) / sum(weights)
        for k in state.surrogate
    }
    is_mean = all(torch.allclose(after.surrogate[k], mean[k], atol=1e-6) for k in mean)
    assert is_mean == (how == "aggregate")


def test_warm_start_goes_on_from_the_last_rounds_latents():
    losses = {}
    for warm in (True, False):
        server = toy.setting(distill__warm_start=warm, distill__iterations=15)
        state, updates = toy.federation(server)
        state, _ = apply_round(state, updates, server, emit=quiet)
        again = [toy.update(server, state, i, toy.images([[0, 1], [2]][i] * 12, i)) for i in (0, 1)]
        state, second = apply_round(state, again, server, emit=quiet)
        assert bool(state.latents) == warm
        losses[warm] = sum(d.first_loss for d in second.distilled)
    assert losses[True] < losses[False]


def test_replay_pool_holds_the_last_rounds_and_no_more():
    server = toy.setting(union__replay_rounds=2)
    state, updates = toy.federation(server)
    fresh, union = [], []
    for _ in range(3):
        state, report = apply_round(state, updates, server, emit=quiet)
        fresh.append(len(report.fresh))
        union.append(len(report.union))
    assert union == [fresh[0], fresh[0] + fresh[1], fresh[1] + fresh[2]]


def test_weights_by_examples_let_n_i_speak():
    server = toy.setting(union__weight_by_examples=True)
    state, updates = toy.federation(server)
    _, report = apply_round(state, updates, server, emit=quiet)
    totals = [float(report.fresh.weights[report.fresh.owner == i].sum()) for i in (0, 1)]
    assert totals == [24.0, 12.0]


def test_every_global_model_learns_from_the_same_union():
    server = toy.setting(global_model__names="convnet,vit", global_model__epochs=1)
    state, updates = toy.federation(server)
    after, _ = apply_round(state, updates, server, emit=quiet)
    assert list(after.global_models) == ["convnet", "vit"]
    for name, weights in after.global_models.items():
        before = init_state(server, emit=lambda kind, **fields: None).global_models[name]
        assert any(not torch.equal(weights[k], before[k]) for k in weights)


def test_no_replies_leave_everything_as_it_was():
    server = toy.setting()
    state, _ = toy.federation(server)
    after, report = apply_round(state, [], server, emit=quiet)
    assert same(after.surrogate, state.surrogate)
    assert after.server_round == 1
    assert len(report.union) == 0


class Telling:
    """A prior that knows the classes: it shows each one's true picture, a little noisy."""

    conditional = True

    def sample(self, labels, *, rng):
        return toy.images(labels.tolist(), int(torch.randint(99, (1,), generator=rng))).images

    def decode(self, latents):
        return latents

    def to(self, device):
        return self


def test_a_prior_that_knows_the_classes_teaches_the_first_models_and_is_rehearsed():
    server = toy.setting(start__weights="prior", global_model__names="convnet")
    telling = dataclasses.replace(server, prior=Telling())
    first, again = (init_state(telling, emit=quiet) for _ in range(2))
    assert same(first, again)
    fresh = fresh_state(telling)
    assert not same(first.surrogate, fresh.surrogate)
    assert not same(first.global_models, fresh.global_models)
    assert len(rehearsal_set(telling, 1)) == 0
    more = toy.setting(union__prior_images_per_class=4)
    union = rehearsal_set(dataclasses.replace(more, prior=Telling()), 1)
    assert union.owner.tolist() == [-1] * 12


def test_a_prior_that_does_not_know_them_is_left_out():
    server = toy.setting(start__weights="prior", union__prior_images_per_class=4)
    assert same(init_state(server, emit=quiet), fresh_state(server))
    assert len(rehearsal_set(server, 1)) == 0


def test_the_papers_recipe_runs_with_its_own_choices():
    server = toy.setting(recipe="paper", distill__iterations=2, union__epochs=2)
    config = server.config
    assert (config.distill.gradient, config.distill.classes) == ("detached", "all")
    assert config.server.surrogate_update == "synthetic"
    assert not config.distill.warm_start
    state, updates = toy.federation(server)
    after, report = apply_round(state, updates, server, emit=quiet)
    assert [d.classes for d in report.distilled] == [(0, 1, 2)] * 2
    assert after.latents == {}
    assert all_finite(after.surrogate)
