"""A reply proves which classes its client owns."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.local import ClientConfig
from feddgm_flwr.core.models import SurrogateConfig, build_surrogate, initialise
from feddgm_flwr.core.ownership import ROUNDING, decay_bound, mean_of_owners, owned_classes
from feddgm_flwr.core.params import load_params, params_of, weighted_mean
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import TrainConfig, train


class Student(nn.Module):
    """Non-negative features under a linear classifier, like the surrogate."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(8, 16)
        self.classifier = nn.Linear(16, 6)

    def forward(self, x):
        return self.classifier(self.features(x.flatten(1)).relu())


def trained(labels, seed, **config):
    torch.manual_seed(seed)
    student = Student()
    start = params_of(student)
    centres = torch.randn(6, 1, 1, 8)
    images = centres[labels] + 0.3 * torch.randn(len(labels), 1, 1, 8)
    settings_ = ClientConfig(epochs=3, batch_size=8, **config)
    train(student, images, labels, settings_, rng=torch.Generator().manual_seed(seed))
    return start, params_of(student)


@settings(max_examples=20, deadline=None)
@given(
    st.sets(st.integers(0, 5), min_size=1),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.9]),
)
def test_what_is_inferred_is_owned(classes, seed, momentum):
    labels = torch.tensor(sorted(classes)).repeat_interleave(10)
    start, reply = trained(labels, seed, momentum=momentum, lr=0.05)
    assert set(owned_classes(start, reply, None)) <= classes


def test_inferred_classes_are_the_owned_ones():
    # Not by proof, which has one direction: of six classes under seed 751 one is missed.
    rng = random.Random(0)
    for seed in range(60):
        classes = tuple(sorted(rng.sample(range(6), rng.randint(1, 6))))
        labels = torch.tensor(classes).repeat_interleave(10)
        start, reply = trained(labels, seed, momentum=(0.0, 0.9)[seed % 2], lr=0.05)
        assert owned_classes(start, reply, None) == classes


def test_weight_decay_is_not_taken_for_ownership():
    labels = torch.tensor([1, 4]).repeat_interleave(20)
    start, reply = trained(labels, 0, lr=0.05, weight_decay=0.01)
    steps = 3 * 5
    assert owned_classes(start, reply, None, shrink=0.05 * 0.01 * steps) == (1, 4)


@pytest.mark.parametrize("counts", [(0, 3, 0, 0, 1, 0), (1, 0, 0, 0, 0, 0)])
def test_shared_counts_win(counts):
    start, reply = trained(torch.tensor([1, 4] * 10), 0, lr=0.05)
    expected = tuple(k for k, n in enumerate(counts) if n)
    assert owned_classes(start, reply, counts) == expected


COUNTS = {0: 1, 1: 1, 2: 10, 3: 20}
"""Images a class of a client with few; classes 4 to 9 it lacks."""


def drawn(labels, seed):
    centres = torch.rand(10, 1, 8, 8, generator=derive(0, "centres"))
    noise = torch.randn(len(labels), 1, 8, 8, generator=derive(seed, "images"))
    return (centres[labels] + 0.25 * noise).clamp(0, 1)


