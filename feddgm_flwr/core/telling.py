"""Telling where the server's work is: phases as events, and the time left.

Knows nothing of what becomes of an event.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from feddgm_flwr.events import Emit, Phase, PhaseEnd, PhaseStart


class Pace:
    """Tells the time left by the pace since the first news; what came before was start-up."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left_s(self, share: float) -> float:
        """Return seconds from ``share`` done to all; 0 while there is no pace yet."""
        now = time.monotonic()
        first_share, first = self._first = self._first or (share, now)
        if share <= first_share:
            return 0.0
        return (now - first) * (1 - share) / (share - first_share)


PAUSE_S = 10.0
"""Between two words about long work."""


def now_and_then(say: Callable[[int, int, float], None]) -> Callable[[int, int], None]:
    """Return what is told (done, total) of long work and says it with the seconds left.

    It says at most one thing in ``PAUSE_S`` seconds, and the end always.
    """
    pace, last = Pace(), [time.monotonic()]

    def tell(done: int, total: int) -> None:
        left, now = pace.left_s(done / total), time.monotonic()
        if now - last[0] >= PAUSE_S or done == total:
            last[0] = now
            say(done, total, left)

    return tell


@contextmanager
def phase(name: Phase, server_round: int, emit: Emit) -> Iterator[None]:
    """Tell when a phase of a round begins and ends."""
    began = time.monotonic()
    emit(PhaseStart(round=server_round, phase=name))
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        emit(PhaseEnd(round=server_round, phase=name, seconds=seconds))
