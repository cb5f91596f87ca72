"""The judge of fidelity: a classifier of real images that the server was given for it alone.

They are held out from everything else: no client, no prior and no score has them. A fifth tells how
good the judge is, and how far real images are from each other; its classifier learns from the rest.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.augment import fitting
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.fidelity import Judge, nearest
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.models import build_surrogate, initialise
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.telling import now_and_then
from feddgm_flwr.core.training import TrainConfig, train
from feddgm_flwr.data.datasets import ByteSet, Part, split
from feddgm_flwr.data.own import Source, Words, layout_of, read_folder, read_npz

TRAINING = TrainConfig(epochs=20, lr=0.01, momentum=0.9, weight_decay=5e-4, batch_size=64)
WORDS = Words(
    key="server.fidelity-data",
    classes="rename them as the data set's classes",
    channels="convert them",
    labels="give them the data set's labels",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Appointed:
    """A judge, and what its measures are worth.

    Attributes
    ----------
    about
        ``images`` it learned from, its ``accuracy`` on those that it did not see, and how far
        these are from the ``nearest`` of those that it did.
    """

    judge: Judge
    about: dict[str, float]


def appoint(config: RunConfig, spec: ImageSpec, device: torch.device) -> Appointed | None:
    """Return the judge that ``server.fidelity-data`` makes possible; None without such data.

    Raises
    ------
    ValueError
        The data cannot be read, or are too few.
    """
    if not config.server.fidelity_data:
        return None
    seen, unseen = read(Path(config.server.fidelity_data), spec)
    model = build_surrogate(config.surrogate, spec)
    initialise(model, rng=derive(config.seed, "judge"))
    training = replace(TRAINING, augment=fitting("crop_flip", flip=spec.flip))
    model.to(device)
    tell = now_and_then(
        partial(logger.info, "the judge of fidelity learns: epoch %d of %d, %.0f s left")
    )
    train(
        model,
        seen.images,
        seen.labels,
        training,
        rng=derive(config.seed, "judge-training"),
        on_epoch=lambda done, _: tell(done, training.epochs),
    )
    accuracy = evaluate(model, unseen.images.to(device), unseen.labels.to(device)).accuracy
    apart = nearest(unseen.images, unseen.labels, seen)
    about = {"images": float(len(seen)), "accuracy": accuracy, "nearest": float(apart.mean())}
    logger.info(
        "the judge of fidelity learned from %d images and puts %.1f %% of %d others in their class",
        len(seen), 100 * accuracy, len(unseen),
    )  # fmt: skip
    return Appointed(Judge(model, seen, device), about)


def read(path: Path, spec: ImageSpec) -> tuple[ImageSet, ImageSet]:
    """Return the images to learn from and those to be tried on: part ``train`` at ``path``."""
    if not path.is_absolute() or not path.exists():
        raise ValueError(
            "server.fidelity-data must be the absolute path of a folder or .npz, got"
            f" {str(path)!r}; correct it, or leave it out"
        )
    source = Source(path, spec.classes, spec.channels, spec.size, WORDS)
    images, labels = (read_npz if layout_of(path) == "npz" else read_folder)(source, "train")
    names: tuple[Part, Part] = ("train", "test")
    parts = [ByteSet(*split(images, labels, name)) for name in names]
    few = [n for i, n in enumerate(spec.classes) if any(i not in p.labels for p in parts)]
    if few:
        raise ValueError(
            f"server.fidelity-data must have at least 3 images of every class, got fewer of {few};"
            " add some, or leave it out"
        )
    seen, unseen = (part.take(np.arange(len(part.labels))) for part in parts)
    return seen, unseen
