"""``result.json``: what a run reached, round by round, whole after every round.

Knows the config and plain numbers; no tensor, no Flower.
"""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feddgm_flwr.config import RunConfig
from feddgm_flwr.files import write_atomically

PACKAGES = ("feddgm-flwr", "flwr", "torch", "torchvision", "diffusers", "numpy")


@dataclass(frozen=True)
class Scores:
    """Accuracy and loss on the server's test images, by model.

    Attributes
    ----------
    accuracy, loss
        "surrogate" and each global model -> value; empty where the server has no test images.
    metrics
        The same for each of ``core.evaluation.METRICS``.
    """

    accuracy: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """One round.

    Attributes
    ----------
    seconds
        From waiting for nodes to the last score.
    bytes_up, bytes_down
        Records from the clients and to them.
    replies
        How many were accepted, failed, malformed, late.
    federated
        The clients' own score of the surrogate, where they were asked.
    distilled
        How each client's distillation went (``core.state.DistillReport``).
    fidelity
        What the judge says of the round's images (``core.fidelity``), where there is one.
    privacy
        What clients have spent so far, where they add noise: ``epsilon``, ``delta``, ``clients``
        and ``unknown``, of whom ``epsilon`` says nothing (``events.PrivacySpent``).
    kept
        Why the old model was kept, or "".
    """

    round: int
    accuracy: dict[str, float]
    loss: dict[str, float]
    seconds: float
    bytes_up: int
    bytes_down: int
    replies: dict[str, int]
    federated: dict[str, float] | None = None
    distilled: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    fidelity: dict[str, float] | None = None
    privacy: dict[str, Any] | None = None
    kept: str = ""


@dataclass
class Results:
    """All of ``result.json``."""

    header: dict[str, Any]
    initial: Scores = field(default_factory=Scores)
    rounds: list[RoundResult] = field(default_factory=list)
    generator_only: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig) -> "Results":
        """Return the results of a run that has not begun."""
        header = {
            "method": config.method,
            "recipe": config.recipe,
            "dataset": config.data.name,
            "partition": config.data.partition,
            "alpha": config.data.alpha if config.data.partition == "dirichlet" else None,
            "clients": 0,
            "seed": config.seed,
        }
        return cls(header)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Results":
        """Return what ``to_dict`` gave."""
        own = ("initial", "rounds", "generator_only", "versions")
        return cls(
            header={k: v for k, v in saved.items() if k not in own},
            initial=Scores(**saved["initial"]),
            rounds=[RoundResult(**r) for r in saved["rounds"]],
            generator_only=dict(saved["generator_only"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            **self.header,
            "initial": asdict(self.initial),
            "rounds": [_without_none(asdict(r)) for r in self.rounds],
            "generator_only": self.generator_only,
            "versions": versions(),
        }

    def save(self, out_dir: Path) -> None:
        """Rewrite ``result.json``."""
        text = json.dumps(_plain(self.to_dict()), indent=2, allow_nan=False) + "\n"
        write_atomically(out_dir / "result.json", text.encode())


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return ``value`` as JSON has it: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
