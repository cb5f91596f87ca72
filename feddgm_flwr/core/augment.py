"""Differentiable siamese augmentation (DSA; Zhao & Bilen 2021) of images in [0, 1], in two schemes.

Ours applies all named operations. The order is fixed, whatever the order of the names:
colour, then one geometric map (crop, flip, scale, rotate), then cutout; so an image is
resampled once at most. Strengths are DSA's, with the brightness restated for images that are
not yet normalised; what comes in is black.

Names after ``one:`` ask for the authors' scheme, as their code has it: one operation of the named
is drawn a call, for all its images, on normalised images, so that what comes in is the mean.
docs/paper_map.md lists what still differs.

Values may leave [0, 1]: clamping would cut the gradient. Axes: ``n c h w`` images; ``m`` draws of a
parameter, one an image or one for all. Pure: knows no model, no data set and no global randomness.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from feddgm_flwr.core.settings import Words, check

BRIGHTNESS = 0.25
"""Width of the uniform shift: DSA's 1.0 at unit deviation, for a deviation of 0.25."""
ONE_BRIGHTNESS = 1.0
"""The same on normalised images, as DSA states it."""
SATURATION = 2.0
"""Largest factor on the distance from grey; the smallest is 0."""
CONTRAST = 0.5
"""Smallest factor on the distance from the image's mean; the largest is one more."""
CROP = 0.125
"""Largest shift, as a fraction of the side."""
CUTOUT = 0.5
"""Side of the square cut out, as a fraction of the image's."""
SCALE = 1.2
"""Largest factor on a side, each side by itself; the smallest is its inverse."""
ROTATE_DEGREES = 15.0
"""Largest angle either way."""

DRAWS = {"color": 3, "crop": 2, "flip": 1, "scale": 2, "rotate": 1, "cutout": 2}
"""Uniform numbers that each operation takes, in the order of drawing."""

ALL_NAMES = "color_crop_cutout_flip_scale_rotate"

ONE = "one:"
"""Before the names: one of them a call, the authors' scheme."""

PAPER = ONE + ALL_NAMES
"""What the authors' code asks for, everywhere."""

NAMES = Words(
    fit=lambda value: not value or set(value.removeprefix(ONE).split("_")) <= set(DRAWS),
    expected=f"\"\" or names of {tuple(sorted(DRAWS))} joined by '_', after '{ONE}' or not",
)


@dataclass(frozen=True)
class Pixels:
    """How a data set's images are normalised, which the authors' scheme works on.

    Attributes
    ----------
    mean, std
        Per channel.
    """

    mean: Float[Tensor, "1 c 1 1"]
    std: Float[Tensor, "1 c 1 1"]

    @staticmethod
    def of(mean: tuple[float, ...], std: tuple[float, ...]) -> "Pixels":
        """Return them of one number a channel."""
        return Pixels(*(torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std)))


def fitting(names: str, *, flip: bool) -> str:
    """Return the augmentations less the mirror, where a mirrored image changes its class."""
    scheme = ONE if names.startswith(ONE) else ""
    kept = [n for n in names.removeprefix(ONE).split("_") if flip or n != "flip"]
    return scheme + "_".join(kept) if kept else ""


def is_siamese(names: str) -> bool:
    """Return whether distillation draws once for all images: ours does, the authors' does not."""
    return not names.startswith(ONE)


def augment(
    images: Float[Tensor, "n c h w"],
    names: str,
    *,
    rng: torch.Generator,
    siamese: bool = False,
    pixels: Pixels | None = None,
) -> Float[Tensor, "n c h w"]:
    """Return randomly augmented images, differentiable in ``images`` to any order.

    Parameters
    ----------
    names
        Of color, crop, cutout, flip, scale, rotate, joined by ``_``, and after ``one:`` in
        the authors' scheme; "" returns ``images`` themselves.
    rng
        On the CPU; its draws do not depend on the images' device or precision.
    siamese
        One draw for all images instead of one each.
    pixels
        Read in the authors' scheme alone; None takes the images as normalised already.
    """
    if not names:
        return images
    check(NAMES.fit(names), "augment", names, NAMES.expected)
    chosen = names.removeprefix(ONE).split("_")
    count = 1 if siamese else len(images)
    if names.startswith(ONE):
        return _one(images, sorted(chosen, key=[*DRAWS].index), rng, count, pixels)
    u = {
        name: torch.rand(numbers, count, generator=rng)
        for name, numbers in DRAWS.items()
        if name in chosen
    }
    if "color" in u:
        images = _color(images, u["color"].to(images))
    images = _geometry(images, u)
    if "cutout" in u:
        images = images * _cutout(u["cutout"], images.shape[-1]).to(images)
    return images


