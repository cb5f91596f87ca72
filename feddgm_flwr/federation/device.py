"""What a device's app makes of its config: identity, own images, the client it is.

Imports neither the server's half nor the engine of distillation.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context
from torch import nn

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.params import load_params
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.data.datasets import Part, spec_of
from feddgm_flwr.data.partition import PartitionError, client_images
from feddgm_flwr.federation.machine import device_of
from feddgm_flwr.federation.messages import DATA_DIR, Identity
from feddgm_flwr.methods.client import Client

logger = logging.getLogger(__name__)


class ToldAtHomeError(RuntimeError):
    """What the server may hear of a failure; the rest is in the device's own log."""


@contextmanager
def told_at_home(what: str, *, name_it: bool = False) -> Iterator[None]:
    """Log an error here in full and let only a fixed sentence out, for Flower sends it on.

    Paths and names of files can name people.

    Parameters
    ----------
    what
        What this client could not do.
    name_it
        Whether the kind of the error may be told: it shows that memory ran out.
    """
    try:
        yield
    except (ToldAtHomeError, PartitionError):
        raise
    except Exception as error:
        logger.error("this client could not %s: %s", what, error)
        kind = f" ({type(error).__name__})" if name_it else ""
        raise ToldAtHomeError(f"this client could not {what}{kind}; see its own log") from error


@dataclass(frozen=True)
class Device:
    """One client's side of a run."""

    config: RunConfig
    who: Identity
    node_config: Mapping[str, Scalar]
    client: Client

    @classmethod
    def of(cls, context: Context) -> "Device":
        """Read a device's side from what Flower hands to its app."""
        config = RunConfig.from_run_config(context.run_config)
        torch.set_num_threads(config.client.threads)
        who = Identity.of(context.node_config)
        where = device_of("client.device", config.client.device)
        client = Client(config, spec_of(config.data), who.partition_id, where, who.surrogate_width)
        return cls(config, who, context.node_config, client)

    def images(self, part: Part) -> ImageSet:
        """Return own images: a part of the data set, or those of an own folder.

        Raises
        ------
        ToldAtHomeError
            They cannot be read.
        PartitionError
            The run's data set cannot be divided so.
        """
        data_dir = self.node_config.get(DATA_DIR)
        with told_at_home(f"read its {part} data"):
            return client_images(
                self.config.data,
                part,
                partition_id=self.who.partition_id,
                num_partitions=self.who.num_partitions,
                seed=self.config.seed,
                data_dir=Path(str(data_dir)) if data_dir else None,
            )

    def surrogate(self, task: Task) -> nn.Module:
        """Return the surrogate as it was sent."""
        model = self.client.network()
        load_params(model, task.params)
        return model.to(self.client.device)
