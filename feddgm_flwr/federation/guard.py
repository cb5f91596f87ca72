"""A grid on which no client's bytes end a run, and no client's upload holds one up.

Flower unpacks all replies of a pull in one go, and what one client has made of its bytes raises
there. And it waits for over an hour within a pull for a reply that was announced and whose bytes do
not come, of a device that died while it sent them. Here each reply is pulled by itself, in a thread
of its own; one that takes longer than ``PATIENCE_S`` is asked after at the next pull. A broken
connection to the SuperLink still raises. Knows nothing of what messages mean.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, wait
from threading import Thread

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from flwr_dashboard.grid import PassingGrid, WatchedGrid

TRANSPORTS = {"grpc", "httpx"}
"""Packages whose errors tell of the connection: Flower's in this release, and in later ones."""
PATIENCE_S = 1.0
"""Seconds that a pull waits for one reply, before it goes on to the next."""


class GuardedGrid(PassingGrid):
    """Passes everything on to ``grid``, and pulls replies one by one."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._asked: dict[str, Message] = {}
        self._under_way: dict[str, Future[list[Message]]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        messages = list(messages)
        ids = list(self._grid.push_messages(messages))
        now = time.time()
        alive = [m for m in self._asked.values() if m.metadata.created_at + m.metadata.ttl > now]
        self._asked = {m.metadata.message_id: m for m in (*alive, *messages)}
        self._under_way = {i: f for i, f in self._under_way.items() if i in self._asked}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, whole."""
        return [reply for i in sorted(message_ids) for reply in self._pulled(i)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies that come within ``timeout`` seconds."""
        return WatchedGrid(self).send_and_receive(messages, timeout=timeout)

    def _pulled(self, message_id: str) -> list[Message]:
        pull = self._under_way.pop(message_id, None)
        if pull is None:
            pull = self._begun(message_id)
            wait([pull], PATIENCE_S)
        if not pull.done():
            self._under_way[message_id] = pull
            return []
        try:
            replies = pull.result()
        except Exception as error:  # made by a client's bytes, which may be anything
            if of_the_connection(error):
                raise
            asked = self._asked.pop(message_id, None)
            if asked is None:
                return []
            reason = f"its reply cannot be unpacked ({type(error).__name__}: {error})"
            return [Message(Error(code=ErrorCode.UNKNOWN, reason=reason[:300]), reply_to=asked)]
        if replies:
            self._asked.pop(message_id, None)
        return replies

    def _begun(self, message_id: str) -> "Future[list[Message]]":
        """Return what a pull of one reply will bring."""
        found: Future[list[Message]] = Future()

        def pull() -> None:
            try:
                found.set_result(list(self._grid.pull_messages([message_id])))
            except Exception as error:  # raised where the result is asked for
                found.set_exception(error)

        # No pool: whoever waits there must not keep the process from ending.
        Thread(target=pull, name="pull", daemon=True).start()
        return found


def of_the_connection(error: Exception) -> bool:
    """Return whether the SuperLink could not be asked, whatever a client sent."""
    return any(kind.__module__.partition(".")[0] in TRANSPORTS for kind in type(error).__mro__)
