"""Laws of the default: the prior follows the data, and says so in one line."""

import logging

import pytest
import torch
from small_models import save_tiny

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.glyphs import GlyphPrior, shipped
from feddgm_flwr.priors.pixel import PixelPrior
from feddgm_flwr.priors.settings import PriorConfig

CLOTHES = ("T-shirt", "Trouser", "Boot")


def spec(classes=("1", "2"), channels=1, size=28):
    return ImageSpec(channels, size, classes, (0.1,) * channels, (0.3,) * channels)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr.priors")
    return lambda: [
        r.getMessage() for r in caplog.records if r.getMessage().startswith("prior.kind = auto: ")
    ]


def test_glyphs_where_they_know_the_classes(lines):
    prior = build_prior(PriorConfig(), spec())
    assert isinstance(prior, GlyphPrior)
    assert prior.conditional
    assert lines() == ["prior.kind = auto: glyphs, which know all 2 classes"]
    named = build_prior(PriorConfig(kind="glyphs"), spec())
    assert named.fingerprint == prior.fingerprint


@pytest.mark.parametrize(
    ("classes", "channels", "why"),
    [
        (CLOTHES, 1, "glyphs do not know all of the classes T-shirt, Trouser, Boot, ..."),
        (("1", "shirt"), 1, "glyphs do not know all of the classes 1, shirt, ..."),
        (("1", "2"), 3, "glyphs are grey, the data have 3 channels"),
    ],
)
def test_pixel_where_they_do_not(lines, classes, channels, why):
    prior = build_prior(PriorConfig(), spec(classes, channels))
    assert isinstance(prior, PixelPrior)
    assert not prior.conditional
    assert lines() == [
        f"prior.kind = auto: pixel, since {why}; public pictures make a better prior "
        "(feddgm-pretrain)"
    ]


def test_a_trained_prior_at_the_path_is_known_by_its_bank(lines):
    prior = build_prior(PriorConfig(path=str(shipped("glyphs"))), spec(size=20))
    assert isinstance(prior, GlyphPrior)
    assert "a prior that feddgm-pretrain trained at" in lines()[0]
    assert lines()[0].endswith("which knows the classes")


def test_a_bare_autoencoder_at_the_path_knows_no_classes(tmp_path, lines):
    save_tiny(tmp_path)
    prior = build_prior(PriorConfig(path=str(tmp_path)), spec(channels=3, size=16))
    assert not prior.conditional
    assert lines() == [
        f"prior.kind = auto: the autoencoder at {str(tmp_path)!r}, which does not know the classes"
    ]
    assert prior.sample(torch.tensor([0]), rng=torch.Generator().manual_seed(0)).shape[1] == 4
