"""What there is before any client is asked: fresh weights, or models that the prior taught.

The second, from fresh weights, is the generator-only control too. Our own addition; the paper
starts from random weights.
"""

import logging

import torch
from torch.nn.functional import one_hot

from feddgm_flwr.core.distillation.distill import Bench, decode
from feddgm_flwr.core.learning import Learners, StartConfig, copied
from feddgm_flwr.core.models import SURROGATE, initialise
from feddgm_flwr.core.params import Params, params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.events import Emit

logger = logging.getLogger(__name__)

IMAGES_PER_CLASS = 200
"""Samples of the prior a class that the start and the control learn from, at least, and that larger
models are asked about in a round."""


def fresh_state(learners: Learners, *, seed: int) -> ServerState:
    """Return round 0: seeded fresh weights and nothing else."""
    surrogate = learners.surrogate.module
    initialise(surrogate, rng=derive(seed, "surrogate"))
    narrow: dict[str, Params] = {}
    for index, (name, learner) in enumerate(learners.narrow.items(), start=1):
        initialise(learner.module, rng=derive(seed, "surrogate", index))
        narrow[name] = params_of(learner.module)
    models = {}
    for index, (name, learner) in enumerate(learners.global_models.items()):
        initialise(learner.module, rng=derive(seed, "global-model", index))
        models[name] = copied(learner.module.state_dict())
    return ServerState(0, params_of(surrogate), models, narrow=narrow)


def taught_by_prior(
    state: ServerState,
    learners: Learners,
    bench: Bench,
    config: StartConfig,
    *,
    images_per_class: int,
    seed: int,
    emit: Emit,
) -> ServerState:
    """Return ``state`` with every model trained on samples of the prior alone.

    A prior that does not know the classes teaches nothing, and a line in the log says so.
    """
    if not bench.prior.conditional:
        logger.info(
            "the prior does not know the classes, so the surrogate starts from fresh weights"
        )
        return state
    samples = prior_set(bench, 0, max(IMAGES_PER_CLASS, images_per_class), seed=seed)
    surrogates = {
        name: learner.briefly(config.epochs, config.lr).learn(
            state.surrogates[name],
            samples,
            rng=derive(seed, "surrogate-training", 0),
            server_round=0,
            emit=emit,
        )
        for name, learner in learners.surrogates.items()
    }
    models = {
        name: learner.briefly(config.global_model_epochs).learn(
            state.global_models[name],
            samples,
            rng=derive(seed, "global-model-training", 0, index),
            server_round=0,
            emit=emit,
        )
        for index, (name, learner) in enumerate(learners.global_models.items())
    }
    return ServerState(0, surrogates.pop(SURROGATE), models, narrow=surrogates)


def prior_set(
    bench: Bench, server_round: int, count: int, *, seed: int, purpose: str = "prior-images"
) -> SyntheticSet:
    """Return ``count`` images a class of the prior's own, drawn for ``purpose``; no client's."""
    spec = bench.spec
    if not count:
        return SyntheticSet.empty(spec)
    labels = torch.arange(spec.num_classes).repeat_interleave(count)
    values = bench.prior.sample(labels, rng=derive(seed, purpose, server_round))
    images = decode(bench.prior, values, bench).clamp(0, 1)
    return SyntheticSet.of(images, one_hot(labels, spec.num_classes).float())
