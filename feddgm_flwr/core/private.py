"""Differentially private local training: DP-SGD on the device (Abadi et al., arXiv 1607.00133).

The server sees each single reply, and inverts it, so noise protects a client from it only where the
client itself adds it. Each step takes every image with the same probability (Poisson sampling),
cuts each image's gradient to a norm, sums, and adds Gaussian noise. The guarantee is about one
image of one client: whoever sees all that the client ever sends, the server above all, can hardly
tell whether that image or an empty one was among them. ``core.accounting`` says how hardly. How
many images there are is public, and so are noise and norm, which the server sets.

The noise must be the device's secret: it is the one randomness here that comes from the operating
system and not from the run's seed, which the server knows. It is numpy's: of a seed torch's
generator takes but 32 bits on a CPU, which can all be tried. Knows no accountant and no Flower.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from feddgm_flwr.core.augment import augment
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import ClientConfig, Task, Walk, on_cpu
from feddgm_flwr.core.params import Params, load_params, params_of
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.training import Descent, Rule, TrainConfig, pixels_of, steps_of

CHUNK = 32
"""Images whose own gradients are held at once."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig(Settings):
    """Differential privacy of each client's single images, against the server too."""

    section: ClassVar[str] = "privacy"

    noise_multiplier: float = setting(
        0.0,
        "Standard deviation of the noise on a step's sum of gradients, in units of `clip-norm`; 0 "
        "is no privacy and plain training. Clients then train by DP-SGD, with noise that is secret "
        "to them, and epsilon is told each round (docs/privacy.md; needs `.[privacy]`).",
        ge=0,
    )
    clip_norm: float = setting(
        1.0, "Norm to which each image's gradient is cut, where there is noise.", gt=0
    )
    delta: float = setting(
        1e-5,
        "Probability that the guarantee fails; well below one over a client's number of images.",
        gt=0,
        lt=1,
    )

    @property
    def on(self) -> bool:
        """Whether clients add noise."""
        return self.noise_multiplier > 0


def secret_generator() -> np.random.Generator:
    """Return a generator that nobody else can repeat: 128 bits of the operating system's."""
    return np.random.default_rng()


@dataclass(frozen=True)
class PrivateWalk:
    """Local training by DP-SGD, in place of ``core.local.walk``.

    Attributes
    ----------
    secret
        Gives the generator of samples and noise.
    """

    privacy: PrivacyConfig
    secret: Callable[[], np.random.Generator] = field(default=secret_generator)

    def __call__(
        self,
        model: nn.Module,
        data: ImageSet,
        task: Task,
        config: ClientConfig,
        rule: Rule,
        *,
        rng: torch.Generator,
        device: torch.device,
    ) -> Walk:
        """Train ``model`` from the task's parameters; its loss stays untold, as it has no noise.

        ``rule`` and ``rng`` are of plain training: private training takes neither.
        """
        load_params(model, task.params)
        model.to(device).train()
        secret = self.secret()
        images, labels = data.images.to(device), data.labels.to(device)
        descent = Descent(list(model.parameters()), config)
        rate, steps = sampling_rate(len(data), config), steps_of(len(data), config)
        gradients = clipped_gradients(model, self.privacy.clip_norm)
        deviation = self.privacy.noise_multiplier * self.privacy.clip_norm
        for _ in range(steps):
            chosen = poisson_sample(len(data), rate, rng=secret).to(device)
            x = images[chosen]
            if len(x):
                # Seeded anew at each step, as 32 bits of a seed are too few for all of them.
                looks = torch.Generator().manual_seed(int(secret.integers(2**63)))
                x = augment(x, config.augment, rng=looks, pixels=pixels_of(model))
            summed = gradients(x, labels[chosen])
            for name, p in model.named_parameters():
                drawn = gaussian(p.shape, rng=secret).to(device)
                # By the expected size: the true one is the sample's secret.
                p.grad = (summed[name] + deviation * drawn) / (rate * len(data))
            descent.step()
        return Walk(on_cpu(params_of(model)), steps, None, model=model)


def sampling_rate(num_examples: int, config: TrainConfig) -> float:
    """Return the probability with which a step takes each image, so that batches are as asked."""
    return min(1.0, config.batch_size / num_examples)


def poisson_sample(count: int, rate: float, *, rng: np.random.Generator) -> Int[Tensor, " chosen"]:
    """Return the indices below ``count`` that are taken, each by itself with ``rate``."""
    # In float64: the numbers of float32 are too coarse for a rate to be exact.
    return torch.from_numpy(np.flatnonzero(rng.random(count) < rate))


def gaussian(shape: torch.Size, *, rng: np.random.Generator) -> Tensor:
    """Return numbers of N(0, 1), on the CPU."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def clipped_gradients(
    model: nn.Module, clip_norm: float
) -> Callable[[Float[Tensor, "n c h w"], Int[Tensor, " n"]], Params]:
    """Return what sums the images' own gradients, each cut to ``clip_norm`` over all parameters.

    No norm layer of ``model`` may mix images; the surrogate's do not.
    """

    def loss(params: Params, image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (image[None],)), label[None])

    each: Any = vmap(grad(loss), in_dims=(None, 0, 0))
    clip = partial(clip_each, clip_norm=clip_norm)

    def summed(images: Tensor, labels: Tensor) -> Params:
        params = {name: p.detach() for name, p in model.named_parameters()}
        total = {name: torch.zeros_like(p) for name, p in params.items()}
        for x, y in zip(torch.split(images, CHUNK), torch.split(labels, CHUNK), strict=True):
            if len(y):
                for name, part in clip(each(params, x, y)).items():
                    total[name] += part
        return total

    return summed


def clip_each(gradients: Params, *, clip_norm: float) -> Params:
    """Return the sum over the first axis of ``gradients``, each entry cut to ``clip_norm``."""
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    # An image whose gradient overflows must not spoil the sum, nor count for more than the others.
    share = torch.where(norms.isfinite(), (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0), 0.0)
    return {
        name: torch.einsum("n...,n->...", g.nan_to_num(0.0, 0.0, 0.0), share)
        for name, g in gradients.items()
    }
