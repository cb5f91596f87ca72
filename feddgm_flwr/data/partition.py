"""Who owns which images: seeded partitions of a data set among simulated clients.

Every client can work out its own part from the seed alone, so no part ever travels.
The partitioning is pure numpy on labels; a device with data of its own is not
partitioned at all. Axes: ``n`` images. Knows no model and no federation.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.seeding import derive_seed
from feddgm_flwr.data.datasets import Part, load, read, spec_of
from feddgm_flwr.data.own import DEVICE, layout_of
from feddgm_flwr.data.settings import DataConfig

Labels = Int[np.ndarray, " n"]
Indices = Int[np.ndarray, "_"]

DRAWS = 1000
"""Dirichlet draws before giving up on ``data.min-examples``."""
FIRST_DRAWS = 100
"""Draws after which hope is given up where each left ``FAR`` clients or more without enough."""
FAR = 10


class PartitionError(ValueError):
    """These labels cannot be divided so; the sentence tells of numbers only, never of a file."""


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
        return load(own_source(config, data_dir), part, DEVICE)
    if not 0 <= partition_id < num_partitions:
        raise PartitionError(
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
        name=layout_of(data_dir),
        root=str(data_dir),
        download=False,
        class_names=",".join(spec.classes),
        channels=spec.channels,
        image_size=spec.size,
    )


def partition(labels: Labels, config: DataConfig, *, num_clients: int, seed: int) -> list[Indices]:
    """Return each client's indices, sorted and read-only; they are disjoint and cover ``labels``.

    The one exception: under ``partition = "classes"`` a class may have no owner.

    Raises
    ------
    PartitionError
        The labels cannot be divided as ``config`` asks.
    """
    how = DataConfig(
        partition=config.partition,
        alpha=config.alpha,
        min_examples=config.min_examples,
        classes_per_client=config.classes_per_client,
    )
    parts = _divided(np.asarray(labels, np.int64).tobytes(), how, num_clients, seed)
    if isinstance(parts, str):
        raise PartitionError(parts)
    return list(parts)


@lru_cache(maxsize=4)
def _divided(
    labels: bytes, config: DataConfig, num_clients: int, seed: int
) -> tuple[Indices, ...] | str:
    """Divide once a process, or say once why not: each of a client's messages asks again."""
    try:
        parts = _divide(np.frombuffer(labels, np.int64), config, num_clients, seed)
    except PartitionError as error:
        return str(error)
    for part in parts:
        part.flags.writeable = False
    return tuple(parts)


def _divide(labels: Labels, config: DataConfig, num_clients: int, seed: int) -> list[Indices]:
    rng = _rng(seed, "partition")
    match config.partition:
        case "iid":
            parts = np.array_split(rng.permutation(len(labels)), num_clients)
        case "dirichlet":
            parts = _dirichlet(labels, config, num_clients, rng)
        case "classes":
            parts = _classes(labels, config, num_clients, rng)
    if min(map(len, parts)) == 0:
        raise PartitionError(
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
    n, least = len(labels), config.min_examples
    if n < num_clients * least:
        raise PartitionError(_no_dirichlet(n, config, num_clients, best=0))
    own = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    best, fewest_short = 0, num_clients
    for draw in range(DRAWS):
        dealt, sizes = _dirichlet_draw(own, config.alpha, num_clients, rng)
        best = max(best, int(sizes.min()))
        if best >= least:
            return _gathered(dealt, num_clients)
        fewest_short = min(fewest_short, int((sizes < least).sum()))
        if draw + 1 == FIRST_DRAWS and fewest_short >= FAR:
            break
    raise PartitionError(_no_dirichlet(n, config, num_clients, best=best))


def _no_dirichlet(n: int, config: DataConfig, num_clients: int, *, best: int) -> str:
    """Return why there is no partition, and with what there is one: ``best`` was reached."""
    # The draws are the same again, so that this one will be found.
    reached = f" to {best}, which one draw reached" if best else ""
    return (
        f"no Dirichlet partition of {n} images gave each of {num_clients} clients "
        f"data.min-examples = {config.min_examples} at data.alpha = {config.alpha}; "
        f"lower the first{reached}, raise the second or use fewer clients"
    )


Deal = tuple[Indices, Indices, Indices]
"""A class's images in order, the clients that get some, and where each one's end."""


def _dirichlet_draw(
    own: list[Indices], alpha: float, num_clients: int, rng: np.random.Generator
) -> tuple[list[Deal], Int[np.ndarray, " clients"]]:
    """Deal each class once; return the deals and how many images each client then owns."""
    dealt: list[Deal] = []
    sizes, fair = np.zeros(num_clients, np.int64), sum(map(len, own)) / num_clients
    for images in own:
        shuffled = rng.permutation(images)
        # A client with its fair share gets no more. Drawing over the others alone has
        # the law of drawing over all and renormalising, and cannot divide zero by zero
        # at a tiny alpha.
        hungry = np.flatnonzero(sizes < fair)
        shares = _shares(alpha, len(hungry), rng)
        # Rounded: floors would leave a stray image of every class to the last client.
        cuts = np.rint(np.cumsum(shares)[:-1] * len(images)).astype(np.int64)
        ends = np.append(cuts, len(images))
        sizes[hungry] += np.diff(ends, prepend=0)
        dealt.append((shuffled, hungry, ends))
    return dealt, sizes


def _shares(alpha: float, k: int, rng: np.random.Generator) -> np.ndarray:
    # Beyond a share of the largest number numpy's sum overflows, and its shares are all zero.
    with np.errstate(over="ignore", invalid="ignore"):
        shares = rng.dirichlet(np.full(k, alpha))
    # What they tend to, and differ from by less than a rounding.
    return shares if 0.5 < shares.sum() < 1.5 else np.full(k, 1 / k)


def _gathered(dealt: list[Deal], num_clients: int) -> list[Indices]:
    """Return each client's images, class after class."""
    parts: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(num_clients)]
    for shuffled, hungry, ends in dealt:
        for client, piece in zip(hungry, np.split(shuffled, ends[:-1]), strict=True):
            parts[client].append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _classes(
    labels: Labels, config: DataConfig, num_clients: int, rng: np.random.Generator
) -> list[Indices]:
    """Give each client the classes with the fewest owners so far, ties drawn."""
    known, codes = np.unique(labels, return_inverse=True)
    each = config.classes_per_client
    if each > len(known):
        raise PartitionError(
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
