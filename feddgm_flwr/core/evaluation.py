"""Accuracy and loss on clean images: nothing is augmented, nothing is drawn.

Knows no data set and no round.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a set of images.

    Attributes
    ----------
    accuracy
        Fraction classified rightly.
    loss
        Mean cross-entropy.
    """

    accuracy: float
    loss: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    batch_size: int = 500,
) -> Evaluation:
    """Score ``model``, batch by batch on its own device; its mode is restored.

    Raises
    ------
    ValueError
        There are no images.
    """
    if not len(images):
        raise ValueError("evaluation needs at least 1 image, got 0; check the test part")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = torch.zeros((), device=device)
    loss = torch.zeros((), device=device)
    batches = torch.split(images, batch_size), torch.split(labels, batch_size)
    for x, y in zip(*batches, strict=True):
        logits, truth = model(x.to(device)), y.to(device)
        loss += cross_entropy(logits, truth, reduction="sum")
        right += (logits.argmax(1) == truth).sum()
    model.train(was_training)
    return Evaluation(accuracy=float(right) / len(images), loss=float(loss) / len(images))
