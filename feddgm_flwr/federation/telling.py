"""What a round tells of its clients, as events: who is there, is asked, has answered, counts.

Knows messages and verdicts; nothing of how a round is kept, and nothing of who listens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from flwr.app import Message, Metadata

from feddgm_flwr.core.evaluation import Evaluation
from feddgm_flwr.core.params import Params, distance
from feddgm_flwr.core.robust import Cut
from feddgm_flwr.events import (
    ClientAsked,
    ClientClipped,
    ClientRejected,
    ClientReply,
    ClientScored,
    ClientsOnline,
    Emit,
    Phase,
    PhaseStart,
    ReplyArrived,
    RoundStart,
)
from feddgm_flwr.federation import messages
from feddgm_flwr.federation.screening import Screened, SetAside
from flwr_dashboard.story import PHASES, numbers_of

MAX_LEFT_OUT = 100
"""Nodes left out that are told, at most: whoever may register nodes may register many."""


class Teller:
    """Tells of the clients of one round after the other.

    Attributes
    ----------
    round
        The round that is told of.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.round = 0
        self._there: tuple[dict[str, str], dict[str, str]] | None = None

    def online(self, nodes: Mapping[int, int], left_out: Mapping[int, str]) -> None:
        """Tell who is online, by partition id, and who is left out, if that has changed."""
        out = dict(sorted(left_out.items())[:MAX_LEFT_OUT])
        there = (
            {str(k): str(v) for k, v in nodes.items()},
            {str(node): reason for node, reason in out.items()},
        )
        if there != self._there:
            self._there = there
            self._emit(ClientsOnline(round=self.round, nodes=there[0], left_out=there[1]))

    def chosen(self, clients: Sequence[int], *, online: int, rounds: int) -> None:
        """Tell who is to train."""
        self._emit(
            RoundStart(round=self.round, rounds=rounds, clients=tuple(clients), online=online)
        )

    def asked(
        self, phase: Phase, outgoing: Mapping[int, Message], surrogates: Mapping[int, str]
    ) -> None:
        """Tell that the wait for replies begins, and who is sent what, by partition id."""
        self._emit(PhaseStart(round=self.round, phase=phase))
        for partition_id, message in outgoing.items():
            self._emit(
                ClientAsked(
                    round=self.round,
                    partition_id=partition_id,
                    phase=phase,
                    num_bytes=messages.content_bytes(message),
                    surrogate=surrogates[partition_id],
                )
            )

    def arrived(
        self, partition_id: int | None, asked: Metadata, reply: Message, seconds: float
    ) -> None:
        """Tell of a reply as it comes; one to nobody's question waits for its verdict."""
        phase = PHASES.get(asked.message_type)
        if phase is None or partition_id is None:
            return
        error = ""
        if reply.has_error():
            error = messages.harmless(reply.error.reason or "no reason given")
        self._emit(
            ReplyArrived(
                round=self.round,
                partition_id=partition_id,
                phase=phase,
                seconds=seconds,
                num_bytes=messages.content_bytes(reply),
                error=error,
                metrics=numbers_of(reply),
            )
        )

    def judged(self, screened: Screened, sent: Mapping[str, Params]) -> None:
        """Tell which replies count and which do not; ``sent`` are the surrogates they began with.

        A reply that holds no parameters has not moved.
        """
        for a in screened.accepted:
            self._emit(
                ClientReply(
                    round=self.round,
                    partition_id=a.update.partition_id,
                    num_examples=a.update.num_examples,
                    train_loss=a.train_loss,
                    seconds=a.seconds,
                    num_bytes=a.num_bytes,
                    moved=_moved(sent[a.update.surrogate], a.update.params),
                    label_counts=a.update.label_counts,
                )
            )
        for s in screened.set_aside:
            self.rejected(s, "clients")

    def cut(self, cuts: Sequence[Cut]) -> None:
        """Tell which accepted replies claim more than counts."""
        for c in cuts:
            self._emit(ClientClipped(round=self.round, **asdict(c)))

    def rejected(self, aside: SetAside, phase: Phase) -> None:
        """Tell that a reply does not count."""
        self._emit(
            ClientRejected(
                round=self.round,
                partition_id=aside.partition_id,
                reply=aside.kind,
                reason=aside.reason,
                phase=phase,
            )
        )

    def scored(self, partition_id: int, score: Evaluation, examples: int) -> None:
        """Tell a client's score of the surrogate."""
        self._emit(
            ClientScored(
                round=self.round,
                partition_id=partition_id,
                accuracy=score.accuracy,
                loss=score.loss,
                num_examples=examples,
            )
        )


def _moved(sent: Params, reply: Params) -> float:
    return distance(sent, reply) if reply else 0.0
