"""The device's half of a round: train the broadcast surrogate on own images (paper, step 2).

Knows no Flower, no data set and no other client. A method's rule (FedProx, SCAFFOLD, ...) comes in
as a ``Rule``.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.ownership import CLASSIFIER
from feddgm_flwr.core.params import Params, load_params, on, params_of
from feddgm_flwr.core.settings import restated, setting
from feddgm_flwr.core.state import Extra
from feddgm_flwr.core.training import Objective, Rule, TrainConfig, adjusted_loss, steps_of, train


@dataclass(frozen=True, kw_only=True)
class ClientConfig(TrainConfig):
    """Local training on a device."""

    section: ClassVar[str] = "client"

    epochs: int = restated(TrainConfig, "epochs", 5, meaning="Local epochs a round.", paper=20)
    lr: float = restated(TrainConfig, "lr", 0.05, paper=0.01)
    batch_size: int = restated(TrainConfig, "batch_size", 32, paper=256)
    loss: Literal["cross-entropy", "balanced-softmax"] = setting(
        "cross-entropy",
        "What training descends. `balanced-softmax` (arXiv 2007.10740; logit adjustment, arXiv "
        "2007.07314) adds the logarithm of the client's own number of images of a class to its "
        "logit, so that the classifier need not learn how many there are; an absent class has "
        "probability 0. Nothing is sent. Not for a method that has a loss of its own.",
    )
    share_label_counts: bool = setting(
        False,
        "Send the number of images per class too; otherwise the server infers only *which* "
        "classes a client owns, from the reply it has anyway.",
    )
    threads: int = setting(
        1,
        "CPU threads of one client, which decide the last bits of its training; 1 keeps simulated "
        "clients from fighting for cores.",
        ge=1,
        le=1024,
    )
    compile: bool = setting(
        False,
        "Let torch compile the training step of full batches: the same to rounding in 0.4 to 0.8 "
        "of the time on one core; seconds at the start of each process, and a compiler needed. On "
        "a GPU the step is launched as one CUDA graph instead, which needs none.",
    )
    device: str = setting("auto", "`auto` (CUDA where present), `cpu`, `cuda` or `cuda:N`.")


@dataclass(frozen=True)
class Task:
    """What the server asks of a client in a round.

    Attributes
    ----------
    params
        theta_t.
    extra
        What the method sends beside it.
    """

    params: Params
    server_round: int
    extra: Extra = field(default_factory=Extra)

    def to(self, device: torch.device) -> "Task":
        """Return the same with its tensors on ``device``."""
        extra = replace(self.extra, tensors=on(device, self.extra.tensors))
        return replace(self, params=on(device, self.params), extra=extra)


@dataclass(frozen=True)
class Walk:
    """A client's training, and where it ended.

    Attributes
    ----------
    steps
        Gradient steps made.
    loss
        Mean loss of the last epoch; None where it must not be told.
    made
        What a method made instead of, or beside, the parameters.
    model
        The module that was trained, where it was trained; None where none was.
    """

    params: Params
    steps: int
    loss: float | None
    made: Extra = field(default_factory=Extra)
    model: nn.Module | None = field(default=None, compare=False, repr=False)


@runtime_checkable
class Walker(Protocol):
    """What a client does with its images; ``walk`` is what it does unless a method says else."""

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
        """Return what came of it; the weights of ``model`` are scratch space."""
        ...


def walk(
    model: nn.Module,
    data: ImageSet,
    task: Task,
    config: ClientConfig,
    rule: Rule,
    *,
    rng: torch.Generator,
    device: torch.device,
) -> Walk:
    """Train ``model`` from the task's parameters on ``data``; its weights are scratch space."""
    if config.loss == "balanced-softmax":
        rule = replace(rule, objective=balanced_softmax(class_counts(task, data)))
    load_params(model, task.params)
    model.to(device)
    loss = train(
        model,
        data.images.to(device),
        data.labels.to(device),
        config,
        rng=rng,
        rule=rule,
        compile=config.compile,
    )
    return Walk(on_cpu(params_of(model)), steps_of(len(data), config), loss, model=model)


def class_counts(task: Task, data: ImageSet) -> Int[Tensor, " k"]:
    """Return how many of ``data`` are of each class that theta_t tells apart, where theta_t is."""
    bias = task.params[CLASSIFIER[1]]
    return torch.bincount(data.labels.cpu(), minlength=len(bias)).to(bias.device)


def balanced_softmax(counts: Int[Tensor, " k"]) -> Objective:
    """Return the cross-entropy of logits plus log n_y; an absent class drops out of the sum."""
    return adjusted_loss(torch.ones_like(counts, dtype=torch.float32), counts.log())


def on_cpu(params: Params) -> Params:
    """Return ``params`` as they travel."""
    return on(torch.device("cpu"), params)
