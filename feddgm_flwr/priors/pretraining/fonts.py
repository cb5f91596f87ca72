"""Letters and digits of the fonts that matplotlib ships, as distance fields.

Each character becomes two *masters*: the signed distance to its outline (a printed
letter, thicker or thinner by a threshold) and the distance to its skeleton (what a pen
of any width would draw). Knows no data set; fonts are all it reads. Axes: ``m``
masters, ``s`` side of a master.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

SIDE = 64
"""Side of a master in pixels."""
BODY = 44
"""Longer side of the character within it."""

FULL_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSansMono-Bold",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta",
)  # fmt: skip
LATIN_FONTS = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10")
"""Fonts in TeX's encodings: only letters and digits stand at their usual places."""

WRITTEN_FORMS = {
    "0": "Oo",
    "1": "|l",
    "2": "Ƨ",
    "3": "ƷЗзʒ",
    "4": "Чч",
    "6": "бb",
    "7": "⁊",
    "8": "Ȣȣ",
    "9": "q",
}
"""Printed characters shaped as many hands write a digit: an open 4, a bare 1, ..."""

SLASHED_ZERO = ("DejaVuSansMono",)
"""Fonts whose zero is marked, as no hand writes it."""

GREEK = tuple(
    chr(code) for first in ("Α", "α") for code in range(ord(first), ord(first) + 25)
    if chr(code) not in "΢ς"
)  # fmt: skip
CLASSES = (*digits, *ascii_uppercase, *ascii_lowercase, *GREEK)
"""Class names: the characters themselves."""


@dataclass(frozen=True)
class Masters:
    """Characters ready to be drawn.

    Attributes
    ----------
    outline
        Signed distance to the outline in master pixels, negative in the ink.
    skeleton
        Distance to the skeleton in master pixels.
    labels
        Index into ``CLASSES``.
    """

    outline: Float[Tensor, "m s s"]
    skeleton: Float[Tensor, "m s s"]
    labels: Int[Tensor, " m"]


@cache
def masters() -> Masters:
    """Return the masters of every character in every font that has it."""
    drawn = [(ink, label) for ink, label in _characters() if ink.any()]
    ink = np.stack([ink for ink, _ in drawn])
    return Masters(
        outline=torch.stack([_signed_distance(one) for one in ink]),
        skeleton=torch.stack([_distance(one) for one in thin(ink)]),
        labels=torch.tensor([label for _, label in drawn]),
    )


def _characters() -> Iterator[tuple[Bool[np.ndarray, "s s"], int]]:
    for font in FULL_FONTS + LATIN_FONTS:
        for label, name in enumerate(CLASSES):
            for character in _forms(name, font):
                ink = rasterise(font, character)
                if ink is not None:
                    yield ink, label


def _forms(name: str, font: str) -> Iterable[str]:
    """Return the characters that stand for class ``name`` in ``font``."""
    if font in LATIN_FONTS:
        return name if name.isascii() else ""
    plain = "" if name == "0" and font.startswith(SLASHED_ZERO) else name
    return plain + WRITTEN_FORMS.get(name, "")


def rasterise(font: str, character: str) -> Bool[np.ndarray, "s s"] | None:
    """Return the ink of ``character``, centred, or None where the font lacks it."""
    import matplotlib as mpl
    from matplotlib.ft2font import FT2Font

    face = FT2Font(str(Path(mpl.get_data_path(), "fonts", "ttf", f"{font}.ttf")))
    if ord(character) not in face.get_charmap():
        return None
    points = 60.0
    for _ in range(2):  # once to learn how large it comes out, once as large as wanted
        face.set_size(points, 72)
        face.set_text(character)
        face.draw_glyphs_to_bitmap(antialiased=True)
        ink = _cropped(np.asarray(face.get_image()) > 127)
        if not ink.size:
            return None
        points *= BODY / max(ink.shape)
    ink = ink[:SIDE, :SIDE]
    canvas = np.zeros((SIDE, SIDE), dtype=bool)
    top, left = (SIDE - ink.shape[0]) // 2, (SIDE - ink.shape[1]) // 2
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


def _cropped(ink: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h2 w2"]:
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return ink[:0, :0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def thin(ink: Bool[np.ndarray, "m s s"]) -> Bool[np.ndarray, "m s s"]:
    """Return one-pixel skeletons (the two-pass thinning of Zhang and Suen, 1984)."""
    ink = ink.copy()
    while True:
        before = ink.sum()
        for first in (True, False):
            ink &= ~_removable(ink, first=first)
        if ink.sum() == before:
            return ink


def _removable(ink: Bool[np.ndarray, "m s s"], *, first: bool) -> Bool[np.ndarray, "m s s"]:
    ring = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    near = [np.roll(ink, (-dy, -dx), axis=(1, 2)) for dy, dx in ring]
    count = sum(n.astype(np.int8) for n in near)
    after = [*near[1:], near[0]]
    turns = sum((~a & b).astype(np.int8) for a, b in zip(near, after, strict=True))
    north, east, south, west = near[0], near[2], near[4], near[6]
    if first:
        edge = ~(north & east & south) & ~(east & south & west)
    else:
        edge = ~(north & east & west) & ~(north & south & west)
    removable: np.ndarray = ink & (count >= 2) & (count <= 6) & (turns == 1) & edge
    return removable


def _signed_distance(ink: Bool[np.ndarray, "s s"]) -> Float[Tensor, "s s"]:
    inside, outside = distance_transform_edt(ink), distance_transform_edt(~ink)
    return torch.from_numpy(outside - inside).float()


def _distance(ink: Bool[np.ndarray, "s s"]) -> Float[Tensor, "s s"]:
    return torch.from_numpy(distance_transform_edt(~ink)).float()
