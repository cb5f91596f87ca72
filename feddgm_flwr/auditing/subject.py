"""What an audit needs of a finished run, read from its folder; and the real images that it takes.

Whose images a simulated client trained on follows from the recorded settings (data set, division,
seed); of devices with data of their own, who audits must say.
"""

from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from feddgm_flwr.build import build_tools, first_state
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.models import build_global_model, build_surrogate
from feddgm_flwr.core.params import Params, load_params
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import TrainConfig, train
from feddgm_flwr.data.datasets import Part, load, read, spec_of
from feddgm_flwr.data.own import NoImagesError, Words
from feddgm_flwr.data.partition import own_source, partition
from feddgm_flwr.events import RoundStart
from feddgm_flwr.events import read as read_events
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.monitoring.plots import SAVED

NAMED = 10
"""Clients that a sentence names, at most."""


@dataclass(frozen=True)
class Subject:
    """A finished run.

    Attributes
    ----------
    models
        Each model by name, as the run saved it.
    distilled
        Round -> its distilled images; empty where the method makes none.
    clients
        Partition ids that were ever asked to train.
    partitions
        Parts that the data were divided into; 0 where all devices had data of their own.
    own_data
        Partition ids that a device with data of its own ever answered for; a run of an earlier
        version did not note them.
    """

    folder: Path
    config: RunConfig
    models: dict[str, nn.Module]
    distilled: dict[int, Float[Tensor, "n c h w"]]
    clients: tuple[int, ...]
    partitions: int
    own_data: frozenset[int] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> "Subject":
        """Read a run's folder.

        Raises
        ------
        ValueError
            It holds no finished run.
        """
        if not checkpoint.is_there(folder):
            raise ValueError(
                f"RUN must be the folder of a finished run, got {str(folder)!r}, which holds no "
                "checkpoint; name another folder"
            )
        saved = checkpoint.load(folder)
        config = RunConfig.from_run_config(saved.config)
        models = {f.stem: f for f in sorted((folder / "models").glob("*.safetensors"))}
        if not models:
            raise ValueError(
                f"RUN must hold models of a finished run in {str(folder / 'models')!r}, got none; "
                "finish the run by resume = true, or name another folder"
            )
        return cls(
            folder,
            config,
            {name: model_of(config, name, file) for name, file in models.items()},
            images_of(folder),
            asked_clients(folder) or tuple(saved.clients),
            saved.partitions,
            frozenset(saved.own_data),
        )


def model_of(config: RunConfig, name: str, file: Path) -> nn.Module:
    """Return a model that a run, or an audit of it, saved.

    Raises
    ------
    ValueError
        The file is damaged, or another's.
    """
    spec, surrogates = spec_of(config.data), config.surrogate.architectures
    if name in surrogates:
        module: nn.Module = build_surrogate(surrogates[name], spec)
    else:
        module = build_global_model(name, spec, config.surrogate)
    try:
        module.load_state_dict(safetensors.torch.load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"a model must be as the run's settings say, got {type(error).__name__} of "
            f"{str(file)!r}; restore it from a copy, or remove a reference model to have it anew"
        ) from error
    return module.eval()


def images_of(folder: Path) -> dict[int, Float[Tensor, "n c h w"]]:
    """Return the distilled images of each round that a run saved."""
    found = {}
    for file in (folder / "images").glob("round_*.npz"):
        if match := SAVED.fullmatch(file.name):
            with np.load(file) as arrays:
                pictures = torch.from_numpy(arrays["images"]).float().div_(255)
            found[int(match[1])] = pictures.permute(0, 3, 1, 2).contiguous()
    return dict(sorted(found.items()))


def asked_clients(folder: Path) -> tuple[int, ...]:
    """Return the clients that the run's log says were asked to train."""
    events = [r.event for r in read_events(folder / "events.jsonl")]
    return tuple(sorted({c for e in events if isinstance(e, RoundStart) for c in e.clients}))


@dataclass(frozen=True)
class Real:
    """Real images of one kind, in three disjoint parts.

    Attributes
    ----------
    members
        What clients trained on.
    non_members
        What no model saw.
    population
        What reference models learn from.
    """

    members: ImageSet
    non_members: ImageSet
    population: ImageSet


