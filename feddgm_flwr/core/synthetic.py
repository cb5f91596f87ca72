"""Latents and the synthetic images they decode to: values that only this project's maths touch.

Axes: ``n`` synthetic images, ``k`` classes, ``c h w`` one image. Knows no client protocol and no
generator beyond ``Prior``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.prior import Prior

LOGIT_SCALE = 6.0
"""Where soft labels start: softmax puts 0.98 on the class among ten."""


@dataclass(frozen=True)
class Latents:
    """One client's latents between rounds (Z_i in the paper).

    Attributes
    ----------
    values
        In the prior's latent space.
    labels
        The class each latent was made for.
    label_logits
        Learned soft labels, or None for one-hot ones.
    student_lr
        Learned learning rate of the student (eta).
    origin
        Where the prior put the values, or None where nothing ties them to it.
    """

    values: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]
    label_logits: Float[Tensor, "n k"] | None
    student_lr: float
    origin: Float[Tensor, "n ..."] | None = None


@dataclass(frozen=True)
class SyntheticSet:
    """Decoded images with their targets.

    Attributes
    ----------
    images
        About in [0, 1]; distilled ones as the student saw them.
    targets
        Class probabilities.
    weights
        Importance of each image in training, beside the others of its set.
    owner
        Partition id of the client an image was distilled for; below 0 it is no client's: the
        prior's own, or an aggregate's.
    """

    images: Float[Tensor, "n c h w"]
    targets: Float[Tensor, "n k"]
    weights: Float[Tensor, " n"]
    owner: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def concat(sets: Sequence["SyntheticSet"]) -> "SyntheticSet":
        """Join sets in order (S_t, step 4), weights as they are; at least one set."""
        return SyntheticSet(
            images=torch.cat([s.images for s in sets]),
            targets=torch.cat([s.targets for s in sets]),
            weights=torch.cat([s.weights for s in sets]),
            owner=torch.cat([s.owner for s in sets]),
        )

    def of_mean_weight(self) -> "SyntheticSet":
        """Return the same images with weights of mean 1, as images that weigh the same have."""
        return replace(self, weights=self.weights / self.weights.mean()) if len(self) else self

    def balanced(self) -> "SyntheticSet":
        """Return the same images, weighted so that every class that is there counts the same.

        So it is exactly of one-hot targets; an image of soft ones weighs by its shares of classes.
        """
        mass = (self.targets * self.weights[:, None]).sum(0)
        even = torch.where(mass > 0, 1 / mass, 0.0)
        return replace(self, weights=self.weights * (self.targets * even).sum(1))

    @staticmethod
    def of(
        images: Float[Tensor, "n c h w"], targets: Float[Tensor, "n k"], owner: int = -1
    ) -> "SyntheticSet":
        """Return images that weigh the same, all of one owner; of nobody, unless said."""
        n = len(images)
        return SyntheticSet(images, targets, torch.ones(n), torch.full((n,), owner))

    @staticmethod
    def empty(spec: ImageSpec) -> "SyntheticSet":
        """Return a set of no images."""
        return SyntheticSet(
            images=torch.empty(0, spec.channels, spec.size, spec.size),
            targets=torch.empty(0, spec.num_classes),
            weights=torch.empty(0),
            owner=torch.empty(0, dtype=torch.long),
        )


def fresh_latents(
    prior: Prior,
    images_per_class: dict[int, int],
    num_classes: int,
    config: DistillConfig,
    *,
    rng: torch.Generator,
) -> Latents:
    """Return samples of the prior, class by class; soft labels start near one-hot."""
    each = [c for c, n in sorted(images_per_class.items()) for _ in range(n)]
    labels = torch.tensor(each, dtype=torch.long)
    values = prior.sample(labels, rng=rng)
    return Latents(
        values=values,
        labels=labels,
        label_logits=(
            LOGIT_SCALE * one_hot(labels, num_classes).float() if config.labels == "soft" else None
        ),
        student_lr=config.student_lr,
        origin=values if config.prior_weight else None,
    )


def extend_latents(
    old: Latents,
    prior: Prior,
    images_per_class: dict[int, int],
    num_classes: int,
    config: DistillConfig,
    *,
    rng: torch.Generator,
) -> Latents:
    """Return last round's latents (warm start) plus fresh ones for images that are new."""
    have = torch.bincount(old.labels, minlength=num_classes)
    lacking = {c: n - int(have[c]) for c, n in images_per_class.items() if n > have[c]}
    if not lacking:
        return old
    new = fresh_latents(prior, lacking, num_classes, config, rng=rng)
    return Latents(
        values=torch.cat([old.values, new.values]),
        labels=torch.cat([old.labels, new.labels]),
        label_logits=_joined(old.label_logits, new.label_logits),
        student_lr=old.student_lr,
        origin=_joined(old.origin, new.origin),
    )


def _joined(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return None if old is None or new is None else torch.cat([old, new])
