"""Flower's own strategies on our clients, for comparison.

Only their arithmetic is used (``federation.flower_strategies``): each gets replies that are already
screened and sorted, through its own ``aggregate_train``. How clients are sampled and awaited is the
same for all methods.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import Method, ServerHalf

if TYPE_CHECKING:
    from feddgm_flwr.build import Tools


@dataclass(frozen=True, kw_only=True)
class FedOptConfig(Settings):
    """The server's optimiser in fedavgm, fedadam, fedyogi and fedadagrad."""

    section: ClassVar[str] = "fedopt"

    lr: float = setting(
        0.0,
        "Federated learning's server learning rate; 0 is Flower's own default (1, 0.1, 0.01 and "
        "0.1).",
        ge=0,
    )
    momentum: float = setting(0.9, "fedavgm: momentum of the server.", ge=0, lt=1)
    tau: float = setting(1e-3, "fedadam, fedyogi, fedadagrad: degree of adaptivity.", gt=0)


@dataclass(frozen=True, kw_only=True)
class RobustConfig(Settings):
    """What fedtrimmedavg and krum guard against."""

    section: ClassVar[str] = "robust"

    trim: float = setting(0.2, "fedtrimmedavg: fraction cut at each end.", ge=0, lt=0.5)
    malicious: int = setting(1, "krum: clients assumed malicious.", ge=0)


def _method(name: str, *settings: type[Settings]) -> Method:
    def server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
        # Not at the top: a device loads this file, and has no use for Flower's server.
        from feddgm_flwr.federation.flower_strategies import FlowerArithmetic, build_strategy

        fedopt, robust = config.of_method(FedOptConfig), config.of_method(RobustConfig)
        strategy = build_strategy(
            name,
            lr=fedopt.lr,
            momentum=fedopt.momentum,
            tau=fedopt.tau,
            trim=robust.trim,
            malicious=robust.malicious,
        )
        return ServerHalf(advance=FlowerArithmetic(strategy))

    return Method(server=server, settings=settings)


METHODS = {
    "fedavg": _method("fedavg"),
    **{n: _method(n, FedOptConfig) for n in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")},
    "fedmedian": _method("fedmedian"),
    **{n: _method(n, RobustConfig) for n in ("fedtrimmedavg", "krum")},
}
