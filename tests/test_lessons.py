"""Pictures made for those who listen: of which kinds, how many, and the same from the same seed."""

import dataclasses

import pytest
import torch

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.lessons import Lessons, dead_leaves, mixed, waves
from feddgm_flwr.core.seeding import derive

CPU = torch.device("cpu")
SPEC = ImageSpec(3, 16, ("a", "b"), (0.5,) * 3, (0.25,) * 3, flip=True)
GREY = dataclasses.replace(SPEC, channels=1, mean=(0.5,), std=(0.25,), flip=False)


def rng(seed=0):
    return derive(seed, "pictures")


@pytest.mark.parametrize("spec", [SPEC, GREY])
def test_dead_leaves_are_pictures_and_no_two_alike(spec):
    made = dead_leaves(40, spec, rng=rng(), device=CPU)
    assert made.shape == (40, spec.channels, 16, 16)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert len({tuple(image.flatten().tolist()) for image in made}) == 40
    assert torch.equal(made, dead_leaves(40, spec, rng=rng(), device=CPU))
    assert not torch.equal(made, dead_leaves(40, spec, rng=rng(1), device=CPU))


def test_dead_leaves_are_smooth_within_and_sharp_at_their_edges():
    made = dead_leaves(200, SPEC, rng=rng(), device=CPU)
    steps = (made[..., 1:] - made[..., :-1]).abs().flatten()
    # White noise of the same deviation has its median at 0.95 deviations, and no such tail.
    deviation = float(made.std())
    assert float(steps.median()) < 0.5 * deviation
    assert float(steps.quantile(0.99)) > 2 * deviation


def test_waves_have_unit_deviation_and_fall_with_frequency():
    made = waves(200, GREY, rng=rng(), device=CPU)
    assert torch.allclose(made.mean((1, 2, 3)), torch.zeros(200), atol=1e-5)
    assert torch.allclose(made.square().mean((1, 2, 3)), torch.ones(200), atol=1e-4)
    power = torch.fft.rfft2(made).abs().square().mean((0, 1))[0]
    assert power[1] > 4 * power[2] > 16 * power[8] > 0


def test_mixed_images_are_of_two_images_each():
    n = 200
    images = torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 1, 16, 16)
    made = mixed(images, rng=rng())
    values = [image.unique() for image in made]
    assert all(len(v) <= 2 for v in values)
    # Half of them have a box of another image; of these some box is empty or all.
    assert 50 < sum(len(v) == 2 for v in values) < 130
    assert float(made.min()) >= 0
    assert float(made.max()) <= n - 1


def test_lessons_are_leaves_and_every_pool_in_their_shares():
    black, white = torch.zeros(3, 3, 16, 16), torch.ones(5, 3, 16, 16)
    plain = Lessons((black,), SPEC, leaves=0.0)
    assert torch.equal(plain(7, rng()), torch.zeros(7, 3, 16, 16))

    drawn = []

    class Pool(torch.Tensor):
        def __getitem__(self, chosen):
            drawn.append(len(chosen))
            return super().__getitem__(chosen).as_subclass(torch.Tensor)

    pools = tuple(p.as_subclass(Pool) for p in (black, white))
    made = Lessons(pools, SPEC, leaves=0.4)(15, rng())
    assert made.shape == (15, 3, 16, 16)
    assert drawn == [4, 5]
    assert Lessons((black,), SPEC, leaves=1.0)(6, rng()).shape == (6, 3, 16, 16)
    assert torch.equal(plain(7, rng()), plain(7, rng()))
