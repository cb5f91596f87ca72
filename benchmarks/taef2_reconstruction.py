"""How well FLUX.2's tiny autoencoder reconstructs real images, in decibels.

    python benchmarks/taef2_reconstruction.py --weights FOLDER --data FILE.npz [--size
    N] [--up N]

FOLDER is in diffusers' layout. FILE.npz holds JPEG streams end to end (``jpeg``), where
each one ends (``offsets``) and which are test images (``test``). The PSNR is the mean
over images.
"""

import argparse
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from feddgm_flwr.priors.autoencoder import Decoder, load_autoencoder


def read_pack(path: Path, count: int, size: int | None) -> Tensor:
    """Return ``count`` evenly spaced test images in [0, 1]; ``size`` resizes them."""
    pack = np.load(path)
    streams, ends, test = pack["jpeg"], pack["offsets"], np.flatnonzero(pack["test"])
    picked = test[np.linspace(0, len(test) - 1, count).astype(int)]
    images = []
    for i in picked:
        stream = io.BytesIO(streams[ends[i] : ends[i + 1]].tobytes())
        image = Image.open(stream).convert("RGB")
        if size:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        images.append(np.asarray(image))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def reconstruct(images: Tensor, folder: str, up: int) -> tuple[Tensor, Tensor]:
    """Return reconstructions and latents; images are enlarged ``up`` times for it."""
    model = load_autoencoder(folder)
    decoder = Decoder(model, 0)
    outs, latents = [], []
    for part in torch.split(images, 50):
        large = functional.interpolate(part, scale_factor=up, mode="bicubic").clamp(0, 1)
        code = model.encode(large * 2 - 1).latents
        latents.append((code - decoder.mean) / decoder.std)
        outs.append(functional.avg_pool2d(decoder(latents[-1]).clamp(0, 1), up))
    return torch.cat(outs), torch.cat(latents)


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of images in [0, 1]."""
    error = (a - b).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((-10 / math.log(10) * error.log()).mean())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--up", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    images = read_pack(options.data, options.count, options.size)
    outs, latents = reconstruct(images, options.weights, options.up)
    print(
        f"{options.data.stem} {images.shape[-1]}px x{options.up}:"
        f" {psnr(images, outs):.1f} dB, latents"
        f" mean {latents.mean():.2f} std {latents.std():.2f}"
    )


if __name__ == "__main__":
    main()
