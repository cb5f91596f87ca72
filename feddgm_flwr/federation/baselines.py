"""Flower's own strategies on our clients, for comparison.

Only their arithmetic is used: each gets replies that are already screened and sorted,
through its own ``aggregate_train``. How clients are sampled and awaited is the same for
all strategies.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from numpy.typing import NDArray

from feddgm_flwr.config import BaselineConfig
from feddgm_flwr.core.params import Params
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.federation.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    from_record,
    to_record,
)


def build_baseline(name: str, config: BaselineConfig) -> "FlowerArithmetic":
    """Return Flower's strategy ``name`` with the settings it knows."""
    # 0 leaves the step at Flower's own default, which differs between strategies.
    eta: dict[str, Any] = {"eta": config.server_lr} if config.server_lr else {}
    # Their names for records and for the weight are ours too, by default.
    makers: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedprox": lambda: FedProx(proximal_mu=config.proximal_mu),
        "fedavgm": lambda: FedAvgM(
            server_learning_rate=config.server_lr or 1.0,
            server_momentum=config.server_momentum,
        ),
        "fedadam": lambda: FedAdam(**eta, tau=config.adaptivity),
        "fedyogi": lambda: FedYogi(**eta, tau=config.adaptivity),
        "fedadagrad": lambda: FedAdagrad(**eta, tau=config.adaptivity),
        "fedmedian": FedMedian,
        "fedtrimmedavg": lambda: FedTrimmedAvg(beta=config.trim),
        "krum": lambda: Krum(num_malicious_nodes=config.malicious),
    }
    return FlowerArithmetic(name, makers[name]())


class FlowerArithmetic:
    """The arithmetic of one of Flower's strategies.

    The new surrogate is cast to the broadcast's types; some compute in float64.
    """

    def __init__(self, name: str, strategy: FedAvg) -> None:
        self.name, self._strategy = name, strategy

    def aggregate(
        self, state: ServerState, updates: Sequence[ClientUpdate]
    ) -> tuple[ServerState, RoundReport | None]:
        """Return the state with the surrogate that Flower makes of ``updates``."""
        server_round = state.server_round + 1
        if not updates:
            return replace(state, server_round=server_round), None
        self._know(state.surrogate)
        arrays, _ = self._strategy.aggregate_train(server_round, [_message(u) for u in updates])
        assert arrays is not None
        made = from_record(arrays)
        surrogate = {name: made[name].to(p.dtype) for name, p in state.surrogate.items()}
        return replace(state, server_round=server_round, surrogate=surrogate), None

    def _know(self, surrogate: Params) -> None:
        """Tell the strategy what was broadcast, as its ``configure_train`` would."""
        strategy = self._strategy
        if isinstance(strategy, FedAvgM):
            strategy.current_arrays = to_record(surrogate)
        elif isinstance(strategy, FedAdam | FedYogi | FedAdagrad):
            strategy.current_arrays = {k: p.numpy() for k, p in surrogate.items()}

    def memory(self) -> dict[str, Any]:
        """Return momentum and moments."""
        strategy = self._strategy
        if isinstance(strategy, FedAvgM):
            vector = strategy.momentum_vector
            return {"momentum": None if vector is None else [_tensor(v) for v in vector]}
        if isinstance(strategy, FedAdam | FedYogi | FedAdagrad):
            return {"m": _tensors(strategy.m_t), "v": _tensors(strategy.v_t)}
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take back momentum and moments."""
        strategy = self._strategy
        if isinstance(strategy, FedAvgM):
            vector = memory["momentum"]
            strategy.momentum_vector = None if vector is None else [v.numpy() for v in vector]
        elif isinstance(strategy, FedAdam | FedYogi | FedAdagrad):
            strategy.m_t, strategy.v_t = _arrays(memory["m"]), _arrays(memory["v"])


def _message(update: ClientUpdate) -> Message:
    """Return an accepted reply as Flower's strategies read it."""
    metrics = MetricRecord({NUM_EXAMPLES: update.num_examples})
    content = RecordDict({ARRAYS: to_record(update.params), METRICS: metrics})
    return Message(content=content, dst_node_id=0, message_type=MessageType.TRAIN)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _tensors(arrays: dict[str, NDArray[Any]] | None) -> Params | None:
    return None if arrays is None else {k: _tensor(v) for k, v in arrays.items()}


def _arrays(tensors: Params | None) -> dict[str, NDArray[Any]] | None:
    return None if tensors is None else {k: v.numpy() for k, v in tensors.items()}
