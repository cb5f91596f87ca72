"""Turn a pack of JPEG images into the ``.npz`` that ``data.name = "npz"`` reads (docs/data.md).

    python benchmarks/unpack_images.py PACK.npz OUT.npz [--train N] [--test N]

PACK.npz holds JPEG streams end to end (``jpeg``), where each one ends (``offsets``), ``label`` and
which are test images (``test``), as the CIFAR-10 (JPEG) and ImageNette packs do. ``--train`` and
``--test`` take the first N of each part. No claim; a step before others.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int)
    parser.add_argument("--test", type=int)
    chosen = parser.parse_args()
    pack = np.load(chosen.pack)
    streams, ends, labels = pack["jpeg"], pack["offsets"], pack["label"]
    arrays = {}
    for part, is_test, most in (("train", False, chosen.train), ("test", True, chosen.test)):
        picked = np.flatnonzero(pack["test"].astype(bool) == is_test)[:most]
        arrays[f"{part}_images"] = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(streams[ends[i] : ends[i + 1]].tobytes())))
                for i in picked
            ]
        )
        arrays[f"{part}_labels"] = labels[picked].astype(np.int64)
        print(part, arrays[f"{part}_images"].shape)
    np.savez(chosen.out, **arrays)


if __name__ == "__main__":
    main()
