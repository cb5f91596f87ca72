"""Means of replies of which a few may lie, and what one reply may claim before there is a mean.

``Mean`` is how replies become one; every kind but the plain mean bears a minority of any replies.
``within_limits`` cuts a reply's number of examples, and how far it moved, to a multiple of the
round's median. Knows no method, no round and no wire.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from feddgm_flwr.core.params import Params, distance, weighted_mean
from feddgm_flwr.core.state import ClientUpdate

T = TypeVar("T", int, float)
Kind = Literal["mean", "median", "trimmed", "geometric-median", "clipped"]

ENOUGH = 3
"""Replies from which on a median says something of the others."""
STEPS = 100
TOLERANCE = 1e-6
"""Of the geometric median: most steps, and the relative step that ends them."""
NEAR = 1e-6
"""Distance within which the geometric median is smooth (nu of RFA)."""


@dataclass(frozen=True)
class Mean:
    """How replies become one.

    ``median`` and ``trimmed`` (Yin et al., arXiv 1803.01498; the numbers of Flower's FedMedian and
    FedTrimmedAvg) and ``geometric-median`` (Pillutla et al., arXiv 1912.13445) count every reply
    the same, since a claimed number of examples may be a lie; ``clipped`` is the plain mean of
    movements cut to their median length (Sun et al., arXiv 1911.07963).

    Attributes
    ----------
    trim
        ``trimmed``: the fraction cut at each end.
    """

    kind: Kind = "mean"
    trim: float = 0.2

    def of(self, updates: Sequence[ClientUpdate], start: Params) -> Params:
        """Return the mean of the parameters of ``updates``, weighted by their examples."""
        return self([u.params for u in updates], self.voices(updates), start)

    def voices(self, updates: Sequence[ClientUpdate]) -> list[int]:
        """Return how much each reply's word counts, here and wherever else replies are heard."""
        counts = self.kind in ("mean", "clipped")
        return [u.num_examples if counts else 1 for u in updates]

    def __call__(
        self, replies: Sequence[Params], weights: Sequence[float | int], start: Params
    ) -> Params:
        """Return the mean of ``replies``, all of which began at ``start``."""
        match self.kind:
            case "mean":
                return weighted_mean(replies, weights)
            case "median":
                return _without_ends(replies, (len(replies) - 1) // 2)
            case "trimmed":
                return _without_ends(replies, int(self.trim * len(replies)))
            case "geometric-median":
                return geometric_median(replies)
            case "clipped":
                lengths = [distance(start, reply) for reply in replies]
                most = median_of_moved(lengths)
                short = [
                    towards(start, reply, most / length) if length > most else reply
                    for reply, length in zip(replies, lengths, strict=True)
                ]
                return weighted_mean(short, weights)


def aggregate(
    updates: Sequence[ClientUpdate], start: Params, mean: Mean, *, partition_id: int
) -> ClientUpdate:
    """Return the replies of one surrogate's clients as one reply, of all their examples.

    Of label counts there is a sum where every client shares them; a method's additions have none.

    Parameters
    ----------
    start
        What the clients were sent.
    partition_id
        The aggregate's; below 0, as it is no client's.
    """
    examples = [u.num_examples for u in updates]
    counts = [u.label_counts for u in updates if u.label_counts is not None]
    return ClientUpdate(
        partition_id=partition_id,
        params=mean.of(updates, start),
        num_examples=sum(examples),
        label_counts=(
            tuple(map(sum, zip(*counts, strict=True))) if len(counts) == len(updates) else None
        ),
        surrogate=updates[0].surrogate,
    )


def _without_ends(replies: Sequence[Params], cut: int) -> Params:
    """Return each entry's mean without its ``cut`` smallest and largest values."""

    def middle(values: Tensor) -> Tensor:
        return values.sort(0).values[cut : len(values) - cut].mean(0)

    return {name: middle(torch.stack([r[name] for r in replies])) for name in replies[0]}


def geometric_median(replies: Sequence[Params]) -> Params:
    """Return the point of the least sum of distances, by the smoothed Weiszfeld steps of RFA."""
    median = _without_ends(replies, (len(replies) - 1) // 2)
    for _ in range(STEPS):
        nearness = [1 / max(NEAR, distance(median, reply)) for reply in replies]
        before, median = median, weighted_mean(replies, nearness)
        if distance(before, median) <= TOLERANCE * (distance(median, replies[0]) + NEAR):
            break
    return median


def towards(start: Params, end: Params, share: float) -> Params:
    """Return the point that lies ``share`` of the way from ``start`` to ``end``."""
    return {k: s + (end[k] - s) * share for k, s in start.items()}


@dataclass(frozen=True)
class Limits:
    """What one reply may claim, as multiples of the round's median; 0 is no limit.

    Attributes
    ----------
    examples
        Of the numbers of examples of all replies.
    movement
        Of the distances from the surrogate that was sent, of all replies that began with it.
    """

    examples: float = 0.0
    movement: float = 0.0


@dataclass(frozen=True)
class Cut:
    """A claim that was beyond its limit.

    Attributes
    ----------
    what
        "examples" or "movement".
    claimed, counted
        What the reply says, and what of it counts.
    """

    partition_id: int
    what: Literal["examples", "movement"]
    claimed: float
    counted: float


def within_limits(
    updates: Sequence[ClientUpdate], sent: Mapping[str, Params], limits: Limits
) -> tuple[list[ClientUpdate], list[Cut]]:
    """Return ``updates`` cut to ``limits``, and what was cut.

    Of fewer than ``ENOUGH`` replies no median tells which one lies, and nothing is cut.

    Parameters
    ----------
    sent
        Name of a surrogate -> what its clients were sent.
    """
    fewer, counts = _cut(updates, limits.examples, _examples, _with_examples, "examples")
    groups = [[u for u in fewer if u.surrogate == name and u.params] for name in sent]

    def length(update: ClientUpdate) -> float:
        return distance(sent[update.surrogate], update.params)

    def shortened(update: ClientUpdate, share: float) -> ClientUpdate:
        return replace(update, params=towards(sent[update.surrogate], update.params, share))

    nearer, moves = {u.partition_id: u for u in fewer}, []
    for group in groups:
        cut, told = _cut(group, limits.movement, length, shortened, "movement")
        nearer |= {u.partition_id: u for u in cut}
        moves += told
    return list(nearer.values()), counts + moves


def _examples(update: ClientUpdate) -> float:
    return float(update.num_examples)


def _with_examples(update: ClientUpdate, share: float) -> ClientUpdate:
    counted = max(1, round(update.num_examples * share))
    return replace(update, num_examples=counted, claimed=update.num_examples)


def _cut(
    updates: Sequence[ClientUpdate],
    multiple: float,
    measure: Callable[[ClientUpdate], float],
    scaled: Callable[[ClientUpdate, float], ClientUpdate],
    what: Literal["examples", "movement"],
) -> tuple[list[ClientUpdate], list[Cut]]:
    """Return ``updates``, each whose measure is above ``multiple`` medians scaled down to that."""
    measured = [measure(u) for u in updates]
    counted = within_median(measured, multiple)
    all_of = list(zip(updates, measured, counted, strict=True))
    cuts = [Cut(u.partition_id, what, m, most) for u, m, most in all_of if m > most]
    return [scaled(u, most / m) if m > most else u for u, m, most in all_of], cuts


def within_median(values: Sequence[T], multiple: float) -> list[T]:
    """Return ``values``, none above ``multiple`` of their medians; of a few, as they are."""
    most = multiple * median_of_moved(values)
    return [type(v)(most) if v > most else v for v in values] if multiple else list(values)


def median_of_moved(values: Sequence[float | int]) -> float:
    """Return the median of those above 0; of fewer than ``ENOUGH``, infinity.

    A client of one class may rightly stay where it began (``client.loss``): it says nothing of how
    far the others should go.
    """
    moved = [v for v in values if v > 0]
    return float(statistics.median(moved)) if len(moved) >= ENOUGH else math.inf
