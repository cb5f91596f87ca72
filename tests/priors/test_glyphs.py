import pickle

import pytest
import torch

import feddgm_priors
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.bank import LatentBank, match_classes
from feddgm_flwr.priors.settings import PriorConfig

DIGITS = tuple("0123456789")


def spec(size=28, classes=DIGITS, channels=1):
    return ImageSpec(channels, size, classes, (0.1,) * channels, (0.3,) * channels)


@pytest.fixture(scope="module")
def prior():
    return build_prior(PriorConfig(kind="glyphs"), spec())


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_samples_are_white_ink_on_black_of_any_size(size):
    prior = build_prior(PriorConfig(kind="glyphs"), spec(size))
    labels = torch.arange(10)
    images = prior.decode(prior.sample(labels, rng=derive(0, "test")))
    assert images.shape == (10, 1, size, size)
    assert images.amax((1, 2, 3)).min() > (0.5 if size > 8 else 0.2)
    assert 0.02 < images.mean() < 0.3
    assert images[..., 0, 0].abs().max() < 0.2


def test_samples_of_a_class_vary_and_are_seeded(prior):
    labels = torch.full((6,), 4)
    first, again = (prior.sample(labels, rng=derive(0, "test")) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.pdist(prior.decode(first).flatten(1)).min() > 1


def test_samples_look_like_their_class(prior):
    """The nearest class mean of other samples is far more often the own than not."""
    labels = torch.arange(10).repeat_interleave(40)
    train, test = (
        prior.decode(prior.sample(labels, rng=derive(seed, "test"))).flatten(1) for seed in (0, 1)
    )
    means = train.view(10, 40, -1).mean(1)
    found = torch.cdist(test, means).argmin(1)
    assert (found == labels).float().mean() > 0.4


def test_descent_on_latents_draws_another_digit(prior):
    """The decoder reaches a given drawing from latents of another class."""
    target = prior.decode(prior.sample(torch.tensor([3]), rng=derive(7, "test"))).detach()
    latents = prior.sample(torch.tensor([8]), rng=derive(8, "test")).requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (prior.decode(latents) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.005


def test_feature_blocks_compose(prior):
    cut = build_prior(PriorConfig(kind="glyphs", feature_block=3), spec())
    labels = torch.arange(10)
    torch.testing.assert_close(
        cut.decode(cut.sample(labels, rng=derive(0, "test"))),
        prior.decode(prior.sample(labels, rng=derive(0, "test"))),
    )


def test_the_prior_survives_the_way_to_another_process(prior):
    again = pickle.loads(pickle.dumps(prior))
    latents = prior.sample(torch.arange(10), rng=derive(0, "test"))
    assert torch.equal(again.decode(latents), prior.decode(latents))


def test_known_names_make_it_conditional_and_unknown_ones_do_not():
    known = build_prior(PriorConfig(kind="glyphs"), spec(classes=("A", "b", "ω", "3 - three")))
    assert known.conditional
    unknown = build_prior(PriorConfig(kind="glyphs"), spec(classes=("shirt", "1")))
    assert not unknown.conditional
    sample = unknown.sample(torch.tensor([0, 1, 1]), rng=derive(0, "test"))
    assert unknown.decode(sample).shape == (3, 1, 28, 28)
    assert match_classes(("b", "a"), ("a", "b")) == (1, 0)


def test_no_labels_give_no_latents(prior):
    none = torch.zeros(0, dtype=torch.long)
    assert prior.sample(none, rng=derive(0, "test")).shape == (0, 4, 7, 7)


def test_colour_data_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="kind pixel or autoencoder"):
        build_prior(PriorConfig(kind="glyphs"), spec(channels=3))


def test_missing_weights_are_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(feddgm_priors, "path", lambda name: tmp_path / name)
    with pytest.raises(ValueError, match=r"pip install the project where the ServerApp runs"):
        build_prior(PriorConfig(kind="glyphs"), spec())


def test_the_shipped_prior_is_small():
    files = [p for p in feddgm_priors.path("glyphs").iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 2_000_000


def test_a_bank_comes_back_from_disk_as_it_went(tmp_path):
    rng = derive(0, "test")
    latents = torch.randn(6, 2, 3, 3, generator=rng)
    bank = LatentBank.quantised(latents, torch.tensor([0, 0, 0, 1, 1, 1]), ("a", "b"))
    assert (bank.latents - latents).abs().max() <= bank.scale / 2 + 1e-6
    bank.save(tmp_path)
    again = LatentBank.load(tmp_path)
    assert torch.equal(again.codes, bank.codes)
    assert (again.scale, again.classes) == (bank.scale, bank.classes)
    assert torch.equal(again.labels, bank.labels)


def test_a_bank_samples_between_latents_of_one_class():
    latents = torch.tensor([0.0, 1, 10, 11]).view(4, 1, 1, 1)
    bank = LatentBank.quantised(latents, torch.tensor([0, 0, 1, 1]), ("a", "b"))
    sample = bank.sample([0] * 50 + [1] * 50, 100, rng=derive(0, "test")).flatten()
    assert sample[:50].max() < 1.1
    assert sample[50:].min() > 9.9
    assert len(sample.unique()) > 50


def test_a_class_with_one_latent_can_be_sampled():
    bank = LatentBank.quantised(torch.ones(1, 1, 2, 2), torch.tensor([0]), ("a",))
    assert torch.equal(bank.sample([0], 1, rng=derive(0, "test")), torch.ones(1, 1, 2, 2))
