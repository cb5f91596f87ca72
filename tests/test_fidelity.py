"""Laws of telling how real distilled images look."""

import torch
from torch import nn
from torch.nn.functional import one_hot

from feddgm_flwr.core import fidelity
from feddgm_flwr.core.fidelity import Judge, nearest
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.synthetic import SyntheticSet

CPU = torch.device("cpu")


def shades(*values):
    """Images of 2x2 pixels of one shade each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


class Halves(nn.Module):
    """Holds dark images for class 0 and light ones for class 1."""

    def forward(self, x):
        shade = x.mean((1, 2, 3))
        return torch.stack([1 - shade, shade], 1)


def synthetic(images, labels):
    n = len(images)
    return SyntheticSet(images, one_hot(torch.tensor(labels), 2).float(), torch.ones(n),
                        torch.zeros(n, dtype=torch.long))  # fmt: skip


REAL = ImageSet(shades(0.0, 0.2, 1.0), torch.tensor([0, 0, 1]))


def test_the_nearest_real_image_of_the_class_by_hand():
    found = nearest(shades(0.1, 0.25, 0.0, 0.9), torch.tensor([0, 0, 1, 2]), REAL)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.05, 1.0, torch.inf]))
    assert nearest(shades(0.2), torch.tensor([0]), REAL).tolist() == [0.0]
    assert len(nearest(shades(), torch.tensor([], dtype=torch.long), REAL)) == 0


def test_the_share_of_images_that_the_judge_puts_in_their_class(monkeypatch):
    judge = Judge(Halves(), REAL, CPU)
    of = synthetic(shades(0.0, 0.2, 1.0, 0.2), [0, 0, 1, 1])
    said = judge(of)
    assert said["in-class"] == 0.75
    assert said["nearest"] == torch.tensor([0.0, 0.0, 0.0, 0.8]).mean().item()
    monkeypatch.setattr(fidelity, "CHUNK", 2)
    assert judge(of) == said


def test_images_are_judged_as_they_are_shown():
    """Distilled ones may leave [0, 1]; a picture cannot."""
    judge = Judge(Halves(), REAL, CPU)
    assert judge(synthetic(shades(-3.0, 5.0), [0, 1])) == {"in-class": 1.0, "nearest": 0.0}
