"""A federation in one process, without Flower's runtime: the same rounds, for sweeps of many runs.

Start-up of Flower and Ray costs about 10 s a run; a sweep of settings and seeds pays it hundreds
of times. ``run`` takes any method of ``feddgm_flwr.methods`` by its two halves, and trains the same
clients on the same partitions from the same seeds as the apps do, a round's clients drawn as the
ServerApp draws them. Its numbers differ from those of ``flwr run`` only through rounding: the
ServerApp trains models on all cores, a sweep on one. ``rounds_of`` gives the rounds one by one,
from any state on; clients train by a function that can be given (``Local``), such as one that keeps
what several runs share. Not here: nothing travels (bytes are counted on messages that are made and
dropped), and no reply is lost or screened: a client that diverges ends the run.
No claim; what others measure with.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch

from feddgm_flwr.build import CPU, Tools, build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task, Walk
from feddgm_flwr.core.params import all_finite
from feddgm_flwr.core.robust import within_limits
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.data.partition import client_images
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.events import Event
from feddgm_flwr.federation.machine import name_of
from feddgm_flwr.federation.messages import reply_content, size_of, task_content
from feddgm_flwr.federation.sampling import sampled
from feddgm_flwr.federation.scoring import Scorer
from feddgm_flwr.methods.client import Client
from feddgm_flwr.methods.halves import ServerHalf, method_of


def quiet(event: Event) -> None:
    """Tell nobody."""


@cache
def client_sets(data: DataConfig, clients: int, seed: int) -> list[ImageSet]:
    """Return every client's training images."""
    return [own_images(data, i, clients, seed) for i in range(clients)]


def own_images(data: DataConfig, partition_id: int, clients: int, seed: int) -> ImageSet:
    """Return a copy of one client's training images; their bytes are read once a process."""
    return client_images(
        data, "train", partition_id=partition_id, num_partitions=clients, seed=seed
    )


@dataclass(frozen=True)
class Seconds:
    """How long something took: on the clock, and of this process's processors."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


class Stopwatch:
    """Adds up the seconds of the blocks that it times."""

    def __init__(self) -> None:
        self.seconds = Seconds()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += Seconds(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Trained:
    """A client's training.

    Attributes
    ----------
    seconds
        What it took.
    where
        Name of the device that did it.
    """

    walk: Walk
    seconds: Seconds
    where: str


Local = Callable[[Client, Task, ImageSet], Trained]
"""How a client trains on its images; it may know the outcome already."""


def train_now(client: Client, task: Task, data: ImageSet) -> Trained:
    """Train, as the ClientApp does."""
    watch = Stopwatch()
    with watch.running():
        walk = client.train(task, data)
    return Trained(walk, watch.seconds, name_of(client.device))


@dataclass(frozen=True)
class Cost:
    """What a round cost, all of its clients together.

    Attributes
    ----------
    down, up
        Bytes of the messages to the clients and of their replies.
    clients, server
        Local training, and all that the server does between two rounds but scoring.
    clients_on, server_on
        Names of the devices that did it.
    """

    down: int = 0
    up: int = 0
    clients: Seconds = Seconds()
    server: Seconds = Seconds()
    clients_on: str = "cpu"
    server_on: str = "cpu"


@dataclass(frozen=True)
class Round:
    """One finished round; number 0 is the start.

    Attributes
    ----------
    accuracy
        Each surrogate and global model by name -> clean test accuracy.
    report
        None where the round made no images.
    asked
        Partition ids of its clients.
    """

    number: int
    accuracy: dict[str, float]
    state: ServerState
    report: RoundReport | None = None
    asked: tuple[int, ...] = ()
    cost: Cost = Cost()


class Meddler:
    """What becomes of a round's clients on the way; this one leaves everything as it is."""

    def images(self, partition_id: int, data: ImageSet) -> ImageSet:
        """Return what a client trains on in place of its own images."""
        return data

    def replies(self, state: ServerState, updates: list[ClientUpdate]) -> list[ClientUpdate]:
        """Return what the server hears in place of the replies to ``state``."""
        return updates


