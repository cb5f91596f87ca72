"""A bank of latents by class: what makes an autoencoder class-conditional.

A sample lies between a stored latent and a near neighbour of its class, so that samples
are new but stay where the decoder is at home. Knows no decoder, and of the data set only its
classes' names. Axes: ``m`` stored latents.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from feddgm_flwr.files import write_atomically
from feddgm_flwr.priors.weights import Place, one_line

FILE = "classes.safetensors"
NEIGHBOURS = 5
"""A sample's second parent is one of this many nearest latents of its class."""
MIX = 0.3
"""A sample lies at most this far along the way to its second parent."""


@dataclass(frozen=True)
class LatentBank:
    """Encodings of pretraining images, a byte a number.

    Attributes
    ----------
    codes
        Quantised latents.
    scale
        The latent is ``(codes - 128) * scale``.
    labels
        Index into ``classes``.
    classes
        Class names.
    size, image_scale
        Side of the data set's images, and how many times larger they were encoded; 0 where images
        of any size are resized from what the latents decode to.
    """

    codes: UInt8[Tensor, "m c h w"]
    scale: float
    labels: Int[Tensor, " m"]
    classes: tuple[str, ...]
    size: int = 0
    image_scale: int = 0

    @staticmethod
    def quantised(
        latents: Float[Tensor, "m c h w"],
        labels: Int[Tensor, " m"],
        classes: tuple[str, ...],
        *,
        size: int = 0,
        image_scale: int = 0,
    ) -> "LatentBank":
        """Return the bank of ``latents``, each number rounded to one of 255 levels."""
        scale = float(latents.abs().max()) / 127
        codes = (latents / scale).round().add(128).to(torch.uint8)
        return LatentBank(codes, scale, labels, classes, size, image_scale)

    @property
    def latents(self) -> Float[Tensor, "m c h w"]:
        """The stored latents."""
        return (self.codes.float() - 128) * self.scale

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What tells this bank from another."""
        return {"bank.codes": self.codes, "bank.labels": self.labels}

    def sample(
        self, wanted: list[int] | None, n: int, *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return a new latent for each class in ``wanted``, or ``n`` of any class."""
        if wanted is None:
            picks = torch.randint(len(self.labels), (n,), generator=rng)
            wanted = self.labels[picks].tolist()
        if not wanted:
            return self.latents[:0]
        own = {label: self.latents[self.labels == label] for label in sorted(set(wanted))}
        near = {label: _neighbours(latents) for label, latents in own.items()}
        return torch.stack([_between(own[one], near[one], rng) for one in wanted])

    def save(self, folder: Path) -> None:
        """Write the bank into ``folder``, whole or not at all."""
        data = save(
            {"codes": self.codes, "labels": self.labels.to(torch.int16)},
            {
                "classes": json.dumps(self.classes),
                "scale": repr(self.scale),
                "size": str(self.size),
                "image_scale": str(self.image_scale),
            },
        )
        write_atomically(folder / FILE, data)

    @staticmethod
    def load(folder: Path) -> "LatentBank":
        """Return the bank that ``save`` wrote into ``folder``.

        Raises
        ------
        ValueError
            The file is no such bank, or not a whole one.
        """
        file = Place(str(folder)).file(FILE)
        try:
            if file is None:
                raise FileNotFoundError("it is missing")
            return _read(file)
        except (SafetensorError, ArithmeticError, LookupError, OSError, TypeError, ValueError) as e:
            raise ValueError(
                f"prior.path {str(folder)!r} must hold a {FILE} that feddgm-pretrain wrote, and it"
                f" cannot be used: {one_line(e)}; fetch it anew, or run feddgm-pretrain"
            ) from e


def _read(path: Path) -> LatentBank:
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        lacking = [n for n in ("classes", "scale") if n not in about]
        lacking += sorted({"codes", "labels"} - set(file.keys()))
        if lacking:
            raise ValueError(f"it has no {' and no '.join(lacking)}")
        codes, labels = file.get_tensor("codes"), file.get_tensor("labels").long()
    classes, scale = json.loads(about["classes"]), float(about["scale"])
    # Banks that were made by training have neither.
    size, image_scale = (int(about.get(n, "0")) for n in ("size", "image_scale"))
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ValueError("its classes are not names")
    if codes.dtype != torch.uint8 or codes.ndim != 4 or codes.shape[2] != codes.shape[3]:
        raise ValueError(f"its codes are {codes.dtype} of shape {(*codes.shape,)}")
    if labels.shape != codes.shape[:1] or not len(labels):
        raise ValueError(f"it has {len(codes)} codes and {len(labels)} labels")
    if not math.isfinite(scale) or scale <= 0:
        raise ValueError(f"its scale is {scale}")
    if labels.min() < 0 or labels.max() >= len(classes):
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"it has labels from {span} for {len(classes)} classes")
    bare = [c for i, c in enumerate(classes) if not (labels == i).any()]
    if bare:
        raise ValueError(f"its class {bare[0]!r} has no latent")
    return LatentBank(codes, scale, labels, tuple(classes), size, image_scale)


def match_classes(wanted: tuple[str, ...], known: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the index in ``known`` of each wanted class, or None if one is missing."""
    index = {name: i for i, name in enumerate(known)}
    found = [index.get(name, index.get(name.split(" - ")[0].strip())) for name in wanted]
    return None if None in found else tuple(i for i in found if i is not None)


def _neighbours(latents: Float[Tensor, "m c h w"]) -> Int[Tensor, "m k"]:
    flat = latents.flatten(1)
    distance = torch.cdist(flat, flat)
    return distance.topk(min(NEIGHBOURS + 1, len(flat)), largest=False).indices[:, 1:]


def _between(
    own: Float[Tensor, "m c h w"], near: Int[Tensor, "m k"], rng: torch.Generator
) -> Float[Tensor, "c h w"]:
    first = int(torch.randint(len(own), (), generator=rng))
    step = MIX * torch.rand((), generator=rng)
    if not near.shape[1]:
        return own[first]
    second = int(near[first, torch.randint(near.shape[1], (), generator=rng)])
    return torch.lerp(own[first], own[second], step)
