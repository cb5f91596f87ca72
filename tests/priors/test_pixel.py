import pickle

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
