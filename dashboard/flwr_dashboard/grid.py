"""A grid that tells of every message as it goes out and of every reply as it comes in.

Flower's own ``send_and_receive`` returns when all have answered or the time is up; until then
nobody knows who has. Here the same loop pulls by itself. What is sent, what comes back, in which
order, and for how long one waits stay Flower's. Knows no event.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid

if TYPE_CHECKING:  # it lives elsewhere in later releases of Flower
    from flwr.common.typing import Run

POLL_S = 1.0
"""Seconds between two pulls where the grid does not say (over gRPC Flower waits 3)."""

Sent = Callable[[list[Message]], None]
"""Gets the messages that went out, with their ids."""
Arrived = Callable[[Metadata, Message, float], None]
"""Gets what was asked, the reply, and the seconds between."""
Silent = Callable[[Metadata], None]
"""Gets what was asked and not answered in time."""


def _nothing(*_: object) -> None:
    pass


class PassingGrid(Grid):
    """Passes everything on to ``grid`` but the messages: how these go is each kind's own."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        # What one kind of grid alone has.
        return getattr(self._grid, name)

    def set_run(self, run: "Run") -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> "Run":
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message, in Flower's older way."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return who is online."""
        return self._grid.get_node_ids()


class WatchedGrid(PassingGrid):
    """Passes everything on to ``grid``.

    Parameters
    ----------
    sent, arrived, silent
        Told as it happens; must not raise.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        sent: Sent = _nothing,
        arrived: Arrived = _nothing,
        silent: Silent = _nothing,
    ) -> None:
        super().__init__(grid)
        self._sent, self._arrived, self._silent = sent, arrived, silent
        self._poll_s = float(getattr(grid, "pull_interval", POLL_S))
        self._waiting: dict[str, tuple[Metadata, float]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and tell of those that went out."""
        # A list, as one kind of grid walks them twice.
        messages = list(messages)
        ids = [message_id for message_id in self._grid.push_messages(messages) if message_id]
        known = set(ids)
        # Each message was given its id on the way; one that could not be sent has none that counts.
        out = [message for message in messages if message.metadata.message_id in known]
        now = time.monotonic()
        self._waiting |= {m.metadata.message_id: (m.metadata, now) for m in out}
        self._sent(out)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, and tell of them."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            asked = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                self._arrived(asked[0], reply, time.monotonic() - asked[1])
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies that come within ``timeout`` seconds, as they come.

        One that could not be sent is not waited for.
        """
        waiting = set(self.push_messages(messages))
        del messages  # they may be large, and clients take their time
        until = time.monotonic() + (timeout or 0.0)
        replies: list[Message] = []
        while waiting and (timeout is None or time.monotonic() < until):
            come = list(self.pull_messages(waiting))
            replies += come
            waiting -= {reply.metadata.reply_to_message_id for reply in come}
            if waiting:
                time.sleep(self._poll_s)
        for message_id in sorted(waiting):
            self._silent(self._waiting.pop(message_id)[0])
        return replies
