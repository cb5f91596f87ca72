"""A preset's images, prepared once: what the clients own, and, apart from it, what tunes.

The training images are ordered by one fixed permutation. Where a preset takes some of them, tuning
takes the next ones; where it takes all, a tenth of them is held out for validation, and tuning
trains on the rest: it has then seen clients' images, never the test images. ``mnist5k`` holds out a
fifth, since it has but 4,000. Knows no method.
"""

import gzip
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from split_public import divide, packaged
from unpack_images import unpacked

from comparing.presets import Preset
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.data.specs import SPECS
from feddgm_flwr.files import write_atomically

ORDER_SEED = 2026
VALIDATION = 5_000
"""Images that score a setting, where there are enough."""

PUBLIC, JUDGED = 100, 200
"""Images a class that anybody may have, and that the judge of fidelity learns from."""

Purpose = Literal["report", "tuning"]
Pair = tuple[np.ndarray, np.ndarray]
"""Images ``n h w c`` in bytes, and labels."""

IMAGENETTE = (
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
)


@dataclass(frozen=True)
class Prepared:
    """Images in a file that ``data.name = "npz"`` reads.

    Attributes
    ----------
    said
        The settings that read it.
    title
        What a table calls them.
    fingerprint
        Of all pixels and labels, whoever wrote the file.
    sizes
        How many train and test images there are.
    """

    said: dict[str, Scalar]
    title: str
    fingerprint: str
    sizes: dict[str, int]


def prepared(preset: Preset, purpose: Purpose, data: Path | None, folder: Path) -> Prepared:
    """Return a preset's images for ``purpose``, written into ``folder`` by the first call.

    Raises
    ------
    ValueError
        They were not prepared before, and ``data`` does not hold them.
    """
    stem = preset.name if purpose == "report" else f"{preset.name}-tuning"
    note = folder / f"{stem}.json"
    if not note.exists():
        _prepare(preset, data, folder)
    said = json.loads(note.read_text(encoding="utf-8"))
    return Prepared(
        {**settings_of(preset), "data.root": str((folder / f"{stem}.npz").resolve())},
        said["title"],
        said["fingerprint"],
        said["sizes"],
    )


def _prepare(preset: Preset, data: Path | None, folder: Path) -> None:
    train, test, title = _source(preset, data)
    report, tuning = divided(train, test, preset.train)
    for stem, parts in ((preset.name, report), (f"{preset.name}-tuning", tuning)):
        arrays = {
            f"{part}_{kind}": array
            for part, pair in zip(("train", "test"), parts, strict=True)
            for kind, array in zip(("images", "labels"), pair, strict=True)
        }
        file = io.BytesIO()
        np.savez(file, **arrays)
        write_atomically(folder / f"{stem}.npz", file.getvalue())
        note = {
            "title": title,
            "fingerprint": fingerprint(arrays),
            "sizes": {part: len(arrays[f"{part}_labels"]) for part in ("train", "test")},
        }
        # Last: whoever finds it finds the images whole.
        write_atomically(folder / f"{stem}.json", json.dumps(note, indent=1).encode())


@dataclass(frozen=True)
class Public:
    """Files of images that neither a client nor the test has, and that share none.

    Attributes
    ----------
    bank
        Those that are public, as its training part, and the test images.
    judge
        Those that train the judge of fidelity.
    """

    bank: Path
    judge: Path


def public(preset: Preset, data: Path | None, folder: Path) -> Public:
    """Return a preset's public images, written into ``folder`` by the first call.

    They are of those that score settings, which no row is trained on.

    Raises
    ------
    ValueError
        ``data`` does not hold the preset's images, or the preset takes all of them.
    """
    files = Public(*(folder / f"{preset.name}-{part}.npz" for part in ("public", "judge")))
    if files.judge.exists():
        return files
    if not preset.train:
        raise ValueError(
            f"--preset must leave some images to the public, and {preset.name} takes all; name one "
            "that takes a part"
        )
    train, test, _ = _source(preset, data)
    (own, _), (_, apart) = divided(train, test, preset.train)
    barred = frozenset(image.tobytes() for pair in (own, test) for image in pair[0])
    places = divide(*apart, (PUBLIC, JUDGED), seed=ORDER_SEED, barred=barred)
    for file, place in zip((files.bank, files.judge), places[:2], strict=True):
        images, labels = _taken(apart, place)
        held = {"train_images": images, "train_labels": labels}
        held |= {"test_images": test[0], "test_labels": test[1]}
        written = io.BytesIO()
        np.savez(written, **held)
        write_atomically(file, written.getvalue())
    return files


