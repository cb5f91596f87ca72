import pickle

import pytest
import torch

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.settings import PriorConfig

SPEC = ImageSpec(3, 12, ("a", "b"), (0.5,) * 3, (0.2,) * 3)


def test_pixels_decode_to_themselves_and_start_in_range_around_a_half():
    prior = build_prior(PriorConfig(kind="pixel"), SPEC)
    latents = prior.sample(torch.zeros(40, dtype=torch.long), rng=derive(0, "test"))
    assert latents.shape == (40, 3, 12, 12)
    assert latents.min() >= 0
    assert latents.max() <= 1
    assert abs(latents.mean() - 0.5) < 0.01
    assert prior.decode(latents) is latents
    assert not prior.conditional


def test_the_same_generator_gives_the_same_pixels():
    prior = pickle.loads(pickle.dumps(build_prior(PriorConfig(kind="pixel"), SPEC)))
    labels = torch.tensor([0, 1])
    first, second = (prior.sample(labels, rng=derive(3, "test")) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("start", ["white", "smooth", "grey"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_start_is_seeded_noise_about_a_half(start, channels):
    spec = ImageSpec(channels, 32, ("a", "b"), (0.5,) * channels, (0.2,) * channels)
    prior = build_prior(PriorConfig(kind="pixel", pixel_start=start), spec)
    labels = torch.zeros(60, dtype=torch.long)
    first, again = (prior.sample(labels, rng=derive(0, "test")) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (60, channels, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert abs(first.mean() - 0.5) < 0.02
    assert torch.pdist(first.flatten(1)).min() > 0.5
    assert prior.sample(labels[:0], rng=derive(0, "test")).shape == (0, channels, 32, 32)


def test_starts_differ_in_how_much_they_vary_and_over_what_distance():
    """Of white noise neighbours tell nothing of each other, of smooth noise nearly all."""

    def measured(start):
        spec = ImageSpec(3, 32, ("a", "b"), (0.5,) * 3, (0.2,) * 3)
        prior = build_prior(PriorConfig(kind="pixel", pixel_start=start), spec)
        noise = prior.sample(torch.zeros(60, dtype=torch.long), rng=derive(0, "test")) - 0.5
        beside = (noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()
        return float(noise.std()), float(beside)

    assert measured("white") == (pytest.approx(12**-0.5, abs=0.01), pytest.approx(0, abs=0.02))
    assert measured("grey") == (pytest.approx(0.02, abs=0.001), pytest.approx(0, abs=0.02))
    spread, beside = measured("smooth")
    assert 0.1 < spread < 0.2
    assert beside > 0.95
