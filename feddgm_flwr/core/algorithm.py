"""Algorithm 1 of the paper (arXiv 2312.01537): the server's half of a federated round.

``apply_round`` is the algorithm, on one screen: tensors in, tensors out. It knows no Flower, no
data set and no file; ``build`` puts its tools together, ``methods.feddgm`` carries it into a
federation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from feddgm_flwr.core.belief import Witness, disbelieved, gains
from feddgm_flwr.core.distillation.distill import UNMOVED, Bench, DistillJob, DistillResult
from feddgm_flwr.core.distillation.engine import Engine
from feddgm_flwr.core.distillation.progress import Gallery, distilled
from feddgm_flwr.core.ensemble import Ensemble, Teachers, mixture
from feddgm_flwr.core.learning import GlobalModelConfig, Learners, UnionConfig
from feddgm_flwr.core.lessons import Lessons
from feddgm_flwr.core.models import HEAD, SURROGATE
from feddgm_flwr.core.ownership import decay_bound, mean_of_owners, owned_classes
from feddgm_flwr.core.params import Params, blend
from feddgm_flwr.core.robust import Mean, aggregate
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.start import IMAGES_PER_CLASS, prior_set
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.core.telling import phase
from feddgm_flwr.core.training import TrainConfig
from feddgm_flwr.events import ClientDisbelieved, Emit

VELOCITIES = "velocities"
"""What ``ServerState.memory`` calls the surrogates' velocities, by the surrogate's name."""
PROVED = "proved-classes"
"""What it calls the classes that clients proved to own, by partition id."""


@dataclass(frozen=True)
class Workshop:
    """What Algorithm 1 works with; it does not change during a run.

    Attributes
    ----------
    bench
        The prior, the students and how a client is distilled.
    engine
        Where clients are distilled.
    learners
        The surrogates and the global models.
    union
        How the union is made.
    client
        How clients train: it bounds what weight decay does to a class that a client lacks.
    gallery
        Where images are shown while they grow.
    mean
        How replies become one.
    """

    bench: Bench
    engine: Engine
    learners: Learners
    union: UnionConfig
    client: TrainConfig
    seed: int
    gallery: Gallery = field(default_factory=Gallery)
    mean: Mean = field(default_factory=Mean)

    def of(self, name: str) -> "Workshop":
        """Return this workshop as the clients of one surrogate need it."""
        return replace(self, bench=self.bench.of(name), learners=self.learners.of(name))


def apply_round(
    state: ServerState, updates: Sequence[ClientUpdate], shop: Workshop, *, emit: Emit
) -> tuple[ServerState, RoundReport]:
    """Run steps 3 to 5 for the round after ``state.server_round``."""
    server_round = state.server_round + 1
    updates = sorted(updates, key=attrgetter("partition_id"))
    if shop.bench.config.of == "aggregate":
        # Here the single replies end: all below knows their mean alone.
        updates = aggregates(state, updates, shop.mean)

    # Step 3: each client's trajectory becomes latents, wherever the engine runs them.
    with phase("distill", server_round, emit):
        jobs = [distill_job(update, state, shop) for update in updates]
        results = distilled(jobs, shop.engine, server_round, emit, shop.gallery)

    # Not in the paper: a reply that the others' images do not bear out counts nowhere below.
    reports = tuple(r.report for r in results)
    everything = list(zip(updates, jobs, results, strict=True))
    believed = borne_out(everything, state, shop, emit)

    # Step 4: the multi-modal union of all clients' images.
    parts = [as_set(u, r, shop.union) for u, _, r in believed]
    fresh = SyntheticSet.concat([SyntheticSet.empty(shop.bench.spec), *parts]).of_mean_weight()
    union = SyntheticSet.concat([fresh, rehearsal_set(shop, server_round)])
    if shop.union.balance_classes:
        union = union.balanced()

    # Step 5: the next surrogate (one a width) and the global models learn from the union.
    # A reply that could not be distilled is not averaged either.
    sound = [(u, j) for u, j, r in believed if usable(r)]
    with phase("learn", server_round, emit):
        means = mean_replies(state, sound, shop.mean)
        velocities = next_velocities(state, means, shop.union)
        surrogates = next_surrogates(state, sound, means, union, shop, emit)
        models = next_global_models(state, surrogates[SURROGATE], sound, union, shop, emit)
    kept = {u.partition_id: r.latents for u, _, r in believed if r.latents is not None}
    latents = state.latents | kept if shop.bench.config.warm_start else {}
    memory = {**state.memory, PROVED: all_proved(state, [j for _, j, _ in believed])}
    memory |= {VELOCITIES: velocities} if velocities else {}
    return (
        ServerState(
            server_round,
            surrogates.pop(SURROGATE),
            models,
            latents,
            memory,
            narrow=surrogates,
        ),
        RoundReport(reports, fresh),
    )


def aggregates(
    state: ServerState, updates: Sequence[ClientUpdate], mean: Mean
) -> list[ClientUpdate]:
    """Return each surrogate's replies as one: as if a single client had all their images.

    A reply without another of its surrogate is left out, for its mean would be itself.
    """
    own = by_surrogate(updates, state)
    return [
        aggregate(own[name], sent, mean, partition_id=-index)
        for index, (name, sent) in enumerate(state.surrogates.items(), start=1)
        if len(own[name]) > 1
    ]


def by_surrogate(
    updates: Sequence[ClientUpdate], state: ServerState
) -> dict[str, list[ClientUpdate]]:
    """Return the replies of each surrogate's clients."""
    return {name: [u for u in updates if u.surrogate == name] for name in state.surrogates}


