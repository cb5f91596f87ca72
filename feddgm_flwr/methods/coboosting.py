"""Co-Boosting (Dai et al., ICLR 2024): images and ensemble make each other better.

As DENSE, but the generator seeks images that are hard for the ensemble, whose weights w are learned
on the images so far; and the student listens on images that were pushed off in a random direction
of the ensemble's answer (u uniform in [-1, 1])::

    G:  (1 - p_y) CE(A_w(x), y) - lambda KL(A_w(x) || f(x)),    p = softmax(A_w(x)), x = G(z, y)
    w:  clip(w - mu .99^epoch sign(d/dw CE(A_w(x), y)), 0, 1),  a batch of the pool at a time
    f:  KL(A_w(x~) || f(x~)),    x~ = x + eps sign(d/dx <u, softmax(A_w(x) / 4)>)

with eps, the temperature and the clipping of the authors' code, and a tenth of its mu. The paper
makes one round; in each of ours w begins as the plain mean, for the replies are others, and the
generator is kept.
``core.datafree`` says in what the common part differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.datafree import Batch, DataFreeConfig, Tactics
from feddgm_flwr.core.ensemble import Ensemble, divergence, together
from feddgm_flwr.core.settings import restated, setting
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.dense import server_half
from feddgm_flwr.methods.halves import Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools

DECAY = 0.99
"""Of the step on the weights, an epoch."""
SOFTER = 4.0
"""Temperature at which images are pushed off."""


@dataclass(frozen=True, kw_only=True)
class CoBoostingConfig(DataFreeConfig):
    """Co-Boosting."""

    section: ClassVar[str] = "coboosting"

    generator_steps: int = restated(DataFreeConfig, "generator_steps", 3)
    student_steps: int = restated(DataFreeConfig, "student_steps", 3)
    adversarial: float = restated(DataFreeConfig, "adversarial", 1.0)
    temperature: float = restated(DataFreeConfig, "temperature", 4.0)
    weight_step: float = setting(0.001, "Step mu on the weights of the replies.", ge=0)
    push: float = setting(8 / 255, "How far eps every pixel is pushed off.", ge=0)


def generator_loss(
    told: Float[Tensor, "n k"],
    heard: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    *,
    adversarial: float,
) -> Float[Tensor, ""]:
    """Return the generator's loss, given the ensemble's logits, the student's and the labels."""
    surprise = cross_entropy(told, labels, reduction="none")
    hardness = 1 - surprise.detach().neg().exp()
    return (hardness * surprise).mean() - adversarial * divergence(told, heard).mean()


def weigh(ensemble: Ensemble, pool: Sequence[Batch], epoch: int, *, step: float) -> Ensemble:
    """Return the ensemble after one signed step on its weights for each batch of the pool.

    Not in the first epoch, whose images have hardly been taught yet.
    """
    weights = ensemble.weights
    for batch in pool if epoch else ():
        leaf = weights.detach().requires_grad_()
        loss = cross_entropy(together(batch.each, leaf), batch.labels)
        (slope,) = torch.autograd.grad(loss, leaf)
        weights = (weights - step * DECAY**epoch * slope.sign()).clamp(0, 1)
    return replace(ensemble, weights=weights)


def harden(
    ensemble: Ensemble, images: Float[Tensor, "n c h w"], rng: torch.Generator, *, push: float
) -> Float[Tensor, "n c h w"]:
    """Return images pushed off in a random direction of the ensemble's answer."""
    leaf = images.detach().requires_grad_()
    likely = (ensemble(leaf) / SOFTER).softmax(1)
    direction = 2 * torch.rand(likely.shape, generator=rng).to(likely) - 1
    (slope,) = torch.autograd.grad((direction * likely).sum(), leaf)
    return images + push * slope.sign()


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    own = config.of_method(CoBoostingConfig)
    tactics = Tactics(
        generator_loss=lambda t, h, y: generator_loss(t, h, y, adversarial=own.adversarial),
        weigh=lambda ensemble, pool, epoch: weigh(ensemble, pool, epoch, step=own.weight_step),
        harden=lambda ensemble, images, rng: harden(ensemble, images, rng, push=own.push),
    )
    return server_half(config, tools, emit, own, tactics)


METHODS = {"coboosting": Method(server=_server, settings=(CoBoostingConfig,), takes_mean=True)}
