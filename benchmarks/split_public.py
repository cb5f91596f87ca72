"""Divide an ``.npz`` of images into parts that share none: public, clients', and for the judge.

    python benchmarks/split_public.py DATA.npz FOLDER --public 100 --judge 0 [--seed 0]

DATA.npz is as ``data.name = "npz"`` reads it (docs/data.md; benchmarks/unpack_images.py makes one);
in its place stands ``mnist5k`` or ``digits``, the sets that come with the installation.
FOLDER gets ``public.npz`` (so many training images a class, which a bank may hold), ``judge.npz``
(so many others, to train the classifier of ``server.fidelity-data``; none for 0) and
``clients.npz`` (the other training images, and the test images as they are). A picture that is
there twice stays in one part, and one that is a test image too goes to nobody. No claim; whoever
reports what a bank of public pictures is worth begins here.
"""

import argparse
from pathlib import Path
from typing import get_args

import numpy as np

from feddgm_flwr.data.datasets import Part, read
from feddgm_flwr.data.settings import DataConfig


def divide(
    images: np.ndarray, labels: np.ndarray, sizes: tuple[int, ...], *, seed: int,
    barred: frozenset[bytes] = frozenset(),
) -> list[np.ndarray]:  # fmt: skip
    """Return places of images: ``sizes`` a class for each part, and the rest as the last part.

    Parameters
    ----------
    barred
        Bytes of pictures that belong to no part.

    Raises
    ------
    ValueError
        A class has too few different pictures.
    """
    groups: dict[bytes, list[int]] = {}
    for place, image in enumerate(images):
        if (key := image.tobytes()) not in barred:
            groups.setdefault(key, []).append(place)
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(len(sizes) + 1)]
    firsts = list(groups.values())
    for label in np.unique(labels):
        own = [same for same in firsts if labels[same[0]] == label]
        if len(own) <= sum(sizes):
            raise ValueError(
                f"--public and --judge must leave clients images of class {label}, which has"
                f" {len(own)} different ones, got {sum(sizes)}; take fewer"
            )
        order, start = rng.permutation(len(own)), 0
        for part, size in zip(parts, (*sizes, len(own)), strict=True):
            # A public part takes one of equal pictures, so that it has the number asked for.
            taken = [own[i] for i in order[start : start + size]]
            part += [p for same in taken for p in (same if part is parts[-1] else same[:1])]
            start += size
    return [np.sort(np.array(part, dtype=int)) for part in parts]


def packaged(source: DataConfig) -> dict[str, np.ndarray]:
    """Return both parts of a set that the project reads by name, images ``n h w c``."""
    arrays = {}
    for part in get_args(Part):
        found = read(source, part)
        arrays[f"{part}_images"] = np.ascontiguousarray(found.images.transpose(0, 2, 3, 1))
        arrays[f"{part}_labels"] = found.labels
    return arrays


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--public", type=int, default=100)
    parser.add_argument("--judge", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    named = chosen.data in ("mnist5k", "digits")
    data = packaged(DataConfig(name=chosen.data)) if named else np.load(chosen.data)
    images, labels = data["train_images"], data["train_labels"]
    tests = frozenset(image.tobytes() for image in data["test_images"])
    sizes = (chosen.public, chosen.judge)
    names = ("public", "judge", "clients")
    parts = divide(images, labels, sizes, seed=chosen.seed, barred=tests)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(names, parts, strict=True):
        if not len(part):
            continue
        arrays = {"train_images": images[part], "train_labels": labels[part]}
        if name == "clients":
            arrays |= {k: data[k] for k in ("test_images", "test_labels")}
        np.savez(chosen.folder / f"{name}.npz", **arrays)
        print(f"{name}: {len(part)} images")


if __name__ == "__main__":
    main()
