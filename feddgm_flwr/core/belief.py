"""Whether the other clients' images bear a reply out.

Who trains on images of a class holds that class likelier than the surrogate that it was sent, on
whoever's images of it. So, with I_i the distilled images of the *other* clients, of classes that
client i owns, and p_c(x; theta) what a model holds likely of class c::

    gain_i = mean over (x, c) in I_i of  p_c(x; theta_i) - p_c(x; theta_t)

is positive for an honest reply, as long as theta_t has much to learn. It is not for one that was
turned round or that was never trained, whose length and direction may be as usual. Who trained on
false labels does gain, and is not told. Once theta_t knows the images, by a prior that has taught
it or after some rounds, honest replies gain nothing either. (Our own observation; not in the paper.
Figures: docs/robustness.md.) Knows no round and no wire.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from feddgm_flwr.core.ensemble import mixture
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.robust import ENOUGH
from feddgm_flwr.core.state import ClientUpdate
from feddgm_flwr.core.synthetic import SyntheticSet


@dataclass(frozen=True)
class Witness:
    """A reply, and what it is examined with.

    Attributes
    ----------
    classes
        Those that its client owns.
    sent
        The surrogate that its client was sent.
    module
        The architecture of both.
    """

    update: ClientUpdate
    classes: Collection[int]
    sent: Params
    module: nn.Module


def gains(
    witnesses: Sequence[Witness], images: SyntheticSet, device: torch.device
) -> dict[int, float]:
    """Return partition id -> ``gain_i``; NaN where no other client has an image of its classes."""
    labels = images.targets.argmax(1)
    found = {}
    for who in witnesses:
        of_its_classes = torch.isin(labels, torch.tensor(sorted(who.classes), dtype=labels.dtype))
        others = (of_its_classes & (images.owner != who.update.partition_id)).nonzero().flatten()
        if not len(others):
            found[who.update.partition_id] = math.nan
            continue
        now, before = (
            mixture(who.module, [p], [1], images.images[others], device=device)
            for p in (who.update.params, who.sent)
        )
        # A reply whose numbers overflow holds nothing likely, and is not one that none can judge.
        gain = (now.nan_to_num(0.0) - before).gather(1, labels[others, None]).mean()
        found[who.update.partition_id] = float(gain)
    return found


def disbelieved(gained: Mapping[int, float]) -> dict[int, float]:
    """Return those that gained nothing, unless they are too many to be the liars.

    Of fewer than ``ENOUGH`` replies that can be judged, and where half of them or more gained
    nothing, the images prove nothing.
    """
    judged = {who: gain for who, gain in gained.items() if not math.isnan(gain)}
    none = {who: gain for who, gain in judged.items() if gain <= 0}
    return none if len(judged) >= ENOUGH and 2 * len(none) < len(judged) else {}
