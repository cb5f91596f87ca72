"""A client's number of gradient steps, on its way up: for methods that divide by it.

How many they are follows from its number of examples and the run's settings, so that a reply which
says another number is refused, and one whose examples are cut counts as many as what is left makes.
"""

from collections.abc import Sequence
from dataclasses import replace

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task, Walk
from feddgm_flwr.core.state import ClientUpdate, Extra
from feddgm_flwr.core.training import TrainConfig, steps_of

STEPS = "steps"


def up(task: Task, walk: Walk, data: ImageSet) -> Extra:
    """Return the steps of ``walk``."""
    return Extra(numbers={STEPS: walk.steps})


def wrong(extra: Extra, num_examples: int, *, config: TrainConfig) -> str:
    """Return why a reply's steps cannot be believed, or ""."""
    steps, made = extra.numbers.get(STEPS), steps_of(num_examples, config)
    if extra.tensors or set(extra.numbers) != {STEPS}:
        return f"it must send {STEPS} beside its parameters and nothing else"
    if type(steps) is not int or steps != made:
        return f"{STEPS} must be the {made} that {num_examples} images make, got {steps!r}"
    if steps < 1:
        return f"{STEPS} must be at least 1, got {steps}; raise client.epochs"
    return ""


def capped(updates: Sequence[ClientUpdate], config: TrainConfig) -> list[ClientUpdate]:
    """Return ``updates`` with no more steps than the examples that count make."""
    return [
        replace(
            u,
            extra=Extra(
                numbers={STEPS: min(u.extra.numbers[STEPS], steps_of(u.num_examples, config))}
            ),
        )
        for u in updates
    ]
