"""A federation in one process, without Flower's runtime: the same rounds, for sweeps of many runs.

Start-up of Flower and Ray costs about 10 s a run; a sweep of settings and seeds pays it hundreds
of times. ``run`` takes any method of ``feddgm_flwr.methods`` by its two halves, and trains the same
clients on the same partitions from the same seeds as the apps do. Its numbers differ from those of
``flwr run`` only through rounding: the ServerApp trains models on all cores, a sweep on one.
Not here: nothing travels, no reply is lost or screened, and every client is asked in every round.
No claim; what others measure with.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from feddgm_flwr.build import Tools, build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.data.partition import client_images
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.events import Event
from feddgm_flwr.federation.scoring import Scorer
from feddgm_flwr.methods.client import Client
from feddgm_flwr.methods.halves import ServerHalf, method_of


def quiet(event: Event) -> None:
    """Tell nobody."""


@cache
def client_sets(data: DataConfig, clients: int, seed: int) -> list[ImageSet]:
    """Return every client's training images."""
    return [
        client_images(data, "train", partition_id=i, num_partitions=clients, seed=seed)
        for i in range(clients)
    ]


@dataclass(frozen=True)
class Round:
    """One finished round.

    Attributes
    ----------
    accuracy
        "surrogate" and each global model -> clean test accuracy.
    report
        None where the method makes no images.
    """

    number: int
    accuracy: dict[str, float]
    state: ServerState
    report: RoundReport | None


def run(
    config: RunConfig, clients: int, on_round: Callable[[Round], None] = lambda _: None
) -> list[Round]:
    """Run ``config`` with ``clients`` clients, by whichever method it names.

    Raises
    ------
    ValueError
        ``config`` asks only some of the clients.
    """
    if config.rounds.fraction_train < 1:
        raise ValueError(
            "rounds.fraction-train must be 1 here, where every client is asked, got "
            f"{config.rounds.fraction_train}; use flwr run"
        )
    tools = build_tools(config, spec_of(config.data))
    score = scorer(tools, load(config.data, "test"))
    server = method_of(config.method).server(config, tools, quiet)
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies speak in every round
    rounds: list[Round] = []
    try:
        state = first_state(config, tools, quiet)
        if not config.makes_images:
            state = replace(state, global_models={})
        for number in range(1, config.num_server_rounds + 1):
            updates = [
                local_update(config, tools, state, data, i, server=server)
                for i, data in enumerate(client_sets(config.data, clients, config.seed))
            ]
            state, report = server.advance(state, updates, clients)
            rounds.append(Round(number, score(server.shown(state)).accuracy, state, report))
            on_round(rounds[-1])
    finally:
        server.close()
    return rounds


def local_update(
    config: RunConfig,
    tools: Tools,
    state: ServerState,
    data: ImageSet,
    partition_id: int,
    *,
    server: ServerHalf | None = None,
) -> ClientUpdate:
    """Train one client, as the ClientApp does; ``server`` says what it is sent beside theta_t."""
    task = Task(state.surrogate, state.server_round + 1)
    if server is not None:
        task = replace(task, extra=server.down(state, partition_id))
    return Client(config, tools.spec, partition_id, tools.device).update(task, data)


def scorer(tools: Tools, test: ImageSet) -> Scorer:
    """Return what scores the surrogate and the global models, as the ServerApp does."""
    learners = (tools.learners.surrogate, *tools.learners.global_models.values())
    return Scorer({learner.name: learner.module for learner in learners}, test, tools.device)
