"""One client's half of a round, put together from a run's config (paper, step 2).

A device's app trains by it, and so does whoever simulates clients in a plain script
(examples/one_round.py). Imports neither the server's half nor the engine of distillation; knows no
data set and no Flower.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from feddgm_flwr.compiler import need_compiler
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.augment import fitting
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.local import Task, Walk, Walker
from feddgm_flwr.core.models import ConvNet, build_surrogate
from feddgm_flwr.core.private import PrivateWalk
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate
from feddgm_flwr.methods.halves import ClientHalf, method_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Client:
    """A client of a run; it keeps nothing from one round to the next.

    Attributes
    ----------
    device
        Where it trains.
    said_width
        Width of the surrogate that its device can bear; 0 where it does not say.

    Raises
    ------
    ValueError
        ``client.compile`` is asked for where nothing can compile.
    """

    config: RunConfig
    spec: ImageSpec
    partition_id: int
    device: torch.device = CPU
    said_width: int = 0

    def __post_init__(self) -> None:
        if self.config.client.compile:
            need_compiler("client.compile", self.device)

    @cached_property
    def half(self) -> ClientHalf:
        """What the run's method has a client do."""
        return method_of(self.config.method).client(self.config)

    @property
    def walker(self) -> Walker:
        """How it trains: as its method says, or with noise of its own."""
        return PrivateWalk(self.config.privacy) if self.config.privacy.on else self.half.walk

    @property
    def surrogate(self) -> str:
        """Name of the surrogate that it trains."""
        return self.config.surrogate.name_for(self.partition_id, self.said_width)

    def network(self) -> ConvNet:
        """Return the architecture of that surrogate."""
        return build_surrogate(self.config.surrogate.architectures[self.surrogate], self.spec)

    def update(self, task: Task, data: ImageSet) -> ClientUpdate:
        """Train on ``data`` and return what goes back to the server."""
        return self.reply(task, data, self.train(task, data))

    def train(self, task: Task, data: ImageSet) -> Walk:
        """Train the surrogate on ``data`` by the method's rule, or do what it does instead."""
        config, spec = self.config, self.spec
        task = task.to(self.device)  # so that no step of training has to move anything
        return self.walker(
            self.network(),
            data,
            task,
            replace(config.client, augment=fitting(config.client.augment, flip=spec.flip)),
            self.half.rule(task, data),
            rng=derive(config.seed, "client", task.server_round, self.partition_id),
            device=self.device,
        )

    def reply(self, task: Task, data: ImageSet, walked: Walk) -> ClientUpdate:
        """Return what goes back to the server after training."""
        counts = None
        if self.config.client.share_label_counts:
            classes = self.spec.num_classes
            counts = tuple(torch.bincount(data.labels, minlength=classes).tolist())
        return ClientUpdate(
            partition_id=self.partition_id,
            params=walked.params,
            num_examples=len(data),
            label_counts=counts,
            surrogate=self.surrogate,
            extra=self.half.up(task, walked, data),
        )
