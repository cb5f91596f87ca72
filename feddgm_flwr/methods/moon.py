"""MOON (Li et al., arXiv 2103.16257): model-contrastive learning against drift.

A client descends, with z, z_t and z_i an image's features under the model that it trains, the
surrogate that it was sent and its own model of the last time it was heard::

    cross-entropy - mu log( e^(s_t) / (e^(s_t) + e^(s_i)) )
    s_t = cos(z, z_t) / temperature,   s_i = cos(z, z_i) / temperature

The server averages as FedAvg does. Features are what goes into the classifier; there is no
projection head. A client that was not heard before has no z_i, and descends cross-entropy alone.

In the paper a client keeps its last model. A device keeps nothing here: the server keeps it and
sends it down, which doubles what goes down. A device that kept it would need none of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.models import HEAD, extractor, features
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.core.training import PLAIN, Objective, Rule, weighted_loss
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import ClientHalf, Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools


@dataclass(frozen=True, kw_only=True)
class MoonConfig(Settings):
    """MOON."""

    section: ClassVar[str] = "moon"

    mu: float = setting(1.0, "Weight of the contrastive term.", ge=0)
    temperature: float = setting(0.5, "Divides the similarities of features.", gt=0)


def contrastive_loss(
    received: Params, previous: Params, *, mu: float, temperature: float
) -> Objective:
    """Return the loss of a client that was sent ``received`` and last ended at ``previous``."""

    def objective(
        model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        z = extractor(model)(images)
        with torch.no_grad():
            z_t, z_i = (features(model, p, images) for p in (received, previous))
        # -log(e^a / (e^a + e^b)) = softplus(b - a)
        away = (cosine_similarity(z, z_i) - cosine_similarity(z, z_t)) / temperature
        loss = weighted_loss(model.get_submodule(HEAD)(z), targets, weights)
        return loss + mu * softplus(away).mean()

    return objective


def rule(task: Task, *, mu: float, temperature: float) -> Rule:
    """Return what a client follows, given its last model if it has one."""
    previous = task.extra.tensors
    if not previous or not mu:
        return PLAIN
    loss = contrastive_loss(task.params, previous, mu=mu, temperature=temperature)
    return Rule(objective=loss)


def down(state: ServerState, partition_id: int) -> Extra:
    """Return the client's last model, where it was heard before."""
    return Extra(tensors=state.memory.get("clients", {}).get(partition_id, {}))


def advance(
    state: ServerState,
    updates: Sequence[ClientUpdate],
    population: int,
    mean: Mean = Mean(),  # noqa: B008 (frozen)
) -> tuple[ServerState, None]:
    """Return the state with the mean of the replies, each of which is kept."""
    server_round = state.server_round + 1
    kept = {u.partition_id: u.params for u in updates}
    return replace(
        state,
        server_round=server_round,
        surrogate=mean.of(updates, state.surrogate),
        memory={"clients": {**state.memory.get("clients", {}), **kept}},
    ), None


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    return ServerHalf(advance=partial(advance, mean=config.server.mean), down=down)


def _client(config: RunConfig) -> ClientHalf:
    own = config.of_method(MoonConfig)
    return ClientHalf(rule=lambda task, data: rule(task, mu=own.mu, temperature=own.temperature))


METHODS = {
    "moon": Method(
        server=_server, client=_client, settings=(MoonConfig,), own_loss=True, takes_mean=True
    )
}
