"""Laws of the scorer: each model by its own weights, and nothing without images."""

import torch
import toy
from torch import nn

from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.federation.scoring import Scorer
from feddgm_flwr.monitoring.results import Scores

CPU = torch.device("cpu")


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def always(label):
    """Return weights that see class ``label`` in everything."""
    bias = torch.zeros(3)
    bias[label] = 5.0
    return {"1.weight": torch.zeros(3, 64), "1.bias": bias}


def scorer(test):
    return Scorer({"surrogate": linear(), "big": linear()}, test, CPU)


def test_each_model_is_scored_by_its_own_weights():
    test = toy.images([0, 0, 0, 1])
    state = ServerState(3, always(0), {"big": always(1)})
    scores = scorer(test)(state)
    assert scores.accuracy == {"surrogate": 0.75, "big": 0.25}
    assert 0 < scores.loss["surrogate"] < scores.loss["big"]


def test_the_weights_given_stay_as_they_are():
    weights = always(2)
    before = {k: v.clone() for k, v in weights.items()}
    of = scorer(toy.images([0, 1, 2]))
    assert of.score({"surrogate": weights}) == of.score({"surrogate": weights})
    assert all(torch.equal(weights[k], before[k]) for k in before)


def test_without_images_nothing_is_scored():
    of = scorer(None)
    assert not of.has_images
    assert of(ServerState(0, params_of(linear()))) == Scores()


def test_only_the_models_of_the_state_are_scored():
    of = scorer(toy.images([0, 1]))
    assert of.has_images
    assert of(ServerState(0, always(0))).accuracy.keys() == {"surrogate"}
