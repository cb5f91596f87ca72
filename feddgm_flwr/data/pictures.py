"""The one reader of picture files, of clients and of pretraining: any file -> bytes or a sentence.

Every Pillow mode is scaled, composed on white or refused by name (the table in docs/data.md).
Axes: ``h w c`` one picture. Knows no data set and no class.
"""

import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

MAX_PIXELS = 100_000_000
"""Beyond it, decoding takes a gigabyte, which a small device has not."""
ORIENTATION = 0x0112
DRAWINGS = ("EPS", "WMF")
"""Formats that Pillow hands to other programs to draw."""
BITS, INK, SIGN = 258, 262, 339
"""Tags of a TIFF: bits a sample, meaning of zero, kind of numbers."""


class PictureError(ValueError):
    """A file that is no picture with an agreed meaning, as one sentence with its path."""


@dataclass(frozen=True)
class Picture:
    """A picture as a model gets it, and as it was.

    Attributes
    ----------
    mode
        Pillow's name of what the file holds.
    width, height
        As it is shown, so after its orientation.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    mode: str
    width: int
    height: int


def read_picture(path: Path, *, channels: int, size: int) -> Picture:
    """Return a picture as it is shown, cut to a square about its centre and resized.

    Raises
    ------
    PictureError
        It cannot be read, or nobody could say what its numbers mean.
    """
    from PIL import Image, ImageOps

    try:
        _check_file(path)
        # What libraries warn of is either refused below or of no consequence.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                _check_header(opened)
                shown, mode = _shown(opened, "L" if channels == 1 else "RGB")
            square = ImageOps.fit(shown, (size, size), Image.Resampling.BILINEAR)
    except _Refusal as refusal:
        raise PictureError(f"{str(path)!r} {refusal}") from None
    except Exception as error:  # decoders raise anything: a file's bytes may be anything
        raise PictureError(f"{str(path)!r} {_said(error)}") from error
    pixels = np.asarray(square).reshape(size, size, channels)
    return Picture(pixels, mode, shown.width, shown.height)


class _Refusal(Exception):
    """Why a file is refused, in words that follow its path."""


def _said(error: Exception) -> str:
    """Return what a decoder's error means, in words that follow a path."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return (
            "must be a picture that Pillow reads, and is none; save it as PNG or JPEG, or remove it"
        )
    if isinstance(error, Image.DecompressionBombError):
        return _too_large("more")
    if isinstance(error, PermissionError):
        return "must be readable, and its permissions forbid it; allow it to be read"
    words = " ".join(str(error).split()) or type(error).__name__
    return (
        "must be a picture that Pillow reads, and is damaged or of an unusual kind "
        f"({words[:200].removesuffix(' ')}); save it anew as PNG or JPEG, or remove it"
    )


def _too_large(got: str) -> str:
    return (
        f"must have at most {MAX_PIXELS // 10**6} million pixels, got {got}; make it smaller, or "
        "remove it"
    )


def _check_file(path: Path) -> None:
    facts = path.stat()
    if stat.S_ISDIR(facts.st_mode):
        raise _Refusal("must be a picture, and is a folder or a link to one; remove it")
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(facts.st_mode):
        raise _Refusal("must be a picture, and is no ordinary file; remove it")
    if not facts.st_size:
        raise _Refusal("must be a picture, and is empty; copy it anew, or remove it")


def _check_header(picture: "Image") -> None:
    """Judge by what the file says of itself, before a pixel is decoded."""
    if picture.format in DRAWINGS:
        raise _Refusal(
            f"must be a picture of pixels, and is a drawing ({picture.format}); save it as PNG"
        )
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _Refusal(_too_large(f"{width} x {height}"))
    if width * height == 0:
        raise _Refusal(f"must have pixels, and is {width} x {height}; remove it")
    if picture.format == "TIFF" and 2 in _tag(picture, SIGN, (1,)):
        raise _Refusal(_no_scale("signed numbers"))


def _no_scale(what: str) -> str:
    return (
        f"holds {what}, for which nobody has agreed what is black and what is white; scale it to "
        "0..255 and save it as an 8-bit PNG, or remove it"
    )


