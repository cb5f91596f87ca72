"""SGD on labelled images in memory: one loop for clients, surrogate and global models.

Order and augmentation come from the caller's generator alone, so the same seed gives
the same weights. Axes: ``n`` images, ``k`` classes. Knows no data set, no client and no
round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.sgd import sgd

from feddgm_flwr.core.augment import NAMES, Pixels, augment
from feddgm_flwr.core.capturing import Captured
from feddgm_flwr.core.compiling import compiled
from feddgm_flwr.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """SGD on a labelled set of images."""

    epochs: int = setting(1, "Passes over the set.", ge=0)
    lr: float = setting(0.01, "Learning rate.", gt=0)
    momentum: float = setting(0.0, "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float = setting(0.0, "L2 decay of SGD.", ge=0)
    batch_size: int = setting(32, "Images a step.", ge=1)
    augment: str = setting(
        "",
        'Augmentations; "" for none. All are applied at once, or after `one:` one of them a step, '
        "drawn, as the authors' code does. `flip` is left out where a mirrored image changes its "
        "class.",
        words=NAMES,
    )


Objective = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]
"""(model, images, targets, weights) of a batch -> the loss that a step descends."""


def plain_loss(model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return weighted_loss(model(images), targets, weights)


def adjusted_loss(scale: Float[Tensor, " k"], shift: Float[Tensor, " k"]) -> Objective:
    """Return the cross-entropy of logits times ``scale`` plus ``shift``, class by class.

    A shift of minus infinity gives a class probability 0, and its row of the classifier no
    gradient at all; no image may be of that class.
    """

    def objective(
        model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        logits = model(images)
        return weighted_loss(scale.to(logits) * logits + shift.to(logits), targets, weights)

    return objective


@dataclass(frozen=True)
class Rule:
    """What training follows.

    Attributes
    ----------
    adjust
        Changes the parameters' gradients in place, before each step.
    objective
        The loss; it calls the model.
    """

    adjust: Callable[[Sequence[nn.Parameter]], None] | None = None
    objective: Objective = plain_loss


PLAIN = Rule()
"""The gradient of cross-entropy alone."""


def train(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int[Tensor, " n"] | Float[Tensor, "n k"],
    config: TrainConfig,
    *,
    rng: torch.Generator,
    weights: Float[Tensor, " n"] | None = None,
    rule: Rule = PLAIN,
    compile: bool = False,
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Train ``model`` in place and return the mean loss of the last epoch.

    Parameters
    ----------
    images, targets
        On any device; batches move to the model's. Targets are class indices or
        probabilities.
    weights
        Importance of each image, mean 1.
    compile
        Compile the rule's objective for batches of the full size, or on a GPU record the whole
        step; a smaller last one goes through as it is, so that nothing is compiled twice.
    on_epoch
        Called with the epochs done and the epoch's mean loss.

    Returns
    -------
    float
        The loss while training; with no epochs, the loss as it stands.

    Raises
    ------
    FloatingPointError
        An epoch's loss is not finite.
    ValueError
        No images.
    """
    if not len(images):
        raise ValueError("training needs at least 1 image, got 0; give it some data")
    device = next(model.parameters()).device
    data = (images, targets, weights)
    if not config.epochs:
        return _standing_loss(model, data, config.batch_size, rule.objective)

    descent = Descent(list(model.parameters()), config)
    step = _Step(model, descent, rule.objective, rule.adjust)
    whole = _made_fast(step, data, config, device) if compile else step
    pixels = pixels_of(model)
    model.train()
    for epoch in range(config.epochs):
        total = torch.zeros((), device=device)
        for chosen in epoch_batches(
            len(images), config.batch_size, model, rng=rng, device=images.device
        ):
            x, y, w = _batch(data, chosen, device)
            x = augment(x, config.augment, rng=rng, pixels=pixels)
            loss = (whole if len(chosen) == config.batch_size else step)(x, y, w)
            total += loss * len(chosen)
        # One look an epoch: asking a GPU at every step would make it wait.
        mean = finite(float(total) / len(images), epoch, config.lr)
        if on_epoch:
            on_epoch(epoch + 1, mean)
    descent.forget()  # a recording's lie in its memory, which would stay as long as the model
    return mean


