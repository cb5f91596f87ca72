"""Which classes a client owns, read off the reply it sends anyway.

The classifier is linear over non-negative features h. For an image of class y the gradient of
cross-entropy moves the classifier row of class k by ``eta (1[k = y] - p_k) h``. A class the client
lacks therefore only ever loses: every entry of its row, and its bias, can only fall. So one entry
that rose is proof of ownership, and no image, label or count need be shared. So it is under
``client.loss = "balanced-softmax"``, where p_k = 0 for what the client lacks. Weight decay moves
entries too; ``shrink`` allows for it. (Our own observation; not in the paper.)

The proof has one direction: what is called owned is owned. A class of few images can be missed,
since the other classes' images may press every entry of its row below the start. On the grid of
tests/test_ownership.py (momentum, decay, epochs, batch, start) a class with a single image was
missed in 104 of 432 runs beside two classes of 10 and 20 images, one of these in none; beside
classes of 3 to 20 images it was missed in 124 of 324 from fresh weights and in 186 of 324 from a
start that the prior had taught. What a later round proves is kept.

Knows the names of the surrogate's last layer and nothing else.
"""

import math
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.core.models import HEAD
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.robust import Mean
from feddgm_flwr.core.training import TrainConfig, steps_of

ROUNDING = 2.0**-23
"""Of a float32, relative, a step; twice the worst."""
CLASSIFIER = (f"{HEAD}.weight", f"{HEAD}.bias")


def owned_classes(
    start: Params,
    reply: Params,
    label_counts: tuple[int, ...] | None,
    *,
    shrink: float = 0.0,
) -> tuple[int, ...]:
    """Return the owned classes: those counted, or those that the reply proves.

    Parameters
    ----------
    shrink
        Upper bound on the fraction by which weight decay alone moved a parameter to zero
        (``decay_bound``).
    """
    if label_counts is not None:
        return tuple(k for k, n in enumerate(label_counts) if n > 0)
    rose = _rise(start, reply, shrink) > 0
    return tuple(int(k) for k in rose.nonzero().flatten())


def mean_of_owners(
    mean: Params,
    replies: Sequence[Params],
    weights: Sequence[float | int],
    owned: Sequence[Collection[int]],
    start: Params,
    mean_of: Mean,
) -> Params:
    """Return ``mean``, of the replies, with each class's classifier row over its owners alone.

    Who lacks a class only ever presses its row down, whatever the class looks like. A class of
    nobody keeps the mean over all.

    Parameters
    ----------
    mean
        Of ``replies``; it stays as it is.
    owned
        The classes of each reply's client.
    start
        What all were sent.
    mean_of
        How replies, or rows of them, become one.
    """
    mean = {**mean, **{name: mean[name].clone() for name in CLASSIFIER}}
    for k in sorted(set().union(*owned)):
        having = [i for i, classes in enumerate(owned) if k in classes]
        rows = [{name: replies[i][name][k] for name in CLASSIFIER} for i in having]
        sent = {name: start[name][k] for name in CLASSIFIER}
        for name, row in mean_of(rows, [weights[i] for i in having], sent).items():
            mean[name][k] = row
    return mean


def decay_bound(config: TrainConfig, num_examples: int) -> float:
    """Return ``shrink`` for a client that trained by ``config`` on ``num_examples`` images.

    SGD makes ``buf = m buf + (g + d p); p -= lr buf``, which is linear in the start and in the
    gradients. As long as it does not oscillate (``lr d <= (1 - sqrt m)^2``: the roots of
    ``z^2 - (1 + m - lr d) z + m`` are real) no gradient g >= 0 ever raises an entry, so an absent
    class's entry ends at most where decay alone would have taken it. Alone, p only falls towards
    zero, each step adds at most ``d |p_0|`` to the buffer, and the buffer moves p by ``lr`` times
    that over and over, ``1 + m + m^2 + ... <= 1 / (1 - m)`` times. Rounding adds half a unit in the
    last place a step, always the same way where a feature is dead; without decay there is none.

    Where it oscillates nothing can be proved, and the bound is infinite.
    """
    a, m = config.lr * config.weight_decay, config.momentum
    if not a:
        return 0.0
    if a > (1 - math.sqrt(m)) ** 2:
        return math.inf
    steps = steps_of(num_examples, config)
    return a * steps / (1 - m) + steps * ROUNDING


def _rise(start: Params, reply: Params, shrink: float) -> Float[Tensor, " k"]:
    """Return the largest rise of each class's row or bias that decay cannot explain."""
    rises = []
    for name in CLASSIFIER:
        rise = (reply[name] - start[name]).flatten(1 if start[name].ndim > 1 else 0)
        rise = rise - shrink * start[name].abs().flatten(1 if start[name].ndim > 1 else 0)
        rises.append(rise if rise.ndim > 1 else rise[:, None])
    return torch.cat(rises, 1).amax(1)
