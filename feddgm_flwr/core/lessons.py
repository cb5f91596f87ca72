"""Pictures that a larger model is asked about while it listens to the surrogate and the replies.

What others know can only be heard where they are asked, and a few distilled images ask little. So
every step makes its pictures anew, of two kinds: given images (the union's, the prior's) under a
random augmentation, half of them mixed by mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899);
and **dead leaves**, discs and rectangles of all sizes that cover one another, with textures whose
spectrum falls as that of photographs, which need no data and from which even whole features can be
learned (arXiv 2106.05963). That few images, shown in ever new ways, carry over most of what a
teacher knows is arXiv 2112.00725's.

Draws come from the caller's generator, on the CPU; pictures are made on the device that is asked
for. Knows no model. Axes: ``n`` images, ``c h w`` one image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from feddgm_flwr.core.augment import augment, fitting
from feddgm_flwr.core.images import ImageSpec

AUGMENT = "crop_flip_scale_rotate"
"""How given images are seen."""
LEAVES = 24
"""Leaves that fall on a picture."""
SMALLEST, LARGEST = 0.04, 0.5
"""Radius of a leaf, as a fraction of the side; small ones are the more frequent."""
SLOPES = (0.5, 3.0)
"""Exponents of the spectrum: amplitude falls with frequency to this power; photographs have 1."""

Pictures = Callable[[int, torch.Generator], Tensor]
"""``pictures(n, rng)``: so many, on the device where they are shown."""


@dataclass(frozen=True)
class Lessons:
    """Makes pictures; a ``Pictures``.

    Attributes
    ----------
    pools
        Given images, a pool for each kind, on the device where they are shown; of each as many.
    leaves
        Share of dead leaves among the pictures.
    """

    pools: tuple[Float[Tensor, "_ c h w"], ...]
    spec: ImageSpec
    leaves: float

    def __call__(self, n: int, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return ``n`` pictures."""
        fallen = round(self.leaves * n)
        shares = [(n - fallen + i) // len(self.pools) for i in range(len(self.pools))]
        made = [self._seen(p, k, rng) for p, k in zip(self.pools, shares, strict=True) if k]
        if fallen:
            made.append(dead_leaves(fallen, self.spec, rng=rng, device=self.pools[0].device))
        return torch.cat(made)

    def _seen(self, pool: Tensor, n: int, rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pool), (n,), generator=rng).to(pool.device)
        alone, paired = torch.tensor_split(pool[chosen], (n // 2,))
        names = fitting(AUGMENT, flip=self.spec.flip)
        return augment(torch.cat([alone, mixed(paired, rng=rng)]), names, rng=rng)


def mixed(images: Float[Tensor, "n c h w"], *, rng: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return each image mixed with another: their mean by a random share, or a box of the other."""
    n, side = len(images), images.shape[-1]
    others = images[torch.randperm(n, generator=rng).to(images.device)]
    u = torch.rand(6, n, generator=rng).to(images)
    share = u[0, :, None, None, None]
    places = (torch.arange(side, device=images.device) + 0.5) / side
    across, down = (_between(places, *u[i : i + 2]) for i in (1, 3))
    box = (down[:, :, None] & across[:, None, :])[:, None]
    blended = images.lerp(others, share)
    return torch.where(u[5, :, None, None, None] < 0.5, blended, torch.where(box, others, images))


def _between(
    places: Float[Tensor, " side"], start: Float[Tensor, " n"], length: Float[Tensor, " n"]
) -> Tensor:
    return (places >= start[:, None]) & (places < (start + length)[:, None])


def dead_leaves(
    n: int, spec: ImageSpec, *, rng: torch.Generator, device: torch.device
) -> Float[Tensor, "n c h w"]:
    """Return textured leaves on textured ground, in [0, 1]."""
    u = torch.rand(6, LEAVES + 1, n, 1, 1, generator=rng).to(device)
    colours = torch.rand(LEAVES + 1, n, spec.channels, generator=rng).to(device)
    grey, strength = (torch.rand(LEAVES + 1, n, 1, generator=rng).to(device) for _ in range(2))
    colours = colours.lerp(colours.mean(2, keepdim=True), grey)
    texture = waves(n, spec, rng=rng, device=device)

    covered = _inside(u, (torch.arange(spec.size, device=device) + 0.5) / spec.size)
    covered[0] = True  # the ground
    number = torch.arange(LEAVES + 1, device=device)
    top = (covered * number[:, None, None, None]).amax(0)
    picture = torch.arange(n, device=device)[:, None, None]
    rows = torch.arange(spec.size, device=device)
    # Each leaf has the texture of another picture of the batch.
    textures = texture[(picture + top) % n, :, rows[:, None], rows]
    seen = colours[top, picture] + 0.25 * strength[top, picture] * textures
    return seen.permute(0, 3, 1, 2).clamp(0, 1).contiguous()


def _inside(
    u: Float[Tensor, "6 m n 1 1"], places: Float[Tensor, " side"]
) -> Bool[Tensor, "m n side side"]:
    """Return where each leaf lies: a disc or a rectangle, stretched and turned."""
    radius = SMALLEST * (LARGEST / SMALLEST) ** (u[0] ** 1.5)
    x, y = places - (1.2 * u[1] - 0.1), places[:, None] - (1.2 * u[2] - 0.1)
    angle, stretch = math.pi * u[3], ((u[4] - 0.5) * 1.6).exp()
    along = (x * angle.cos() + y * angle.sin()) / (radius * stretch)
    across = (y * angle.cos() - x * angle.sin()) / (radius / stretch)
    rectangle = torch.maximum(along.abs(), across.abs()) < 1
    return torch.where(u[5] < 0.5, rectangle, along.hypot(across) < 1)


def waves(
    n: int, spec: ImageSpec, *, rng: torch.Generator, device: torch.device
) -> Float[Tensor, "n c h w"]:
    """Return noise of mean 0 and deviation 1 whose spectrum falls as a power of the frequency."""
    side, shape = spec.size, (n, spec.channels, spec.size, spec.size)
    noise = torch.randn(shape, generator=rng).to(device)
    u = torch.rand(2, n, 1, 1, 1, generator=rng).to(device)
    slope = SLOPES[0] + (SLOPES[1] - SLOPES[0]) * u[0]
    down = torch.fft.fftfreq(side, device=device)[:, None]
    frequency = down.hypot(torch.fft.rfftfreq(side, device=device)).clamp_min(1 / side)
    images: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * frequency**-slope, s=(side, side))
    images = images - images.mean((2, 3), keepdim=True)
    images = images / images.square().mean((1, 2, 3), keepdim=True).sqrt()
    return images.lerp(images.mean(1, keepdim=True), u[1])
