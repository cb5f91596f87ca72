"""Who owns which images: seeded partitions of a data set among simulated clients.

Every client can work out its own part from the seed alone, so no part ever travels.
The partitioning is pure numpy on labels; a device with data of its own is not
partitioned at all. Axes: ``n`` images. Knows no model and no federation.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.seeding import derive_seed
from feddgm_flwr.data.datasets import Part, load, read, spec_of
from feddgm_flwr.data.settings import DataConfig

Labels = Int[np.ndarray, " n"]
Indices = Int[np.ndarray, "_"]

DRAWS = 1000
"""Dirichlet draws before giving up on ``data.min-examples``."""


def client_images(
    config: DataConfig,
    part: Part,
    *,
    partition_id: int,
    num_partitions: int,
    seed: int,
    data_dir: Path | None = None,
) -> ImageSet:
    """Return one client's own images.

    Parameters
    ----------
    part
        A simulated client's test images are of the classes that it trains on, each
        class dealt evenly among its owners.
    data_dir
        A real device's folder or ``.npz`` file, in the layouts of docs/data.md; its
        images are brought to the size of the data set, and nothing is partitioned.

    Raises
    ------
    ValueError
        No such partition, or no such division of these data.
    """
    if data_dir is not None:
        return load(own_source(config, data_dir), part)
    if not 0 <= partition_id < num_partitions:
        raise ValueError(
            f"partition-id must be in [0, {num_partitions}), got {partition_id}; "
            "correct the device's node-config"
        )
    train = read(config, "train").labels
    parts = partition(train, config, num_clients=num_partitions, seed=seed)
    if part == "test":
        owners = counts(parts, train, spec_of(config).num_classes) > 0
        parts = deal(read(config, "test").labels, owners, _rng(seed, "test-partition"))
    return read(config, part).take(parts[partition_id])


def own_source(config: DataConfig, data_dir: Path) -> DataConfig:
    """Return the config that reads a device's own data as the run's data set."""
    spec = spec_of(config)
    return replace(
        config,
        name="npz" if data_dir.suffix == ".npz" else "folder",
        root=str(data_dir),
        class_names=",".join(spec.classes),
        channels=spec.channels,
        image_size=spec.size,
    )


def partition(labels: Labels, config: DataConfig, *, num_clients: int, seed: int) -> list[Indices]:
    """Return each client's indices, sorted; they are disjoint and cover ``labels``.

    The one exception: under ``partition = "classes"`` a class may have no owner.

    Raises
    ------
    ValueError
        The labels cannot be divided as ``config`` asks.
    """
    rng = _rng(seed, "partition")
    match config.partition:
        case "iid":
            parts = np.array_split(rng.permutation(len(labels)), num_clients)
        case "dirichlet":
            parts = _dirichlet(labels, config, num_clients, rng)
        case "classes":
            parts = _classes(labels, config, num_clients, rng)
    if min(map(len, parts)) == 0:
        raise ValueError(
            f"{len(labels)} images leave a client of {num_clients} without any under "
            f"data.partition = {config.partition!r}; use fewer clients"
        )
    return [np.sort(part) for part in parts]


def counts(
    parts: list[Indices], labels: Labels, num_classes: int
) -> Int[np.ndarray, "clients classes"]:
    """Return how many images of each class each client owns."""
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def _dirichlet(
    labels: Labels, config: DataConfig, num_clients: int, rng: np.random.Generator
) -> list[Indices]:
    """Draw as NIID-Bench (Li et al. 2022) does until every client owns enough."""
    least = config.min_examples
    if len(labels) >= num_clients * least:
        for _ in range(DRAWS):
            parts = _dirichlet_draw(labels, config.alpha, num_clients, rng)
            if min(map(len, parts)) >= least:
                return parts
    raise ValueError(
        f"no Dirichlet partition of {len(labels)} images gave each of {num_clients} "
        f"clients data.min-examples = {least} at data.alpha = {config.alpha}; lower "
        "the first, raise the second or use fewer clients"
    )


def _dirichlet_draw(
    labels: Labels, alpha: float, num_clients: int, rng: np.random.Generator
) -> list[Indices]:
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    sizes = np.zeros(num_clients, np.int64)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        # A client with its fair share gets no more. Drawing over the others alone has
        # the law of drawing over all and renormalising, and cannot divide zero by zero
        # at a tiny alpha.
        hungry = np.flatnonzero(sizes < len(labels) / num_clients)
        shares = rng.dirichlet(np.full(len(hungry), alpha))
        # Rounded: floors would leave a stray image of every class to the last client.
        cuts = np.rint(np.cumsum(shares)[:-1] * len(own)).astype(np.int64)
        for client, piece in zip(hungry, np.split(own, cuts), strict=True):
            parts[client].append(piece)
            sizes[client] += len(piece)
    empty = np.empty(0, np.int64)
    return [np.concatenate([empty, *pieces]) for pieces in parts]


def _classes(
    labels: Labels, config: DataConfig, num_clients: int, rng: np.random.Generator
) -> list[Indices]:
    """Give each client the classes with the fewest owners so far, ties drawn."""
    known, codes = np.unique(labels, return_inverse=True)
    each = config.classes_per_client
    if each > len(known):
        raise ValueError(
            f"data.classes-per-client must be at most {len(known)}, the classes there "
            f"are, got {each}; change it with -c"
        )
    owners = np.zeros((num_clients, len(known)), bool)
    for client in range(num_clients):
        order = np.lexsort((rng.random(len(known)), owners.sum(0)))
        owners[client, order[:each]] = True
    return deal(codes, owners, rng)


def deal(
    labels: Labels,
    owners: Bool[np.ndarray, "clients classes"],
    rng: np.random.Generator,
) -> list[Indices]:
    """Deal each class's images evenly among its owners; a class of nobody stays out."""
    parts = [[np.empty(0, np.int64)] for _ in owners]
    for label in np.flatnonzero(owners.any(0)):
        clients = rng.permutation(np.flatnonzero(owners[:, label]))
        own = rng.permutation(np.flatnonzero(labels == label))
        for client, piece in zip(clients, np.array_split(own, len(clients)), strict=True):
            parts[client].append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose))