def distill_job(update: ClientUpdate, state: ServerState, shop: Workshop) -> DistillJob:
    """Return what distillation needs of one client's reply."""
    config, owned = shop.bench.config, proved_classes(update, state, shop)
    classes = range(shop.bench.num_classes) if config.classes == "all" else owned
    return DistillJob(
        partition_id=update.partition_id,
        server_round=state.server_round + 1,
        seed=shop.seed,
        start=state.surrogates[update.surrogate],
        target=update.params,
        images_per_class=dict.fromkeys(classes, config.images_per_class),
        latents=state.latents.get(update.partition_id),
        surrogate=update.surrogate,
        owned=owned,
    )


def proved_classes(update: ClientUpdate, state: ServerState, shop: Workshop) -> tuple[int, ...]:
    """Return the classes that a reply, or an earlier one of its client, proves owned."""
    if shop.bench.config.of == "aggregate" and update.label_counts is None:
        # A mean proves nothing: a class's owners raise its row, and all others press it down.
        return tuple(range(shop.bench.num_classes))
    # By what it claims, however little of that counts: more steps only make the proof stricter.
    shrink = decay_bound(shop.client, max(update.claimed, update.num_examples))
    sent = state.surrogates[update.surrogate]
    now = owned_classes(sent, update.params, update.label_counts, shrink=shrink)
    before = state.memory.get(PROVED, {}).get(update.partition_id, ())
    return tuple(sorted({*now, *before}))


def all_proved(state: ServerState, jobs: Sequence[DistillJob]) -> dict[int, tuple[int, ...]]:
    """Return what clients proved in this round or before; what one round proved stays proven."""
    return {**state.memory.get(PROVED, {}), **{job.partition_id: job.owned for job in jobs}}


def borne_out(
    everything: list[tuple[ClientUpdate, DistillJob, DistillResult]],
    state: ServerState,
    shop: Workshop,
    emit: Emit,
) -> list[tuple[ClientUpdate, DistillJob, DistillResult]]:
    """Return the replies that the others' images bear out, and tell which do not."""
    if not shop.union.examine:
        return everything
    witnesses = [
        Witness(
            u,
            j.owned,
            state.surrogates[u.surrogate],
            shop.of(u.surrogate).learners.surrogate.module,
        )
        for u, j, _ in everything
    ]
    sets = [as_set(u, r, shop.union) for u, _, r in everything]
    images = SyntheticSet.concat([SyntheticSet.empty(shop.bench.spec), *sets])
    liars = disbelieved(gains(witnesses, images, shop.learners.surrogate.device))
    for partition_id, gain in liars.items():
        emit(ClientDisbelieved(round=state.server_round + 1, partition_id=partition_id, gain=gain))
    return [one for one in everything if one[0].partition_id not in liars]


