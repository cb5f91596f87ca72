"""FedRS (Li & Zhan, KDD 2021): a restricted softmax for the classes that a client lacks.

A client descends cross-entropy of::

    p_c = exp(alpha_c z_c) / sum_j exp(alpha_j z_j),   alpha_c = 1 for a class it has, else alpha

so that its images press the classifier rows of absent classes down alpha times as hard, or less.
z_c is the whole logit, bias included; alpha = 1 is FedAvg, with which the server's half is one.
Nothing travels beside the parameters.
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
class FedRSConfig(Settings):
    """FedRS."""

    section: ClassVar[str] = "fedrs"

    alpha: float = setting(0.5, "Factor on the logits of classes a client lacks.", ge=0, le=1)


def restricted_softmax(counts: Int[Tensor, " k"], alpha: float) -> Objective:
    """Return the loss of a client that has ``counts`` images of each class."""
    scale = torch.where(counts > 0, 1.0, alpha)
    return adjusted_loss(scale, torch.zeros_like(scale))


def _client(config: RunConfig) -> ClientHalf:
    alpha = config.of_method(FedRSConfig).alpha
    return ClientHalf(
        rule=lambda task, data: Rule(objective=restricted_softmax(class_counts(task, data), alpha))
    )


METHODS = {
    "fedrs": Method(
        server=FLOWERS["fedavg"].server, client=_client, settings=(FedRSConfig,), own_loss=True
    )
}
