"""FedLC (Zhang et al., arXiv 2209.00189): logits calibrated by how many images a class has.

A client with n_c images of class c descends::

    -log( exp(z_y - tau n_y^(-1/4)) / sum_c exp(z_c - tau n_c^(-1/4)) )

The sum runs over every class that the client has: of an absent one, n_c = 0, the margin is infinite
and its term 0, whatever tau > 0. (With a small number in place of 0, as is also done, such a class
is merely very unlikely.) tau = 0 is FedAvg, with which the server's half is one. Nothing travels
beside the parameters.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.local import class_counts
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.training import Objective, Rule, adjusted_loss
from feddgm_flwr.methods.flowers import METHODS as FLOWERS
from feddgm_flwr.methods.halves import ClientHalf, Method


@dataclass(frozen=True, kw_only=True)
class FedLCConfig(Settings):
    """FedLC."""

    section: ClassVar[str] = "fedlc"

    tau: float = setting(1.0, "Weight of the margin n_c^(-1/4).", ge=0)


def calibrated_loss(counts: Int[Tensor, " k"], tau: float) -> Objective:
    """Return the loss of a client that has ``counts`` images of each class; ``tau`` > 0."""
    shift = -tau * counts.float().pow(-0.25)
    return adjusted_loss(torch.ones_like(shift), shift)


def _client(config: RunConfig) -> ClientHalf:
    tau = config.of_method(FedLCConfig).tau
    if not tau:
        return ClientHalf()
    return ClientHalf(
        rule=lambda task, data: Rule(objective=calibrated_loss(class_counts(task, data), tau))
    )


METHODS = {
    "fedlc": Method(
        server=FLOWERS["fedavg"].server,
        client=_client,
        settings=(FedLCConfig,),
        own_loss=True,
        may_stay=True,
    )
}
