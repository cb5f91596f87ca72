"""Data of one's own: a folder of pictures a class, or an ``.npz`` of bytes.

Both bring the images to ``data.channels`` and ``data.image-size`` and return bytes.
Axes: ``n c h w`` images. Knows no partition.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from feddgm_flwr.data.settings import DataConfig

Arrays = tuple[UInt8[np.ndarray, "n c h w"], Int[np.ndarray, " n"]]
"""Images and labels."""


def root_of(config: DataConfig) -> Path:
    """Return ``data.root``: absolute and, unless a download will make it, there."""
    root = Path(config.root)
    if not config.root or not root.is_absolute():
        raise ValueError(
            f"data.root must be an absolute path when data.name = {config.name!r}, "
            f"got {config.root!r}; change it with -c"
        )
    if not root.exists() and not config.download:
        raise FileNotFoundError(f"data.root must exist, got {config.root!r}; put the data there")
    return root


def read_folder(config: DataConfig, part: str) -> Arrays:
    """Read ``root/<part>/<class>/*``; a class may lack, an unknown one is an error."""
    home = root_of(config) / part
    if not home.is_dir():
        raise FileNotFoundError(
            f"data.root must hold a folder {part!r}, got {str(home)!r}, which is none; "
            "put <class>/* pictures there"
        )
    folders = {f.name: f for f in home.iterdir() if f.is_dir() and f.name[0] != "."}
    if unknown := sorted(set(folders) - set(config.class_list)):
        raise ValueError(
            f"folders of {str(home)!r} must be of the classes {config.class_list}, got "
            f"{unknown}; rename them or add them to data.class-names"
        )
    files = [
        (file, label)
        for label, name in enumerate(config.class_list)
        if name in folders
        for file in sorted(folders[name].iterdir())
        if file.name[0] != "."
    ]
    size = config.image_size
    images = np.empty((len(files), config.channels, size, size), np.uint8)
    for row, (file, _) in enumerate(files):
        images[row] = _picture(file, config)
    return images, np.array([label for _, label in files], np.int64)


def _picture(file: Path, config: DataConfig) -> UInt8[np.ndarray, "c h w"]:
    """Return one picture, cut to a square about its centre and resized."""
    from PIL import Image, ImageOps

    size, mode = config.image_size, "L" if config.channels == 1 else "RGB"
    try:
        with Image.open(file) as picture:
            square = ImageOps.fit(picture.convert(mode), (size, size), Image.Resampling.BILINEAR)
    except OSError as error:
        raise ValueError(
            f"{str(file)!r} must be a picture that Pillow reads, got: {error}; remove it"
        ) from error
    return np.asarray(square).reshape(size, size, -1).transpose(2, 0, 1)


def read_npz(config: DataConfig, part: str) -> Arrays:
    """Read ``<part>_images`` (uint8, n h w [c]) and ``<part>_labels`` (integers)."""
    wanted = f"{part}_images", f"{part}_labels"
    with np.load(root_of(config)) as arrays:
        if missing := [key for key in wanted if key not in arrays]:
            raise ValueError(
                f"{config.root!r} must hold arrays {wanted}, got {sorted(arrays)}; add {missing}"
            )
        images, labels = (arrays[key] for key in wanted)
    images = images[..., None] if images.ndim == 3 else images
    _check_images(images, config)
    _check_labels(labels, len(images), config)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.shape[2:] != (config.image_size, config.image_size):
        images = resized(torch.from_numpy(images).float() / 255, config.image_size)
    return images, labels.astype(np.int64)


def _check_images(images: np.ndarray, config: DataConfig) -> None:
    square = images.ndim == 4 and images.shape[1] == images.shape[2]
    if images.dtype != np.uint8 or not square or images.shape[3] != config.channels:
        raise ValueError(
            f"images of {config.root!r} must be uint8 of shape (n, side, side[, "
            f"{config.channels}]), got {images.dtype} {images.shape}; convert them or "
            "set data.channels"
        )


def _check_labels(labels: np.ndarray, n: int, config: DataConfig) -> None:
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels of {config.root!r} must be {n} integers, one an image, got "
            f"{labels.dtype} {labels.shape}; convert them"
        )
    last = len(config.class_list) - 1
    if n and not 0 <= labels.min() <= labels.max() <= last:
        raise ValueError(
            f"labels of {config.root!r} must be 0 to {last}, got {labels.min()} to "
            f"{labels.max()}; name every class in data.class-names"
        )


def resized(images: Tensor, size: int) -> UInt8[np.ndarray, "n c h w"]:
    """Return images in [0, 1] as bytes of another size."""
    images = interpolate(images, size=size, mode="bilinear", antialias=True)
    return (images * 255).round().clamp(0, 255).to(torch.uint8).numpy()
