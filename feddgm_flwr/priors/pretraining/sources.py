"""Where pretraining images come from: fonts, or a folder of public images.

A source draws a labelled batch for a generator; the same generator gives the same
batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from feddgm_flwr.core.params import fingerprint
from feddgm_flwr.data.names import files_under, folders_in, plain, wrong_names
from feddgm_flwr.data.pictures import read_picture
from feddgm_flwr.priors.pretraining.fonts import CLASSES, GREEK, Masters, masters
from feddgm_flwr.priors.pretraining.ink import Hand, draw


@runtime_checkable
class Source(Protocol):
    """Labelled images without end."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        ...

    @property
    def bank_shares(self) -> tuple[float, ...]:
        """How much room each class gets in the prior's bank; sums to 1."""
        ...

    @property
    def fingerprint(self) -> str:
        """Digits that change with any of its pictures; "" where these come with the code."""
        ...

    def labels(self, n: int, *, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Return the labels of a training batch."""
        ...

    def images(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return one image in [0, 1] for each label."""
        ...


@dataclass(frozen=True)
class GlyphSource:
    """Characters of the fonts that matplotlib ships, drawn by ``hand``."""

    size: int
    hand: Hand = field(default_factory=Hand)
    masters: Masters = field(default_factory=masters)
    classes: tuple[str, ...] = CLASSES

    @property
    def fingerprint(self) -> str:
        """Nothing: the fonts come with matplotlib."""
        return ""

    @property
    def bank_shares(self) -> tuple[float, ...]:
        """Digits get four times the room of a letter."""
        return _normalised([4.0 if name.isdigit() else 1.0 for name in self.classes])

    def labels(self, n: int, *, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Return as many digits as capitals, small letters and Greek letters."""
        groups = [_group(name) for name in self.classes]
        weights = torch.tensor([1 / groups.count(group) for group in groups])
        return torch.multinomial(weights, n, replacement=True, generator=rng)

    def images(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n 1 h w"]:
        """Return a drawing of each label in a random font."""
        picks = [
            pick_any(torch.nonzero(self.masters.labels == label)[:, 0], rng) for label in labels
        ]
        index = torch.stack(picks)
        return draw(
            self.masters.outline[index], self.masters.skeleton[index], self.size,
            self.hand, rng=rng,
        )  # fmt: skip


def _group(name: str) -> str:
    if name.isdigit():
        return "digit"
    return "greek" if name in GREEK else "upper" if name.isupper() else "lower"


def pick_any(choices: Int[Tensor, " k"], rng: torch.Generator) -> Int[Tensor, ""]:
    """Return one of ``choices``."""
    return choices[torch.randint(len(choices), (), generator=rng)]


@dataclass(frozen=True)
class FolderSource:
    """Images of a folder with one folder a class, slightly shifted and zoomed."""

    pixels: Tensor
    """uint8, n c h w."""
    targets: Int[Tensor, " n"]
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Of the pictures and their classes."""
        return fingerprint({"pixels": self.pixels, "targets": self.targets})

    @property
    def bank_shares(self) -> tuple[float, ...]:
        """Every class gets the same room."""
        return _normalised([1.0] * len(self.classes))

    def labels(self, n: int, *, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Return labels, every class as likely."""
        return torch.randint(len(self.classes), (n,), generator=rng)

    def images(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return an image of each label."""
        picks = [pick_any(torch.nonzero(self.targets == one)[:, 0], rng) for one in labels]
        images = self.pixels[torch.stack(picks)].float() / 255
        zoom = torch.empty(len(labels)).uniform_(0.9, 1.0, generator=rng)
        shift = torch.empty(len(labels), 2).uniform_(-1, 1, generator=rng)
        theta = torch.zeros(len(labels), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = zoom
        theta[:, :, 2] = shift * (1 - zoom)[:, None]
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(
            images, grid, padding_mode="border", align_corners=False
        ).clamp(0, 1)


def read_folder(folder: Path, *, channels: int, size: int) -> FolderSource:
    """Return the images of ``folder/<class>/**``, read as clients read theirs.

    Raises
    ------
    ValueError
        The folder holds no class with an image, or a file that is none.
    """
    names, files = list_folder(folder)
    pixels = np.empty((len(files), channels, size, size), np.uint8)
    for row, (path, _) in enumerate(files):
        picture = read_picture(path, channels=channels, size=size)
        pixels[row] = picture.pixels.transpose(2, 0, 1)
    targets = torch.tensor([label for _, label in files])
    return FolderSource(torch.from_numpy(pixels), targets, names)


def list_folder(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Return the classes of ``folder/<class>/**``, and its files with their labels.

    Raises
    ------
    ValueError
        It cannot be listed, or a class has no file.
    """
    try:
        homes = folders_in(folder)
        names = tuple(plain(home.name) for home in homes)
        files = [(path, label) for label, home in enumerate(homes) for path in files_under(home)]
    except OSError as error:
        raise ValueError(
            f"--images {folder} must be a folder that can be read, got: {error.strerror}; "
            "correct it or allow it to be read"
        ) from error
    if said := wrong_names(names):
        raise ValueError(f"folders of --images {folder} must {said}; rename or join them")
    if len({label for _, label in files}) != len(names) or not names:
        raise ValueError(
            f"--images {folder} must hold one folder a class with at least one image in"
            f" each, found classes {list(names)} with {len(files)} images; add images"
            " or remove empty folders"
        )
    return names, files


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights)
