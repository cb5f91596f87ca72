"""A run's figures at a port of its own, for Prometheus, where the settings ask for one.

The port and the figures are the dashboard's (``flwr_dashboard.endpoint``); here events become its
records.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from feddgm_flwr.events import Emit, Event, to_line
from flwr_dashboard.endpoint import Endpoint


@contextmanager
def figures(name: str, host: str, port: int) -> Iterator[tuple[Emit, ...]]:
    """Offer the figures of the run ``name`` during the block; give the listener that makes them.

    Of port 0 nothing is offered, and nobody listens.

    Raises
    ------
    ValueError
        The port is taken, or the host is not this machine's.
    """
    if not port:
        yield ()
        return
    try:
        endpoint = Endpoint(name, host, port)
    except ValueError as error:
        raise ValueError(f"watch.metrics-host and watch.metrics-port: {error}") from error

    def listen(event: Event) -> None:
        endpoint.take(json.loads(to_line(event, time.time())))

    with endpoint:
        yield (listen,)
