"""What a round takes and gives: the clients' updates, the server's state, a report.

Values only. Knows nothing of how a round is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from feddgm_flwr.core.models import SURROGATE
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.synthetic import Latents, SyntheticSet


@dataclass(frozen=True)
class Extra:
    """What a method adds to the surrogate on its way, down or up.

    Attributes
    ----------
    tensors
        Named as the method likes.
    numbers
        Likewise.
    """

    tensors: Params = field(default_factory=dict)
    numbers: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """One client's accepted reply (theta_i and its example count).

    Attributes
    ----------
    partition_id
        The client's stable identity; below 0 it is no client's but an aggregate's.
    params
        Its surrogate after local training.
    num_examples
        Images it trained on.
    label_counts
        Images a class, where the client shares them.
    extra
        What the method asked for beside.
    surrogate
        Name of the surrogate that it was sent and has trained.
    claimed
        Images that it said it trained on, where ``num_examples`` was cut; else 0.
    """

    partition_id: int
    params: Params
    num_examples: int
    label_counts: tuple[int, ...] | None = None
    extra: Extra = field(default_factory=Extra)
    surrogate: str = SURROGATE
    claimed: int = 0


@dataclass(frozen=True)
class ServerState:
    """All that passes from one round to the next; what a checkpoint holds.

    Randomness is derived from (seed, round, partition id), so there is no generator to keep.

    Attributes
    ----------
    server_round
        Rounds done.
    surrogate
        theta_t, broadcast next.
    global_models
        Name -> state dict.
    latents
        Partition id -> warm start of the client's next distillation.
    memory
        What a method keeps beside: names, plain values and tensors.
    narrow
        Name -> theta_t of each narrower surrogate, where weaker devices train such.
    """

    server_round: int
    surrogate: Params
    global_models: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    latents: dict[int, Latents] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    narrow: dict[str, Params] = field(default_factory=dict)

    @property
    def surrogates(self) -> dict[str, Params]:
        """Every surrogate by name, the widest first."""
        return {SURROGATE: self.surrogate, **self.narrow}

    @property
    def models(self) -> dict[str, dict[str, Tensor]]:
        """Every model by name, surrogates first."""
        return {**self.surrogates, **self.global_models}

    def of(self, name: str) -> "ServerState":
        """Return this state as the clients of one surrogate see it."""
        return replace(self, surrogate=self.surrogates[name])


@dataclass(frozen=True)
class DistillReport:
    """How one client's distillation went.

    Attributes
    ----------
    first_loss, last_loss
        Matching loss (1 at the start of the trajectory, 0 on the client's end point).
    stopped
        "" after all iterations, "converged", or the reason it was given up.
    """

    partition_id: int
    classes: tuple[int, ...]
    num_images: int
    iterations: int
    first_loss: float
    last_loss: float
    student_lr: float
    seconds: float
    stopped: str


@dataclass(frozen=True)
class RoundReport:
    """What a round made, for logs and pictures.

    Attributes
    ----------
    distilled
        One a client, by partition id.
    fresh
        This round's images, by client.
    """

    distilled: tuple[DistillReport, ...]
    fresh: SyntheticSet
