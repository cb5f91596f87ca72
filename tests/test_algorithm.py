"""Laws of the server's half of a round."""

import dataclasses
from unittest.mock import patch

import pytest
import torch
import toy
from toy import quiet, same

from feddgm_flwr.build import first_state
from feddgm_flwr.core.algorithm import (
    PROVED,
    VELOCITIES,
    apply_round,
    distill_job,
    part_that_learns,
    rehearsal_set,
    teachers_of,
)
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.learning import Learner
from feddgm_flwr.core.lessons import Lessons
from feddgm_flwr.core.models import HEAD, SURROGATE
from feddgm_flwr.core.params import all_finite, load_params, weighted_mean
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.start import IMAGES_PER_CLASS
from feddgm_flwr.events import PhaseEnd, PhaseStart, Trained, TrainingFailed


def one_round(server, state, updates):
    """Return the next state, the report, and how many images the surrogate learned from."""
    events = []
    after, report = apply_round(state, updates, server.shop, emit=events.append)
    learned = [e.images for e in events if isinstance(e, Trained) and e.model == "surrogate"]
    return after, report, sum(learned)


def test_reply_order_does_not_matter():
    server = toy.server()
    state, updates = toy.federation(server)
    forward, _ = apply_round(state, updates, server.shop, emit=quiet)
    backward, _ = apply_round(state, updates[::-1], server.shop, emit=quiet)
    assert same(forward, backward)


def test_same_seed_gives_the_same_round_and_another_seed_another():
    def after(seed):
        server = toy.server(seed=seed)
        state, updates = toy.federation(server)
        return apply_round(state, updates, server.shop, emit=quiet)[0]

    assert same(after(0), after(0))
    assert not same(after(0), after(1))


def test_an_absent_client_is_absent_not_zero():
    server = toy.server()
    state, updates = toy.federation(server)
    _, report, learned = one_round(server, state, updates[:1])
    assert learned == len(report.fresh) == 4
    assert report.fresh.owner.unique().tolist() == [0]
    assert report.fresh.targets.argmax(1).unique().tolist() == [0, 1]


def test_only_owned_classes_are_distilled_unless_all_are_asked_for():
    for classes, expected in (("owned", [(0, 1), (2,)]), ("all", [(0, 1, 2)] * 2)):
        server = toy.server(distill__classes=classes)
        state, updates = toy.federation(server)
        _, report = apply_round(state, updates, server.shop, emit=quiet)
        assert [d.classes for d in report.distilled] == expected


def test_what_is_distilled_changes_nothing_of_who_owns_what():
    for said in ("owned", "all"):
        server = toy.server(distill__classes=said)
        state, updates = toy.federation(server)
        jobs = [distill_job(u, state, server.shop) for u in updates]
        assert [job.owned for job in jobs] == [(0, 1), (2,)]
        after, _ = apply_round(state, updates, server.shop, emit=quiet)
        assert after.memory[PROVED] == {0: (0, 1), 1: (2,)}


@pytest.mark.parametrize("warm", [True, False])
def test_what_one_round_proved_stays_proven(warm):
    server = toy.server(distill__warm_start=warm)
    state, updates = toy.federation(server)
    after, _ = apply_round(state, updates[:1], server.shop, emit=quiet)
    # A reply that owns class c alone, of the client that proved a and b before.
    reply = toy.update(server, after, 0, toy.images([2] * 12))
    assert set(distill_job(reply, after, server.shop).images_per_class) == {0, 1, 2}
    forgotten = dataclasses.replace(after, memory={})
    assert set(distill_job(reply, forgotten, server.shop).images_per_class) == {2}


