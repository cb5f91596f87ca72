"""How a round is kept: asking, waiting, screening, scoring, recording, resuming.

The same for FedDGM and for Flower's own strategies; what is computed from the accepted replies is
an ``Arithmetic``. A reply can fail, be late or be nonsense: it is set aside, said and counted, and
the round goes on, if need be with the old model.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from math import fsum
from pathlib import Path

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import Emit
from feddgm_flwr.core.params import all_finite
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import RoundReport, ServerState
from feddgm_flwr.federation import checkpoint, messages
from feddgm_flwr.federation.arithmetic import Arithmetic
from feddgm_flwr.federation.roster import Roster
from feddgm_flwr.federation.screening import Screened, screen
from feddgm_flwr.monitoring.results import Results, RoundResult, Scores

logger = logging.getLogger(__name__)

Score = Callable[[ServerState], Scores]
"""Every model on the server's test images; empty where it has none."""
Show = Callable[[int, RoundReport], None]
"""``show(server_round, report)``: draws what a round made."""


@dataclass
class _Round:
    """What is known of the round under way."""

    number: int
    began: float
    nodes: dict[int, int]
    sent: list[Message]
    screened: Screened | None = None
    kept: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    federated: dict[str, float] | None = None

    def send(self, outgoing: list[Message]) -> list[Message]:
        """Note what goes out; Flower fills in the message ids of these very objects."""
        self.sent = outgoing
        self.bytes_down += sum(map(messages.content_bytes, outgoing))
        return outgoing

    def receive(self, replies: Iterable[Message]) -> list[Message]:
        """Note what came back."""
        arrived = list(replies)
        self.bytes_up += sum(map(messages.content_bytes, arrived))
        return arrived

    def asked(self) -> dict[str, int]:
        """Return message id -> partition id of the last messages sent."""
        partition = {node: partition_id for partition_id, node in self.nodes.items()}
        return {m.metadata.message_id: partition[m.metadata.dst_node_id] for m in self.sent}


