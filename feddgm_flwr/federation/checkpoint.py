"""A run on disk after every round: ``resume`` is the uninterrupted run, bit for bit.

A checkpoint holds tensors and plain values only and is read with ``weights_only=True``:
a file from elsewhere cannot run code. A checksum stands before them, and the checkpoint before the
newest is kept, so that a damaged file costs one round. Randomness is derived from (seed, round,
partition id), so there is no generator to save.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from feddgm_flwr.config import DELETED, may_differ
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.core.synthetic import Latents
from feddgm_flwr.files import DamagedError, seal, unseal

logger = logging.getLogger(__name__)

FILE = "checkpoint.feddgm"
PREVIOUS = "checkpoint.previous.feddgm"
KIND = "feddgm checkpoint 3"
"""What a file begins with; then its checksum, and the rest as ``torch.save`` writes it."""


@dataclass(frozen=True)
class Known:
    """Whom a run knew before it was resumed, as ``Checkpoint`` has it; at first nobody."""

    partitions: int = 0
    clients: Sequence[int] = ()
    owners: Mapping[int, int] = field(default_factory=dict)
    own_data: Sequence[int] = ()


NOBODY = Known()


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes
    ----------
    results
        ``result.json`` so far.
    config
        The resolved settings, flat.
    prior
        Fingerprint of the prior, "" without one: it may have moved, not changed.
    partitions
        Parts that the data are divided into; 0 where all devices have data of their own.
    clients
        Partition ids of all that were ever known.
    threads
        CPU threads of the server's own computing, which decide its last bits.
    owners
        Partition id -> the node that first answered for it.
    own_data
        Partition ids that a device with data of its own ever answered for.
    """

    state: ServerState
    results: dict[str, Any]
    config: dict[str, Scalar]
    prior: str
    partitions: int
    clients: list[int]
    threads: int
    owners: dict[int, int] = field(default_factory=dict)
    own_data: list[int] = field(default_factory=list)

    @property
    def known(self) -> Known:
        """Whom the run knew; no division of the data binds on which no model rests."""
        used = any(not r.get("kept") for r in self.results["rounds"])
        partitions = self.partitions if used else 0
        return Known(partitions, self.clients, self.owners, self.own_data)


def save(out_dir: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of ``out_dir``; the one that was newest until now is kept beside it."""
    plain = {
        "state": _plain_state(checkpoint.state),
        "results": checkpoint.results,
        "config": checkpoint.config,
        "prior": checkpoint.prior,
        "partitions": checkpoint.partitions,
        "clients": checkpoint.clients,
        "threads": checkpoint.threads,
        "owners": checkpoint.owners,
        "own_data": checkpoint.own_data,
    }
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    newest = out_dir / FILE
    if _is_sound(newest):
        newest.replace(out_dir / PREVIOUS)
    seal(newest, KIND, buffer.getvalue())


def _is_sound(path: Path) -> bool:
    """Whether ``path`` is worth keeping beside the next one: a damaged file is not."""
    try:
        unseal(path, KIND)
    except (OSError, DamagedError):
        return False
    return True


def is_there(out_dir: Path) -> bool:
    """Whether ``out_dir`` holds a run."""
    return (out_dir / FILE).exists() or (out_dir / PREVIOUS).exists()


def must_be_there(out_dir: Path) -> None:
    """Ask for a run in ``out_dir``, and make nothing.

    Raises
    ------
    ValueError
        There is none.
    """
    if not is_there(out_dir):
        raise ValueError(
            f"resume = true needs a checkpoint in out-dir, got none in {out_dir}; "
            "run with resume = false, or point out-dir at the run to go on with"
        )


def load(out_dir: Path) -> Checkpoint:
    """Return the newest sound checkpoint of ``out_dir``.

    Raises
    ------
    ValueError
        There is none.
    """
    must_be_there(out_dir)
    broken = []
    for name in (FILE, PREVIOUS):
        try:
            found = _read(out_dir / name)
        except (OSError, ValueError) as error:
            broken.append(str(error))
            continue
        for reason in broken:
            logger.warning("%s; going on from the checkpoint before it", reason)
        return found
    raise ValueError(
        f"resume = true needs a sound checkpoint in out-dir, got {' and '.join(broken)}; "
        "restore one from a copy, or start a new run in another out-dir"
    )


def _read(path: Path) -> Checkpoint:
    if not path.exists():
        raise DamagedError(f"{path}, which is missing")
    payload = unseal(path, KIND)
    plain = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    return Checkpoint(**plain | {"state": _state(plain["state"])})


def check_same_run(saved: Mapping[str, Scalar], now: Mapping[str, Scalar]) -> None:
    """Raise unless ``now`` goes on with the run that ``saved`` settings began.

    A run of an earlier version may have a key that is gone since, where it was off.

    Raises
    ------
    ValueError
        A key that changes the numbers differs, or the run has fewer rounds than before.
    """
    rounds = "num-server-rounds"
    gone = {key for key, deleted in DELETED.items() if saved.get(key) == deleted.off} - now.keys()
    differing = sorted(
        key
        for key in saved.keys() | now.keys()
        if saved.get(key) != now.get(key) and key not in may_differ() | gone | {rounds}
    )
    if int(now[rounds]) < int(saved[rounds]):
        differing.append(rounds)
    if differing:
        said = ", ".join(f"{k} = {now.get(k)!r} (was {saved.get(k)!r})" for k in differing)
        raise ValueError(
            f"resume needs the settings that the run began with, got {said}; "
            "change them back, or start a new run in another out-dir"
        )


def check_same_prior(saved: str, now: str) -> None:
    """Raise unless the prior is the one that the run began with.

    Raises
    ------
    ValueError
        Its weights are others.
    """
    if saved != now:
        raise ValueError(
            f"resume needs the prior that the run began with, whose fingerprint is {saved!r}, got "
            f"{now!r}; point prior.path at it, or start a new run in another out-dir"
        )


def _plain_state(state: ServerState) -> dict[str, Any]:
    return {
        "server_round": state.server_round,
        "surrogate": state.surrogate,
        "global_models": state.global_models,
        "latents": {pid: vars(latents) for pid, latents in state.latents.items()},
        "memory": dict(state.memory),
        "narrow": state.narrow,
    }


def _state(plain: Mapping[str, Any]) -> ServerState:
    return ServerState(
        server_round=plain["server_round"],
        surrogate=plain["surrogate"],
        global_models=plain["global_models"],
        latents={pid: Latents(**latents) for pid, latents in plain["latents"].items()},
        memory=plain["memory"],
        narrow=plain["narrow"],
    )