def surrogate_at(start, seed):
    ten = ImageSpec(1, 8, tuple("0123456789"), (0.5,), (0.25,))
    model = build_surrogate(SurrogateConfig(depth=2, width=8), ten)
    initialise(model, rng=derive(seed, "weights"))
    if start == "prior":
        labels = torch.arange(10).repeat_interleave(30)
        lesson = TrainConfig(epochs=20, lr=0.02, momentum=0.9)
        train(model, drawn(labels, 100 + seed), labels, lesson, rng=derive(seed, "lesson"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fresh", "prior"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_absent_class_is_owned_whatever_the_training(start, seed):
    """The whole grid of momentum, decay, epochs and batch; classes of many images are found."""
    model = surrogate_at(start, seed)
    before = params_of(model)
    labels = torch.cat([torch.full((n,), k) for k, n in COUNTS.items()])
    images = drawn(labels, seed)
    missed = {"one": [], "several": []}
    grid = itertools.product((0.0, 0.5, 0.9), (0.0, 5e-4, 5e-3), (1, 5, 30), (8, 32))
    for momentum, decay, epochs, batch in grid:
        config = ClientConfig(
            epochs=epochs, batch_size=batch, momentum=momentum, weight_decay=decay
        )
        load_params(model, before)
        train(model, images, labels, config, rng=derive(seed, "batches"))
        shrink = decay_bound(config, len(labels))
        owned = set(owned_classes(before, params_of(model), None, shrink=shrink))
        assert owned <= set(COUNTS), (momentum, decay, epochs, batch)
        missed["one"].append(2 - len(owned & {0, 1}))
        missed["several"].append(2 - len(owned & {2, 3}))
    assert not sum(missed["several"])
    assert 0 < sum(missed["one"]) < len(missed["one"])  # about a quarter is missed


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [1e-4, 5e-4, 5e-3])
@pytest.mark.parametrize("epochs", [1, 2, 5, 10, 40, 200])
def test_decay_alone_stays_within_the_bound_rounding_included(momentum, decay, epochs):
    """A dead feature's weight has no gradient at all: it only decays."""
    config = TrainConfig(epochs=epochs, momentum=momentum, weight_decay=decay, lr=0.05)
    names = ("classifier.weight", "classifier.bias")
    start = [-torch.rand(n, generator=derive(0, "w")) for n in ((10, 32), (10,))]
    moved = [p.clone().requires_grad_() for p in start]
    sgd = torch.optim.SGD(moved, lr=0.05, momentum=momentum, weight_decay=decay, foreach=True)
    for _ in range(epochs):
        for p in moved:
            p.grad = torch.zeros_like(p)
        sgd.step()
    before = dict(zip(names, start, strict=True))
    after = {name: p.detach() for name, p in zip(names, moved, strict=True)}
    assert owned_classes(before, after, None, shrink=decay_bound(config, 1)) == ()
    # And the bound is not far above what happened, while decay is weak.
    if 0.05 * decay * epochs < 0.01 and epochs > 100:
        fell = 1 - float(moved[0].detach()[0, 0] / start[0][0, 0])
        assert decay_bound(config, 1) < 1.2 * fell


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0, 0.95), st.floats(1e-5, 1.0), st.integers(1, 60), st.integers(0, 1000),
    st.floats(-1, 1),
)  # fmt: skip
def test_gradients_that_press_down_never_raise_an_entry_beyond_the_bound(
    momentum, decay, steps, seed, entry
):
    """The claim behind the bound, in float64: any g >= 0 at any step, any start."""
    config = TrainConfig(epochs=steps, momentum=momentum, weight_decay=decay, lr=0.05)
    bound = decay_bound(config, 1)
    pushes = torch.rand(steps, dtype=torch.float64, generator=derive(seed, "g"))
    pushes *= torch.rand(steps, dtype=torch.float64, generator=derive(seed, "on")) < 0.3
    p, buffer = entry, 0.0
    for push in pushes.tolist():
        buffer = momentum * buffer + push + decay * p
        p -= 0.05 * buffer
    # Where decay oscillates the bound is infinite, and nothing is claimed, not even of a zero.
    assert math.isinf(bound) or p - entry <= bound * abs(entry) + 1e-12


def test_the_bound_is_the_old_one_without_momentum_but_for_rounding():
    config = TrainConfig(epochs=5, lr=0.05, weight_decay=5e-4, batch_size=8)
    steps = 5 * 3
    assert decay_bound(config, 20) == 0.05 * 5e-4 * steps + steps * ROUNDING
    for momentum in (0.0, 0.5, 0.9):
        assert decay_bound(TrainConfig(momentum=momentum), 20) == 0


def test_where_decay_oscillates_nothing_is_proved():
    config = TrainConfig(lr=0.05, momentum=0.9, weight_decay=0.06)
    assert decay_bound(config, 20) == math.inf
    start, reply = trained(torch.tensor([1, 4] * 10), 0, lr=0.05)
    assert owned_classes(start, reply, None, shrink=math.inf) == ()


def test_the_mean_of_owners_leaves_out_who_only_pressed_a_class_down():
    """Rows of the classifier by hand; all else is the plain weighted mean."""
    replies = [
        {
            "conv": torch.tensor([float(i)]),
            "classifier.weight": torch.full((3, 2), float(i)),
            "classifier.bias": torch.full((3,), 10.0 * i),
        }
        for i in (1, 2, 4)
    ]
    weights, owned = [1, 3, 4], [(0,), (0, 1), (1,)]
    plain = weighted_mean(replies, weights)
    mean = mean_of_owners(plain, replies, weights, owned, replies[0], Mean())
    assert mean["conv"].item() == (1 * 1 + 3 * 2 + 4 * 4) / 8
    rows = [(1 * 1 + 3 * 2) / 4, (3 * 2 + 4 * 4) / 7, (1 * 1 + 3 * 2 + 4 * 4) / 8]
    torch.testing.assert_close(mean["classifier.weight"], torch.tensor(rows)[:, None].expand(3, 2))
    torch.testing.assert_close(mean["classifier.bias"], 10 * torch.tensor(rows))
    assert replies[0]["classifier.bias"].tolist() == [10.0] * 3


def test_where_all_own_all_the_mean_of_owners_is_the_mean():
    replies = [
        {"classifier.weight": torch.rand(2, 2), "classifier.bias": torch.rand(2)} for _ in range(3)
    ]
    plain = weighted_mean(replies, [1, 2, 3])
    got = mean_of_owners(plain, replies, [1, 2, 3], [(0, 1)] * 3, replies[0], Mean())
    for name in plain:
        torch.testing.assert_close(got[name], plain[name])
