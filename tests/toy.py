"""A whole server in miniature: three classes of 8x8 images, a pixel prior, a narrow ConvNet."""

import torch

from feddgm_flwr.build import build_engine
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import Setting, init_state
from feddgm_flwr.core.distillation.distill import Bench
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.models import build_global_model, build_surrogate
from feddgm_flwr.core.params import load_params, params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate
from feddgm_flwr.core.training import train
from feddgm_flwr.priors import build_prior

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
    "start.weights": "random",
    "union.prior-images-per-class": 0,
}


def images(labels: list[int], seed: int = 0) -> ImageSet:
    """Return noisy copies of one fixed picture a class."""
    pictures = torch.rand(3, 1, 8, 8, generator=derive(99, "pictures"))
    noise = 0.1 * torch.randn(len(labels), 1, 8, 8, generator=derive(seed, "noise"))
    return ImageSet((pictures[labels] + noise).clamp(0, 1), torch.tensor(labels))


def setting(**overrides) -> Setting:
    """Return a server whose settings are CONFIG and ``overrides`` (``distill__labels="soft"``)."""
    said = {k.replace("__", ".").replace("_", "-"): v for k, v in overrides.items()}
    config = RunConfig.from_run_config({**CONFIG, **said})
    device = torch.device("cpu")
    surrogate = build_surrogate(config.surrogate, SPEC)
    prior = build_prior(config.generator, SPEC)
    bench = Bench(surrogate, prior, config.distill, SPEC, config.generator.chunk, device)
    models = {
        n: build_global_model(n, SPEC, config.surrogate) for n in config.global_model.name_list
    }
    engine = build_engine(config.distill, bench)
    return Setting(config, SPEC, prior, surrogate, models, device, engine)


def update(server: Setting, state, partition_id: int, data: ImageSet) -> ClientUpdate:
    """Return the reply of a client that owns ``data``."""
    load_params(server.surrogate, state.surrogate)
    rng = derive(server.config.seed, "client", state.server_round + 1, partition_id)
    train(server.surrogate, data.images, data.labels, server.config.client, rng=rng)
    return ClientUpdate(partition_id, params_of(server.surrogate), len(data))


def federation(server: Setting):
    """Return round 0 and the first replies of two clients: one owns a and b, the other c."""
    state = init_state(server, emit=lambda kind, **fields: None)
    owned = {0: [0, 1] * 12, 1: [2] * 12}
    return state, [update(server, state, i, images(own, i)) for i, own in owned.items()]