def run(
    config: RunConfig, clients: int, on_round: Callable[[Round], None] = lambda _: None
) -> list[Round]:
    """Run ``config`` with ``clients`` clients, by whichever method it names.

    Raises
    ------
    FloatingPointError
        A client or the server diverged.
    """
    rounds = []
    for done in rounds_of(config, clients):
        if done.number:
            rounds.append(done)
            on_round(done)
    return rounds


def rounds_of(
    config: RunConfig,
    clients: int,
    *,
    after: ServerState | None = None,
    device: torch.device = CPU,
    local: Local = train_now,
    meddler: Meddler | None = None,
) -> Iterator[Round]:
    """Yield the start (round 0) and each round of a run, or those that follow state ``after``.

    Parameters
    ----------
    local
        How clients train; its seconds count as the round's, whenever they were spent.
    meddler
        What may change what clients train on and what they reply.

    Raises
    ------
    FloatingPointError
        A client or the server diverged.
    """
    tools = build_tools(config, spec_of(config.data), device)
    score = scorer(tools, load(config.data, "test"))
    server = method_of(config.method).server(config, tools, quiet)
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies speak in every round
    try:
        if after is None:
            after = first_state(config, tools, quiet)
            if not config.makes_images:
                after = replace(after, global_models={})
            yield Round(0, score(server.shown(after)).accuracy, after)
        state = after
        while state.server_round < config.num_server_rounds:
            done = _round(config, tools, server, state, clients, local, meddler or Meddler())
            state = done.state
            yield replace(done, accuracy=score(server.shown(state)).accuracy)
    finally:
        server.close()


def _round(
    config: RunConfig,
    tools: Tools,
    server: ServerHalf,
    state: ServerState,
    clients: int,
    local: Local,
    meddler: Meddler,
) -> Round:
    """Return one round, not yet scored."""
    number = state.server_round + 1
    asked = sampled(range(clients), config.rounds.fraction_train, config.seed, number)
    at_clients, at_server = Stopwatch(), Stopwatch()
    with at_server.running():
        members = [Client(config, tools.spec, i, tools.device) for i in asked]
        tasks = [task_of(state, client, server) for client in members]
    updates, trained = [], []
    for client, task in zip(members, tasks, strict=True):
        own = own_images(config.data, client.partition_id, clients, config.seed)
        data = meddler.images(client.partition_id, own)
        trained.append(local(client, task, data))
        with at_clients.running():
            updates.append(client.reply(task, data, trained[-1].walk))
    updates = meddler.replies(state, updates)
    with at_server.running():
        updates, _ = within_limits(updates, state.surrogates, config.server.limits)
        new, report = server.advance(state, updates, clients)
    if not all_finite([new.surrogates, new.global_models, new.memory]):
        raise FloatingPointError(f"the server's models hold NaN or infinity after round {number}")
    cost = Cost(
        *_bytes(tasks, updates),
        sum((t.seconds for t in trained), at_clients.seconds),
        at_server.seconds,
        " and ".join(sorted({t.where for t in trained})),
        name_of(tools.device),
    )
    return Round(number, {}, new, report, tuple(asked), cost)


def _bytes(tasks: Sequence[Task], updates: Sequence[ClientUpdate]) -> tuple[int, int]:
    """Return what the round's messages hold, down and up."""
    down = sum(size_of(task_content(task)) for task in tasks)
    return down, sum(size_of(reply_content(u, train_loss=0.0, seconds=0.0)) for u in updates)


def task_of(state: ServerState, client: Client, server: ServerHalf | None) -> Task:
    """Return what a client is asked; ``server`` says what it is sent beside theta_t."""
    task = Task(state.surrogates[client.surrogate], state.server_round + 1)
    return task if server is None else replace(task, extra=server.down(state, client.partition_id))


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
    client = Client(config, tools.spec, partition_id, tools.device)
    return client.update(task_of(state, client, server), data)


def scorer(tools: Tools, test: ImageSet) -> Scorer:
    """Return what scores the surrogates and the global models, as the ServerApp does."""
    return Scorer(tools.learners.modules, test, tools.device)
