"""A bank made in parts: each batch of latents is a file, so that what was cut off goes on.

Whoever makes latents says how (``Make``), batch by batch, from nothing but the batch: then the
same call, given again after an interruption, ends with the same bank. Knows no picture and no
model.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.files import write_atomically
from feddgm_flwr.priors.bank import FILE, LatentBank

ABOUT = "making.json"
"""What the bank is made of and how, for the next call and for people."""
PARTS = "parts"


@dataclass(frozen=True)
class Batch:
    """Numbers ``first`` to ``first + count - 1`` of a class."""

    label: int
    first: int
    count: int

    @property
    def file(self) -> str:
        """Where its latents are kept until the bank is whole."""
        return f"{self.label:04d}-{self.first:06d}-{self.count}.safetensors"


Make = Callable[[Batch], Float[Tensor, "n c h w"]]
"""Latents of a batch; fewer than asked where some were of no use."""
Tell = Callable[[int, int], None]
"""``tell(done, total)``, in pictures."""


def batches(counts: Sequence[int], size: int) -> list[Batch]:
    """Return ``counts[label]`` pictures a class in batches of at most ``size``."""
    return [
        Batch(label, first, min(size, count - first))
        for label, count in enumerate(counts)
        for first in range(0, count, size)
    ]


def gather(
    folder: Path,
    about: Mapping[str, object],
    classes: tuple[str, ...],
    todo: Sequence[Batch],
    make: Make,
    *,
    size: int,
    image_scale: int,
    tell: Tell,
) -> LatentBank:
    """Return the bank in ``folder``, made as far as it is not there yet.

    Parameters
    ----------
    about
        All that the latents depend on, as JSON has it.
    size, image_scale
        Side of the data set's images, and how many times larger they are encoded.

    Raises
    ------
    ValueError
        ``folder`` has a bank that was made of something else, or a class got no latent.
    """
    _claim(folder, about)
    if (folder / FILE).is_file():
        return LatentBank.load(folder)
    total, done = sum(batch.count for batch in todo), 0
    latents, labels = [], []
    for batch in todo:
        found = _part(folder / PARTS / batch.file, batch, make)
        latents.append(found)
        labels += [batch.label] * len(found)
        done += batch.count
        tell(done, total)
    if bare := [name for i, name in enumerate(classes) if i not in labels]:
        raise ValueError(
            f"every class must have a picture that can be used, and {bare} have none; delete"
            f" {str(folder)!r} and give others"
        )
    bank = LatentBank.quantised(
        torch.cat(latents), torch.tensor(labels), classes, size=size, image_scale=image_scale
    )
    bank.save(folder)
    shutil.rmtree(folder / PARTS)
    return bank


def _claim(folder: Path, about: Mapping[str, object]) -> None:
    """Write down what ``folder`` is made of, or see that it is made of the same."""
    file, said = folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    if not file.exists():
        write_atomically(file, said.encode())
        return
    before = file.read_text(encoding="utf-8")
    if before != said:
        raise ValueError(
            f"{str(folder)!r} must hold nothing or the same bank, and {ABOUT} there tells of"
            " another; give the same options, another folder, or delete it"
        )


def _part(file: Path, batch: Batch, make: Make) -> Float[Tensor, "n c h w"]:
    if file.is_file():  # whole, since it was written atomically
        return safetensors.torch.load_file(file)["latents"]
    latents = make(batch).contiguous()
    write_atomically(file, safetensors.torch.save({"latents": latents}))
    return latents
