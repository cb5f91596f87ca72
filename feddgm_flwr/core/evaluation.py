"""Accuracy and loss on clean images: nothing is augmented, nothing is drawn.

Knows no data set and no round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    metrics
        What ``METRICS`` says, by name.
    """

    accuracy: float
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def worst_class_accuracy(guesses: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Return the accuracy on the class that fares worst; skewed data hide it in the mean."""
    total = torch.bincount(labels)
    right = torch.bincount(labels[guesses == labels], minlength=len(total))
    return float((right / total)[total > 0].min())


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "worst-class-accuracy": worst_class_accuracy,
}
"""Name -> function of guessed and true labels. A line here, and it stands in every result on the
server's images."""


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
    guesses: list[Tensor] = []
    loss = torch.zeros((), device=device)
    batches = torch.split(images, batch_size), torch.split(labels, batch_size)
    for x, y in zip(*batches, strict=True):
        logits, truth = model(x.to(device)), y.to(device)
        loss += cross_entropy(logits, truth, reduction="sum")
        guesses.append(logits.argmax(1))
    model.train(was_training)
    guessed, true = torch.cat(guesses).cpu(), labels.cpu()
    return Evaluation(
        accuracy=float((guessed == true).sum()) / len(images),
        loss=float(loss) / len(images),
        metrics={name: metric(guessed, true) for name, metric in METRICS.items()},
    )
