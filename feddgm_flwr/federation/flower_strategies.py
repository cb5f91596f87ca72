"""The arithmetic of Flower's own strategies, as a method's way from replies to the next state.

Each gets replies that are already screened and sorted, through its own ``aggregate_train``. What it
keeps between rounds is put into it from ``ServerState.memory`` and taken out again.
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
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from numpy.typing import NDArray

from feddgm_flwr.core.params import Params
from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState
from feddgm_flwr.federation.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    from_record,
    to_record,
)

Adaptive = FedAdam | FedYogi | FedAdagrad


def build_strategy(
    name: str, *, lr: float, momentum: float, tau: float, trim: float, malicious: int
) -> FedAvg:
    """Return Flower's strategy ``name`` with those of the settings that it knows."""
    # 0 leaves the step at Flower's own default, which differs between strategies.
    eta: dict[str, Any] = {"eta": lr} if lr else {}
    # Their names for records and for the weight are ours too, by default.
    makers: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedavgm": lambda: FedAvgM(server_learning_rate=lr or 1.0, server_momentum=momentum),
        "fedadam": lambda: FedAdam(**eta, tau=tau),
        "fedyogi": lambda: FedYogi(**eta, tau=tau),
        "fedadagrad": lambda: FedAdagrad(**eta, tau=tau),
        "fedmedian": FedMedian,
        "fedtrimmedavg": lambda: FedTrimmedAvg(beta=trim),
        "krum": lambda: Krum(num_malicious_nodes=malicious),
    }
    return makers[name]()


class FlowerArithmetic:
    """One of Flower's strategies.

    The new surrogate is cast to the broadcast's types; some compute in float64.
    """

    def __init__(self, strategy: FedAvg) -> None:
        self._strategy = strategy

    def __call__(
        self, state: ServerState, updates: Sequence[ClientUpdate], population: int
    ) -> tuple[ServerState, RoundReport | None]:
        """Return the state with the surrogate that Flower makes of ``updates``."""
        server_round = state.server_round + 1
        remind(self._strategy, state)
        arrays, _ = self._strategy.aggregate_train(server_round, [_message(u) for u in updates])
        assert arrays is not None
        made = from_record(arrays)
        surrogate = {name: made[name].to(p.dtype) for name, p in state.surrogate.items()}
        memory = memory_of(self._strategy)
        return replace(state, server_round=server_round, surrogate=surrogate, memory=memory), None


def remind(strategy: FedAvg, state: ServerState) -> None:
    """Put what was broadcast, and momentum and moments, into ``strategy``."""
    memory = state.memory
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = to_record(state.surrogate)
        vector = memory.get("momentum")
        strategy.momentum_vector = None if vector is None else [v.numpy() for v in vector]
    elif isinstance(strategy, Adaptive):
        strategy.current_arrays = {k: p.numpy() for k, p in state.surrogate.items()}
        strategy.m_t, strategy.v_t = _arrays(memory.get("m")), _arrays(memory.get("v"))


def memory_of(strategy: FedAvg) -> dict[str, Any]:
    """Return momentum and moments."""
    if isinstance(strategy, FedAvgM):
        vector = strategy.momentum_vector
        return {"momentum": None if vector is None else [_tensor(v) for v in vector]}
    if isinstance(strategy, Adaptive):
        return {"m": _tensors(strategy.m_t), "v": _tensors(strategy.v_t)}
    return {}


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
