"""Evaluation: exact counts, whatever the batch size, and no traces left."""

import math

import pytest
import torch
from torch import nn

from feddgm_flwr.core.evaluation import Evaluation, evaluate


class Brightness(nn.Module):
    """Logits (0, 3 * mean); says class 1 where the image is not black."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        bright = self.factor * images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright], 1)


IMAGES = torch.stack([torch.full((1, 2, 2), v) for v in (0.0, 1.0, 1.0, 0.0, 1.0)])
LABELS = torch.tensor([0, 1, 0, 0, 1])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 500])
def test_counts_and_loss_by_hand_for_any_batch_size(batch_size):
    # Black images: two logits of 0. White ones: logits 0 and 3, wrong once.
    wrong, right, even = math.log(1 + math.e**3), math.log(1 + math.e**-3), math.log(2)
    result = evaluate(Brightness(), IMAGES, LABELS, batch_size=batch_size)
    assert result.accuracy == pytest.approx(4 / 5)
    assert result.loss == pytest.approx((2 * even + 2 * right + wrong) / 5)


@pytest.mark.parametrize("training", [True, False])
def test_scores_in_evaluation_mode_and_restores_the_mode(training):
    model = Brightness().train(training)
    evaluate(model, IMAGES, LABELS)
    assert model.modes == [False]
    assert model.training is training


def test_batch_norm_statistics_do_not_move():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, IMAGES, LABELS)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        evaluate(Brightness(), IMAGES[:0], LABELS[:0])


def test_result_is_a_frozen_pair():
    assert Evaluation(0.5, 1.0) == Evaluation(accuracy=0.5, loss=1.0)
    with pytest.raises(AttributeError):
        Evaluation(0.5, 1.0).loss = 0.0
