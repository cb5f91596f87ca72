"""FedNova (Wang et al., arXiv 2007.07481): normalised averaging of clients that make unequal steps.

Client i makes tau_i steps from x to y_i. What SGD with momentum m makes of its gradients is
``x - y_i = eta sum_k a_ik g_ik`` with a_ik = (1 - m^(tau_i - k)) / (1 - m), k from 0, so that::

    |a_i|_1 = (tau_i - m (1 - m^tau_i) / (1 - m)) / (1 - m)        (tau_i where m = 0)
    x <- x - tau_eff sum_i p_i (x - y_i) / |a_i|_1,   tau_eff = sum_i p_i |a_i|_1

with p_i the share of the examples. Weight decay is part of a client's loss. Where all make equal
steps it is FedAvg. A reply says its tau_i.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import ClientHalf, Method, ServerHalf
from feddgm_flwr.methods.steps import STEPS, capped, up, wrong

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools


def total_of(steps: float | int, momentum: float) -> float:
    """Return |a|_1 of so many steps."""
    m = momentum
    return (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)


def advance(state: ServerState, updates: Sequence[ClientUpdate], *, momentum: float) -> ServerState:
    """Return the state after the server's half of a round."""
    server_round = state.server_round + 1
    examples = sum(u.num_examples for u in updates)
    shares = [u.num_examples / examples for u in updates]
    totals = [total_of(u.extra.numbers[STEPS], momentum) for u in updates]
    effective = sum(p * a for p, a in zip(shares, totals, strict=True))
    surrogate = dict(state.surrogate)
    for u, p, a in zip(updates, shares, totals, strict=True):
        for name, x in state.surrogate.items():
            surrogate[name] = surrogate[name] - (effective * p / a) * (x - u.params[name])
    return replace(state, server_round=server_round, surrogate=surrogate)


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    client = config.client

    def advanced(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, None]:
        return advance(state, capped(updates, client), momentum=client.momentum), None

    return ServerHalf(advance=advanced, wrong=partial(wrong, config=client))


METHODS = {"fednova": Method(server=_server, client=lambda config: ClientHalf(up=up))}
