"""Which classes a client owns, read off the reply it sends anyway.

The classifier is linear over non-negative features h. For an image of class y the gradient of
cross-entropy moves the classifier row of class k by ``eta (1[k = y] - p_k) h``. A class the client
lacks therefore only ever loses: every entry of its row, and its bias, can only fall. So one entry
that rose is proof of ownership, and no image, label or count need be shared. Weight decay moves
entries too; ``shrink`` allows for it. (Our own observation; not in the paper.)

Knows the names of the surrogate's last layer and nothing else.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from feddgm_flwr.core.params import Params
from feddgm_flwr.core.training import TrainConfig, steps_of

CLASSIFIER = ("classifier.weight", "classifier.bias")


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
        Upper bound on the fraction by which weight decay alone moved a parameter to zero:
        ``lr * weight_decay * steps``.
    """
    if label_counts is not None:
        return tuple(k for k, n in enumerate(label_counts) if n > 0)
    rose = _rise(start, reply, shrink) > 0
    return tuple(int(k) for k in rose.nonzero().flatten())


def decay_bound(config: TrainConfig, num_examples: int) -> float:
    """Return ``shrink`` for a client that trained by ``config`` on ``num_examples`` images."""
    return config.lr * config.weight_decay * steps_of(num_examples, config)


def _rise(start: Params, reply: Params, shrink: float) -> Float[Tensor, " k"]:
    """Return the largest rise of each class's row or bias that decay cannot explain."""
    rises = []
    for name in CLASSIFIER:
        rise = (reply[name] - start[name]).flatten(1 if start[name].ndim > 1 else 0)
        rise = rise - shrink * start[name].abs().flatten(1 if start[name].ndim > 1 else 0)
        rises.append(rise if rise.ndim > 1 else rise[:, None])
    return torch.cat(rises, 1).amax(1)
