"""A whole server in miniature: three classes of 8x8 images, a pixel prior, a narrow ConvNet."""

from dataclasses import dataclass

import torch

from feddgm_flwr.build import Tools, build_engine, build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import Workshop
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.local import Task, walk
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.core.training import PLAIN

SPEC = ImageSpec(channels=1, size=8, classes=("a", "b", "c"), mean=(0.5,), std=(0.25,))

CONFIG = {
    "prior.kind": "pixel",
    "surrogate.depth": 2,
    "surrogate.width": 8,
    "client.epochs": 4,
    "client.lr": 0.1,
    "client.batch-size": 8,
    "distill.images-per-class": 2,
    "distill.iterations": 6,
    "distill.warm-iterations": 4,
    "distill.student-steps": 5,
    "distill.latent-lr": 0.1,
    "distill.engine": "serial",
    "union.epochs": 5,
    "union.prior-images-per-class": 0,
    "start.weights": "random",
}


@dataclass(frozen=True)
class Server:
    """A run's config and what its server works with."""

    config: RunConfig
    tools: Tools
    shop: Workshop


def quiet(event) -> None:
    """Tell nobody."""


def images(labels: list[int], seed: int = 0) -> ImageSet:
    """Return noisy copies of one fixed picture a class."""
    pictures = torch.rand(3, 1, 8, 8, generator=derive(99, "pictures"))
    noise = 0.1 * torch.randn(len(labels), 1, 8, 8, generator=derive(seed, "noise"))
    return ImageSet((pictures[labels] + noise).clamp(0, 1), torch.tensor(labels))


def server(**overrides) -> Server:
    """Return a server whose settings are CONFIG and ``overrides`` (``distill__labels="soft"``)."""
    said = {k.replace("__", ".").replace("_", "-"): v for k, v in overrides.items()}
    config = RunConfig.from_run_config({**CONFIG, **said})
    tools = build_tools(config, SPEC)
    shop = Workshop(
        tools.bench,
        build_engine(config.distill, tools.bench),
        tools.learners,
        config.union,
        config.client,
        config.seed,
    )
    return Server(config, tools, shop)


def update(on: Server, state: ServerState, partition_id: int, data: ImageSet) -> ClientUpdate:
    """Return the reply of a client that owns ``data``."""
    task = Task(state.surrogate, state.server_round + 1)
    rng = derive(on.config.seed, "client", task.server_round, partition_id)
    surrogate, device = on.tools.learners.surrogate.module, torch.device("cpu")
    walked = walk(surrogate, data, task, on.config.client, PLAIN, rng=rng, device=device)
    return ClientUpdate(partition_id, walked.params, len(data), checkpoints=walked.checkpoints)


def federation(on: Server) -> tuple[ServerState, list[ClientUpdate]]:
    """Return round 0 and the first replies of two clients: one owns a and b, the other c."""
    state = first_state(on.config, on.tools, quiet)
    owned = {0: [0, 1] * 12, 1: [2] * 12}
    return state, [update(on, state, i, images(own, i)) for i, own in owned.items()]
