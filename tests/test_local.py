"""A device's half of a round: where training ends, and what it passed on the way."""

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from feddgm_flwr.core.local import ClientConfig, Task, Walk, checkpoint_steps, walk
from feddgm_flwr.core.models import SurrogateConfig, build_surrogate, initialise
from feddgm_flwr.core.params import load_params, params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import PLAIN, Rule, train

CPU = torch.device("cpu")
DATA = toy.images([0, 1] * 10)
CONFIG = {"epochs": 2, "lr": 0.1, "batch_size": 8}  # three steps an epoch


def model(seed: int = 0):
    net = build_surrogate(SurrogateConfig(depth=2, width=4), toy.SPEC)
    initialise(net, rng=derive(seed, "weights"))
    return net


def walked(*, rule: Rule = PLAIN, scratch=None, data=DATA, seed: int = 0, **config) -> Walk:
    task = Task(params_of(model()), server_round=1)
    config = ClientConfig(**{**CONFIG, **config})
    rng = derive(seed, "client")
    return walk(scratch or model(), data, task, config, rule, rng=rng, device=CPU)


def plainly(steps: int | None = None):
    """Where plain training is after so many steps, or at its end."""
    net, passed = model(), {}

    def on_step(step):
        passed[step] = params_of(net)

    config, rng = ClientConfig(**CONFIG), derive(0, "client")
    train(net, DATA.images, DATA.labels, config, rng=rng, on_step=on_step)
    return passed[steps] if steps else params_of(net)


def test_a_walk_ends_where_training_from_the_tasks_parameters_ends():
    end = walked()
    assert toy.same(end.params, plainly())
    assert end.steps == 6
    assert end.checkpoints == ()
    assert 0 < end.loss < 2


def test_the_models_own_weights_do_not_matter():
    assert toy.same(walked(scratch=model(seed=5)).params, walked().params)


def test_same_seed_gives_the_same_walk_and_another_seed_another():
    assert toy.same(walked(), walked())
    assert not toy.same(walked().params, walked(seed=1).params)


@pytest.mark.parametrize(("count", "steps"), [(1, [3]), (2, [2, 4]), (5, [1, 2, 3, 4, 5])])
def test_checkpoints_are_where_the_walk_was_after_those_steps(count, steps):
    passed = walked(checkpoints=count)
    assert toy.same(list(passed.checkpoints), [plainly(step) for step in steps])
    assert toy.same(passed.params, plainly())


def test_more_checkpoints_than_steps_repeat_but_are_as_many_as_asked():
    assert len(walked(checkpoints=9).checkpoints) == 9


def test_no_epochs_stay_at_the_start_and_pass_nothing():
    still = walked(epochs=0, checkpoints=3)
    assert toy.same(still.params, params_of(model()))
    assert (still.steps, still.checkpoints) == (0, ())


def test_a_rule_bends_the_walk():
    def stay(parameters):
        for p in parameters:
            p.grad.zero_()

    assert toy.same(walked(rule=Rule(stay)).params, params_of(model()))


def test_what_comes_back_is_not_the_scratch_space():
    net = model()
    passed = walked(scratch=net, checkpoints=1)
    end, way = (
        {k: p.clone() for k, p in params.items()}
        for params in (passed.params, passed.checkpoints[0])
    )
    load_params(net, {k: torch.zeros_like(p) for k, p in end.items()})
    assert toy.same(passed.params, end)
    assert toy.same(passed.checkpoints[0], way)


@given(st.integers(1, 500), st.integers(0, 20))
def test_checkpoints_are_evenly_spaced_moments_within_the_walk(steps, count):
    marks = checkpoint_steps(steps, count)
    assert len(marks) == count
    assert marks == sorted(marks)
    assert all(1 <= mark <= steps for mark in marks)
    for j, mark in enumerate(marks, 1):
        assert abs(mark - steps * j / (count + 1)) <= max(0.5, 1 - steps * j / (count + 1))
    if steps > count:
        assert len(set(marks)) == count
        assert steps not in marks or steps == 1 or count == 0


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(8, 3, [2, 4, 6]), (10, 2, [3, 7]), (1, 2, [1, 1]), (0, 4, []), (7, 0, [])],
)
def test_checkpoints_by_hand(steps, count, expected):
    assert checkpoint_steps(steps, count) == expected
