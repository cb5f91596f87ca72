"""Laws of the look at the theorem: what its points are, and what its table says of them."""

import dataclasses

import pytest
import resemblance
import torch
from resemblance import Point, table

SMALL = {
    "data.name": "digits",
    "surrogate.depth": 2,
    "surrogate.width": 8,
    "client.epochs": 1,
}
POINT = Point(0, 3, 10, accuracy=0.6, central=0.9, alike=0.62, distance=0.8, loss=0.4)


@pytest.fixture
def small(monkeypatch):
    """Make every point small."""
    monkeypatch.setattr(resemblance, "COMMON", {**resemblance.COMMON, **SMALL})
    monkeypatch.setattr(resemblance, "UNION", {**resemblance.UNION, "union.epochs": 1})
    resemblance.start_and_central.cache_clear()
    yield
    resemblance.start_and_central.cache_clear()


def test_the_central_surrogate_is_trained_on_all_images_from_the_same_start(small):
    start, central = resemblance.start_and_central(0)
    other, _ = resemblance.start_and_central(1)
    assert any(not torch.equal(start.surrogate[k], central[k]) for k in central)
    assert any(not torch.equal(start.surrogate[k], other.surrogate[k]) for k in central)


def test_a_point_is_of_images_and_fedavg_of_none(small):
    averaged, ours = resemblance.measured(0, 0, 0), resemblance.measured(0, 1, 1)
    assert averaged.central == ours.central
    assert averaged.loss == 1.0 != ours.loss
    assert averaged.distance > 0
    assert 0 <= ours.alike <= 1


def test_the_table_has_means_over_seeds():
    other = dataclasses.replace(POINT, seed=1, accuracy=0.8, central=0.8)
    averaged = Point(0, 0, 0, accuracy=0.3, central=0.9, alike=0.3, distance=0.9, loss=1.0)
    lines = table([POINT, other, averaged]).splitlines()
    assert "| 3 | 10 | 0.40 | 70.0 | 62.0 | 0.80 |" in lines
    assert "| FedAvg | - | - | 30.0 | 30.0 | 0.90 |" in lines
    assert lines[-1].startswith("| trained on all images | - | - | 86.7 ")


def test_points_are_kept_with_the_settings_that_made_them(tmp_path, monkeypatch):
    file = tmp_path / "points.json"
    assert resemblance.kept(file) == []
    resemblance.keep([POINT], file)
    assert resemblance.kept(file) == [POINT]
    monkeypatch.setattr(resemblance, "UNION", {**resemblance.UNION, "union.epochs": 1})
    with pytest.raises(SystemExit, match="got those of others; move it away"):
        resemblance.kept(file)