class RoundKeeper(Strategy):
    """Keeps rounds around an ``Arithmetic``.

    Parameters
    ----------
    state
        Where to go on from; round 0 or a checkpoint's.
    num_classes
        Of the data set.
    out_dir
        The run folder; gets ``result.json`` and the checkpoint after every round.
    show
        Draws a round's distilled images.
    """

    def __init__(
        self,
        config: RunConfig,
        arithmetic: Arithmetic,
        state: ServerState,
        *,
        num_classes: int,
        results: Results,
        out_dir: Path,
        emit: Emit,
        score: Score,
        show: Show,
    ) -> None:
        self._config, self._arithmetic, self._num_classes = (
            config,
            arithmetic,
            num_classes,
        )
        self.state, self.results = state, results
        self._out_dir, self._emit, self._score, self._show = out_dir, emit, score, show
        self.roster = Roster(
            min_clients=config.server.min_clients, wait_s=config.server.node_wait_s
        )
        self._done_before = state.server_round
        self._round = _Round(0, 0.0, {}, [])

    def run(self, grid: Grid) -> None:
        """Do the rounds that are left."""
        left = self._config.num_server_rounds - self.state.server_round
        if left < 1:
            logger.info("all %d rounds were done before", self.state.server_round)
            return
        self.start(
            grid,
            messages.to_record(self.state.surrogate),
            num_rounds=left,
            timeout=self._config.server.round_timeout_s,
            evaluate_fn=self.end_round,
        )

    def summary(self) -> None:
        """Log what will happen."""
        config = self._config
        logger.info(
            "%s: rounds %d to %d, %.0f %% of the clients a round, seed %d",
            self._arithmetic.name,
            self.state.server_round + 1,
            config.num_server_rounds,
            100 * config.server.fraction_train,
            config.seed,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample partition ids and broadcast the surrogate to them."""
        number, began = self._done_before + server_round, time.monotonic()
        online = self.roster.online(grid)
        chosen = self._sample(list(online), number)
        self._round = _Round(number, began, {p: online[p] for p in chosen}, [])
        self.results.header["clients"] = max(self.results.header["clients"], len(online))
        self._emit(
            "round-start",
            round=number,
            rounds=self._config.num_server_rounds,
            clients=chosen,
            online=len(online),
        )
        mu = self._config.baseline.proximal_mu if self._arithmetic.name == "fedprox" else 0.0
        content = messages.train_message_content(self.state.surrogate, number, proximal_mu=mu)
        # A list, not a generator: in deployment Flower walks it twice.
        return self._round.send(
            [_message(content, node, MessageType.TRAIN) for node in self._round.nodes.values()]
        )

    def _sample(self, partition_ids: list[int], server_round: int) -> list[int]:
        """Return this round's clients, keyed by partition id so that a seed means the same."""
        server = self._config.server
        count = round(server.fraction_train * len(partition_ids))
        count = min(max(count, server.min_clients), len(partition_ids))
        rng = derive(self._config.seed, "sample", server_round)
        order = torch.randperm(len(partition_ids), generator=rng)[:count]
        return sorted(partition_ids[i] for i in order)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies and let the arithmetic make the next state of the rest."""
        now = self._round
        screened = screen(
            now.receive(replies), now.asked(), self.state.surrogate, self._num_classes
        )
        now.screened = screened
        self._tell(screened)
        began = time.monotonic()
        if screened.accepted:
            self._advance(screened)
        else:
            now.kept = "no reply could be used"
        if now.kept:
            logger.warning("round %d keeps the old model: %s", now.number, now.kept)
            self.state = replace(self.state, server_round=now.number)
        self._emit("models-trained", round=now.number, seconds=time.monotonic() - began)
        metrics = MetricRecord({"clients": len(screened.accepted)})
        return messages.to_record(self.state.surrogate), metrics

    def _advance(self, screened: Screened) -> None:
        """Take the arithmetic's next state, unless it is broken."""
        state, report = self._arithmetic.aggregate(self.state, screened.updates)
        if not all(map(all_finite, (state.surrogate, *state.global_models.values()))):
            self._round.kept = "the new one holds NaN or infinity"
            return
        self.state = state
        if report is not None:
            self._show(self._round.number, report)

    def _tell(self, screened: Screened) -> None:
        for a in screened.accepted:
            self._emit(
                "client-reply",
                round=self._round.number,
                partition_id=a.update.partition_id,
                num_examples=a.update.num_examples,
                train_loss=a.train_loss,
                seconds=a.seconds,
            )
        for s in screened.set_aside:
            self._emit(
                "client-rejected",
                round=self._round.number,
                partition_id=s.partition_id,
                reply=s.kind,
                reason=s.reason,
            )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask the round's clients to score the new surrogate, where that is wanted."""
        now = self._round
        if not self._config.server.federated_evaluation:
            return []
        content = messages.train_message_content(self.state.surrogate, now.number)
        return now.send(
            [_message(content, node, MessageType.EVALUATE) for node in now.nodes.values()]
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' scores by their numbers of test images."""
        now = self._round
        scores = []
        for reply in now.receive(replies):
            score = messages.parse_evaluation(reply)
            if isinstance(score, messages.Rejection):
                sender = now.asked().get(reply.metadata.reply_to_message_id)
                logger.warning("client %s gives no score: %s", sender, score.reason)
            else:
                scores.append(score)
        if not scores:
            return None
        total = sum(n for _, n in scores)
        # fsum rounds once, so the order of arrival leaves no trace.
        now.federated = {
            "accuracy": fsum(e.accuracy * n for e, n in scores) / total,
            "loss": fsum(e.loss * n for e, n in scores) / total,
            "examples": total,
            "clients": len(scores),
        }
        return MetricRecord(dict(now.federated))

    def end_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Score, record and save; round 0 is the fresh surrogate's score."""
        if server_round == 0 and self._done_before:
            return None
        scores = self._score(self.state)
        if server_round == 0:
            self.results.initial = scores
            self.results.save(self._out_dir)
        else:
            self._record(scores)
        return MetricRecord({k: float(v) for k, v in scores.accuracy.items()})

    def _record(self, scores: Scores) -> None:
        now = self._round
        assert now.screened is not None
        done = RoundResult(
            round=now.number,
            accuracy=scores.accuracy,
            loss=scores.loss,
            seconds=time.monotonic() - now.began,
            bytes_up=now.bytes_up,
            bytes_down=now.bytes_down,
            replies={
                "accepted": len(now.screened.accepted),
                "failed": now.screened.count("failed"),
                "malformed": now.screened.count("malformed"),
                "late": now.screened.count("late"),
            },
            federated=now.federated,
        )
        self.results.rounds.append(done)
        self.results.save(self._out_dir)
        self._checkpoint()
        self._emit("round-end", **asdict(done), kept=now.kept, eta_s=self._left_s())

    def _checkpoint(self) -> None:
        checkpoint.save(
            self._out_dir,
            checkpoint.Checkpoint(
                state=self.state,
                memory=self._arithmetic.memory(),
                results=self.results.to_dict(),
                config=self._config.flat(),
            ),
        )

    def _left_s(self) -> float:
        spent = [r.seconds for r in self.results.rounds[self._done_before :]]
        left = self._config.num_server_rounds - self.state.server_round
        return left * sum(spent) / len(spent)


def _message(content: RecordDict, node: int, message_type: str) -> Message:
    return Message(content=content, dst_node_id=node, message_type=message_type)
