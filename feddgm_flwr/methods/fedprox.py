"""FedProx (Li et al., arXiv 1812.06127): clients are held near the surrogate they were sent.

A client minimises ``F_k(w) + mu / 2 |w - theta_t|^2``; the server averages as FedAvg does. Nothing
travels beside the parameters: ``mu`` is a setting that a device has anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.training import PLAIN, Rule
from feddgm_flwr.methods.flowers import METHODS as FLOWERS
from feddgm_flwr.methods.halves import ClientHalf, Method


@dataclass(frozen=True, kw_only=True)
class FedProxConfig(Settings):
    """FedProx."""

    section: ClassVar[str] = "fedprox"

    mu: float = setting(0.01, "Weight of the proximal term.", ge=0)


def proximal_rule(task: Task, mu: float) -> Rule:
    """Return the rule that adds ``mu (w - theta_t)`` to the gradient."""
    anchors = list(task.params.values())

    def adjust(parameters: Sequence[nn.Parameter]) -> None:
        for p, start in zip(parameters, anchors, strict=True):
            if p.grad is not None:
                p.grad.add_(p.detach() - start.to(p.device), alpha=mu)

    return Rule(adjust) if mu else PLAIN


def _client(config: RunConfig) -> ClientHalf:
    mu = config.of_method(FedProxConfig).mu
    return ClientHalf(rule=lambda task, data: proximal_rule(task, mu))


METHODS = {
    "fedprox": Method(server=FLOWERS["fedavg"].server, client=_client, settings=(FedProxConfig,))
}