def _tag(picture: "Image", number: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = getattr(picture, "tag_v2", {}).get(number, default)
    return value if isinstance(value, tuple) else (value,)


def _shown(picture: "Image", wanted: str) -> "tuple[Image, str]":
    """Return the first frame as 8-bit ``wanted``, the right way up, and the mode it had."""
    raw = _raw_mode(picture)
    picture.load()
    mode = picture.mode
    # Asked after loading: some formats turn the picture themselves and then say so no more.
    turn = _turn(picture)
    if mode.startswith("I;16"):
        shown = _grey(_sixteen(picture), picture)
    elif mode == "I":
        shown = _grey(_whole(picture), picture)
    elif mode == "F":
        shown = _grey(_fractions(picture), picture)
    else:
        shown = _eight(picture, raw)
    if shown.mode == "RGBA":
        shown = _on_white(shown)
    shown = shown.convert(wanted)
    return (shown if turn is None else shown.transpose(turn)), mode


def _raw_mode(picture: "Image") -> str:
    """Return how a file packs its pixels, which is forgotten once it is decoded."""
    tiles = getattr(picture, "tile", [])
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _turn(picture: "Image") -> "Transpose | None":
    from PIL import Image

    try:
        orientation = picture.getexif().get(ORIENTATION)
    except Exception:  # without a readable orientation every viewer shows a picture as it is
        return None
    way = Image.Transpose
    turns = {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }
    return turns.get(orientation) if isinstance(orientation, int) else None


def _sixteen(picture: "Image") -> np.ndarray:
    """Return 16-bit values, those of 12 bits widened."""
    values = np.asarray(picture).astype(np.uint16)
    bits = _tag(picture, BITS, (16,))[0]
    if bits < 16:
        values = ((values << (16 - bits)) | (values >> (2 * bits - 16))).astype(np.uint16)
    return values


def _whole(picture: "Image") -> np.ndarray:
    """Return the values of a file whose format says that they are of 16 bits."""
    values = np.asarray(picture)
    if picture.format not in ("PNG", "PPM"):
        raise _Refusal(_no_scale("whole numbers of 32 bits (mode I)"))
    sixteen: np.ndarray = np.clip(values, 0, 65535).astype(np.uint16)
    return sixteen


def _fractions(picture: "Image") -> np.ndarray:
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    # Written so that NaN, too, is refused.
    if not (low >= 0 and high <= 1):
        raise _Refusal(_no_scale(f"fractions (mode F) beyond 0..1, from {low:g} to {high:g}"))
    return np.rint(values * np.float32(65535)).astype(np.uint16)


def _grey(values: np.ndarray, picture: "Image") -> "Image":
    """Return 16-bit values as 8-bit grey, their transparent value white."""
    from PIL import Image

    # 65535 is 255 times 257; rounded, and in 16 bits because pictures may be large.
    pixels = ((np.minimum(values, 65407) + np.uint16(128)) // np.uint16(257)).astype(np.uint8)
    # Pillow turns 8-bit TIFFs round whose zero is white, and leaves all others.
    if picture.format == "TIFF" and _tag(picture, INK, (1,))[0] == 0:
        pixels = 255 - pixels
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        pixels[values == clear] = 255
    return Image.fromarray(pixels)


def _eight(picture: "Image", raw: str) -> "Image":
    """Return an 8-bit picture as L, RGB or, where anything is transparent, RGBA."""
    if "transparency" in picture.info and picture.mode in ("1", "L", "RGB"):
        return _keyed(picture, raw)
    convert: dict[str, Callable[[Image], Image]] = {
        **dict.fromkeys(("1", "L"), lambda p: p.convert("L")),
        **dict.fromkeys(("LA", "PA", "RGBA", "RGBa"), lambda p: p.convert("RGBA")),
        "La": lambda p: p.convert("LA").convert("RGBA"),
        "P": lambda p: p.convert("RGBA"),
        **dict.fromkeys(("RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"), lambda p: p.convert("RGB")),
    }
    if picture.mode not in convert:
        raise _Refusal(_no_scale(f"pixels of the mode {picture.mode}"))
    return convert[picture.mode](picture)


def _keyed(picture: "Image", raw: str) -> "Image":
    """Return a picture in which one colour is transparent (PNG's tRNS) with that colour clear."""
    from PIL import Image

    if raw.startswith("RGB;16"):
        raise _Refusal(
            "has one transparent colour of 16 bits, which its 8-bit form cannot tell from others; "
            "save it as an 8-bit PNG"
        )
    # A file of 1, 2 or 4 bits is widened to 8 when it is read, but not its transparent value.
    wide = {"1": 255, "L;1": 255, "L;2": 85, "L;4": 17}.get(raw, 1)
    clear = picture.info["transparency"]
    pixels = np.asarray(picture.convert("RGB"))
    colour = np.asarray(clear if isinstance(clear, tuple) else (clear * wide,) * 3)
    alpha = np.where((pixels == colour).all(2), 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, alpha]))


def _on_white(picture: "Image") -> "Image":
    from PIL import Image

    ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")
