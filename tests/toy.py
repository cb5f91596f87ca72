"""A whole server in miniature: three classes of 8x8 images, a pixel prior, a narrow ConvNet."""

import dataclasses
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


OWNED = {0: [0, 1] * 12, 1: [2] * 12}
"""Client -> labels of its images."""


@dataclass(frozen=True)
class Server:
    """A run's config and what its server works with."""

    config: RunConfig
    tools: Tools
    shop: Workshop


def quiet(event) -> None:
    """Tell nobody."""


def same(a, b) -> bool:
    """Whether two values are equal, bit for bit, whatever they are made of."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a) if f.compare
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def images(labels: list[int], seed: int = 0) -> ImageSet:
    """Return noisy copies of one fixed picture a class."""
    pictures = torch.rand(3, 1, 8, 8, generator=derive(99, "pictures"))
    noise = 0.1 * torch.randn(len(labels), 1, 8, 8, generator=derive(seed, "noise"))
    return ImageSet((pictures[labels] + noise).clamp(0, 1), torch.tensor(labels))


class Telling:
    """A prior that knows the classes: it shows each one's true picture, a little noisy."""

    conditional = True
    fingerprint = "telling"

    def sample(self, labels, *, rng):
        """Return images as latents."""
        return images(labels.tolist(), int(torch.randint(99, (1,), generator=rng))).images

    def decode(self, latents):
        """Return the latents themselves."""
        return latents

    def to(self, device):
        """Return itself."""
        return self


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
        mean=config.server.mean,
    )
    return Server(config, tools, shop)


def under(on: Server, prior) -> Server:
    """Return the same server under another prior."""
    bench = dataclasses.replace(on.tools.bench, prior=prior)
    engine = build_engine(on.config.distill, bench)
    tools = dataclasses.replace(on.tools, bench=bench)
    return Server(on.config, tools, dataclasses.replace(on.shop, bench=bench, engine=engine))


def update(on: Server, state: ServerState, partition_id: int, data: ImageSet) -> ClientUpdate:
    """Return the reply of a client that owns ``data``, of the width in its turn."""
    name = on.config.surrogate.name_for(partition_id)
    task = Task(state.surrogates[name], state.server_round + 1)
    rng = derive(on.config.seed, "client", task.server_round, partition_id)
    surrogate, device = on.tools.learners.surrogates[name].module, torch.device("cpu")
    walked = walk(surrogate, data, task, on.config.client, PLAIN, rng=rng, device=device)
    return ClientUpdate(partition_id, walked.params, len(data), surrogate=name)


def federation(on: Server) -> tuple[ServerState, list[ClientUpdate]]:
    """Return round 0 and the first replies of two clients: one owns a and b, the other c."""
    state = first_state(on.config, on.tools, quiet)
    return state, replies(on, state)


def replies(on: Server, state: ServerState) -> list[ClientUpdate]:
    """Return what the two clients of ``federation`` reply to ``state``."""
    return [update(on, state, i, images(own, i)) for i, own in OWNED.items()]
