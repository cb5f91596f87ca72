"""CCVR (Luo et al., arXiv 2106.05001): the mean's classifier, learned anew on virtual features.

With n_ck, mu_ck and S_ck the number, mean and covariance of client k's features of class c::

    N_c = sum_k n_ck,   mu_c = sum_k n_ck mu_ck / N_c
    S_c = ( sum_k (n_ck - 1) S_ck + sum_k n_ck mu_ck mu_ck' - N_c mu_c mu_c' ) / (N_c - 1)

the server draws features of each class from N(mu_c, S_c) and trains on them the last layer of
FedAvg's mean. **A reply tells more than its parameters**: how many images of each class there are,
and first and second moments of their features, k d (d + 1) numbers at most for d features.

The paper takes the features under the final model, which the clients are sent once more. Here a
reply comes in one message, so a client can use what it was sent or what it made of it. It uses what
it was sent, as that is the same for all, though the classifier then meets the mean's features: on
10,000 CIFAR-10 images, 10 clients, alpha 0.1, 2 epochs, rounds 1 to 3, one seed, 28.7 31.6 34.8 %,
against 24.4 28.2 30.4 under each client's own (FedAvg 15.9 18.8 23.7). A class that no reply tells
of keeps its row.

The calibrated classifier is what is scored and saved after every round. It is also what the clients
are sent next, with which the same rounds are 28.7 33.4 36.8 %; ``ccvr.broadcast`` can say the
mean's, for the paper calibrates but once, at the end.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task, Walk, balanced_softmax, class_counts
from feddgm_flwr.core.models import HEAD, features
from feddgm_flwr.core.ownership import CLASSIFIER
from feddgm_flwr.core.params import Params, load_params, params_of
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.state import ClientUpdate, Extra, ServerState
from feddgm_flwr.core.training import Rule, TrainConfig, train
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import ClientHalf, Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools

logger = logging.getLogger(__name__)

COUNTS, MEANS, COVARIANCES = "counts", "means", "covariances"
BATCH = 500
"""Images a pass through the extractor."""
FARTHEST = 1e4
"""Largest believable feature, either way; of a covariance its square."""


@dataclass(frozen=True, kw_only=True)
class CCVRConfig(Settings):
    """CCVR."""

    section: ClassVar[str] = "ccvr"

    samples: int = setting(100, "Virtual features a class.", ge=1)
    epochs: int = setting(10, "Passes over the virtual features.", ge=0)
    lr: float = setting(0.01, "Learning rate of the classifier on virtual features.", gt=0)
    broadcast: Literal["calibrated", "mean"] = setting(
        "calibrated",
        "The classifier that clients are sent next: the calibrated one, which is scored either "
        "way, or FedAvg's, as in the paper.",
    )


@dataclass(frozen=True)
class Moments:
    """What features of each class are like.

    Attributes
    ----------
    counts
        Images a class, over all classes.
    means, covariances
        Of each class that has any, in order; the covariance of a single feature is 0.
    """

    counts: Int[Tensor, " k"]
    means: Float[Tensor, "p d"]
    covariances: Float[Tensor, "p d d"]

    @classmethod
    def of(
        cls, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], counts: Int[Tensor, " k"]
    ) -> "Moments":
        """Return the moments of ``features``, of whose ``labels`` there are ``counts``."""
        groups = [features[labels == c] for c in counts.nonzero().flatten()]
        centred = [g - g.mean(0) for g in groups]
        return cls(
            counts,
            torch.stack([g.mean(0) for g in groups]),
            torch.stack([c.T @ c / max(1, len(c) - 1) for c in centred]),
        )

    @classmethod
    def read(cls, extra: Extra) -> "Moments":
        """Return what a reply says."""
        return cls(*(extra.tensors[name] for name in (COUNTS, MEANS, COVARIANCES)))

    def written(self) -> Extra:
        """Return the same as it travels."""
        parts = (self.counts, self.means, self.covariances)
        return Extra(tensors=dict(zip((COUNTS, MEANS, COVARIANCES), parts, strict=True)))


def pooled(replies: Sequence[Moments], voices: Sequence[float]) -> Moments:
    """Return the moments of all replies' features together, in double precision.

    Parameters
    ----------
    voices
        How often each feature of a reply counts: once, unless the reply claims more than counts.
    """
    counts = torch.stack([r.counts for r in replies]).sum(0)
    means, covariances = [], []
    for c in counts.nonzero().flatten().tolist():
        parts = [(v, *_of_class(r, c)) for v, r in zip(voices, replies, strict=True) if r.counts[c]]
        total = sum(v * n for v, n, _, _ in parts)
        mean = torch.stack([v * n * m for v, n, m, _ in parts]).sum(0) / total
        scatter = torch.stack(
            [v * ((n - 1) * s + n * torch.outer(m, m)) for v, n, m, s in parts]
        ).sum(0)
        means.append(mean)
        covariances.append((scatter - total * torch.outer(mean, mean)) / max(1, total - 1))
    return Moments(counts, torch.stack(means), torch.stack(covariances))


def _of_class(reply: Moments, c: int) -> tuple[int, Tensor, Tensor]:
    place = int((reply.counts[:c] > 0).sum())
    return int(reply.counts[c]), reply.means[place].double(), reply.covariances[place].double()


def virtual(
    moments: Moments, samples: int, *, rng: torch.Generator
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Return features drawn from each class's Gaussian, and their classes."""
    p, d = moments.means.shape
    values, vectors = torch.linalg.eigh(moments.covariances)
    # Rounding leaves values below 0 where a class has fewer images than features.
    roots = vectors * values.clamp(min=0).sqrt()[:, None, :]
    noise = torch.randn(p, samples, d, generator=rng, dtype=roots.dtype)
    features = moments.means[:, None, :] + noise @ roots.transpose(1, 2)
    classes = moments.counts.nonzero().flatten()
    return features.reshape(p * samples, d), classes.repeat_interleave(samples)


