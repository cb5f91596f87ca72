"""What a strategy computes from a round's accepted replies."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from feddgm_flwr.core.algorithm import Emit, Setting, apply_round
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState


@runtime_checkable
class Arithmetic(Protocol):
    """Turns accepted replies, sorted by partition id, into the next state."""

    @property
    def name(self) -> str:
        """The strategy's name in logs and results."""
        ...

    def aggregate(
        self, state: ServerState, updates: Sequence[ClientUpdate]
    ) -> tuple[ServerState, RoundReport | None]:
        """Return the state after one more round, and what was distilled, if so."""
        ...

    def memory(self) -> dict[str, Any]:
        """Return what passes between rounds beside the state, as plain values."""
        ...

    def recall(self, memory: dict[str, Any]) -> None:
        """Take back what ``memory`` gave."""
        ...


class Distillation:
    """FedDGM: Algorithm 1."""

    name = "feddgm"

    def __init__(self, setting: Setting, emit: Emit) -> None:
        self._setting, self._emit = setting, emit

    def aggregate(
        self, state: ServerState, updates: Sequence[ClientUpdate]
    ) -> tuple[ServerState, RoundReport | None]:
        """Distil, and train on what was distilled."""
        return apply_round(state, updates, self._setting, emit=self._emit)

    def memory(self) -> dict[str, Any]:
        """Return nothing: the state is all there is."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Nothing to take back."""
