"""Telling from a model who was among the images that it learned from: a membership attack.

RMIA in its offline form (Zarifzadeh, Liu and Shokri, ICML 2024, arXiv 2312.03262): an image is the
more likely a member, the surer the model is of its label *compared with* models that never saw it.
In p(x | model) / p(x), p(x) is ((1 + a) p_out(x) + 1 - a) / 2; p_out is the mean over reference
models that learned from other images. RMIA's score is the share of population images whose ratio is
below x's; it rises with x's ratio, so the ratio has the same curve without the ties. Beside it, the
plain attack by loss (Yeom et al., arXiv 1709.01604). Knows no run and no file.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.nn.functional import log_softmax

from feddgm_flwr.core.images import ImageSet

OFFLINE_A = 0.3
"""``a`` of the offline form, as the paper has it for image data."""
RATES = (0.01, 0.001)
"""False-positive rates at which the true-positive rate is told."""
RESAMPLES = 500
LEVEL = 0.95

Scores = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Interval:
    """A figure, and where ``LEVEL`` of its bootstrap replicates lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in percent."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Attack:
    """How well members are told from non-members.

    Attributes
    ----------
    auc
        Area under the ROC curve; 0.5 is guessing.
    true_positives
        At each of ``RATES``; None where there are too few non-members for such a rate.
    """

    auc: Interval
    true_positives: dict[float, Interval | None]

    @property
    def figures(self) -> dict[str, Any]:
        """All as JSON has it."""
        rates = self.true_positives.items()
        return {
            "auc": asdict(self.auc),
            **{f"tpr_at_{rate:g}": None if i is None else asdict(i) for rate, i in rates},
        }


@torch.no_grad()
def confidence(model: nn.Module, data: ImageSet) -> Scores:
    """Return the logarithm of the probability that ``model`` gives to each image's label."""
    model.eval()
    parts = [
        log_softmax(model(x), 1).gather(1, y[:, None])[:, 0]
        for x, y in zip(torch.split(data.images, 256), torch.split(data.labels, 256), strict=True)
    ]
    said: Scores = torch.cat(parts).double().numpy()
    return said


def rmia(own: Scores, others: Sequence[Scores]) -> Scores:
    """Return RMIA's ratio of each image, as a logarithm.

    Parameters
    ----------
    own
        Log-probabilities of the labels under the model that is attacked.
    others
        The same under each reference model.
    """
    out = np.mean([np.exp(scores) for scores in others], axis=0)
    ratio: Scores = own - np.log(((1 + OFFLINE_A) * out + 1 - OFFLINE_A) / 2)
    return ratio


def judged(members: Scores, non_members: Scores, *, rng: np.random.Generator) -> Attack:
    """Return how well scores tell members (high) from non-members (low), with intervals."""
    from sklearn.metrics import roc_auc_score, roc_curve

    def figures(mine: Scores, others: Scores) -> list[float]:
        truth = np.r_[np.ones(len(mine)), np.zeros(len(others))]
        scores = np.r_[mine, others]
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        at = [float(true[false <= rate].max()) for rate in RATES]
        return [float(roc_auc_score(truth, scores)), *at]

    value = figures(members, non_members)
    again = np.array(
        [figures(_resampled(members, rng), _resampled(non_members, rng)) for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    area, *rates = (Interval(*map(float, three)) for three in zip(value, low, high, strict=True))
    told = {r: i if len(non_members) * r >= 1 else None for r, i in zip(RATES, rates, strict=True)}
    return Attack(area, told)


def _resampled(scores: Scores, rng: np.random.Generator) -> Scores:
    return scores[rng.integers(len(scores), size=len(scores))]


def roc(members: Scores, non_members: Scores) -> tuple[Scores, Scores]:
    """Return false- and true-positive rates at every threshold."""
    from sklearn.metrics import roc_curve

    truth = np.r_[np.ones(len(members)), np.zeros(len(non_members))]
    false, true, _ = roc_curve(truth, np.r_[members, non_members])
    return false, true


@dataclass(frozen=True)
class Attacked:
    """Both attacks on one model, and RMIA's scores for a picture.

    Attributes
    ----------
    accuracy
        Of the model on members and on non-members.
    """

    rmia: Attack
    loss: Attack
    accuracy: tuple[float, float]
    curve: tuple[Scores, Scores]


def attacked(
    model: nn.Module,
    references: Sequence[nn.Module],
    members: ImageSet,
    non_members: ImageSet,
    *,
    rng: np.random.Generator,
) -> Attacked:
    """Attack ``model`` by reference models that saw neither of the two sets."""
    own = [confidence(model, part) for part in (members, non_members)]
    scores = [
        rmia(said, [confidence(reference, part) for reference in references])
        for said, part in zip(own, (members, non_members), strict=True)
    ]
    return Attacked(
        rmia=judged(*scores, rng=rng),
        loss=judged(*own, rng=rng),
        accuracy=(_accuracy(model, members), _accuracy(model, non_members)),
        curve=roc(*scores),
    )


@torch.no_grad()
def _accuracy(model: nn.Module, data: ImageSet) -> float:
    said = torch.cat([model(x).argmax(1) for x in torch.split(data.images, 256)])
    return float((said == data.labels).double().mean())


def half_of(data: ImageSet, rng: torch.Generator) -> ImageSet:
    """Return half of ``data``, drawn."""
    chosen = torch.randperm(len(data), generator=rng)[: max(1, len(data) // 2)]
    return ImageSet(data.images[chosen], data.labels[chosen])
