"""Laws of the closed-form classifier on public features."""

import public_classifier
import pytest
import torch
from public_classifier import CLASSES, accuracy, solved, sums
from sklearn.linear_model import Ridge


def held():
    """Return features of 60 images, the last one being 1, and labels."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (60,), generator=rng)
    phi = torch.randn(60, 5, generator=rng).double()
    return torch.cat([phi, torch.ones(60, 1).double()], 1), labels


def test_it_is_ridge_regression_of_the_labels():
    phi, labels = held()
    told = Ridge(alpha=3.0, fit_intercept=False).fit(phi, torch.eye(CLASSES)[labels]).coef_.T
    assert torch.allclose(solved([sums(phi, labels)], 3.0), torch.from_numpy(told), atol=1e-6)


def test_how_the_images_are_divided_does_not_matter():
    phi, labels = held()
    order = labels.argsort()
    parts = [sums(phi[i], labels[i]) for i in order.split(25)]
    assert torch.allclose(solved(parts, 1.0), solved([sums(phi, labels)], 1.0))


def test_accuracy_counts_the_highest_answers():
    phi, labels = torch.eye(3), torch.tensor([0, 1, 2])
    w = torch.eye(3)[[0, 1, 1]]
    assert accuracy(w, phi, labels) == pytest.approx(2 / 3)


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SystemExit, match="public-classifier"):
        public_classifier.backbone()