def test_weight_decay_of_the_clients_is_allowed_for_as_far_as_it_can_reach():
    # A class that only decayed towards zero from below rose, and proves nothing.
    server = toy.server(client__weight_decay=0.1)
    state, updates = toy.federation(server)
    steps = 4 * 3  # epochs, batches
    decayed = {k: p * (1 - 0.9 * 0.1 * 0.1 * steps) for k, p in state.surrogate.items()}
    update = dataclasses.replace(updates[0], params=decayed)
    assert distill_job(update, state, server.shop).images_per_class == {}
    without = toy.server().shop
    assert distill_job(update, state, without).images_per_class
    # The bound is on what it did, not on how much of that counts.
    cut = dataclasses.replace(update, num_examples=1, claimed=update.num_examples)
    assert distill_job(cut, state, server.shop).images_per_class == {}
    one = dataclasses.replace(update, num_examples=1)
    assert distill_job(one, state, server.shop).images_per_class


def test_training_on_the_union_beats_the_fresh_surrogate():
    server = toy.server(distill__iterations=20)
    state, updates = toy.federation(server)
    after, _ = apply_round(state, updates, server.shop, emit=quiet)
    test = toy.images([0, 1, 2] * 20, seed=7)
    model = server.tools.learners.surrogate.module

    def accuracy(params):
        load_params(model, params)
        return evaluate(model, test.images, test.labels).accuracy

    assert accuracy(after.surrogate) >= 0.9 > accuracy(state.surrogate)


def test_a_non_finite_reply_gives_up_that_client_alone():
    server = toy.server()
    state, updates = toy.federation(server)
    poison = {k: torch.full_like(v, 1e30) for k, v in updates[0].params.items()}
    updates[0] = dataclasses.replace(updates[0], params=poison)
    after, report, learned = one_round(server, state, updates)
    assert "non-finite" in report.distilled[0].stopped
    assert report.distilled[1].stopped == ""
    assert learned == len(report.fresh)
    assert report.fresh.owner.unique().tolist() == [1]
    assert sorted(after.latents) == [1]
    assert all_finite(after.surrogate)


@pytest.mark.parametrize("classes", ["owned", "all"])
def test_a_reply_that_moved_nowhere_gives_up_that_client_alone_and_keeps_its_latents(classes):
    server = toy.server(distill__classes=classes)
    state, updates = toy.federation(server)
    for had_latents in (False, True):
        still = dataclasses.replace(updates[0], params=state.surrogate)
        after, report = apply_round(state, [still, updates[1]], server.shop, emit=quiet)
        assert report.distilled[0].stopped
        assert report.distilled[1].stopped == ""
        assert report.fresh.owner.unique().tolist() == [1]
        assert (0 in after.latents) == had_latents
        state, _ = apply_round(state, updates, server.shop, emit=quiet)
        updates = toy.replies(server, state)


@pytest.mark.parametrize("taught_by", ["labels", "models"])
def test_training_that_diverges_keeps_the_models_and_says_so(taught_by):
    rates = {"union__lr": 1e30, "union__learns": "all", "global_model__lr": 1e30}
    if taught_by == "models":
        rates["global_model__listening_lr"] = 1e38
    server = toy.server(global_model__names="convnet", global_model__taught_by=taught_by, **rates)
    state, updates = toy.federation(server)
    events = []
    after, _ = apply_round(state, updates, server.shop, emit=events.append)
    failed = [e.model for e in events if isinstance(e, TrainingFailed)]
    assert failed == ["surrogate", "convnet"]
    assert all_finite(after.surrogate)
    assert same(after.global_models, state.global_models)


@pytest.mark.parametrize("how", ["synthetic", "aggregate", "aggregate+synthetic"])
def test_surrogate_is_updated_as_asked(how):
    server = toy.server(union__surrogate_update=how)
    state, updates = toy.federation(server)
    after, _, learned = one_round(server, state, updates)
    weights = [u.num_examples for u in updates]
    mean = {
        k: sum(w * u.params[k] for w, u in zip(weights, updates, strict=True)) / sum(weights)
        for k in state.surrogate
    }
    is_mean = all(torch.allclose(after.surrogate[k], mean[k], atol=1e-6) for k in mean)
    assert is_mean == (how == "aggregate")
    assert bool(learned) == (how != "aggregate")


