"""Data of one's own: a folder of pictures a class, or an ``.npz`` of bytes.

Pictures that nobody labelled lie in any folder, or in such a file without labels. All
bring the images to the channels and the side that are asked for and return bytes. Whoever
reads an error is told what he can change: the run's owner its settings, a device's owner his data.
Axes: ``n c h w`` images. Knows no partition and no federation.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from feddgm_flwr.data.names import Matched, files_under, folders_in, match
from feddgm_flwr.data.pictures import read_picture
from feddgm_flwr.data.settings import DataConfig

Arrays = tuple[UInt8[np.ndarray, "n c h w"], Int[np.ndarray, " n"]]
"""Images and labels."""

CHUNK = 256
"""Images resized at a time: as floats they take four times the memory, and more."""


class NoImagesError(ValueError):
    """A part is not there at all, which is no damage: a server may well have none."""


@dataclass(frozen=True)
class Words:
    """How an error names the data and what its reader can change.

    Attributes
    ----------
    key
        What says where the data are.
    classes, channels, labels
        What to do where these are others than the run's.
    """

    key: str
    classes: str
    channels: str
    labels: str


RUN = Words(
    key="data.root",
    classes="rename them or add them to data.class-names",
    channels="convert them or set data.channels",
    labels="name every class in data.class-names",
)
"""For the run's owner."""
DEVICE = Words(
    key="node-config data-dir",
    classes="rename or remove them, for the run's classes are set by its owner",
    channels="convert them, for the run's channels are set by its owner",
    labels="correct them, for the run's classes are set by its owner",
)
"""For the owner of a device."""


@dataclass(frozen=True)
class Source:
    """Where own data lie and what is wanted of them."""

    path: Path
    classes: tuple[str, ...]
    channels: int
    size: int
    words: Words = RUN

    @classmethod
    def of(cls, config: DataConfig, words: Words = RUN) -> "Source":
        """Return where ``config`` says that the data are."""
        path = root_of(config, words)
        return cls(path, config.class_list, config.channels, config.image_size, words)


def layout_of(path: Path) -> Literal["folder", "npz"]:
    """Return how own data are laid out, by what is there rather than by the name alone."""
    if path.is_dir():
        return "folder"
    return "npz" if path.is_file() or path.suffix.lower() == ".npz" else "folder"


def root_of(config: DataConfig, words: Words = RUN) -> Path:
    """Return where the data are: absolute and, unless a download will make it, there."""
    root = Path(config.root)
    device = words is DEVICE
    if not config.root or not root.is_absolute():
        wanted = "" if device else f" when data.name = {config.name!r}"
        remedy = "write the whole path in --node-config" if device else "change it with -c"
        raise ValueError(
            f"{words.key} must be an absolute path{wanted}, got {config.root!r}; {remedy}"
        )
    if not _is_there(root, words) and not config.download:
        remedy = "correct it in --node-config or put" if device else "put"
        raise FileNotFoundError(f"{words.key} must exist, got {config.root!r}; {remedy} the "
                                "data there")  # fmt: skip
    return root


def _is_there(path: Path, words: Words) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{words.key} must be readable, got {str(path)!r} ({error}); allow it to be read"
        ) from error
    return True


def read_folder(source: Source, part: str) -> Arrays:
    """Read ``path/<part>/<class>/**``; a class may lack, an unknown one is an error."""
    matched = classes_in(source, part)
    if matched.problems:
        raise ValueError(matched.problems[0])
    files = pictures_of(matched, source.classes)
    images = _pixels_of([file for file, _ in files], source)
    return images, np.array([label for _, label in files], np.int64)


def _pixels_of(files: Sequence[Path], source: Source) -> UInt8[np.ndarray, "n c h w"]:
    size = source.size
    images = np.empty((len(files), source.channels, size, size), np.uint8)
    for row, file in enumerate(files):
        pixels = read_picture(file, channels=source.channels, size=size).pixels
        images[row] = pixels.transpose(2, 0, 1)
    return images


def classes_in(source: Source, part: str) -> Matched:
    """Return which folders of a part hold which class.

    Raises
    ------
    FileNotFoundError
        There is no such part.
    ValueError
        It cannot be listed.
    """
    home = source.path / part
    if not source.path.is_dir():
        raise ValueError(
            f"{source.words.key} must be a folder that holds a folder {part!r}, got the file "
            f"{str(source.path)!r}; name the folder"
        )
    try:
        if not home.is_dir():
            raise FileNotFoundError(
                f"{source.words.key} must hold a folder {part!r}, got {str(home)!r}, which is "
                "none; put <class>/* pictures there"
            )
        return match(folders_in(home), source.classes, source.words.classes)
    except PermissionError as error:
        raise _forbidden(error) from error