def as_set(update: ClientUpdate, result: DistillResult, config: UnionConfig) -> SyntheticSet:
    """Return one client's images; together they weigh as its examples do, or 1 each."""
    n = len(result.images)
    weight = update.num_examples / n if config.weight_by_examples and n else 1.0
    return SyntheticSet(
        images=result.images,
        targets=result.targets,
        weights=torch.full((n,), weight),
        owner=torch.full((n,), update.partition_id),
    )


def usable(result: DistillResult) -> bool:
    """Whether the reply may be averaged: it gave images, or it was not asked for any descent."""
    return bool(len(result.images)) or result.report.stopped == UNMOVED


def rehearsal_set(shop: Workshop, server_round: int) -> SyntheticSet:
    """Return fresh samples of the prior for the union, where it knows the classes."""
    count = shop.union.prior_images_per_class if shop.bench.prior.conditional else 0
    return prior_set(shop.bench, server_round, count, seed=shop.seed)


def mean_replies(
    state: ServerState, sound: Sequence[tuple[ClientUpdate, DistillJob]], mean: Mean
) -> dict[str, Params]:
    """Return the mean of each surrogate's replies; none for a surrogate without any."""
    own = by_surrogate([u for u, _ in sound], state)
    return {name: mean.of(own[name], sent) for name, sent in state.surrogates.items() if own[name]}


def next_velocities(
    state: ServerState, means: Mapping[str, Params], config: UnionConfig
) -> dict[str, Params]:
    """Return by how much each surrogate's features move: FedAvgM's v_t, of all but the classifier.

    That is the way from theta_t to the mean reply, and a share of the last round's velocity.
    Without a reply it stays for the next round.
    """
    if not config.server_momentum or config.surrogate_update != "aggregate+synthetic":
        return {}
    velocities: dict[str, Params] = dict(state.memory.get(VELOCITIES, {}))
    for name, mean in means.items():
        sent, carried = state.surrogates[name], carried_on(state, name, config)
        velocities[name] = {
            k: mean[k] - sent[k] + carried.get(k, 0.0) for k in mean if not k.startswith(f"{HEAD}.")
        }
    return velocities


def carried_on(state: ServerState, name: str, config: UnionConfig) -> Params:
    """Return how far a surrogate's last velocity carries its features beyond the mean reply."""
    last: Params = state.memory.get(VELOCITIES, {}).get(name, {})
    return {k: config.server_momentum * v for k, v in last.items()}


def next_surrogates(
    state: ServerState,
    sound: Sequence[tuple[ClientUpdate, DistillJob]],
    means: Mapping[str, Params],
    union: SyntheticSet,
    shop: Workshop,
    emit: Emit,
) -> dict[str, Params]:
    """Return every surrogate's next weights: from its own clients' replies, by all their images.

    The mean of its clients' replies has a share of it (``UnionConfig.aggregate_share``) in as much
    as these clients hold the images of all.
    """
    updates = [u for u, _ in sound]
    everyone = sum(shop.mean.voices(updates))
    union = with_replies_word(state, updates, union, shop)
    nexts = {}
    for name in state.surrogates:
        own = [s for s in sound if s[0].surrogate == name]
        share = shop.union.aggregate_share
        share *= sum(shop.mean.voices([u for u, _ in own])) / everyone if everyone else 1
        there = replace(shop.of(name), union=replace(shop.union, aggregate_share=share))
        carried = carried_on(state, name, shop.union)
        mean = means.get(name, {})
        nexts[name] = next_surrogate(state.of(name), own, mean, carried, union, there, emit)
    return nexts


def with_replies_word(
    state: ServerState, updates: Sequence[ClientUpdate], union: SyntheticSet, shop: Workshop
) -> SyntheticSet:
    """Return the union with what all replies, of every width, say of its images in its targets."""
    share = shop.union.teacher_share
    if shop.union.surrogate_update != "aggregate+synthetic" or not (share and updates and union):
        return union
    said, everyone = torch.zeros_like(union.targets), sum(shop.mean.voices(updates))
    for name, own in by_surrogate(updates, state).items():
        if own:
            learner, weights = shop.learners.surrogates[name], shop.mean.voices(own)
            replies = [u.params for u in own]
            told = mixture(learner.module, replies, weights, union.images, device=learner.device)
            said += sum(weights) / everyone * told
    return replace(union, targets=union.targets.lerp(said, share))