def mean_of(updates):
    weights = [u.num_examples for u in updates]
    return weighted_mean([u.params for u in updates], weights)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_next_surrogate_keeps_its_share_of_the_plain_aggregate(share):
    alone = toy.server(union__aggregate_share=0.0)
    state, updates = toy.federation(alone)
    taught, _, _ = one_round(alone, state, updates)
    after, _, _ = one_round(toy.server(union__aggregate_share=share), state, updates)
    for name, plain in mean_of(updates).items():
        expected = torch.lerp(taught.surrogate[name], plain, share)
        torch.testing.assert_close(after.surrogate[name], expected)


def layers_of(params, *, last):
    return {k: p for k, p in params.items() if k.startswith("classifier") == last}


@pytest.mark.parametrize(
    ("learns", "moves"), [("by-prior", False), ("classifier", False), ("all", True)]
)
def test_the_classifier_learns_alone_over_the_means_features(learns, moves):
    """The toy's prior does not know the classes, so nothing but distilled images is taught."""
    server = toy.server(union__learns=learns, union__aggregate_share=0.0)
    state, updates = toy.federation(server)
    after, _, _ = one_round(server, state, updates)
    mean = mean_of(updates)
    assert same(layers_of(after.surrogate, last=False), layers_of(mean, last=False)) != moves
    assert not same(layers_of(after.surrogate, last=True), layers_of(mean, last=True))
    assert all(p.requires_grad for p in server.tools.learners.surrogate.module.parameters())


def test_every_layer_learns_where_fresh_samples_of_the_prior_are_among_the_lessons():
    conditional = dataclasses.replace(
        (server := toy.server(union__prior_images_per_class=2)).shop,
        bench=dataclasses.replace(server.shop.bench, prior=Knowing(server.shop.bench.prior)),
    )
    assert part_that_learns(server.shop) == "classifier"
    assert part_that_learns(conditional) == ""
    without = dataclasses.replace(conditional.union, prior_images_per_class=0)
    assert part_that_learns(dataclasses.replace(conditional, union=without)) == "classifier"


class Knowing:
    """The same prior, said to know the classes."""

    conditional = True

    def __init__(self, prior):
        self._prior = prior

    def __getattr__(self, name):
        return getattr(self._prior, name)


def test_the_replies_say_their_share_of_every_target():
    server = toy.server(union__teacher_share=0.25, union__learns="classifier")
    state, updates = toy.federation(server)
    with patch.object(Learner, "learn", autospec=True, return_value=state.surrogate) as learn:
        _, report = apply_round(state, updates, server.shop, emit=quiet)
    lessons = learn.call_args_list[0].args[2]
    told, total = 0, sum(u.num_examples for u in updates)
    module = server.tools.learners.surrogate.module
    for u in updates:
        module.load_state_dict(u.params)
        told = told + u.num_examples / total * module(report.fresh.images).softmax(1).detach()
    torch.testing.assert_close(lessons.targets, 0.75 * report.fresh.targets + 0.25 * told)


@pytest.mark.parametrize("kind", ["mean", "median", "geometric-median"])
def test_where_the_mean_counts_all_alike_a_claimed_number_bears_on_no_teacher_either(kind):
    server = toy.server(server__aggregate=kind, union__teacher_share=1.0, union__learns="all")
    state, updates = toy.federation(server)
    claimed = [dataclasses.replace(updates[0], num_examples=9 * updates[0].num_examples)]
    honest, liar = (
        one_round(server, state, heard)[0].surrogate for heard in (updates, claimed + updates[1:])
    )
    assert same(honest, liar) == (kind != "mean")


