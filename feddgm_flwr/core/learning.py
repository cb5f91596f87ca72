"""How models learn on the server, and the settings of it (paper, step 5).

By labels, from synthetic images; or by listening to other models (``core.ensemble``), of pictures
made for each step. Knows nothing of where images come from. Weights are state dicts, on the CPU.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from feddgm_flwr.core.augment import PAPER
from feddgm_flwr.core.ensemble import listen
from feddgm_flwr.core.models import GLOBAL_MODELS, SURROGATE
from feddgm_flwr.core.settings import Settings, Words, restated, setting
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.core.telling import Pace
from feddgm_flwr.core.training import TrainConfig, finite, has_batch_norm, train
from feddgm_flwr.events import Emit, Trained, TrainingFailed, TrainProgress

EPOCH = 50
"""Steps of a model that listens, after which it is told how far it is."""
ALONE = "batch norm needs at least 2 images a batch, got 1"
OnEpoch = Callable[[int, float], None]
"""Called with the epochs done and the last one's mean loss."""


def name_list(names: str) -> tuple[str, ...]:
    """Return comma-separated names, in order; an empty one where nothing is between two commas."""
    return tuple(n.strip() for n in names.split(",")) if names else ()


def are_models(names: str) -> bool:
    """Whether ``names`` are of larger models, each once."""
    given = name_list(names)
    return set(given) <= set(GLOBAL_MODELS) and len(set(given)) == len(given)


@dataclass(frozen=True, kw_only=True)
class UnionConfig(TrainConfig):
    """The union of all clients' images, and how the next surrogate learns from it."""

    section: ClassVar[str] = "union"

    surrogate_update: Literal["synthetic", "aggregate", "aggregate+synthetic"] = setting(
        "aggregate+synthetic",
        "The next surrogate: the old one trained on the union, the mean of the replies, or the "
        "mean of the replies trained on the union.",
        paper="synthetic",
    )
    epochs: int = restated(
        TrainConfig, "epochs", 20, meaning="Passes of the surrogate over the union.", paper=1000
    )
    lr: float = restated(TrainConfig, "lr", 0.003, paper=0.01)
    momentum: float = restated(TrainConfig, "momentum", 0.9, paper=0.0)
    batch_size: int = restated(TrainConfig, "batch_size", 64, paper=256)
    augment: str = restated(TrainConfig, "augment", "", paper=PAPER)
    weight_by_examples: bool = setting(
        False,
        "Weigh a client's images by its example count, so that n_i speaks in the union too.",
    )
    balance_classes: bool = setting(
        True, "Let every class weigh the same, however many clients own it.", paper=False
    )
    classifier_mean: Literal["all", "owners"] = setting(
        "owners",
        "Where training on the union begins: each class's row of the classifier is the mean of all "
        "replies, or of those whose clients own the class.",
        only={"surrogate_update": ("aggregate+synthetic",)},
    )
    learns: Literal["by-prior", "classifier", "all"] = setting(
        "by-prior",
        "What of the surrogate learns from the union: the last layer alone, over the features of "
        "the mean of the replies, or every layer. `by-prior`: every layer where fresh samples of "
        "the prior are among the lessons, since a few distilled images do not teach features.",
        only={"surrogate_update": ("aggregate+synthetic",)},
    )
    examine: bool = setting(
        False,
        "Whether a reply that holds its own classes no likelier on the others' images than the "
        "surrogate that was sent counts nowhere: neither its parameters nor its images. It tells "
        "some lies, and costs honest replies once the surrogate is good (docs/robustness.md).",
    )
    teacher_share: float = setting(
        0.3,
        "The share in an image's target of what the replies, of every width, say of it (the mean "
        "of their probabilities by example counts), the rest being its label.",
        ge=0,
        le=1,
        only={"surrogate_update": ("aggregate+synthetic",)},
    )
    aggregate_share: float = setting(
        0.1,
        "The share of the plain mean of the replies in the next surrogate, the rest being what the "
        "union made of it: so that images which do not fit cannot undo it. 1 would be FedAvg.",
        ge=0,
        le=1,
        only={"surrogate_update": ("aggregate+synthetic",)},
    )
    server_momentum: float = setting(
        0.5,
        "Server momentum on the features (FedAvgM, arXiv 1909.06335): beside the mean of the "
        "replies, all of the surrogate but its classifier moves by this share of its last "
        "movement. 0 is the mean.",
        ge=0,
        lt=1,
        only={"surrogate_update": ("aggregate+synthetic",)},
    )
    prior_images_per_class: int = setting(
        30,
        "Fresh samples of the prior added to the union each round, where it knows the classes.",
        ge=0,
        paper=0,
    )


