"""Turn a pack of JPEG images into the ``.npz`` that ``data.name = "npz"`` reads (docs/data.md).

    python benchmarks/unpack_images.py PACK.npz OUT.npz [--train N] [--test N]

PACK.npz holds JPEG streams end to end (``jpeg``), where each one ends (``offsets``), ``label`` and
which are test images (``test``), as the CIFAR-10 (JPEG) and ImageNette packs do. ``--train`` and
``--test`` take the first N of each part. No claim; a step before others.
"""

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def unpacked(
    pack: Mapping[str, np.ndarray], *, test: bool, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (first ``most``) images of a pack's part, ``n h w c`` bytes, and their labels."""
    streams, ends = pack["jpeg"], pack["offsets"]
    picked = np.flatnonzero(pack["test"].astype(bool) == test)[:most]
    images = [
        np.asarray(Image.open(io.BytesIO(streams[ends[i] : ends[i + 1]].tobytes()))) for i in picked
    ]
    return np.stack(images), pack["label"][picked].astype(np.int64)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int)
    parser.add_argument("--test", type=int)
    chosen = parser.parse_args()
    # Read once: each look into an open .npz reads its array anew.
    pack = dict(np.load(chosen.pack))
    arrays = {}
    for part, is_test, most in (("train", False, chosen.train), ("test", True, chosen.test)):
        images, labels = unpacked(pack, test=is_test, most=most)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, labels
        print(part, images.shape)
    np.savez(chosen.out, **arrays)


if __name__ == "__main__":
    main()