def test_training_on_the_union_begins_with_the_owners_rows_unless_told_otherwise():
    """With no epochs the union changes nothing, and what it began with is left."""
    state, updates = toy.federation(toy.server())
    rows = {}
    for how in ("all", "owners"):
        server = toy.server(union__classifier_mean=how, union__epochs=0, union__aggregate_share=0.0)
        rows[how] = one_round(server, state, updates)[0].surrogate["classifier.weight"]
    torch.testing.assert_close(rows["all"], mean_of(updates)["classifier.weight"])
    # Client 0 owns a and b, client 1 owns c alone.
    torch.testing.assert_close(rows["owners"][:2], updates[0].params["classifier.weight"][:2])
    torch.testing.assert_close(rows["owners"][2], updates[1].params["classifier.weight"][2])


def test_every_class_weighs_the_same_in_the_union_unless_told_otherwise():
    """Two clients own b: its images are twice as many."""
    server = toy.server()
    state, updates = toy.federation(server)
    updates[1] = toy.update(server, state, 1, toy.images([1, 2] * 6, 1))
    taught = {}
    for balanced in (True, False):
        server = toy.server(union__balance_classes=balanced)
        taught[balanced] = one_round(server, state, updates)[0].surrogate
    assert not toy.same(taught[True], taught[False])


def test_images_go_to_training_as_the_student_saw_them():
    server = toy.server(distill__iterations=30, distill__latent_lr=0.5)
    state, updates = toy.federation(server)
    _, report = apply_round(state, updates, server.shop, emit=quiet)
    assert report.fresh.images.min() < 0
    assert report.fresh.images.max() > 1


def test_warm_start_goes_on_from_the_last_rounds_latents():
    losses = {}
    for warm in (True, False):
        server = toy.server(distill__warm_start=warm, distill__iterations=15)
        state, updates = toy.federation(server)
        state, _ = apply_round(state, updates, server.shop, emit=quiet)
        again = toy.replies(server, state)
        state, second = apply_round(state, again, server.shop, emit=quiet)
        assert bool(state.latents) == warm
        losses[warm] = sum(d.first_loss for d in second.distilled)
    assert losses[True] < losses[False]


def test_latents_of_a_client_that_is_not_heard_again_stay_as_they_are():
    server = toy.server()
    state, updates = toy.federation(server)
    first, _ = apply_round(state, updates[:1], server.shop, emit=quiet)
    second, _ = apply_round(first, toy.replies(server, first)[1:], server.shop, emit=quiet)
    assert sorted(second.latents) == [0, 1]
    assert second.latents[0] is first.latents[0]


def test_weights_by_examples_let_n_i_speak():
    server = toy.server(union__weight_by_examples=True)
    state, updates = toy.federation(server)
    _, report = apply_round(state, updates, server.shop, emit=quiet)
    totals = [float(report.fresh.weights[report.fresh.owner == i].sum()) for i in (0, 1)]
    assert totals[0] == pytest.approx(2 * totals[1])  # 24 and 12 examples
    # As much as the prior's images, however many examples all clients have together.
    assert float(report.fresh.weights.mean()) == pytest.approx(1)


def test_every_global_model_learns_from_the_same_union():
    labels = {"global_model__taught_by": "labels", "global_model__epochs": 1}
    server = toy.server(global_model__names="convnet,vit", **labels)
    state, updates = toy.federation(server)
    events = []
    after, _ = apply_round(state, updates, server.shop, emit=events.append)
    assert list(after.global_models) == ["convnet", "vit"]
    for name, weights in after.global_models.items():
        before = state.global_models[name]
        assert any(not torch.equal(weights[k], before[k]) for k in weights)
    learned = {e.model: e.images for e in events if isinstance(e, Trained)}
    assert learned == dict.fromkeys(("surrogate", "convnet", "vit"), 6)


