"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378, Algorithm 1, option II): controlled averaging.

With control variates c (the server's) and c_i (client i's), all zero at first::

    client:  y <- y - eta (g_i(y) - c_i + c),  K steps from x
             c_i+ = c_i - c + (x - y) / (K eta)
    server:  x <- x + eta_g / |S| sum_S (y_i - x)
             c <- c + 1 / N sum_S (c_i+ - c_i)

The server computes c_i+ itself, from what it sent and what came back, and keeps it: so a device
holds no state that a restart would lose, a resumed run is the same run, and a reply is no larger
than FedAvg's. One vector, c - c_i, goes down beside x.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.core.training import Rule
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import ClientHalf, Method, ServerHalf
from feddgm_flwr.methods.steps import STEPS, capped, up, wrong

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(Settings):
    """SCAFFOLD."""

    section: ClassVar[str] = "scaffold"

    server_lr: float = setting(1.0, "The server's step eta_g on the mean movement.", gt=0)


@dataclass(frozen=True)
class Controls:
    """The control variates.

    Attributes
    ----------
    server
        c.
    clients
        Partition id -> c_i; a client that was not heard yet has zero.
    """

    server: Params
    clients: Mapping[int, Params]

    @classmethod
    def of(cls, state: ServerState) -> "Controls":
        """Return those that ``state`` remembers; zeros at first."""
        zeros = {name: torch.zeros_like(p) for name, p in state.surrogate.items()}
        return cls(state.memory.get("server", zeros), state.memory.get("clients", {}))

    def correction(self, partition_id: int) -> Params:
        """Return c - c_i."""
        own = self.clients.get(partition_id)
        return self.server if own is None else {k: c - own[k] for k, c in self.server.items()}


def down(state: ServerState, partition_id: int) -> Extra:
    """Return the correction that a client adds to each of its gradients."""
    return Extra(tensors=Controls.of(state).correction(partition_id))


def rule(task: Task, data: ImageSet) -> Rule:
    """Return the rule that adds c - c_i to the gradient."""
    corrections = [task.extra.tensors[name] for name in task.params]

    def adjust(parameters: Sequence[nn.Parameter]) -> None:
        for p, c in zip(parameters, corrections, strict=True):
            if p.grad is not None:
                p.grad.add_(c.to(p.device))

    return Rule(adjust)


def advance(
    state: ServerState,
    updates: Sequence[ClientUpdate],
    population: int,
    *,
    client_lr: float,
    server_lr: float,
    mean_of: Mean = Mean(),  # noqa: B008 (frozen)
) -> ServerState:
    """Return the state after the server's half of a round."""
    server_round = state.server_round + 1
    x, old = state.surrogate, Controls.of(state)
    mean = mean_of([u.params for u in updates], [1] * len(updates), x)
    c, clients = dict(old.server), dict(old.clients)
    for u in updates:
        sent, pace = old.correction(u.partition_id), u.extra.numbers[STEPS] * client_lr
        before = old.clients.get(u.partition_id)
        now = {k: (x[k] - u.params[k]) / pace - sent[k] for k in x}
        for k in x:
            now[k] = now[k].to(x[k].dtype)
            moved = now[k] if before is None else now[k] - before[k]
            c[k] = c[k] + moved / population
        clients[u.partition_id] = now
    return replace(
        state,
        server_round=server_round,
        surrogate={k: x[k] + server_lr * (mean[k] - x[k]) for k in x},
        memory={"server": c, "clients": clients},
    )


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    client, server_lr = config.client, config.of_method(ScaffoldConfig).server_lr
    if client.momentum or client.weight_decay:
        raise ValueError(
            "client.momentum and client.weight-decay must be 0 under method = 'scaffold', whose "
            f"control variates are plain SGD's, got {client.momentum} and {client.weight_decay}; "
            "change them with -c"
        )

    def advanced(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, None]:
        return advance(
            state,
            capped(updates, client),
            population,
            client_lr=client.lr,
            server_lr=server_lr,
            mean_of=config.server.mean,
        ), None

    return ServerHalf(advance=advanced, down=down, wrong=partial(wrong, config=client))


METHODS = {
    "scaffold": Method(
        server=_server,
        client=lambda config: ClientHalf(rule=rule, up=up),
        settings=(ScaffoldConfig,),
        takes_mean=True,
    )
}
