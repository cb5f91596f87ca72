"""Rewrite the golden files from the present code; say so in CHANGELOG.md under **numerics**."""

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]


def main() -> None:
    from golden import measure

    torch.set_num_threads(1)
    for name, numbers in (("seeding", measure.seeding()), ("toy_round", measure.toy_rounds())):
        (HERE / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