@pytest.mark.parametrize("knows", [False, True])
def test_larger_models_of_two_kinds_hear_the_surrogate_and_the_replies(knows, monkeypatch):
    heard = []

    def noted(pools, spec, leaves):
        heard.append(([len(p) for p in pools], leaves))
        return Lessons(pools, spec, leaves)

    monkeypatch.setattr("feddgm_flwr.core.algorithm.Lessons", noted)
    listening = {"global_model__steps": 3, "global_model__batch_size": 4}
    server = toy.server(global_model__names="convnet,vit", **listening)
    server = toy.under(server, toy.Telling()) if knows else server
    state, updates = toy.federation(server)
    events = []
    after, _ = apply_round(state, updates, server.shop, emit=events.append)
    learned = {e.model: e.images for e in events if isinstance(e, Trained)}
    assert {k: learned[k] for k in ("convnet", "vit")} == dict.fromkeys(("convnet", "vit"), 12)
    assert heard == [([6, 600], 0.0) if knows else ([6], 0.75)]
    for name, weights in after.global_models.items():
        assert any(not torch.equal(weights[k], state.global_models[name][k]) for k in weights)
    again, _ = apply_round(state, updates, server.shop, emit=quiet)
    assert same(again.global_models, after.global_models)

    # Whoever taught by labels before taught the same surrogate.
    labels = toy.server(global_model__names="convnet,vit", global_model__taught_by="labels")
    labels = toy.under(labels, toy.Telling()) if knows else labels
    plain, _ = apply_round(state, updates, labels.shop, emit=quiet)
    assert same(plain.surrogate, after.surrogate)


def test_every_round_and_every_seed_rehearses_and_asks_about_samples_of_its_own(monkeypatch):
    heard = []

    def noted(pools, spec, leaves):
        heard.append(pools)
        return Lessons(pools, spec, leaves)

    monkeypatch.setattr("feddgm_flwr.core.algorithm.Lessons", noted)
    said = {"union__prior_images_per_class": IMAGES_PER_CLASS, "union__epochs": 0}
    said |= {"global_model__names": "convnet", "global_model__steps": 1}
    for seed, past in ((0, 0), (0, 1), (1, 0), (0, 0)):
        server = toy.under(toy.server(seed=seed, **said), toy.Telling())
        state = first_state(server.config, server.tools, quiet)
        apply_round(dataclasses.replace(state, server_round=past), [], server.shop, emit=quiet)
    one, next_round, other_seed, again = heard
    assert same(one, again)
    for rehearsed_or_asked in (0, 1):
        for other in (next_round, other_seed):
            assert not same(one[rehearsed_or_asked], other[rehearsed_or_asked])
    assert not same(*one), "what it learned from is not what it is asked about"


def test_teachers_are_the_next_surrogate_and_the_replies_by_their_examples():
    server = toy.server(global_model__names="convnet", global_model__replies_share=0.25)
    state, updates = toy.federation(server)
    jobs = [distill_job(u, state, server.shop) for u in updates]
    config, module = server.shop.learners.listening, server.shop.learners.surrogate.module
    images = torch.rand(5, 1, 8, 8, generator=derive(3, "images"))

    def likely(params):
        load_params(module, params)
        return module(images).softmax(1).detach()

    sound = list(zip(updates, jobs, strict=True))
    heard = teachers_of(state.surrogate, sound, server.shop, config)
    n = [u.num_examples for u in updates]
    replies = sum(k * likely(u.params) for k, u in zip(n, updates, strict=True)) / sum(n)
    expected = 0.75 * likely(state.surrogate) + 0.25 * replies
    assert torch.allclose(heard(images).exp(), expected, atol=1e-6)
    alone = teachers_of(state.surrogate, [], server.shop, config)
    assert torch.allclose(alone(images).exp(), likely(state.surrogate), atol=1e-6)
    mirror = dataclasses.replace(heard, mirrored=True)
    assert torch.allclose(mirror(images), mirror(images.flip(3)), atol=1e-5)
    assert not torch.allclose(mirror(images), heard(images), atol=1e-5)


def test_no_replies_leave_everything_as_it_was():
    server = toy.server()
    state, _ = toy.federation(server)
    after, report, learned = one_round(server, state, [])
    assert same(after.surrogate, state.surrogate)
    assert after.server_round == 1
    assert len(report.fresh) == learned == 0


