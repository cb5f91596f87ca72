"""Which of a round's replies count: sorted by partition id, the rest set aside with a reason.

Pure: replies in, verdicts out. Arrival order and node ids leave no trace.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from flwr.app import Message

from feddgm_flwr.core.state import ClientUpdate
from feddgm_flwr.federation.messages import (
    Expected,
    Rejection,
    content_bytes,
    expired,
    guarded,
    parse_reply,
    reported,
    said_examples,
)

Kind = Literal["failed", "malformed", "late"]

LATE = "it did not answer in time"


class NoReplyError(RuntimeError):
    """No round of a run used a reply."""


@dataclass(frozen=True)
class SetAside:
    """A reply that does not count.

    Attributes
    ----------
    partition_id
        The client that was asked; None where nobody was.
    num_examples
        Images that it says it trained on; 0 where that cannot be read.
    """

    partition_id: int | None
    kind: Kind
    reason: str
    num_examples: int = 0


@dataclass(frozen=True)
class Accepted:
    """A reply that counts, with what it says of itself for the log."""

    update: ClientUpdate
    train_loss: float | None
    seconds: float | None
    num_bytes: int


@dataclass(frozen=True)
class Screened:
    """A round's replies, each list sorted by partition id."""

    accepted: tuple[Accepted, ...]
    set_aside: tuple[SetAside, ...]

    @property
    def updates(self) -> list[ClientUpdate]:
        """The replies that count."""
        return [a.update for a in self.accepted]

    def count(self, kind: Kind) -> int:
        """Return how many replies were set aside as ``kind``."""
        return sum(s.kind == kind for s in self.set_aside)


def screen(
    replies: Iterable[Message],
    asked: Mapping[str, int],
    expected: Mapping[int, Expected],
) -> Screened:
    """Judge every reply to the messages ``asked``.

    Parameters
    ----------
    asked
        Message id -> the partition id it was sent to. An error that the SuperLink makes on a
        dead node's behalf names the SuperLink as its source; only the message id is sure.
    expected
        Partition id -> what that client's reply must be like.
    """
    accepted: dict[int, Accepted] = {}
    aside: list[SetAside] = []
    silent = set(asked.values())
    for reply in replies:
        sender = asked.get(reply.metadata.reply_to_message_id)
        silent.discard(-1 if sender is None else sender)
        verdict = guarded(partial(_judge, reply, sender, accepted, expected))
        if isinstance(verdict, Rejection):
            verdict = SetAside(sender, "malformed", verdict.reason)
        if isinstance(verdict, Accepted):
            accepted[verdict.update.partition_id] = verdict
        else:
            aside.append(verdict)
    aside += [SetAside(p, "late", LATE) for p in silent]
    return Screened(
        accepted=tuple(accepted[p] for p in sorted(accepted)),
        set_aside=tuple(sorted(aside, key=_order)),
    )


def _judge(
    reply: Message,
    sender: int | None,
    accepted: Mapping[int, Accepted],
    expected: Mapping[int, Expected],
) -> Accepted | SetAside:
    if sender is None:
        return SetAside(None, "malformed", "it answers no message of this round")
    parsed = parse_reply(reply, expected[sender])
    if isinstance(parsed, Rejection):
        return set_aside(sender, reply, parsed)
    if parsed.partition_id != sender:
        reason = f"it calls itself partition {parsed.partition_id}, unlike before"
        return SetAside(sender, "malformed", reason, parsed.num_examples)
    if sender in accepted:
        reason = "it answered twice; the first one counts"
        return SetAside(sender, "malformed", reason, parsed.num_examples)
    return Accepted(parsed, num_bytes=content_bytes(reply), **reported(reply))


def set_aside(sender: int | None, reply: Message, rejection: Rejection) -> SetAside:
    """Return in which way a rejected reply is bad, and why."""
    if not reply.has_error():
        return SetAside(sender, "malformed", rejection.reason, said_examples(reply))
    if expired(reply):
        return SetAside(sender, "late", LATE)
    return SetAside(sender, "failed", rejection.reason)


def _order(aside: SetAside) -> tuple[int, str]:
    return (-1 if aside.partition_id is None else aside.partition_id, aside.reason)
