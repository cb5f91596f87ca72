"""What the apps make of a config before the work begins: devices, images, folder."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from feddgm_flwr.config import RunConfig, Scalar
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.models import build_surrogate
from feddgm_flwr.core.params import load_params
from feddgm_flwr.data.datasets import Part, spec_of
from feddgm_flwr.data.partition import client_images
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.messages import DATA_DIR, Broadcast, Identity
from feddgm_flwr.federation.roster import TooFewClientsError

logger = logging.getLogger("feddgm_flwr")


class _ToFlower(logging.Handler):
    """Hands our log records to Flower's logger, whose output `flwr log` shows."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("flwr").handle(record)


def show_log() -> None:
    """Let this package's log lines appear where Flower's do."""
    if not any(isinstance(h, _ToFlower) for h in logger.handlers):
        logger.addHandler(_ToFlower())
        # Flower's logger passes records on too; once is enough.
        logger.propagate = False
    logger.setLevel(logging.INFO)


@contextmanager
def said_plainly() -> Iterator[None]:
    """Say an error of the settings in one line, before Flower logs its traceback."""
    try:
        yield
    except (ValueError, TypeError, TooFewClientsError) as error:
        logger.error("this run cannot go on: %s", error)
        raise


def device_of(key: str, name: str) -> torch.device:
    """Return the device that config ``key`` asks for by ``name``.

    Raises
    ------
    ValueError
        No such device here.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    known = name.startswith("cuda") and index.isdecimal()
    if not known or not cuda or int(index) >= torch.cuda.device_count():
        raise ValueError(
            f"{key} must be auto, cpu, or one of {torch.cuda.device_count()} CUDA devices as "
            f"cuda:N, got {name!r} with torch {torch.__version__}; change it with -c"
        )
    return torch.device("cuda", int(index))


def local_images(
    config: RunConfig, identity: Identity, node_config: Mapping[str, Scalar], part: Part
) -> ImageSet:
    """Return a client's own images: its part of the data set, or its own folder."""
    data_dir = node_config.get(DATA_DIR)
    return client_images(
        config.data,
        part,
        partition_id=identity.partition_id,
        num_partitions=identity.num_partitions,
        seed=config.seed,
        data_dir=Path(str(data_dir)) if data_dir else None,
    )


def label_counts(config: RunConfig, data: ImageSet) -> tuple[int, ...]:
    """Return how many images of each class ``data`` holds."""
    classes = spec_of(config.data).num_classes
    return tuple(torch.bincount(data.labels, minlength=classes).tolist())


def local_model(config: RunConfig, broadcast: Broadcast, device: torch.device) -> nn.Module:
    """Return the surrogate as it was broadcast."""
    model = build_surrogate(config.surrogate, spec_of(config.data))
    load_params(model, broadcast.params)
    return model.to(device)


def run_folder(config: RunConfig) -> Path:
    """Return the run's folder.

    Raises
    ------
    ValueError
        It is relative, or holds another run that would be lost.
    """
    if not config.out_dir:
        if config.resume:
            raise ValueError("resume = true needs out-dir, got ''; name the run's folder")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.strategy}-{config.seed}"
        return Path.home() / "feddgm-runs" / name
    folder = Path(config.out_dir)
    if not folder.is_absolute():
        raise ValueError(
            f"out-dir must be an absolute path, got {config.out_dir!r}, because the ServerApp "
            "runs in a folder of Flower's choice; write the whole path"
        )
    if (folder / checkpoint.FILE).exists() and not config.resume:
        raise ValueError(
            f"out-dir must be a new folder, got {config.out_dir!r}, which holds a run; "
            "go on with that run by resume = true, or name another folder"
        )
    return folder


def say_hello(config: RunConfig, folder: Path, device: torch.device) -> None:
    """Log where this runs, where its results go and what will happen."""
    logger.info("device %s, torch %s, flwr %s", device, torch.__version__, version("flwr"))
    logger.info("run folder: %s", folder)
    logger.info(
        "%s (recipe %s) on %s, %s partition, %d rounds, seed %d",
        config.strategy,
        config.recipe,
        config.data.name,
        config.data.partition,
        config.num_server_rounds,
        config.seed,
    )
