"""What differentially private training has spent: epsilon of a client's images, over its rounds.

The accountant is Opacus' (Renyi differential privacy of the sampled Gaussian mechanism, Mironov et
al., arXiv 1908.10530), an upper bound. Two data sets are neighbours where they hold equally many
images and one of them is empty in the other: it counts, and its gradient is zero. The number of
images is public, and rate, steps and divisor follow from it, so that all that differs is a sum, by
the clip norm at most and where the image is sampled alone: the mechanism that is counted.
Sampling within a client counts, as nobody outside knows the samples; sampling of clients does not,
since the server knows whom it asked. Knows no device and no Flower.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec

import numpy as np

from feddgm_flwr.core.private import PrivacyConfig, sampling_rate
from feddgm_flwr.core.training import TrainConfig, steps_of

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 65), 128, 256, 512)


def need_accountant() -> None:
    """Raise unless the accountant is installed.

    Raises
    ------
    ValueError
        It is not.
    """
    if find_spec("opacus") is None:
        raise ValueError(
            "privacy.noise-multiplier must be 0 where package opacus, which counts what is spent, "
            "is not installed; run pip install '.[privacy]' in the project's folder, where the "
            "ServerApp runs"
        )


@dataclass(frozen=True)
class Account:
    """What is known of one client's training so far.

    Attributes
    ----------
    rounds
        In how many it was asked to train, whatever came of it.
    fewest, most
        Images that it said it trained on; 0 where it has not said.
    """

    rounds: int = 0
    fewest: int = 0
    most: int = 0

    def asked(self) -> "Account":
        """Return this with one more round."""
        return replace(self, rounds=self.rounds + 1)

    def heard(self, num_examples: int) -> "Account":
        """Return this with what a reply said."""
        least = min(self.fewest or num_examples, num_examples)
        return replace(self, fewest=least, most=max(self.most, num_examples))


def epsilon_of(account: Account, privacy: PrivacyConfig, client: TrainConfig) -> float:
    """Return the client's epsilon at ``privacy.delta``; infinite where its images are not known.

    Where it had more images in one round than in another, the highest sampling rate and the most
    steps of both count, so that it is not too small; a round of which nothing was heard counts as
    if the client had no fewer images in it than it ever said.
    """
    if not account.fewest:
        return math.inf
    rate, steps = sampling_rate(account.fewest, client), steps_of(account.most, client)
    return epsilon(privacy.noise_multiplier, rate, account.rounds * steps, privacy.delta)


def epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Return epsilon after ``steps`` of the Gaussian mechanism on Poisson samples of ``rate``."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    if not steps:
        return 0.0
    spent = steps * _of_one_step(noise_multiplier, rate)
    if not np.isfinite(spent).any():
        return math.inf
    return float(get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)[0])


@lru_cache(maxsize=4096)
def _of_one_step(noise_multiplier: float, rate: float) -> np.ndarray:
    from opacus.accountants.analysis.rdp import compute_rdp

    found = compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS)
    return np.asarray(found)