@dataclass(frozen=True, kw_only=True)
class GlobalModelConfig(TrainConfig):
    """The larger models that the server teaches."""

    section: ClassVar[str] = "global-model"

    names: str = setting(
        "",
        'The models, beside the surrogate; "" for none.',
        words=Words(
            fit=are_models,
            expected=f"different names of {GLOBAL_MODELS} joined by ','",
        ),
    )
    taught_by: Literal["models", "labels"] = setting(
        "models",
        "What they learn from each round, going on from the last round's weights: what the next "
        "surrogate and the replies say of pictures made for the purpose (of the union and fresh "
        "samples of the prior, mixed, and of dead leaves), or the union's labels.",
        paper="labels",
    )
    steps: int = setting(
        200,
        "Steps a round of a model that listens to others. More make it better: it begins with "
        "nothing, where the surrogate begins with the replies' mean. A GPU can bear thousands.",
        ge=0,
        only={"taught_by": ("models",)},
    )
    listening_lr: float = setting(
        0.001,
        "AdamW's learning rate of such a model; it rises at first, and falls to 0 by the end of "
        "each round as a cosine.",
        gt=0,
        only={"taught_by": ("models",)},
    )
    temperature: float = setting(
        4.0,
        "Temperature at which it listens (arXiv 1503.02531).",
        gt=0,
        only={"taught_by": ("models",)},
    )
    replies_share: float = setting(
        0.2,
        "Share of the replies in what it is told, by example counts; the rest is the surrogate's.",
        ge=0,
        le=1,
        only={"taught_by": ("models",)},
    )
    leaves: float = setting(
        0.75,
        "Share of dead leaves among its pictures, the rest being the union's, mixed or not: shapes "
        "that cover one another, which need no data (arXiv 2106.05963). None where the prior knows "
        "the classes, whose fresh samples are more like what will be asked.",
        ge=0,
        le=1,
        only={"taught_by": ("models",)},
    )
    epochs: int = restated(
        TrainConfig,
        "epochs",
        30,
        meaning="Passes over the union, each round.",
        paper=1000,
        only={"taught_by": ("labels",)},
    )
    lr: float = restated(TrainConfig, "lr", 0.03, paper=0.01)
    momentum: float = restated(TrainConfig, "momentum", 0.9)
    weight_decay: float = restated(TrainConfig, "weight_decay", 5e-4, paper=1e-5)
    batch_size: int = restated(TrainConfig, "batch_size", 64, paper=256)
    augment: str = restated(TrainConfig, "augment", "", paper=PAPER)

    @property
    def name_list(self) -> tuple[str, ...]:
        """The names in `names`, in order."""
        return name_list(self.names)


@dataclass(frozen=True, kw_only=True)
class StartConfig(Settings):
    """What the prior teaches before any client is asked: the start, and the control."""

    section: ClassVar[str] = "start"

    weights: Literal["method", "random", "prior"] = setting(
        "method",
        "The first models: fresh weights, or trained on samples of the prior alone, if it knows "
        "the classes. `method` is `prior` for feddgm and `random` for the others.",
        paper="random",
    )
    epochs: int = setting(20, "Passes of the surrogate over those samples.", ge=0)
    lr: float = setting(0.02, "Learning rate of the same.", gt=0)
    global_model_epochs: int = setting(5, "Passes of the global models over those samples.", ge=0)
    control: bool = setting(
        True,
        "Report the control too: models that learn from the prior alone, where the run has one.",
        may_differ=True,
    )