def real_images(
    subject: Subject, members: Path | None, non_members: Path | None, population: Path | None
) -> Real:
    """Return the images of an audit: those named, or those that the recorded settings say.

    Without ``population`` half of the non-members are it.

    Raises
    ------
    ValueError
        They are not said and cannot be worked out, are not what a client could read, or an image
        that was named is in two of them.
    """
    config = subject.config
    mine = clients_images(subject) if members is None else _named(config, members, "--members")
    others = load(config.data, "test") if non_members is None else held_out(config, non_members)
    # Images that nobody named are as the data set was published, twins in both of its parts too.
    if members or non_members:
        check_disjoint("--non-members", others, "members", mine)
    if population is not None:
        learned = _named(config, population, "--population")
        check_disjoint("--population", learned, "members", mine)
        check_disjoint("--population", learned, "non-members", others)
        return Real(mine, others, learned)
    order = torch.randperm(len(others), generator=derive(config.seed, "audit-population"))
    half = len(others) // 2
    if not half:
        raise ValueError(
            "--non-members must hold at least 2 images where half of them are the population, got "
            f"{len(others)}; name more, or others by --population"
        )
    parts = (ImageSet(others.images[i], others.labels[i]) for i in (order[half:], order[:half]))
    return Real(mine, *parts)


def clients_images(subject: Subject) -> ImageSet:
    """Return the training images of all clients that were ever asked.

    Raises
    ------
    ValueError
        A client had data of its own.
    """
    config, count = subject.config, subject.partitions
    # A device with data of its own may bear any id, that of a part too.
    if own := [c for c in subject.clients if c >= count or c in subject.own_data]:
        more = f" and {len(own) - NAMED} more" if len(own) > NAMED else ""
        raise ValueError(
            "--members must be named where clients had data of their own, which a run's folder "
            f"does not hold, got none for clients {', '.join(map(str, own[:NAMED]))}{more}; name "
            "images that clients trained on by it, and images that no client had by --non-members"
        )
    data = read(config.data, "train")
    parts = partition(data.labels, config.data, num_clients=count, seed=config.seed)
    return data.take(np.sort(np.concatenate([parts[c] for c in subject.clients])))


def held_out(config: RunConfig, path: Path) -> ImageSet:
    """Return what ``--non-members`` names: part ``test``, which nobody trains on, or the only part.

    Raises
    ------
    ValueError
        It is not what a client could read.
    """
    try:
        return _named(config, path, "--non-members", "test")
    except (NoImagesError, FileNotFoundError):
        return _named(config, path, "--non-members")


def check_disjoint(option: str, named: ImageSet, kind: str, others: ImageSet) -> None:
    """Raise where an image is in both, compared byte by byte.

    Raises
    ------
    ValueError
        One is.
    """
    theirs = set(_marks(others))
    if twins := sum(mark in theirs for mark in _marks(named)):
        raise ValueError(
            f"{option} must hold no image of the {kind}, got {twins} that are the same byte by "
            f"byte, of {len(named)}; remove them, or name others"
        )


def _marks(data: ImageSet) -> list[bytes]:
    return [blake2b(image.tobytes(), digest_size=16).digest() for image in data.images.numpy()]


def _named(config: RunConfig, path: Path, option: str, part: Part = "train") -> ImageSet:
    """Return the images of a part that an option names."""
    words = Words(
        key=option,
        classes="rename or remove them, for the classes are the run's",
        channels="convert them, for the channels are the run's",
        labels="correct them, for the classes are the run's",
    )
    return load(own_source(config.data, path.absolute()), part, words)


def reference_training(config: RunConfig) -> TrainConfig:
    """Return how reference models learn: as much as a run's clients do in all its rounds."""
    return replace(config.client, epochs=config.client.epochs * config.num_server_rounds)


def first_surrogate(config: RunConfig) -> Params:
    """Return where the run began, which no client's image has touched."""
    bare = replace(config, global_model=replace(config.global_model, names=""))
    return first_state(bare, build_tools(bare, spec_of(bare.data)), lambda event: None).surrogate


def reference(config: RunConfig, start: Params, data: ImageSet, rng: torch.Generator) -> nn.Module:
    """Return a surrogate that learned from ``data``, from where the run began."""
    model = build_surrogate(config.surrogate, spec_of(config.data))
    load_params(model, start)
    # Clients' own settings of speed and privacy are not the reference's.
    how = replace(reference_training(config), augment="")
    train(model, data.images, data.labels, how, rng=rng)
    return model.eval()
