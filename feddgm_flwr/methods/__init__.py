"""Federated methods, each in one file with both its halves (``methods.halves`` says which).

A method is registered by a line here; its module offers ``METHODS``, a mapping of names to
``Method``s, and is imported when it is first asked for.
"""

from importlib import import_module
from typing import Any

from feddgm_flwr.core.settings import Settings

MODULES = {
    "feddgm": "feddgm",
    "fedavg": "flowers",
    "fedprox": "fedprox",
    "scaffold": "scaffold",
    "fednova": "fednova",
    "fedrs": "fedrs",
    "fedlc": "fedlc",
    "feddf": "feddf",
    "dense": "dense",
    "coboosting": "coboosting",
    "feddm": "feddm",
    "dynafed": "dynafed",
    "moon": "moon",
    "ccvr": "ccvr",
    "fedavgm": "flowers",
    "fedadam": "flowers",
    "fedyogi": "flowers",
    "fedadagrad": "flowers",
    "fedmedian": "flowers",
    "fedtrimmedavg": "flowers",
    "krum": "flowers",
}
"""Name of a method -> the file of this folder that holds it."""


def names() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(MODULES)


def registered(name: str) -> Any:  # noqa: ANN401 (a ``Method``, whose builders name this one's user)
    """Return the ``Method`` called ``name``."""
    return import_module(f"{__name__}.{MODULES[name]}").METHODS[name]


def makes_images(name: str) -> bool:
    """Whether the method called ``name`` makes images, for which it needs a prior."""
    return bool(registered(name).makes_images)


def shows_images(name: str) -> bool:
    """Whether rounds of the method called ``name`` report images."""
    return bool(registered(name).shows_images)


def mixes_widths(name: str) -> bool:
    """Whether clients of the method called ``name`` may train surrogates of several widths."""
    return bool(registered(name).mixes_widths)


def takes_mean(name: str) -> bool:
    """Whether the server of the method called ``name`` takes a mean that may be a robust one."""
    return bool(registered(name).takes_mean)


def trains_plainly(name: str) -> bool:
    """Whether clients of the method called ``name`` do as under FedAvg, and send no more."""
    return bool(registered(name).trains_plainly)


def has_own_loss(name: str) -> bool:
    """Whether clients of the method called ``name`` descend a loss of its own."""
    return bool(registered(name).own_loss)


def may_stay(name: str) -> bool:
    """Whether a client of one class has no gradient under the method called ``name``."""
    return bool(registered(name).may_stay)


def sections() -> tuple[type[Settings], ...]:
    """Return the configuration sections that methods have of their own."""
    return tuple(dict.fromkeys(s for name in MODULES for s in registered(name).settings))
