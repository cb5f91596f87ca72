"""A bank of public pictures for an autoencoder that is there already: nothing is trained.

``feddgm-pretrain --autoencoder`` copies the model and lays beside it the encodings of some pictures
of every class. Pictures are read as clients read theirs, at the side at which the model is to
decode: the data set's, times the image scale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from feddgm_flwr.core.seeding import derive
from feddgm_flwr.data.own import Source, Words, channels_last, npz_arrays, npz_problems
from feddgm_flwr.data.pictures import read_picture
from feddgm_flwr.priors.autoencoder import Decoder, load_autoencoder
from feddgm_flwr.priors.bank import LatentBank
from feddgm_flwr.priors.encoding import Encoder
from feddgm_flwr.priors.gathering import Batch, Tell, batches, gather
from feddgm_flwr.priors.pretraining.sources import list_folder

BATCH = 16
"""Pictures encoded at a time, and lost at most by an interruption."""
WORDS = Words(
    key="--images",
    classes="rename them",
    channels="convert them",
    labels="name every class in --class-names",
)
"""How an error names the pictures."""


@dataclass(frozen=True)
class Pictures:
    """Public pictures by class.

    Attributes
    ----------
    chosen
        Of each class, numbers that ``show`` takes, in the order in which they are encoded.
    show
        Returns one picture of a side, as bytes.
    """

    classes: tuple[str, ...]
    chosen: tuple[tuple[int, ...], ...]
    show: Callable[[int, int], UInt8[np.ndarray, "h w c"]]


def choose(labels: Sequence[int], num_classes: int, per_class: int, seed: int) -> tuple[
    tuple[int, ...], ...
]:  # fmt: skip
    """Return at most ``per_class`` places of each label, drawn by ``seed`` class by class."""
    places = torch.tensor(labels)
    chosen = []
    for label in range(num_classes):
        own = (places == label).nonzero().flatten()
        order = torch.randperm(len(own), generator=derive(seed, "public-pictures", label))
        chosen.append(tuple(own[order[:per_class]].tolist()))
    return tuple(chosen)


def read_pictures(
    images: Path, names: tuple[str, ...], *, channels: int, per_class: int, seed: int
) -> Pictures:
    """Return pictures of a folder with a folder a class, or of an ``.npz`` as clients have.

    Raises
    ------
    ValueError
        They cannot be read, or a class has none.
    """
    if not images.is_file():
        classes, files = list_folder(images)
        paths, labels = [path for path, _ in files], [label for _, label in files]

        def show(number: int, side: int) -> UInt8[np.ndarray, "h w c"]:
            return read_picture(paths[number], channels=channels, size=side).pixels

        return Pictures(classes, choose(labels, len(classes), per_class, seed), show)
    pixels, targets = _npz(images, names, channels)

    def shown(number: int, side: int) -> UInt8[np.ndarray, "h w c"]:
        picture = Image.fromarray(pixels[number] if channels == 3 else pixels[number][..., 0])
        # Bicubic, since these are small and grow: 32.4 dB for CIFAR-10 (JPEG) doubled.
        large = picture.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(large).reshape(side, side, channels)

    return Pictures(names, choose(targets.tolist(), len(names), per_class, seed), shown)


def _npz(
    images: Path, names: tuple[str, ...], channels: int
) -> tuple[UInt8[np.ndarray, "n h w c"], np.ndarray]:
    if not names:
        raise ValueError(
            f"--class-names must be given where --images is an .npz ({images}), as"
            " data.class-names; add it"
        )
    # The model may see colour where the pictures are grey, but no picture loses its colour.
    found, missing = npz_arrays(Source(images, names, channels, 0, WORDS), "train")
    if missing:
        raise ValueError(missing)
    pixels, targets = channels_last(found[0]), found[1]
    grey = pixels.ndim == 4 and pixels.shape[3] == 1
    source = Source(images, names, 1 if grey else channels, 0, WORDS)
    if problems := npz_problems(source, pixels, targets):
        raise ValueError(problems[0])
    if lacking := [n for i, n in enumerate(names) if i not in targets]:
        raise ValueError(
            f"--images {images} must hold a picture of every class, and has none of {lacking};"
            " add some, or correct --class-names"
        )
    return np.repeat(pixels, channels, 3) if grey else pixels, targets


def encode_bank(
    autoencoder: tuple[str, str],
    images: Path,
    names: tuple[str, ...],
    out: Path,
    *,
    size: int,
    image_scale: int,
    per_class: int,
    seed: int,
    tell: Tell,
) -> tuple[LatentBank, Decoder]:
    """Make the prior in ``out`` and return its bank and decoder.

    Parameters
    ----------
    autoencoder
        Hub id or folder, and the folder within it.
    names
        Class names in label order, for an ``.npz``.
    size
        Side of the data set's images.

    Raises
    ------
    ValueError
        The model or the pictures cannot be used, or ``out`` is another prior's.
    """
    model = load_autoencoder(*autoencoder)
    encoder, decoder = Encoder(model), Decoder(model, 0)
    pictures = read_pictures(
        images, names, channels=encoder.channels, per_class=per_class, seed=seed
    )
    side = size * image_scale

    def make(batch: Batch) -> Float[Tensor, "n c h w"]:
        numbers = pictures.chosen[batch.label][batch.first :][: batch.count]
        pixels = np.stack([pictures.show(number, side) for number in numbers])
        return encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)

    about = {
        "autoencoder": "/".join(part for part in autoencoder if part),
        "images": str(images),
        "classes": list(pictures.classes),
        "chosen": [len(own) for own in pictures.chosen],
        "size": size,
        "image_scale": image_scale,
        "seed": seed,
    }
    todo = batches([len(own) for own in pictures.chosen], BATCH)
    bank = gather(
        out, about, pictures.classes, todo, make, size=size, image_scale=image_scale, tell=tell
    )
    model.half().save_pretrained(out)
    model.float()
    return bank, decoder