def calibrated(
    classifier: Params, moments: Moments, config: CCVRConfig, *, rng: torch.Generator
) -> Params:
    """Return ``classifier`` after training on virtual features.

    A class without any has probability 0, as under a balanced softmax, and keeps its row.
    """
    features, labels = virtual(moments, config.samples, rng=rng)
    weight = classifier[CLASSIFIER[0]]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    model = nn.Sequential(nn.Flatten(), layer).to(weight)
    load_params(layer, {name.removeprefix(f"{HEAD}."): p for name, p in classifier.items()})
    train(
        model,
        features.to(weight)[:, :, None, None],
        labels,
        TrainConfig(epochs=config.epochs, lr=config.lr),
        rng=rng,
        rule=Rule(objective=balanced_softmax(moments.counts.sign() * config.samples)),
    )
    return {f"{HEAD}.{name}": p for name, p in params_of(layer).items()}


@torch.no_grad()
def up(task: Task, walk: Walk, data: ImageSet) -> Extra:
    """Return the moments of the device's images under the surrogate that it was sent."""
    assert walk.model is not None
    model, device = walk.model, next(walk.model.parameters()).device
    batches = torch.split(data.images, BATCH)
    found = torch.cat([features(model, task.params, x.to(device)).cpu() for x in batches])
    counts = class_counts(task, data)
    return Moments.of(found, data.labels.cpu(), counts).written()


def wrong(extra: Extra, num_examples: int, *, classes: int, width: int) -> str:
    """Return why a reply's moments cannot be believed, or ""."""
    if extra.numbers or set(extra.tensors) != {COUNTS, MEANS, COVARIANCES}:
        return (
            f"it must send {COUNTS}, {MEANS} and {COVARIANCES} beside its parameters, and no more"
        )
    counts, means, covariances = (extra.tensors[n] for n in (COUNTS, MEANS, COVARIANCES))
    if counts.dtype != torch.int64 or counts.shape != (classes,):
        return f"{COUNTS} must be {classes} whole numbers"
    present = int((counts > 0).sum())
    if not present or (counts < 0).any():
        return f"{COUNTS} must be >= 0 and of one class at least"
    if sum(counts.tolist()) != num_examples:
        return f"{COUNTS} must add up to the {num_examples} images that it says it has"
    if not (means.is_floating_point() and covariances.is_floating_point()):
        return f"{MEANS} and {COVARIANCES} must be floats"
    shapes = tuple(means.shape), tuple(covariances.shape)
    if shapes != ((present, width), (present, width, width)):
        return f"moments of {present} classes must be of {width} features, got shapes {shapes}"
    return _wrong_values(means, covariances)


def _wrong_values(means: Tensor, covariances: Tensor) -> str:
    if not float(means.abs().max()) <= FARTHEST:
        return f"{MEANS} must be between -{FARTHEST:g} and {FARTHEST:g}"
    if not float(covariances.abs().max()) <= FARTHEST**2:
        return f"{COVARIANCES} must be between -{FARTHEST**2:g} and {FARTHEST**2:g}"
    if not float(covariances.diagonal(dim1=1, dim2=2).min()) >= 0:
        return f"variances, the diagonals of {COVARIANCES}, must be >= 0"
    return ""


def advance(
    state: ServerState,
    updates: Sequence[ClientUpdate],
    config: CCVRConfig,
    *,
    seed: int,
    mean_of: Mean = Mean(),  # noqa: B008 (frozen)
) -> ServerState:
    """Return the state after the server's half of a round.

    Where no classifier can be learned, whatever the moments said, it is the mean's.
    """
    server_round = state.server_round + 1
    mean = mean_of.of(updates, state.surrogate)
    replies, voices = [Moments.read(u.extra) for u in updates], mean_of.voices(updates)
    # Under a mean that counts images each counts once, but for claims that were cut.
    scale = sum(u.num_examples for u in updates) / sum(voices)
    heard = [scale * v / int(r.counts.sum()) for v, r in zip(voices, replies, strict=True)]
    moments = pooled(replies, heard)
    rng = derive(seed, "virtual-features", server_round)
    classifier = {k: mean[k] for k in CLASSIFIER}
    try:
        classifier = calibrated(classifier, moments, config, rng=rng)
    except (FloatingPointError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        logger.warning("round %d: the classifier stays the mean's: %s", server_round, error)
    kept = {} if config.broadcast == "calibrated" else {"classifier": classifier}
    surrogate = mean if kept else {**mean, **classifier}
    return replace(state, server_round=server_round, surrogate=surrogate, memory=kept)


def shown(state: ServerState) -> ServerState:
    """Return the state with the calibrated classifier, where the clients are sent another."""
    return replace(state, surrogate={**state.surrogate, **state.memory.get("classifier", {})})


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    own, layer = config.of_method(CCVRConfig), tools.learners.surrogate.module.classifier
    assert isinstance(layer, nn.Linear)

    def advanced(
        state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, None]:
        mean_of = config.server.mean
        return advance(state, updates, own, seed=config.seed, mean_of=mean_of), None

    believable = partial(wrong, classes=layer.out_features, width=layer.in_features)
    return ServerHalf(advance=advanced, wrong=believable, shown=shown)


METHODS = {
    "ccvr": Method(
        server=_server,
        client=lambda config: ClientHalf(up=up),
        settings=(CCVRConfig,),
        takes_mean=True,
    )
}
