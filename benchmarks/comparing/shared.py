"""Local training that several runs share: done once, kept on disk, and found by what it depends on.

That is its inputs and nothing else: a client's images, the parameters that it was sent, the address
of its random draws, its architecture and the settings of its training. So methods whose clients
train plainly find each other's training by themselves, and one whose start, loss or rule differs
does its own. Knows no method's name, no preset and no run.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from inprocess import Seconds, Trained, train_now
from safetensors import safe_open

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task, Walk
from feddgm_flwr.core.params import fingerprint
from feddgm_flwr.files import write_atomically
from feddgm_flwr.methods.client import Client

UNREAD = ("device", "threads", "compile", "share_label_counts")
"""A client's settings that bear on nothing but the last bits of its training."""
FIRST = 1
"""The round whose training is shared: from the second on each method sends other parameters."""


@dataclass(frozen=True)
class SharedTraining:
    """Trains a client, or finds its training in ``folder``; a ``Local`` of ``inprocess``."""

    folder: Path

    def __call__(self, client: Client, task: Task, data: ImageSet) -> Trained:
        """Return the training of ``client``, by whomever it was done."""
        # Noise for privacy is secret, so nobody finds it anywhere.
        alone = client.config.privacy.on or not client.half.trains_plainly
        if alone or task.server_round != FIRST:
            return train_now(client, task, data)
        file = self.folder / f"{key_of(client, task, data)}.safetensors"
        if not file.is_file():
            write_atomically(file, _written(train_now(client, task, data)))
        return _read(file, client)


def key_of(client: Client, task: Task, data: ImageSet) -> str:
    """Return a short digest of all that the training depends on."""
    told = {name: value for name, value in vars(client.config.client).items() if name not in UNREAD}
    inputs = [
        told,
        asdict(client.spec),
        asdict(client.config.surrogate.architectures[client.surrogate]),
        [client.config.seed, task.server_round, client.partition_id],
        fingerprint(task.params),
        fingerprint({"images": data.images, "labels": data.labels}),
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]


def _written(done: Trained) -> bytes:
    """Return the bytes of a file."""
    tensors = {name: p.contiguous() for name, p in done.walk.params.items()}
    about = {
        "names": list(done.walk.params),
        "steps": done.walk.steps,
        "loss": done.walk.loss,
        "seconds": asdict(done.seconds),
        "where": done.where,
    }
    return safetensors.torch.save(tensors, {"about": json.dumps(about)})


def _read(file: Path, client: Client) -> Trained:
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["about"])
        # In the order of the module's own parameters, which a file does not keep.
        params = {name: opened.get_tensor(name) for name in about["names"]}
    walk = Walk(
        params,
        about["steps"],
        about["loss"],
        model=client.network().to(client.device),
    )
    return Trained(walk, Seconds(**about["seconds"]), about["where"])
