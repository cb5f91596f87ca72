"""A device's half of a round: where training ends."""

import pytest
import torch
import toy

from feddgm_flwr.core.local import ClientConfig, Task, Walk, walk
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


def plainly():
    """Where plain training ends."""
    net = model()
    train(net, DATA.images, DATA.labels, ClientConfig(**CONFIG), rng=derive(0, "client"))
    return params_of(net)


def test_a_walk_ends_where_training_from_the_tasks_parameters_ends():
    end = walked()
    assert toy.same(end.params, plainly())
    assert end.steps == 6
    assert 0 < end.loss < 2


def test_the_models_own_weights_do_not_matter():
    assert toy.same(walked(scratch=model(seed=5)).params, walked().params)


def test_same_seed_gives_the_same_walk_and_another_seed_another():
    assert toy.same(walked(), walked())
    assert not toy.same(walked().params, walked(seed=1).params)


def test_no_epochs_stay_at_the_start():
    still = walked(epochs=0)
    assert toy.same(still.params, params_of(model()))
    assert still.steps == 0


@pytest.mark.parametrize("loss", ["cross-entropy", "balanced-softmax"])
def test_a_rule_bends_the_walk(loss):
    def stay(parameters):
        for p in parameters:
            p.grad.zero_()

    assert toy.same(walked(rule=Rule(stay), loss=loss).params, params_of(model()))
    assert not toy.same(walked(loss=loss).params, params_of(model()))


def test_what_comes_back_is_not_the_scratch_space():
    net = model()
    passed = walked(scratch=net)
    end = {k: p.clone() for k, p in passed.params.items()}
    load_params(net, {k: torch.zeros_like(p) for k, p in end.items()})
    assert toy.same(passed.params, end)