def divided(train: Pair, test: Pair, most: int) -> tuple[tuple[Pair, Pair], tuple[Pair, Pair]]:
    """Return (train, test) images to report on, and (train, validation) images to tune on.

    ``most`` is how many training images are reported on; 0 is all.
    """
    n = len(train[1])
    order = np.random.default_rng(ORDER_SEED).permutation(n)
    if not most:
        held = n // 10 if n >= 10 * VALIDATION else n // 5
        return (train, test), (_taken(train, order[held:]), _taken(train, order[:held]))
    if n < 2 * most + VALIDATION:
        raise ValueError(
            f"{most} images to report on and as many to tune on need {2 * most + VALIDATION} "
            f"training images, got {n}; give the whole data set by --data"
        )
    tuning = _taken(train, order[most : 2 * most])
    validation = _taken(train, order[2 * most : 2 * most + VALIDATION])
    return (_taken(train, order[:most]), test), (tuning, validation)


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Return a short digest of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]


def _taken(pair: Pair, index: np.ndarray) -> Pair:
    return pair[0][index], pair[1][index]


def settings_of(preset: Preset) -> dict[str, Scalar]:
    """Return what ``data.*`` must say of a preset's images, but for where they are."""
    if preset.source == "imagenette":
        classes, channels, size, flip = IMAGENETTE, 3, 128, True
    else:
        spec = SPECS[{"fashion": "fashion-mnist"}.get(preset.source, preset.source)]
        classes, channels, size, flip = spec.classes, spec.channels, spec.size, spec.flip
    return {
        "data.name": "npz",
        "data.class-names": ",".join(classes),
        "data.channels": channels,
        "data.image-size": size,
        "data.flip": flip,
    }


def _source(preset: Preset, data: Path | None) -> tuple[Pair, Pair, str]:
    """Return a data set's training and test images, and its name."""
    if preset.source == "mnist5k":
        return *_pairs(packaged(DataConfig(name="mnist5k"))), "mnist5k"
    if data is None or not data.exists():
        raise ValueError(
            f"--data must say where the images of preset {preset.name} are, got {data}; give "
            "torchvision's root, or a pack as benchmarks/unpack_images.py reads it"
        )
    if preset.source == "fashion":
        return *(_idx_pair(data, part) for part in ("train", "t10k")), "Fashion-MNIST"
    if data.is_file():
        name = {"cifar10": "CIFAR-10 (JPEG)", "imagenette": "ImageNette (JPEG)"}[preset.source]
        pack = dict(np.load(data))
        return unpacked(pack, test=False), unpacked(pack, test=True), name
    if preset.source == "imagenette":
        raise ValueError(f"--data must be a pack of ImageNette, got the folder {data}; name a file")
    arrays = packaged(DataConfig(name="cifar10", root=str(data.resolve())))
    return *_pairs(arrays), "CIFAR-10"


def _pairs(arrays: dict[str, np.ndarray]) -> tuple[Pair, Pair]:
    train, test = ((arrays[f"{p}_images"], arrays[f"{p}_labels"]) for p in ("train", "test"))
    return train, test


def _idx_pair(root: Path, part: str) -> Pair:
    return _idx(root, f"{part}-images-idx3-ubyte", 16), _idx(root, f"{part}-labels-idx1-ubyte", 8)


def _idx(root: Path, name: str, header: int) -> np.ndarray:
    """Return the array of an idx file, gzipped or not, in ``root`` or where torchvision has it."""
    places = [home / f"{name}{end}" for home in (root, root / "FashionMNIST" / "raw")
              for end in ("", ".gz")]  # fmt: skip
    found = next((file for file in places if file.is_file()), None)
    if found is None:
        raise ValueError(
            f"--data must hold {name}[.gz], itself or in FashionMNIST/raw, got {root}; put it there"
        )
    data = found.read_bytes()
    data = gzip.decompress(data) if found.suffix == ".gz" else data
    values = np.frombuffer(data, np.uint8, offset=header)
    return values.reshape(-1, 28, 28, 1) if header == 16 else values.astype(np.int64)