def pictures_of(matched: Matched, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the files of every class with their labels, in order of labels."""
    try:
        return [
            (file, label)
            for label, name in enumerate(classes)
            if name in matched.folders
            for file in files_under(matched.folders[name])
        ]
    except OSError as error:
        raise _forbidden(error) from error


def _forbidden(error: OSError) -> ValueError:
    return ValueError(
        f"folder {str(error.filename)!r} must be readable, got: {error.strerror}; allow it to "
        "be read"
    )


def read_npz(source: Source, part: str) -> Arrays:
    """Read ``<part>_images`` (uint8, n h w [c]) and ``<part>_labels`` (integers)."""
    arrays, missing = npz_arrays(source, part)
    if missing:
        raise NoImagesError(missing) if not arrays else ValueError(missing)
    images, labels = arrays
    if problems := npz_problems(source, images, labels):
        raise ValueError(problems[0])
    return _sized(channels_last(images), source.size), labels.astype(np.int64)


def _sized(images: UInt8[np.ndarray, "n h w c"], size: int) -> UInt8[np.ndarray, "n c s s"]:
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if not len(images) or images.shape[2:] == (size, size):
        return images
    return np.concatenate(
        [
            resized(torch.from_numpy(images[i : i + CHUNK]).float() / 255, size)
            for i in range(0, len(images), CHUNK)
        ]
    )


def read_unlabelled(source: Source) -> UInt8[np.ndarray, "n c h w"]:
    """Read every picture under ``path``, or the ``train_images`` of an ``.npz``; no label is read.

    Raises
    ------
    ValueError
        There is nothing, no picture in it, or one that cannot be read.
    """
    if not _is_there(source.path, source.words):
        raise NoImagesError(
            f"{source.words.key} must exist, got {str(source.path)!r}; put pictures there"
        )
    if layout_of(source.path) == "npz":
        arrays, missing = npz_arrays(source, "train", labelled=False)
        if said := missing or _wrong_images(source, channels_last(arrays[0])):
            raise ValueError(said)
        images = _sized(channels_last(arrays[0]), source.size)
    else:
        images = _pixels_of(files_under(source.path), source)
    if not len(images):
        raise NoImagesError(
            f"{source.words.key} must hold at least 1 picture, got 0 in {str(source.path)!r}; put "
            "some there"
        )
    return images


def npz_arrays(source: Source, part: str, *, labelled: bool = True) -> tuple[list[np.ndarray], str]:
    """Return those of a part's two arrays that are there, and a sentence on those that lack.

    Without ``labelled`` that of the labels is neither read nor missed.

    Raises
    ------
    ValueError
        It is no such file, or damaged.
    """
    file, wanted = str(source.path), (f"{part}_images", f"{part}_labels")[: 1 + labelled]
    _check_zip(source)
    found: list[np.ndarray] = []
    key = ""
    try:
        # Never unpickled: a pickle is a program.
        with np.load(source.path, allow_pickle=False) as arrays:
            names = sorted(arrays)
            for key in wanted:
                if key in arrays:
                    found.append(_array(arrays[key]))
    except Exception as error:  # the bytes may be anything
        words = " ".join(str(error).split())[:200]
        what = f"array {key!r} of {file!r}" if key else repr(file)
        raise ValueError(
            f"{what} must be an array of numbers saved by np.savez, got: {words}; save it anew"
        ) from error
    missing = [key for key in wanted if key not in names]
    said = f"{file!r} must hold arrays {wanted}, got {names}; add {missing}" if missing else ""
    return found, said


def _array(value: object) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError("bytes that are no array")
    return value


def _check_zip(source: Source) -> None:
    """Raise unless the file is of the kind that ``np.savez`` writes, which is a zip."""
    path = source.path
    try:
        if path.is_dir():
            raise ValueError(f"{source.words.key} must be an .npz file, got the folder "
                             f"{str(path)!r}; name the file in it")  # fmt: skip
        empty, zipped = path.stat().st_size == 0, zipfile.is_zipfile(path)
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} must be readable, got: {error.strerror}; allow it to be read"
        ) from error
    if zipped:
        return
    if empty:
        got = "an empty file"
    elif start == b"\x93NUMPY":
        got = "a single array (.npy)"
    elif start[:2] == b"PK":
        got = "one that is cut short"
    else:
        got = "another kind of file"
    raise ValueError(
        f"{str(path)!r} must be an .npz file, got {got}; save it anew by np.savez with "
        "train_images and train_labels"
    )


def channels_last(images: np.ndarray) -> np.ndarray:
    """Return images ``n h w c``, grey ones with an axis for it."""
    return images[..., None] if images.ndim == 3 else images


def npz_problems(source: Source, images: np.ndarray, labels: np.ndarray) -> list[str]:
    """Return all that keeps a part's arrays from being read, as sentences."""
    found = (_wrong_images(source, channels_last(images)), _wrong_labels(source, labels, images))
    return [said for said in found if said]


def _wrong_images(source: Source, images: np.ndarray) -> str:
    file = f"images of {str(source.path)!r}"
    if images.dtype.kind == "f":
        span = f" from {images.min():g} to {images.max():g}" if images.size else ""
        return (
            f"{file} must be uint8 from 0 to 255, got {images.dtype}{span}; convert fractions of "
            "0..1 by (x * 255).round().astype('uint8')"
        )
    square = images.ndim == 4 and images.shape[1] == images.shape[2] > 0
    if images.dtype != np.uint8 or not square or images.shape[3] != source.channels:
        return (
            f"{file} must be uint8 of shape (n, side, side[, {source.channels}]), got "
            f"{images.dtype} {images.shape}; {source.words.channels}"
        )
    return ""


def _wrong_labels(source: Source, labels: np.ndarray, images: np.ndarray) -> str:
    file, n = f"labels of {str(source.path)!r}", len(images) if images.ndim else 0
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        return (
            f"{file} must be {n} integers, one an image, got {labels.dtype} {labels.shape}; "
            "convert them by y.astype('int64').reshape(-1)"
        )
    last = len(source.classes) - 1
    if n and not 0 <= labels.min() <= labels.max() <= last:
        return (
            f"{file} must be 0 to {last}, got {labels.min()} to {labels.max()}; "
            f"{source.words.labels}"
        )
    return ""


def resized(images: Tensor, size: int) -> UInt8[np.ndarray, "n c h w"]:
    """Return images in [0, 1] as bytes of another size."""
    images = interpolate(images, size=size, mode="bilinear", antialias=True)
    return (images * 255).round().clamp(0, 255).to(torch.uint8).numpy()