def _one(
    images: Float[Tensor, "n c h w"],
    names: list[str],
    rng: torch.Generator,
    count: int,
    pixels: Pixels | None,
) -> Float[Tensor, "n c h w"]:
    """Return the images under one operation of ``names``, drawn, on normalised images."""
    name = names[int(torch.randint(len(names), (), generator=rng))]
    u = torch.rand(DRAWS[name], count, generator=rng)
    mean, std = (pixels.mean.to(images), pixels.std.to(images)) if pixels else (0.0, 1.0)
    images, side = (images - mean) / std, images.shape[-1]
    match name:
        case "color":
            images = _color(images, u.to(images), ONE_BRIGHTNESS)
        case "cutout":
            images = images * _square(u, side).to(images)
        case "scale":
            # Uniform between the inverse and the factor, where ours is so in the logarithm.
            factor = u * (SCALE - 1 / SCALE) + 1 / SCALE
            images = _warp(images, factor.t()[:, :, None] * torch.eye(2, 3))
        case _:
            images = _geometry(images, {name: u})
    return images * std + mean


def _color(
    images: Float[Tensor, "n c h w"], u: Float[Tensor, "3 m"], width: float = BRIGHTNESS
) -> Float[Tensor, "n c h w"]:
    """Shift the brightness, then scale the distance from grey, then from the mean."""
    brightness, saturation, contrast = u[:, :, None, None, None].unbind()
    images = images + (brightness - 0.5) * width
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (saturation * SATURATION)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + CONTRAST)


def _geometry(images: Float[Tensor, "n c h w"], u: dict[str, Tensor]) -> Float[Tensor, "n c h w"]:
    """Crop and flip by index where that is all there is, else by one affine map."""
    side = images.shape[-1]
    shift = _pixels(u["crop"], side) if "crop" in u else None
    flip = u["flip"][0] < 0.5 if "flip" in u else None
    if "scale" in u or "rotate" in u:
        return _warp(images, _affine(shift, flip, u, side))
    if flip is not None:
        images = torch.where(flip.to(images.device)[:, None, None, None], images.flip(3), images)
    return images if shift is None else _shift(images, shift)


def _pixels(u: Float[Tensor, "2 m"], side: int) -> Int[Tensor, "2 m"]:
    """Return whole-pixel shifts of at most ``CROP`` of the side."""
    most = _most(side)
    return (u * (2 * most + 1)).long().clamp_max(2 * most) - most


def _most(side: int) -> int:
    return int(side * CROP + 0.5)


def _affine(
    shift: Int[Tensor, "2 m"] | None,
    flip: Bool[Tensor, " m"] | None,
    u: dict[str, Tensor],
    side: int,
) -> Float[Tensor, "m 2 3"]:
    """Return the map from output to input coordinates, both in [-1, 1]."""
    # Half is the draw that changes nothing.
    half = torch.full_like(next(iter(u.values()))[:1], 0.5).expand(2, -1)
    across, down = SCALE ** (2 * u.get("scale", half) - 1)
    angle = (2 * u.get("rotate", half)[0] - 1) * math.radians(ROTATE_DEGREES)
    cos, sin = angle.cos(), angle.sin()
    mirror = torch.ones_like(cos) if flip is None else 1 - 2 * flip.float()
    dx, dy = half * 0 if shift is None else shift * (2 / side)
    rows = [
        mirror * across * cos,
        -mirror * across * sin,
        dx,
        down * sin,
        down * cos,
        dy,
    ]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _warp(
    images: Float[Tensor, "n c h w"], theta: Float[Tensor, "m 2 3"]
) -> Float[Tensor, "n c h w"]:
    """Resample under an affine map; beyond the border there is zero."""
    theta = theta.to(images)
    grid = affine_grid(theta, [len(theta), *images.shape[1:]], align_corners=False)
    grid = grid.expand(len(images), -1, -1, -1)
    return grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _shift(images: Float[Tensor, "n c h w"], shift: Int[Tensor, "2 m"]) -> Float[Tensor, "n c h w"]:
    """Move by whole pixels; what comes in is zero."""
    if shift.shape[1] == 1:
        dx, dy = shift[:, 0].tolist()
        return pad(images, (-dx, dx, -dy, dy))
    n, c, h, w = images.shape
    most = _most(w)
    across, down = (shift + most).to(images.device)[:, :, None]
    rows = torch.arange(h, device=images.device) + down
    columns = torch.arange(w, device=images.device) + across
    wide = pad(images, (most, most, most, most))
    wide = wide.gather(2, rows[:, None, :, None].expand(n, c, h, w + 2 * most))
    return wide.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def _cutout(u: Float[Tensor, "2 m"], side: int) -> Bool[Tensor, "m 1 h w"]:
    """Return what remains outside a square, which may reach over the border."""
    places = (torch.arange(side) + 0.5) / side
    inside = (places - u[:, :, None]).abs() < CUTOUT / 2
    return ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


def _square(u: Float[Tensor, "2 m"], side: int) -> Bool[Tensor, "m 1 h w"]:
    """Return what remains outside a square of whole pixels, centred anywhere in the image."""
    size = int(side * CUTOUT + 0.5)
    places = side + 1 - size % 2
    first = (u * places).long().clamp_max(places - 1) - size // 2
    inside = (torch.arange(side) - first[:, :, None] + 0.5 - size / 2).abs() < size / 2
    return ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
