"""One client's half of a round, put together from a run's config (paper, step 2).

A device's app trains by it, and so does whoever simulates clients in a plain script
(examples/one_round.py). Imports neither the server's half nor the engine of distillation; knows no
data set and no Flower.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.augment import fitting
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.local import Task, Walk
from feddgm_flwr.core.models import build_surrogate
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
    """

    config: RunConfig
    spec: ImageSpec
    partition_id: int
    device: torch.device = CPU

    @cached_property
    def half(self) -> ClientHalf:
        """What the run's method has a client do."""
        return method_of(self.config.method).client(self.config)

    def update(self, task: Task, data: ImageSet) -> ClientUpdate:
        """Train on ``data`` and return what goes back to the server."""
        return self.reply(task, data, self.train(task, data))

    def train(self, task: Task, data: ImageSet) -> Walk:
        """Train the surrogate on ``data`` by the method's rule, or do what it does instead."""
        config, spec = self.config, self.spec
        return self.half.walk(
            build_surrogate(config.surrogate, spec),
            data,
            task,
            replace(config.client, augment=fitting(config.client.augment, flip=spec.flip)),
            self.half.rule(task),
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
            checkpoints=walked.checkpoints,
            extra=self.half.up(task, walked),
        )
