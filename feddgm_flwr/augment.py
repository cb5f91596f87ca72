"""Differentiable siamese augmentation (DSA; Zhao & Bilen 2021) of images in [0, 1].

The order is fixed, whatever the order of the names: colour, then one geometric map (crop, flip,
scale, rotate), then cutout; so an image is resampled once at most. Strengths are DSA's, with the
brightness restated for images that are not yet normalised. Values may leave [0, 1]: clamping
would cut the gradient. Axes: ``n c h w`` images; ``m`` draws of a parameter, one an image or one
for all. Pure: knows no model, no data set and no global randomness.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from feddgm_flwr.config import check_augment

BRIGHTNESS = 0.25
"""Width of the uniform shift: DSA's 1.0 on images of unit deviation, at a deviation of 0.25."""
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


def augment(
    images: Float[Tensor, "n c h w"],
    names: str,
    *,
    rng: torch.Generator,
    siamese: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Return randomly augmented images, differentiable in ``images``.

    Parameters
    ----------
    names
        Joined by ``_``, of color, crop, cutout, flip, scale, rotate; "" returns ``images``.
    rng
        On the CPU; its draws do not depend on the images' device or precision.
    siamese
        One draw for all images instead of one each.
    """
    if not names:
        return images
    check_augment("augment", names)
    chosen = set(names.split("_"))
    draws = 1 if siamese else len(images)

    def draw(count: int) -> Tensor:
        return torch.rand(count, draws, generator=rng).to(images)

    if "color" in chosen:
        images = _color(images, draw(3))
    # Absent operations still have a value: the one that changes nothing.
    still = torch.full((2, draws), 0.5).to(images)
    shift = draw(2) if "crop" in chosen else still
    flip = draw(1)[0] < 0.5 if "flip" in chosen else still[0] < 0
    if chosen & {"scale", "rotate"}:
        scale = draw(2) if "scale" in chosen else still
        angle = draw(1)[0] if "rotate" in chosen else still[0]
        images = _warp(images, _matrix(shift, flip, scale, angle))
    else:
        images = _flip(images, flip) if "flip" in chosen else images
        images = _shift(images, shift) if "crop" in chosen else images
    return images * _cutout(images, draw(2)) if "cutout" in chosen else images


def _color(images: Float[Tensor, "n c h w"], u: Float[Tensor, "3 m"]) -> Tensor:
    """Shift the brightness, then scale the distance from grey, then from the mean."""
    brightness, saturation, contrast = u[:, :, None, None, None]
    images = images + (brightness - 0.5) * BRIGHTNESS
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (saturation * SATURATION)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + CONTRAST)


def _pixels(u: Float[Tensor, "2 m"], side: int) -> Float[Tensor, "2 m"]:
    """Return whole-pixel shifts of at most ``CROP`` of the side."""
    most = int(side * CROP + 0.5)
    return (u * (2 * most + 1)).floor().clamp_max(2 * most) - most


def _matrix(
    shift: Float[Tensor, "2 m"],
    flip: Tensor,
    scale: Float[Tensor, "2 m"],
    angle: Float[Tensor, " m"],
) -> tuple[Tensor, Tensor]:
    """Return the linear part that takes output to input coordinates, and the raw shift."""
    radians = (2 * angle - 1) * math.radians(ROTATE_DEGREES)
    factor = SCALE ** (2 * scale - 1)
    cos, sin = radians.cos(), radians.sin()
    mirror = 1 - 2 * flip.to(factor)
    rows = [mirror * factor[0] * cos, -mirror * factor[0] * sin, factor[1] * sin, factor[1] * cos]
    return torch.stack(rows, 1).view(-1, 2, 2), shift


def _warp(
    images: Float[Tensor, "n c h w"], matrix: tuple[Tensor, Tensor]
) -> Float[Tensor, "n c h w"]:
    """Resample once under the composed map; beyond the border there is zero."""
    linear, shift = matrix
    side = images.shape[-1]
    offset = _pixels(shift, side).T[:, :, None] * (2 / side)
    theta = torch.cat([linear, offset], 2)
    grid = affine_grid(theta, [len(theta), *images.shape[1:]], align_corners=False)
    return grid_sample(
        images, grid.expand(len(images), -1, -1, -1), padding_mode="zeros", align_corners=False
    )


def _flip(images: Float[Tensor, "n c h w"], flip: Tensor) -> Float[Tensor, "n c h w"]:
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def _shift(images: Float[Tensor, "n c h w"], u: Float[Tensor, "2 m"]) -> Tensor:
    """Move by whole pixels; what comes in is zero."""
    n, c, h, w = images.shape
    across, down = _pixels(u, w).long()
    if u.shape[1] == 1:
        dx, dy = int(across), int(down)
        return pad(images, (-dx, dx, -dy, dy))
    most = int(w * CROP + 0.5)
    rows = (torch.arange(h, device=images.device) + most + down[:, None])[:, None, :, None]
    columns = (torch.arange(w, device=images.device) + most + across[:, None])[:, None, None, :]
    padded = pad(images, (most, most, most, most))
    padded = padded.gather(2, rows.expand(n, c, h, w + 2 * most))
    return padded.gather(3, columns.expand(n, c, h, w))


def _cutout(images: Float[Tensor, "n c h w"], u: Float[Tensor, "2 m"]) -> Tensor:
    """Return a mask that is zero on a square, which may reach over the border."""
    h, w = images.shape[2:]
    half = CUTOUT / 2
    near = [
        ((torch.arange(side).to(images) + 0.5) / side - centre[:, None]).abs() < half
        for side, centre in ((h, u[0]), (w, u[1]))
    ]
    return 1 - (near[0][:, None, :, None] & near[1][:, None, None, :]).to(images)
