"""Teaching without any image: a generator learns from the replies what they take for their classes.

In every epoch a batch of noise and labels is drawn; the generator G makes a few steps on it, which
lower a method's own loss of what the ensemble A and the student f say of G(z, y); its images join a
pool; and the student listens to the ensemble on batches of the pool (``core.ensemble``). The common
part of DENSE (arXiv 2112.12371) and Co-Boosting (ICLR 2024), with two deviations that spare a CPU:
G sees the label beside the noise, so that what it learns on one batch serves the next; and it is
not begun anew in each epoch. Neither a rate that falls nor augmentation.

Knows no round and no client. Axes: ``n`` images, ``k`` classes, ``m`` members, ``c h w`` one image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from feddgm_flwr.core.ensemble import Ensemble, listen, together
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.params import Params, load_params, params_of
from feddgm_flwr.core.settings import Settings, setting

NOISE = 100
"""Numbers that the generator makes an image of, beside the label."""


@dataclass(frozen=True, kw_only=True)
class DataFreeConfig(Settings):
    """A generator and a student, taught by the replies."""

    epochs: int = setting(12, "Times a round that the generator adds a batch to the pool.", ge=0)
    generator_steps: int = setting(5, "Steps of the generator an epoch.", ge=1)
    student_steps: int = setting(20, "Steps of the student an epoch, on the pool so far.", ge=0)
    batch_size: int = setting(32, "Images a step, of either.", ge=2)
    generator_lr: float = setting(0.001, "Adam's learning rate of the generator.", gt=0)
    generator_width: int = setting(16, "Channels of the generator's last layers.", ge=1)
    adversarial: float = setting(
        0.5, "Weight of the term that seeks images on which student and replies differ.", ge=0
    )
    lr: float = setting(0.01, "Learning rate of the student.", gt=0)
    momentum: float = setting(0.9, "Momentum of the student.", ge=0, lt=1)
    temperature: float = setting(
        1.0, "Temperature at which the student listens to the replies.", gt=0
    )


@dataclass(frozen=True)
class Batch:
    """Images of the pool.

    Attributes
    ----------
    each
        What every member says of them.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    each: Float[Tensor, "m n k"]


def _as_it_is(ensemble: Ensemble, pool: Sequence[Batch], epoch: int) -> Ensemble:
    return ensemble


@dataclass(frozen=True)
class Tactics:
    """In what methods without data differ.

    Attributes
    ----------
    generator_loss
        Of the ensemble's logits, the student's and the labels.
    weigh
        Returns the ensemble with other weights, once an epoch (counted from 0), given the pool.
    harden
        Makes images harder for the ensemble before the student sees them; None leaves them.
    """

    generator_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    weigh: Callable[[Ensemble, Sequence[Batch], int], Ensemble] = _as_it_is
    harden: Callable[[Ensemble, Tensor, torch.Generator], Tensor] | None = None


class LabelledNoise(nn.Module):
    """Noise and label side by side, as the generator's first layer takes them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(
        self, noise_and_labels: tuple[Float[Tensor, "n z"], Int[Tensor, " n"]]
    ) -> Float[Tensor, "n zk"]:
        """Return the noise with one-hot labels behind it."""
        noise, labels = noise_and_labels
        return torch.cat([noise, one_hot(labels, self.num_classes).to(noise)], 1)


def build_generator(spec: ImageSpec, width: int) -> nn.Sequential:
    """Return G: (noise, labels) -> images in [0, 1]; its weights are to be initialised.

    Two doublings from a quarter of the side. Its norms know only the batch at hand, so that its
    parameters are all that it is.
    """

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, track_running_stats=False)

    wide, side = 2 * width, -(-spec.size // 4)
    return nn.Sequential(
        LabelledNoise(spec.num_classes),
        nn.Linear(NOISE + spec.num_classes, wide * side**2),
        nn.Unflatten(1, (wide, side, side)),
        norm(wide),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(wide, wide, 3, padding=1),
        norm(wide),
        nn.LeakyReLU(0.2),
        nn.Upsample(size=spec.size),
        nn.Conv2d(wide, width, 3, padding=1),
        norm(width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, spec.channels, 3, padding=1),
        nn.Sigmoid(),
    )


def teach(
    student: nn.Module,
    start: Params,
    ensemble: Ensemble,
    generator: nn.Module,
    tactics: Tactics,
    config: DataFreeConfig,
    *,
    num_classes: int,
    rng: torch.Generator,
) -> Params:
    """Return ``start`` after learning from ``ensemble``; ``generator`` is trained in place.

    Parameters
    ----------
    student
        The architecture, on the generator's device; its weights are scratch space.
    """
    load_params(student, start)
    device = ensemble.weights.device
    learning = torch.optim.SGD(student.parameters(), lr=config.lr, momentum=config.momentum)
    making = torch.optim.Adam(generator.parameters(), lr=config.generator_lr)
    pool: list[Batch] = []
    for epoch in range(config.epochs):
        noise = torch.randn(config.batch_size, NOISE, generator=rng).to(device)
        labels = torch.randint(num_classes, (config.batch_size,), generator=rng).to(device)
        for _ in range(config.generator_steps):
            images = generator((noise, labels))
            loss = tactics.generator_loss(ensemble(images), student(images), labels)
            parameters = list(generator.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient
            making.step()
        with torch.no_grad():
            images = generator((noise, labels))
            pool.append(Batch(images, labels, ensemble.each(images)))
        ensemble = tactics.weigh(ensemble, pool, epoch)
        for chosen in _drawn(len(pool), config, rng):
            images, told = _lesson(ensemble, pool, chosen, tactics, rng)
            listen(student, images, told, learning, config.temperature)
    return params_of(student)


def _drawn(batches: int, config: DataFreeConfig, rng: torch.Generator) -> list[Tensor]:
    """Return which images of the pool make up each of the student's steps."""
    count = (config.student_steps, config.batch_size)
    return list(torch.randint(batches * config.batch_size, count, generator=rng))


def _lesson(
    ensemble: Ensemble,
    pool: Sequence[Batch],
    chosen: Int[Tensor, " n"],
    tactics: Tactics,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return chosen images and what the ensemble says of them."""
    index = chosen.to(ensemble.weights.device)
    images = torch.cat([batch.images for batch in pool])[index]
    if tactics.harden is None:
        each = torch.cat([batch.each for batch in pool], 1)[:, index]
        return images, together(each, ensemble.weights)
    images = tactics.harden(ensemble, images, rng)
    with torch.no_grad():
        return images, ensemble(images)
