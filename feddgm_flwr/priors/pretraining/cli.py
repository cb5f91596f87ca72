"""``feddgm-pretrain``: a class-conditional prior of fonts, or of your own public images.

It trains a small autoencoder, or with ``--autoencoder`` takes one that is there and trains nothing.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from feddgm_flwr.data.names import plain
from feddgm_flwr.priors.bank import LatentBank
from feddgm_flwr.priors.pretraining.sources import GlyphSource, Source, read_folder

if TYPE_CHECKING:
    from feddgm_flwr.priors.pretraining.train import Pretraining

COLUMNS = 20
"""Samples a class in the picture."""
ROWS = 100
"""Classes in the picture, at most."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="feddgm-pretrain", description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the new prior")
    parser.add_argument(
        "--images", type=Path, default=None,
        help="public images, one folder a class; without it, glyphs of fonts are drawn",
    )  # fmt: skip
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1)
    parser.add_argument(
        "--size", type=int, default=28,
        help="side of the images; a multiple of 4 where an autoencoder is trained",
    )  # fmt: skip
    parser.add_argument(
        "--autoencoder", default="",
        help="diffusers autoencoder (folder or hub id) that encodes --images; nothing is trained, "
        "and --channels, --steps, --batch, --width and --latent-channels are not read",
    )  # fmt: skip
    parser.add_argument("--subfolder", default="", help="folder of the model in --autoencoder")
    parser.add_argument(
        "--image-scale", type=int, default=1,
        help="encode at this multiple of --size (2 for 32 pixels under a photographic model)",
    )  # fmt: skip
    parser.add_argument(
        "--per-class", type=int, default=100, help="images a class that are encoded, at most"
    )
    parser.add_argument(
        "--class-names", default="",
        help="comma-separated, in label order, where --images is an .npz (train_images, "
        "train_labels) to be encoded",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=16, help="channels of every layer")
    parser.add_argument("--latent-channels", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.threads < 1:
        refuse(f"--threads must be 1 or more, got {options.threads}; correct it")
    if options.autoencoder:
        return check_encoding(options)
    try:
        config_of(options)
    except ValueError as error:
        refuse(f"--{error}")
    if options.images is None and options.channels != 1:
        refuse(f"--channels must be 1 for glyphs, got {options.channels}; give --images for colour")
    return options


def check_encoding(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options of an encoding, or end the command where one is out of range."""
    if options.images is None:
        refuse("--images must name public images where --autoencoder encodes them; add it")
    for name, least in (("size", 8), ("image-scale", 1), ("per-class", 1), ("seed", 0)):
        value = getattr(options, name.replace("-", "_"))
        if value < least:
            refuse(f"--{name} must be {least} or more, got {value}; correct it")
    return options


def config_of(options: argparse.Namespace) -> "Pretraining":
    """Return what the options say of the training."""
    from feddgm_flwr.priors.pretraining.train import Pretraining

    return Pretraining(
        seed=options.seed,
        steps=options.steps,
        batch=options.batch,
        width=options.width,
        latent_channels=options.latent_channels,
        channels=options.channels,
        size=options.size,
    )


def refuse(said: str) -> NoReturn:
    """End the command with one line, as argparse does."""
    sys.stderr.write(f"feddgm-pretrain: error: {' '.join(said.splitlines())}\n")
    raise SystemExit(2)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    try:
        if options.autoencoder:
            encode(options)
        else:
            pretrain(options)
    except ValueError as error:  # options, images or a checkpoint that cannot be used
        refuse(str(error))


def pretrain(options: argparse.Namespace) -> None:
    """Make the prior.

    Raises
    ------
    ValueError
        The images, the folder or its checkpoint cannot be used.
    """
    from tqdm import tqdm

    from feddgm_flwr.monitoring.plots import skipping
    from feddgm_flwr.priors.pretraining.train import CHECKPOINT, fit, make_bank

    torch.set_num_threads(options.threads)
    make_folder(options.out)
    source = build_source(options)
    config = config_of(options)
    # Drawn from the first step on, so that what is refused before stands alone.
    with tqdm(total=config.steps, desc="pretraining", unit="step", delay=1e-3) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        model = fit(config, source, options.out, on_step=on_step)
    bank = make_bank(model, config, source)
    model.half().save_pretrained(options.out)
    bank.save(options.out)
    model.float()
    with skipping("samples.png"):
        picture(lambda z: model.decode(z).sample, bank, options.out / "samples.png")
    (options.out / CHECKPOINT).unlink()


def encode(options: argparse.Namespace) -> None:
    """Make the prior of an autoencoder that is there already.

    Raises
    ------
    ValueError
        The model, the images or the folder cannot be used.
    """
    from tqdm import tqdm

    from feddgm_flwr.monitoring.plots import skipping
    from feddgm_flwr.priors.pretraining.encode import encode_bank

    torch.set_num_threads(options.threads)
    make_folder(options.out)
    with tqdm(desc="encoding", unit="picture", delay=1e-3) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bank, decoder = encode_bank(
            (options.autoencoder, options.subfolder),
            options.images,
            tuple(plain(n) for n in options.class_names.split(",") if n.strip()),
            options.out,
            size=options.size,
            image_scale=options.image_scale,
            per_class=options.per_class,
            seed=options.seed,
            tell=tell,
        )
    with skipping("samples.png"):
        picture(lambda z: decoder(z) * 2 - 1, bank, options.out / "samples.png")


def make_folder(out: Path) -> None:
    """Make the new prior's folder.

    Raises
    ------
    ValueError
        It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {out} must be a folder that can be made, got: {error.strerror}; name another"
        ) from error


def build_source(options: argparse.Namespace) -> Source:
    """Return the images to learn from."""
    if options.images is None:
        return GlyphSource(options.size)
    return read_folder(options.images, channels=options.channels, size=options.size)


@torch.no_grad()
def picture(decode: Callable[[Tensor], Tensor], bank: LatentBank, path: Path) -> None:
    """Write samples of the prior, a row a class."""
    from PIL import Image

    shown = min(len(bank.classes), ROWS)
    labels = [label for label in range(shown) for _ in range(COLUMNS)]
    latents = bank.sample(labels, len(labels), rng=torch.Generator().manual_seed(0))
    images = torch.cat([decode(latents[i : i + COLUMNS]) for i in range(0, len(labels), COLUMNS)])
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    n, c, h, w = pixels.shape
    rows = pixels.view(n // COLUMNS, COLUMNS, c, h, w).permute(0, 3, 1, 4, 2)
    grid = rows.reshape(n // COLUMNS * h, COLUMNS * w, c).numpy()
    Image.fromarray(grid[..., 0] if c == 1 else grid).save(path)
