"""Laws of belief: a reply counts where the others' images bear it out."""

import dataclasses
import math

import pytest
import torch
import toy
from toy import quiet

from feddgm_flwr.core.algorithm import apply_round
from feddgm_flwr.core.belief import Witness, disbelieved, gains
from feddgm_flwr.core.robust import towards
from feddgm_flwr.core.state import ClientUpdate
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.events import ClientDisbelieved


def linear_model():
    """Return a module of two classes whose logits are the two pixels themselves, times a scale."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))


def scaled(by):
    return {"1.weight": by * torch.eye(2)}


def pictures():
    """Two clients' images: client 0 has one of each class, client 1 one of class 1."""
    return SyntheticSet(
        images=torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]], [[[0.0, 2.0]]]]),
        targets=torch.eye(2)[[0, 1, 1]],
        weights=torch.ones(3),
        owner=torch.tensor([0, 0, 1]),
    )


def witness(who, classes, by):
    update = ClientUpdate(who, scaled(by), 10)
    return Witness(update, classes, scaled(0.0), linear_model())


def test_a_gain_is_the_mean_rise_in_likelihood_on_others_images_of_its_classes():
    # Client 0 owns both classes; of others there is one image, of class 1, whose margin is 2.
    # Client 1 owns class 1; another's image of it has margin 1.
    found = gains(
        [witness(0, (0, 1), 3.0), witness(1, (1,), -1.0)], pictures(), torch.device("cpu")
    )
    assert found[0] == pytest.approx(1 / (1 + math.exp(-6)) - 0.5)
    assert found[1] == pytest.approx(1 / (1 + math.exp(1)) - 0.5)


def test_who_shares_no_class_with_another_cannot_be_judged():
    found = gains([witness(0, (0,), 3.0)], pictures(), torch.device("cpu"))
    assert math.isnan(found[0])
    found = gains([witness(0, (), 3.0)], pictures(), torch.device("cpu"))
    assert math.isnan(found[0])


def test_a_reply_whose_numbers_overflow_holds_nothing_likely():
    found = gains([witness(1, (1,), math.inf)], pictures(), torch.device("cpu"))
    assert found[1] == pytest.approx(-0.5)


def test_who_gained_nothing_is_not_believed_unless_half_or_more_are():
    assert disbelieved({0: 0.1, 1: -0.1, 2: 0.2, 3: math.nan}) == {1: -0.1}
    assert disbelieved({0: 0.1, 1: 0.0, 2: 0.2}) == {1: 0.0}
    assert disbelieved({0: 0.1, 1: -0.1, 2: 0.2, 3: -0.2}) == {}
    # Two judges tell nothing of each other, and one that cannot be judged is none.
    assert disbelieved({0: 0.1, 1: -0.1}) == {}
    assert disbelieved({0: 0.1, 1: -0.1, 2: math.nan}) == {}


def three(server):
    """Return a state and four honest replies that share their classes."""
    state, _ = toy.federation(server)
    sets = [toy.images([0, 1] * 12, seed=i) for i in range(4)]
    return state, [toy.update(server, state, i, data) for i, data in enumerate(sets)]


def turned(updates, state, who):
    return [
        dataclasses.replace(u, params=towards(state.surrogate, u.params, -1.0))
        if u.partition_id == who
        else u
        for u in updates
    ]


def test_a_reply_that_was_turned_round_counts_nowhere():
    server = toy.server(union__examine=True, distill__classes="all")
    state, updates = three(server)
    told = []
    lied, report = apply_round(state, turned(updates, state, 2), server.shop, emit=told.append)
    without, _ = apply_round(
        state, [u for u in updates if u.partition_id != 2], server.shop, emit=quiet
    )
    assert [e.partition_id for e in told if isinstance(e, ClientDisbelieved)] == [2]
    assert toy.same(lied.surrogate, without.surrogate)
    assert 2 not in report.fresh.owner
    assert 2 not in lied.latents
    assert [d.partition_id for d in report.distilled] == [0, 1, 2, 3]


def test_honest_replies_are_believed_and_nothing_changes():
    asked, unasked = (toy.server(union__examine=said) for said in (True, False))
    state, updates = three(asked)
    told = []
    found, _ = apply_round(state, updates, asked.shop, emit=told.append)
    assert not [e for e in told if isinstance(e, ClientDisbelieved)]
    assert toy.same(found, apply_round(state, updates, unasked.shop, emit=quiet)[0])


def test_nobody_is_examined_unless_that_is_asked_for():
    server = toy.server(distill__classes="all")
    state, updates = three(server)
    told = []
    apply_round(state, turned(updates, state, 2), server.shop, emit=told.append)
    assert not [e for e in told if isinstance(e, ClientDisbelieved)]