def next_surrogate(
    state: ServerState,
    sound: Sequence[tuple[ClientUpdate, DistillJob]],
    mean: Params,
    carried: Params,
    union: SyntheticSet,
    shop: Workshop,
    emit: Emit,
) -> Params:
    """Return theta_{t+1}: the old surrogate or the mean reply, trained on the union or not.

    ``carried`` is what momentum adds to the mean.
    """
    config, server_round = shop.union, state.server_round + 1
    rng = derive(shop.seed, "surrogate-training", server_round)
    learner = shop.learners.surrogate
    part = part_that_learns(shop)
    learn = partial(learner.learn, rng=rng, server_round=server_round, emit=emit, part=part)
    if config.surrogate_update == "synthetic" or not sound:
        alone = config.surrogate_update == "aggregate"
        return state.surrogate if alone else learn(state.surrogate, union)
    if config.surrogate_update == "aggregate":
        return mean
    replies, weights = [u.params for u, _ in sound], shop.mean.voices([u for u, _ in sound])
    owned = [job.owned for _, job in sound]
    start = mean
    if config.classifier_mean == "owners":
        start = mean_of_owners(mean, replies, weights, owned, state.surrogate, shop.mean)
    start, mean = ({**p, **{k: p[k] + v for k, v in carried.items()}} for p in (start, mean))
    return blend(learn(start, union), mean, config.aggregate_share)


def part_that_learns(shop: Workshop) -> str:
    """Return which submodule of the surrogate learns from the union; "" is the whole."""
    config = shop.union
    if config.surrogate_update == "synthetic" or config.learns == "all":
        return ""
    rehearsed = shop.bench.prior.conditional and config.prior_images_per_class > 0
    return "" if config.learns == "by-prior" and rehearsed else HEAD


def next_global_models(
    state: ServerState,
    surrogate: Params,
    sound: Sequence[tuple[ClientUpdate, DistillJob]],
    union: SyntheticSet,
    shop: Workshop,
    emit: Emit,
) -> dict[str, dict[str, Tensor]]:
    """Return each global model's weights after more of what teaches it: models, or labels."""
    server_round, config = state.server_round + 1, shop.learners.listening
    nexts, teacher = {}, shop.learners.surrogate
    heard = None
    if config is not None and len(union):
        teachers = teachers_of(surrogate, sound, shop, config)
        heard = teachers, lessons_of(union, shop, config, server_round)
        teacher.module.to(teacher.device)
    for index, (name, learner) in enumerate(shop.learners.global_models.items()):
        weights = state.global_models[name]
        rng = derive(shop.seed, "global-model-training", server_round, index)
        if heard is None:
            nexts[name] = learner.learn(
                weights, union, rng=rng, server_round=server_round, emit=emit
            )
        else:
            nexts[name] = learner.listen(
                weights, *heard, rng=rng, server_round=server_round, emit=emit
            )
    teacher.module.to("cpu")
    return nexts


def teachers_of(
    surrogate: Params,
    sound: Sequence[tuple[ClientUpdate, DistillJob]],
    shop: Workshop,
    config: GlobalModelConfig,
) -> Teachers:
    """Return whom the global models hear: the next surrogate and the replies of its width."""
    module, device = shop.learners.surrogate.module, shop.learners.surrogate.device
    own = [u for u, _ in sound if u.surrogate == SURROGATE]
    replies, weights = [u.params for u in own], shop.mean.voices(own)
    return Teachers(
        Ensemble.of(module, [surrogate], device),
        Ensemble.weighted(module, replies, weights, device) if own else None,
        share=config.replies_share,
        mirrored=shop.bench.spec.flip,
    )


def lessons_of(
    union: SyntheticSet, shop: Workshop, config: GlobalModelConfig, server_round: int
) -> Lessons:
    """Return what they are asked about: the union with the prior's samples, or dead leaves."""
    knows = shop.bench.prior.conditional
    count, leaves = (IMAGES_PER_CLASS, 0.0) if knows else (0, config.leaves)
    fresh = prior_set(shop.bench, server_round, count, seed=shop.seed, purpose="lessons")
    device = shop.learners.surrogate.device
    pools = [part.images.to(device) for part in (union, fresh) if len(part)]
    return Lessons(tuple(pools), shop.bench.spec, leaves)
