"""FedDGM, this project's method: Algorithm 1 makes images of the replies (arXiv 2312.01537).

A device trains plainly and knows nothing of it; only the server's half imports the algorithm.
"""

from typing import TYPE_CHECKING

from feddgm_flwr.config import RunConfig
from feddgm_flwr.events import Emit
from feddgm_flwr.methods.halves import Method, ServerHalf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feddgm_flwr.build import Tools
    from feddgm_flwr.core.state import ClientUpdate, RoundReport, ServerState


def _server(config: RunConfig, tools: "Tools", emit: Emit) -> ServerHalf:
    from contextlib import ExitStack

    from feddgm_flwr.build import workshop
    from feddgm_flwr.core.algorithm import apply_round

    stack = ExitStack()
    shop = stack.enter_context(workshop(config, tools))

    def advance(
        state: "ServerState", updates: "Sequence[ClientUpdate]", population: int
    ) -> "tuple[ServerState, RoundReport | None]":
        return apply_round(state, updates, shop, emit=emit)

    return ServerHalf(advance=advance, close=stack.close)


METHODS = {
    "feddgm": Method(
        server=_server, makes_images=True, shows_images=True, mixes_widths=True, takes_mean=True
    )
}
