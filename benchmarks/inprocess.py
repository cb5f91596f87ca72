"""A federation in one process, without Flower: the same rounds, for sweeps of many runs.

Start-up of Flower and Ray costs about 40 s a run; a sweep of settings and seeds pays it hundreds
of times. ``run`` trains the same clients on the same partitions from the same seeds with the same
functions as the apps do. Its numbers differ from those of ``flwr run`` only through rounding: the
ServerApp trains models on all cores, a sweep on one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from feddgm_flwr.config import DataConfig, RunConfig
from feddgm_flwr.core import algorithm
from feddgm_flwr.core.algorithm import Setting
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.params import load_params, params_of, weighted_mean
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.core.training import train
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.data.partition import client_images
from feddgm_flwr.federation import server_side

CPU = torch.device("cpu")


@cache
def client_sets(data: DataConfig, clients: int, seed: int) -> list[ImageSet]:
    """Return every client's training images."""
    return [
        client_images(data, "train", partition_id=i, num_partitions=clients, seed=seed)
        for i in range(clients)
    ]


def build_setting(config: RunConfig, device: torch.device = CPU) -> Setting:
    """Return the run's fixed parts, as the ServerApp builds them."""
    return server_side.build_setting(config, spec_of(config.data), device)


@dataclass(frozen=True)
class Round:
    """One finished round."""

    number: int
    accuracy: dict[str, float]
    state: ServerState
    report: algorithm.RoundReport | None


def run(
    config: RunConfig, clients: int, on_round: Callable[[Round], None] = lambda _: None
) -> list[Round]:
    """Run ``config`` with ``clients`` clients; FedDGM, FedAvg or FedProx."""
    setting = build_setting(config)
    test = load(config.data, "test")
    state = algorithm.init_state(setting, emit=lambda kind, **fields: None)
    rounds: list[Round] = []
    try:
        for number in range(1, config.num_server_rounds + 1):
            updates = [
                local_update(setting, state, data, i, number)
                for i, data in enumerate(client_sets(config.data, clients, config.seed))
            ]
            report = None
            if config.strategy == "feddgm":
                state, report = algorithm.apply_round(
                    state, updates, setting, emit=lambda kind, **fields: None
                )
            else:
                mean = weighted_mean([u.params for u in updates], [u.num_examples for u in updates])
                state = ServerState(number, mean, state.global_models, {}, ())
            rounds.append(Round(number, accuracies(setting, state, test), state, report))
            on_round(rounds[-1])
    finally:
        setting.engine.close()
    return rounds


def local_update(
    setting: Setting, state: ServerState, data: ImageSet, partition_id: int, number: int
) -> ClientUpdate:
    """Train one client, as the ClientApp does."""
    config, device = setting.config, setting.device
    load_params(setting.surrogate, state.surrogate)
    train(
        setting.surrogate.to(device),
        data.images.to(device),
        data.labels.to(device),
        config.client,
        rng=derive(config.seed, "client", number, partition_id),
        anchor=state.surrogate,
        proximal_mu=config.baseline.proximal_mu if config.strategy == "fedprox" else 0.0,
    )
    counts = None
    if config.client.share_label_counts:
        counts = tuple(torch.bincount(data.labels, minlength=setting.spec.num_classes).tolist())
    reply = params_of(setting.surrogate.to(CPU))
    return ClientUpdate(partition_id, reply, len(data), counts)


def accuracies(setting: Setting, state: ServerState, test: ImageSet) -> dict[str, float]:
    """Return clean test accuracy of the surrogate and every global model."""
    load_params(setting.surrogate, state.surrogate)
    scores = {"surrogate": evaluate(setting.surrogate, test.images, test.labels).accuracy}
    for name, weights in state.global_models.items():
        setting.global_models[name].load_state_dict(weights)
        scores[name] = evaluate(setting.global_models[name], test.images, test.labels).accuracy
    return scores
