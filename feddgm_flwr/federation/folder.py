"""The run's folder: which one it is, and the pictures and models that a run leaves there."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

try:
    import safetensors.torch
except ModuleNotFoundError as error:  # where only a device's half is installed
    raise ModuleNotFoundError(
        f"the ServerApp needs packages of which at least {error.name} is not installed; "
        "run pip install '.[server]' in the project's folder, where the ServerApp runs",
        name=error.name,
    ) from error

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.state import RoundReport, ServerState
from feddgm_flwr.data.partition import counts, partition
from feddgm_flwr.events import Emit, ImagesDrawn
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.server_data import server_images
from feddgm_flwr.files import write_atomically
from feddgm_flwr.monitoring import plots
from feddgm_flwr.monitoring.results import Results
from feddgm_flwr.monitoring.sprites import Sprites

logger = logging.getLogger(__name__)


def run_folder(config: RunConfig) -> Path:
    """Return the run's folder, which is there and can be written.

    Raises
    ------
    ValueError
        It is relative, cannot be written, or has no run to go on with.
    """
    folder = named_folder(config)
    if config.resume:
        checkpoint.must_be_there(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", b"1")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"out-dir must be a folder that can be written, got {str(folder)!r} "
            f"({error.strerror or error}); name another by -c 'out-dir=\"/path\"'"
        ) from error
    return folder


def named_folder(config: RunConfig) -> Path:
    """Return the folder that ``config`` names, or a new one under the user's home.

    Raises
    ------
    ValueError
        It is relative.
    """
    if not config.out_dir:
        if config.resume:
            raise ValueError("resume = true needs out-dir, got ''; name the run's folder")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-{config.seed}"
        return Path(os.path.expanduser("~")) / "feddgm-runs" / name  # noqa: PTH111 (never raises)
    folder = Path(config.out_dir)
    if not folder.is_absolute() or "\0" in config.out_dir:
        raise ValueError(
            f"out-dir must be an absolute path, got {config.out_dir!r}, because the ServerApp "
            "runs in a folder of Flower's choice; write the whole path"
        )
    return folder


def draw_owners(config: RunConfig, spec: ImageSpec, num_partitions: int, folder: Path) -> None:
    """Draw who owns what, where the clients' data are parts of a set that is here too.

    Raises
    ------
    PartitionError
        The data cannot be divided so: no client would have any, whatever is drawn.
    """
    if num_partitions == 0:
        logger.info("no picture of who owns what: the clients have data of their own")
        return
    data = None
    with plots.skipping("owners.png"):
        data = server_images(config.data, "train")
    if data is None:
        return
    labels = data.labels.numpy()
    parts = partition(labels, config.data, num_clients=num_partitions, seed=config.seed)
    with plots.skipping("owners.png"):
        owned = counts(parts, labels, spec.num_classes)
        plots.draw_ownership(owned.T, spec.classes, folder / "owners.png")


def draw_round(
    folder: Path, spec: ImageSpec, emit: Emit, sprites: Sprites
) -> Callable[[int, RoundReport], None]:
    """Return what draws a round's distilled images, for a page and for people."""

    def show(server_round: int, report: RoundReport) -> None:
        if not len(report.fresh):
            return
        sprites.draw(server_round, report.fresh)
        with plots.skipping(f"pictures of round {server_round}"):
            picture = plots.draw_round(folder / "images", server_round, report.fresh, spec.classes)
            path = str(picture.relative_to(folder))
            emit(ImagesDrawn(round=server_round, path=path, num_images=len(report.fresh)))

    return show


def save_models(state: ServerState, folder: Path) -> None:
    """Write the surrogates and the global models as safetensors."""
    for name, weights in state.models.items():
        tensors = {key: value.contiguous() for key, value in weights.items()}
        data = safetensors.torch.save(tensors)
        write_atomically(folder / "models" / f"{name}.safetensors", data)


def draw_results(results: Results, folder: Path) -> None:
    """Draw accuracy by round."""
    with plots.skipping("accuracy.png"):
        plots.draw_accuracy([results.to_dict()], folder / "accuracy.png")
