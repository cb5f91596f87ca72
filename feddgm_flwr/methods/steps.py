"""A client's number of gradient steps, on its way up: for methods that divide by it.

The server cannot know it for sure: batches are the device's own affair.
"""

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import Task, Walk
from feddgm_flwr.core.state import Extra

STEPS = "steps"
MAX_STEPS = 10**9
"""More steps than any client makes in a round."""


def up(task: Task, walk: Walk, data: ImageSet) -> Extra:
    """Return the steps of ``walk``."""
    return Extra(numbers={STEPS: walk.steps})


def wrong(extra: Extra) -> str:
    """Return why a reply's steps cannot be believed, or ""."""
    steps = extra.numbers.get(STEPS)
    if extra.tensors or set(extra.numbers) != {STEPS}:
        return f"it must send {STEPS} beside its parameters and nothing else"
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        return f"{STEPS} must be a whole number from 1 to {MAX_STEPS}, got {steps!r}"
    return ""
