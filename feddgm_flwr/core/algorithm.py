"""Algorithm 1 of the paper (arXiv 2312.01537): the server's half of a federated round.

``apply_round`` is the algorithm, on one screen: tensors in, tensors out. It knows no Flower, no
data set and no file; ``federation.strategy`` feeds it and carries its result away.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from feddgm_flwr.config import RunConfig, TrainConfig
from feddgm_flwr.core.distillation.distill import (
    Bench,
    DistillJob,
    DistillResult,
    decode_clamped,
)
from feddgm_flwr.core.distillation.engine import Engine
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import initialise
from feddgm_flwr.core.ownership import owned_classes
from feddgm_flwr.core.params import Params, load_params, params_of, weighted_mean
from feddgm_flwr.core.prior import Prior
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.core.training import train

logger = logging.getLogger(__name__)

CONTROL_IMAGES_PER_CLASS = 200
"""Samples of the prior a class that the generator-only control learns from, at least."""

Emit = Callable[..., None]
"""``emit(kind, **fields)``: where events go; fields are JSON scalars and lists."""


@dataclass(frozen=True)
class Setting:
    """What does not change during a run.

    Attributes
    ----------
    surrogate
        The surrogate's architecture; its weights are scratch space.
    global_models
        Name -> architecture; likewise.
    device
        Where the server computes.
    engine
        Where clients are distilled.
    """

    config: RunConfig
    spec: ImageSpec
    prior: Prior
    surrogate: nn.Module
    global_models: dict[str, nn.Module]
    device: torch.device
    engine: Engine

    @property
    def bench(self) -> Bench:
        """What distillation shares between clients."""
        return Bench(
            self.surrogate,
            self.prior,
            self.config.distill,
            self.spec,
            self.config.generator.chunk,
            self.device,
        )


def init_state(setting: Setting, *, emit: Emit) -> ServerState:
    """Return round 0: seeded fresh weights, or a surrogate that the prior taught; no latents."""
    state = fresh_state(setting)
    if not setting.config.starts_from_prior:
        return state
    if not setting.prior.conditional:
        logger.info(
            "the prior does not know the classes, so the surrogate starts from fresh weights"
        )
        return state
    return taught_by_prior(state, setting, emit=emit)


def fresh_state(setting: Setting) -> ServerState:
    """Return seeded fresh weights and nothing else."""
    initialise(setting.surrogate, rng=derive(setting.config.seed, "surrogate"))
    models = {}
    for index, (name, model) in enumerate(setting.global_models.items()):
        initialise(model, rng=derive(setting.config.seed, "global-model", index))
        models[name] = _copy(model.state_dict())
    return ServerState(0, params_of(setting.surrogate), models, {}, ())


def taught_by_prior(state: ServerState, setting: Setting, *, emit: Emit) -> ServerState:
    """Return ``state`` with every model trained on samples of the prior alone.

    From ``fresh_state`` this is the generator-only control: no client was asked.
    """
    config = setting.config
    samples = prior_set(
        setting, 0, max(CONTROL_IMAGES_PER_CLASS, config.server.prior_images_per_class)
    )
    load_params(setting.surrogate, state.surrogate)
    rng = derive(config.seed, "surrogate-training", 0)
    alone = replace(config.server, epochs=config.server.prior_epochs, lr=config.server.prior_lr)
    sound = _train_on(setting.surrogate, samples, alone, setting, rng, "surrogate", emit)
    few = replace(config.global_model, epochs=config.global_model.prior_epochs)
    briefly = replace(setting, config=replace(config, global_model=few))
    return replace(
        state,
        surrogate=params_of(setting.surrogate) if sound else state.surrogate,
        global_models={
            name: train_global_model(name, weights, samples, briefly, 0, emit)
            for name, weights in state.global_models.items()
        },
    )


def apply_round(
    state: ServerState, updates: Sequence[ClientUpdate], setting: Setting, *, emit: Emit
) -> tuple[ServerState, RoundReport]:
    """Run steps 3 to 5 for the round after ``state.server_round``."""
    server_round = state.server_round + 1
    updates = sorted(updates, key=attrgetter("partition_id"))

    # Step 3: each client's trajectory becomes latents, wherever the engine runs them.
    jobs = [distill_job(update, state, setting) for update in updates]
    results = run_jobs(jobs, setting.engine, emit)

    # Step 4: the multi-modal union of all clients' images, and of the last rounds'.
    parts = [as_set(u, r, setting) for u, r in zip(updates, results, strict=True)]
    fresh = SyntheticSet.concat([SyntheticSet.empty(setting.spec), *parts])
    replay = (*state.replay, fresh)[-setting.config.distill.replay_rounds :]
    union = SyntheticSet.concat([*replay, rehearsal_set(setting, server_round)])

    # Step 5: the next surrogate and the global models learn from the union.
    # A reply that could not be distilled is not averaged either.
    sound = [u for u, r in zip(updates, results, strict=True) if len(r.images)]
    surrogate = next_surrogate(state, sound, union, setting, emit)
    models = {
        name: train_global_model(name, weights, union, setting, server_round, emit)
        for name, weights in state.global_models.items()
    }
    kept = {r.report.partition_id: r.latents for r in results if r.latents is not None}
    latents = state.latents | kept if setting.config.distill.warm_start else {}
    reports = tuple(r.report for r in results)
    return (
        ServerState(server_round, surrogate, models, latents, replay),
        RoundReport(reports, fresh, union),
    )


def distill_job(update: ClientUpdate, state: ServerState, setting: Setting) -> DistillJob:
    """Return what distillation needs of one client's reply."""
    config = setting.config
    old = state.latents.get(update.partition_id)
    if config.distill.classes == "all":
        classes = set(range(setting.spec.num_classes))
    else:
        shrink = config.client.lr * config.client.weight_decay
        shrink *= config.client.epochs * -(-update.num_examples // config.client.batch_size)
        classes = set(
            owned_classes(state.surrogate, update.params, update.label_counts, shrink=shrink)
        )
        # What one round proved stays proven.
        classes |= set() if old is None else set(old.labels.tolist())
    return DistillJob(
        partition_id=update.partition_id,
        server_round=state.server_round + 1,
        seed=config.seed,
        start=state.surrogate,
        target=update.params,
        images_per_class=dict.fromkeys(sorted(classes), config.distill.images_per_class),
        latents=old,
    )


def run_jobs(jobs: Sequence[DistillJob], engine: Engine, emit: Emit) -> list[DistillResult]:
    """Distil all jobs, telling how far along they are."""
    done, pace = dict.fromkeys((j.partition_id for j in jobs), 0.0), _Pace()

    def left_s() -> float:
        return pace.left_s(sum(done.values()) / len(done))

    def on_progress(partition_id: int, iteration: int, iterations: int, loss: float) -> None:
        done[partition_id] = iteration / iterations
        emit(
            "distill-progress",
            partition_id=partition_id,
            iteration=iteration,
            iterations=iterations,
            loss=loss,
            eta_s=left_s(),
        )

    def on_result(result: DistillResult) -> None:
        done[result.report.partition_id] = 1.0
        emit("distilled", **asdict(result.report), eta_s=left_s())

    return engine.run(jobs, on_progress, on_result)


def as_set(update: ClientUpdate, result: DistillResult, setting: Setting) -> SyntheticSet:
    """Return one client's images; they weigh as many examples as the client has, or 1 each."""
    n = len(result.images)
    weight = update.num_examples / n if setting.config.server.weight_by_examples and n else 1.0
    return SyntheticSet(
        images=result.images,
        targets=result.targets,
        weights=torch.full((n,), weight),
        owner=torch.full((n,), update.partition_id),
    )


def rehearsal_set(setting: Setting, server_round: int) -> SyntheticSet:
    """Return fresh samples of the prior for the union, where it knows the classes."""
    count = setting.config.server.prior_images_per_class if setting.prior.conditional else 0
    return prior_set(setting, server_round, count)


def prior_set(setting: Setting, server_round: int, count: int) -> SyntheticSet:
    """Return ``count`` images a class of the prior's own, none of them any client's."""
    spec = setting.spec
    if not count:
        return SyntheticSet.empty(spec)
    labels = torch.arange(spec.num_classes).repeat_interleave(count)
    rng = derive(setting.config.seed, "prior-images", server_round)
    values = setting.prior.sample(labels, rng=rng)
    return SyntheticSet(
        images=decode_clamped(setting.prior, values, setting.bench),
        targets=one_hot(labels, spec.num_classes).float(),
        weights=torch.ones(len(labels)),
        owner=torch.full((len(labels),), -1),
    )


def next_surrogate(
    state: ServerState,
    updates: Sequence[ClientUpdate],
    union: SyntheticSet,
    setting: Setting,
    emit: Emit,
) -> Params:
    """Return theta_{t+1}: the old surrogate or the mean reply, trained on the union or not."""
    how = setting.config.server.surrogate_update
    start = state.surrogate
    if how.startswith("aggregate") and updates:
        start = weighted_mean([u.params for u in updates], [u.num_examples for u in updates])
    if how == "aggregate" or not len(union):
        return start
    load_params(setting.surrogate, start)
    rng = derive(setting.config.seed, "surrogate-training", state.server_round + 1)
    if _train_on(setting.surrogate, union, setting.config.server, setting, rng, "surrogate", emit):
        return params_of(setting.surrogate)
    return start


def train_global_model(
    name: str,
    weights: dict[str, Tensor],
    union: SyntheticSet,
    setting: Setting,
    server_round: int,
    emit: Emit,
) -> dict[str, Tensor]:
    """Return the named model's weights after more training on the union."""
    if not len(union):
        return weights
    model = setting.global_models[name]
    model.load_state_dict(weights)
    index = list(setting.global_models).index(name)
    rng = derive(setting.config.seed, "global-model-training", server_round, index)
    if _train_on(model, union, setting.config.global_model, setting, rng, name, emit):
        return _copy(model.state_dict())
    return weights


def _train_on(
    model: nn.Module,
    union: SyntheticSet,
    config: TrainConfig,
    setting: Setting,
    rng: torch.Generator,
    name: str,
    emit: Emit,
) -> bool:
    """Train ``model`` in place; whether it stayed finite. A divergence is told, never raised."""
    began = time.perf_counter()
    model.to(setting.device)
    weights = union.weights / union.weights.mean()
    images, targets = union.images.to(setting.device), union.targets.to(setting.device)
    try:
        loss = train(
            model,
            images,
            targets,
            config,
            weights=weights.to(setting.device),
            rng=rng,
            on_epoch=_progress(name, config.epochs, emit),
        )
    except FloatingPointError as error:
        emit("training-failed", model=name, reason=str(error))
        return False
    finally:
        model.to("cpu")
    emit(
        "trained",
        model=name,
        images=len(union),
        epochs=config.epochs,
        loss=loss,
        seconds=time.perf_counter() - began,
    )
    return True


def _progress(name: str, epochs: int, emit: Emit) -> Callable[[int, float], None]:
    pace = _Pace()

    def on_epoch(epoch: int, loss: float) -> None:
        emit(
            "train-progress",
            model=name,
            epoch=epoch,
            epochs=epochs,
            loss=loss,
            eta_s=pace.left_s(epoch / epochs),
        )

    return on_epoch


class _Pace:
    """Tells the time left by the pace since the first news; what came before was start-up."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left_s(self, share: float) -> float:
        """Return seconds from ``share`` done to all; 0 while there is no pace yet."""
        now = time.monotonic()
        first_share, first = self._first = self._first or (share, now)
        if share <= first_share:
            return 0.0
        return (now - first) * (1 - share) / (share - first_share)


def _copy(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state_dict.items()}
