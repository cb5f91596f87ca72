"""Draw masters as a hand might: slanted, stretched, warped, with a pen of any width.

White ink on black, placed as scanned digits usually are: the longer side fills five
sevenths of the image, the centre of mass is in the middle. Pure functions of tensors
and a generator. Axes: ``n`` images, ``s`` side of a master, ``h w`` of an image.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

FILL = 20 / 28
"""Share of the image that the longer side of the ink takes."""


@dataclass(frozen=True, kw_only=True)
class Hand:
    """How far drawings may stray from the font; every range is drawn from uniformly."""

    rotation: float = 0.25
    """Radians either way."""
    shear: float = 0.4
    """Slant either way."""
    stretch: float = 0.4
    """Natural logarithm of the width-to-height change, either way."""
    warp: float = 0.22
    """Standard deviation of the elastic displacement, in half sides of a master."""
    warp_cells: int = 4
    """Control points a side of the elastic displacement."""
    pen: tuple[float, float] = (0.05, 0.12)
    """Width of the pen as a share of the image's side."""
    weight: tuple[float, float] = (-0.01, 0.03)
    """How far outlines grow, as a share of the image's side."""
    fill: tuple[float, float] = (0.9, 1.05)
    """Size of the ink against ``FILL``."""
    shift: float = 0.03
    """Displacement either way as a share of the image's side."""
    pen_share: float = 0.75
    """Share of images drawn by pen along the skeleton; the rest are outlines."""


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Float[Tensor, " n"]:
    return torch.empty(n).uniform_(low, high, generator=rng)


def draw(
    outline: Float[Tensor, "n s s"],
    skeleton: Float[Tensor, "n s s"],
    size: int,
    hand: Hand,
    *,
    rng: torch.Generator,
) -> Float[Tensor, "n 1 size size"]:
    """Return one drawing of each master."""
    n, side = len(outline), outline.shape[-1]
    pen = torch.rand(n, generator=rng) < hand.pen_share
    field = torch.where(pen[:, None, None], skeleton, outline)[:, None] / side
    affine = _affine(n, hand, rng)
    warp = hand.warp * torch.randn(n, 2, hand.warp_cells, hand.warp_cells, generator=rng)
    zoom = affine.det().abs().sqrt()
    reach = torch.where(pen, _uniform(n, *hand.pen, rng) / 2, _uniform(n, *hand.weight, rng))

    def look(centre: Float[Tensor, "n 2"], radius: Float[Tensor, " n"]) -> Tensor:
        at = centre[:, None, None] + radius[:, None, None, None] * _grid(size)
        seen = functional.grid_sample(
            field, _bend(at, affine, warp), padding_mode="border", align_corners=False
        )
        # A master's distance counts 1/zoom in the drawing, and 1/radius in the image.
        seen = seen / (zoom * radius)[:, None, None, None]
        edge = (reach[:, None, None, None] - seen) * size
        return (edge + 0.5).clamp(0, 1)

    start = look(torch.zeros(n, 2), torch.full((n,), 1.6))
    centre, extent = _placement(start)
    fill = FILL * _uniform(n, *hand.fill, rng)
    jitter = torch.empty(n, 2).uniform_(-hand.shift, hand.shift, generator=rng)
    radius = 1.6 * extent / fill
    return look(1.6 * centre + 2 * jitter * radius[:, None], radius)


def _affine(n: int, hand: Hand, rng: torch.Generator) -> Float[Tensor, "n 2 2"]:
    angle = _uniform(n, -hand.rotation, hand.rotation, rng)
    shear = _uniform(n, -hand.shear, hand.shear, rng)
    stretch = _uniform(n, -hand.stretch, hand.stretch, rng).exp().sqrt()
    zero, one = torch.zeros(n), torch.ones(n)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    slant = torch.stack([one, shear, zero, one], 1)
    scale = torch.stack([stretch, zero, zero, 1 / stretch], 1)
    shape = (n, 2, 2)
    return turn.view(shape) @ slant.view(shape) @ scale.view(shape)


def _grid(size: int) -> Float[Tensor, "size size 2"]:
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1)


def _bend(
    at: Float[Tensor, "n h w 2"],
    affine: Float[Tensor, "n 2 2"],
    warp: Float[Tensor, "n 2 g g"],
) -> Float[Tensor, "n h w 2"]:
    """Return where in the master each place of the drawing looks."""
    smooth = functional.interpolate(warp, scale_factor=4, mode="bicubic", align_corners=True)
    shift = functional.grid_sample(smooth, at / 1.6, padding_mode="border", align_corners=False)
    return torch.einsum("nij,nhwj->nhwi", affine, at) + shift.permute(0, 2, 3, 1)


def _placement(
    ink: Float[Tensor, "n 1 h w"],
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Return the centre of mass, and half the longer side of the ink's box."""
    ink, grid = ink[:, 0], _grid(ink.shape[-1])
    mass = ink.sum((1, 2)).clamp(min=1e-6)
    centre = torch.einsum("nhw,hwd->nd", ink, grid) / mass[:, None]
    extents = []
    for dim in (1, 2):
        line = grid[0, :, 0]
        on = ink.amax(dim) > 0.3
        high = torch.where(on, line, -1).amax(1)
        low = torch.where(on, line, 1).amin(1)
        extents.append((high - low) / 2 + 1 / ink.shape[-1])
    return centre, torch.stack(extents).amax(0).clamp(0.05, 1)