@dataclass(frozen=True)
class Learner:
    """A model that learns on the server.

    Attributes
    ----------
    name
        The surrogate's, or the global model's.
    module
        The architecture; its weights are scratch space.
    device
        Where it is trained.
    """

    name: str
    module: nn.Module
    config: TrainConfig
    device: torch.device

    def briefly(self, epochs: int, lr: float | None = None) -> "Learner":
        """Return the same model under a shorter training."""
        lr = self.config.lr if lr is None else lr
        return replace(self, config=replace(self.config, epochs=epochs, lr=lr))

    def learn(
        self,
        weights: Mapping[str, Tensor],
        lessons: SyntheticSet,
        *,
        rng: torch.Generator,
        server_round: int,
        emit: Emit,
        part: str = "",
    ) -> dict[str, Tensor]:
        """Return ``weights`` after training on ``lessons``.

        They stay as they are where there are no images, and where training diverges or batch norm
        finds a single one, which is told, never raised.

        Parameters
        ----------
        part
            Name of the submodule that learns, all else staying; "" for the whole model.
        """
        if not len(lessons):
            return dict(weights)
        if self._is_alone(min(len(lessons), self.config.batch_size), server_round, emit):
            return dict(weights)
        importance = lessons.weights / lessons.weights.mean()

        def training(on_epoch: OnEpoch) -> float:
            with learning(self.module, part):
                return train(
                    self.module,
                    lessons.images.to(self.device),
                    lessons.targets.to(self.device),
                    self.config,
                    weights=importance.to(self.device),
                    rng=rng,
                    on_epoch=on_epoch,
                )

        size = len(lessons), self.config.epochs
        return self._taught(weights, training, size, server_round, emit)

    def listen(
        self,
        weights: Mapping[str, Tensor],
        teachers: Callable[[Tensor], Tensor],
        pictures: Callable[[int, torch.Generator], Tensor],
        *,
        rng: torch.Generator,
        server_round: int,
        emit: Emit,
    ) -> dict[str, Tensor]:
        """Return ``weights`` after hearing what ``teachers`` say of new pictures at every step.

        As under ``learn``, they stay as they are where training diverges, and where batch norm
        would meet a single picture.

        Parameters
        ----------
        teachers
            Images -> logits, on this model's device.
        pictures
            So many images, there.
        """
        config = self.config
        assert isinstance(config, GlobalModelConfig)
        if not config.steps:
            return dict(weights)
        if self._is_alone(config.batch_size, server_round, emit):
            return dict(weights)

        def training(on_epoch: OnEpoch) -> float:
            return listen_long(self.module, teachers, pictures, config, rng=rng, on_epoch=on_epoch)

        size = config.steps * config.batch_size, len(told_after(config.steps))
        return self._taught(weights, training, size, server_round, emit)

    def _is_alone(self, images: int, server_round: int, emit: Emit) -> bool:
        """Return whether batch norm would meet a batch of one, and tell if so."""
        alone = images < 2 and has_batch_norm(self.module)
        if alone:
            emit(TrainingFailed(round=server_round, model=self.name, reason=ALONE))
        return alone

    def _taught(
        self,
        weights: Mapping[str, Tensor],
        training: "Callable[[OnEpoch], float]",
        size: tuple[int, int],
        server_round: int,
        emit: Emit,
    ) -> dict[str, Tensor]:
        """Return ``weights`` after ``training`` on (images, epochs), and tell how it goes."""
        began, pace = time.perf_counter(), Pace()
        images, epochs = size

        def on_epoch(epoch: int, loss: float) -> None:
            emit(
                TrainProgress(
                    round=server_round,
                    model=self.name,
                    epoch=epoch,
                    epochs=epochs,
                    loss=loss,
                    eta_s=pace.left_s(epoch / epochs),
                )
            )

        self.module.load_state_dict(weights)
        self.module.to(self.device)
        try:
            loss = training(on_epoch)
        except FloatingPointError as error:
            emit(TrainingFailed(round=server_round, model=self.name, reason=str(error)))
            return dict(weights)
        finally:
            self.module.to("cpu")
        emit(
            Trained(
                round=server_round,
                model=self.name,
                images=images,
                epochs=epochs,
                loss=loss,
                seconds=time.perf_counter() - began,
            )
        )
        return copied(self.module.state_dict())


def listen_long(
    student: nn.Module,
    teachers: Callable[[Tensor], Tensor],
    pictures: Callable[[int, torch.Generator], Tensor],
    config: GlobalModelConfig,
    *,
    rng: torch.Generator,
    on_epoch: OnEpoch,
) -> float:
    """Teach ``student`` in place for ``config.steps`` and return its last mean divergence.

    Parameters
    ----------
    on_epoch
        Called after each ``EPOCH`` steps, and at the end, with how often and their mean loss.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.listening_lr, weight_decay=config.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: warm_cosine(i, config.steps))
    student.train()
    for epoch, steps in enumerate(told_after(config.steps)):
        total = torch.zeros(())
        for _ in range(steps):
            images = pictures(config.batch_size, rng)
            loss = listen(student, images, teachers(images), optimizer, config.temperature)
            rate.step()
            total = total.to(loss) + loss
        # One look an epoch: asking a GPU at every step would make it wait.
        mean = finite(float(total) / steps, epoch, config.listening_lr)
        on_epoch(epoch + 1, mean)
    return mean


def told_after(steps: int) -> list[int]:
    """Return ``steps`` in parts of ``EPOCH``, after each of which it is told how things go."""
    whole, rest = divmod(steps, EPOCH)
    return [EPOCH] * whole + [rest] * (rest > 0)


def warm_cosine(step: int, steps: int) -> float:
    """Return the share of the learning rate at ``step``: up in a tenth of all, down as a cosine."""
    return min(1.0, 10 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


@contextmanager
def learning(module: nn.Module, part: str) -> Iterator[None]:
    """Freeze, inside the block, all of ``module`` but its submodule ``part`` ("" is the whole)."""
    frozen = set(module.parameters()) - set(module.get_submodule(part).parameters())
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_()


@dataclass(frozen=True)
class Learners:
    """All models that learn on the server.

    Attributes
    ----------
    narrow
        Name -> narrower surrogate.
    """

    surrogate: Learner
    global_models: Mapping[str, Learner]
    narrow: Mapping[str, Learner] = field(default_factory=dict)

    @property
    def surrogates(self) -> dict[str, Learner]:
        """Every surrogate by name, the widest first."""
        return {SURROGATE: self.surrogate, **self.narrow}

    @property
    def listening(self) -> GlobalModelConfig | None:
        """How the global models listen to others; None where labels teach them, or none is."""
        for learner in self.global_models.values():
            config = learner.config
            if isinstance(config, GlobalModelConfig) and config.taught_by == "models":
                return config
        return None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every model's architecture by name, surrogates first."""
        return {n: m.module for n, m in {**self.surrogates, **self.global_models}.items()}

    def of(self, name: str) -> "Learners":
        """Return the same with one of the surrogates in the surrogate's place."""
        return replace(self, surrogate=self.surrogates[name])


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in weights.items()}