@dataclass(frozen=True)
class Descent:
    """SGD as ``torch.optim.SGD`` does it, by the function that this calls.

    The class itself imports all of ``torch.compile``, compiled or not: of a device, whose every
    message starts a new Python, that was two of six CPU seconds.
    """

    parameters: Sequence[nn.Parameter]
    config: TrainConfig
    buffers: dict[int, Tensor] = field(default_factory=dict)
    """The momentum of parameters, by their place; none before the first step."""

    def forget(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [(i, p, p.grad) for i, p in enumerate(self.parameters) if p.grad is not None]
        buffers = [self.buffers.get(i) for i, *_ in moved]
        sgd(
            [p.detach() for _, p, _ in moved],
            [gradient for *_, gradient in moved],
            buffers,
            foreach=True,
            weight_decay=self.config.weight_decay,
            momentum=self.config.momentum,
            lr=self.config.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for (i, *_), buffer in zip(moved, buffers, strict=True):
            if buffer is not None:
                self.buffers[i] = buffer


@dataclass(frozen=True)
class _Step:
    """One step of SGD on a batch."""

    model: nn.Module
    descent: Descent
    objective: Objective
    adjust: Callable[[Sequence[nn.Parameter]], None] | None

    def __call__(self, images: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the batch's loss before the step."""
        loss = self.objective(self.model, images, targets, weights)
        self.descent.forget()
        torch.autograd.backward(loss)
        if self.adjust:
            self.adjust(self.descent.parameters)
        self.descent.step()
        return loss.detach()

    def momenta(self) -> list[Tensor]:
        """Return the momentum buffers; there are none before the first step."""
        return list(self.descent.buffers.values())


def _made_fast(
    step: _Step,
    data: tuple[Tensor, Tensor, Tensor | None],
    config: TrainConfig,
    device: torch.device,
) -> "Captured[Tensor] | _Step":
    """Return ``step`` for full batches: compiled on a CPU, one CUDA graph on a GPU."""
    if device.type != "cuda":
        return replace(step, objective=compiled(step.objective))
    if len(data[0]) < config.batch_size:
        return step  # there are no full batches
    step.model.train()
    first = torch.arange(config.batch_size, device=data[0].device)
    recorded = Captured(step, _batch(data, first, device), list(step.model.state_dict().values()))
    for momentum in step.momenta():
        momentum.zero_()  # as if no step had been taken: a buffer of zeros adds nothing
    return recorded


def pixels_of(model: nn.Module) -> Pixels | None:
    """Return how ``model`` normalises in its first layer; None if it does not."""
    first = getattr(model, "normalize", None)
    return None if first is None else Pixels(first.mean, first.std)


def steps_of(n: int, config: TrainConfig) -> int:
    """Return the steps that training on ``n`` images takes, without batch norm."""
    return config.epochs * -(-n // config.batch_size)


def epoch_batches(
    n: int,
    size: int,
    model: nn.Module,
    *,
    rng: torch.Generator,
    device: torch.device | None = None,
) -> list[Int[Tensor, " batch"]]:
    """Return a seeded permutation of 0..n-1 in batches, on ``device``: by one copy an epoch.

    A last batch of one joins its neighbour where the model has batch norm, which needs
    two.
    """
    batches = list(torch.split(torch.randperm(n, generator=rng).to(device), size))
    if len(batches) > 1 and len(batches[-1]) == 1 and has_batch_norm(model):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def weighted_loss(
    logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"] | Float[Tensor, "n k"],
    weights: Float[Tensor, " n"] | None,
) -> Float[Tensor, ""]:
    """Return mean cross-entropy, each image counted ``weights`` times."""
    if weights is None:
        return cross_entropy(logits, targets)
    return (cross_entropy(logits, targets, reduction="none") * weights).mean()


def _batch(
    data: tuple[Tensor, Tensor, Tensor | None], chosen: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    images, targets, weights = data
    return (
        images[chosen].to(device),
        targets[chosen.to(targets.device)].to(device),
        None if weights is None else weights[chosen.to(weights.device)].to(device),
    )


@torch.no_grad()
def _standing_loss(
    model: nn.Module,
    data: tuple[Tensor, Tensor, Tensor | None],
    batch_size: int,
    objective: Objective,
) -> float:
    model.eval()
    n, device = len(data[0]), next(model.parameters()).device
    total = 0.0
    for chosen in torch.split(torch.arange(n), batch_size):
        x, y, w = _batch(data, chosen, device)
        total += float(objective(model, x, y, w)) * len(chosen)
    return total / n


def finite(loss: float, epoch: int, lr: float) -> float:
    """Return an epoch's mean ``loss`` (epochs counted from 0), or raise FloatingPointError."""
    if loss - loss != 0:
        raise FloatingPointError(
            f"training loss must stay finite, got {loss} in epoch {epoch + 1} at a "
            f"learning rate of {lr}; lower the rate"
        )
    return loss


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a batch of one image would be nothing to normalise by."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