def test_what_a_method_remembers_is_left_alone():
    server = toy.server()
    state, updates = toy.federation(server)
    memory = {"control": {"w": torch.ones(2)}}
    state = dataclasses.replace(state, memory=memory)
    after = apply_round(state, updates, server.shop, emit=quiet)[0].memory
    assert after["control"] is memory["control"]
    assert set(after) == {"control", PROVED, VELOCITIES}


def test_features_move_by_the_mean_and_a_share_of_their_last_movement():
    server = toy.server()
    shop = dataclasses.replace(
        server.shop,
        union=dataclasses.replace(server.shop.union, server_momentum=0.25, learns="classifier"),
    )
    state, updates = toy.federation(server)
    first, _ = apply_round(state, updates, shop, emit=quiet)
    second, _ = apply_round(first, updates, shop, emit=quiet)
    mean = weighted_mean([u.params for u in updates], [u.num_examples for u in updates])
    for name in (name for name in mean if not name.startswith(f"{HEAD}.")):
        moved = mean[name] - state.surrogate[name]
        torch.testing.assert_close(first.surrogate[name], mean[name])
        torch.testing.assert_close(first.memory[VELOCITIES][SURROGATE][name], moved)
        torch.testing.assert_close(second.surrogate[name], mean[name] + 0.25 * moved)
    assert set(first.memory[VELOCITIES]) == {SURROGATE}
    assert not any(name.startswith(HEAD) for name in first.memory[VELOCITIES][SURROGATE])


def test_velocity_stays_where_nobody_replied_and_without_momentum_there_is_none():
    server = toy.server()
    state, updates = toy.federation(server)
    first, _ = apply_round(state, updates, server.shop, emit=quiet)
    alone, _ = apply_round(first, [], server.shop, emit=quiet)
    assert alone.memory == first.memory
    still = dataclasses.replace(server.shop.union, server_momentum=0.0)
    shop = dataclasses.replace(server.shop, union=still)
    assert VELOCITIES not in apply_round(state, updates, shop, emit=quiet)[0].memory


def test_the_rounds_phases_are_told_in_order_and_of_the_round_that_is_made():
    server = toy.server()
    state, updates = toy.federation(server)
    events = []
    apply_round(state, updates, server.shop, emit=events.append)
    phases = [(type(e), e.phase) for e in events if isinstance(e, PhaseStart | PhaseEnd)]
    assert phases == [(t, p) for p in ("distill", "learn") for t in (PhaseStart, PhaseEnd)]
    assert {e.round for e in events} == {1}


def test_a_prior_that_knows_the_classes_is_rehearsed_as_asked():
    telling = toy.under(toy.server(), toy.Telling())
    assert len(rehearsal_set(telling.shop, 1)) == 0
    more = toy.under(toy.server(union__prior_images_per_class=4), toy.Telling())
    union = rehearsal_set(more.shop, 1)
    assert union.owner.tolist() == [-1] * 12
    assert union.targets.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not same(union, rehearsal_set(more.shop, 2))
    state, updates = toy.federation(more)
    _, report, learned = one_round(more, state, updates)
    assert learned == len(report.fresh) + 12


def test_a_prior_that_does_not_know_them_is_not():
    server = toy.server(union__prior_images_per_class=4)
    assert len(rehearsal_set(server.shop, 1)) == 0


def test_the_papers_recipe_runs_with_its_own_choices():
    server = toy.server(recipe="paper", distill__iterations=2, union__epochs=2)
    config = server.config
    assert (config.distill.gradient, config.distill.classes) == ("detached", "all")
    assert config.union.surrogate_update == "synthetic"
    assert not config.distill.warm_start
    state, updates = toy.federation(server)
    assert same(state, first_state(config, server.tools, quiet))
    after, report = apply_round(state, updates, server.shop, emit=quiet)
    assert [d.classes for d in report.distilled] == [(0, 1, 2)] * 2
    assert after.latents == {}
    assert all_finite(after.surrogate)
