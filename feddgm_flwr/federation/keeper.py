"""How a round is kept: asking, waiting, screening, scoring, recording, resuming.

The same for every method; what is computed from the accepted replies is a method's server half. A
reply can fail, be late or be nonsense: it is set aside, said and counted, and the round goes on, if
need be with the old model.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.distillation.engine import threads
from feddgm_flwr.core.fidelity import Judge
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.models import SURROGATE
from feddgm_flwr.core.params import all_finite, weighted_mean
from feddgm_flwr.core.robust import within_limits, within_median
from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.core.state import ClientUpdate, DistillReport, RoundReport, ServerState
from feddgm_flwr.core.telling import phase
from feddgm_flwr.events import Emit, Phase, PhaseEnd, PrivacySpent, RoundEnd, Scored
from feddgm_flwr.federation import checkpoint, messages
from feddgm_flwr.federation.ledger import Ledger
from feddgm_flwr.federation.roster import Roster
from feddgm_flwr.federation.sampling import sampled
from feddgm_flwr.federation.saving import insist, why
from feddgm_flwr.federation.scoring import falls_behind
from feddgm_flwr.federation.screening import NoReplyError, Screened, screen, set_aside
from feddgm_flwr.federation.telling import Teller
from feddgm_flwr.methods.halves import ServerHalf
from feddgm_flwr.monitoring.results import Results, RoundResult, Scores
from flwr_dashboard.grid import WatchedGrid

logger = logging.getLogger(__name__)

Score = Callable[[ServerState], Scores]
"""Every model on the server's test images; empty where it has none."""
Show = Callable[[int, RoundReport], None]
"""``show(server_round, report)``: draws what a round made."""


@dataclass
class _Round:
    """What is known of the round under way; nodes and names of surrogates by partition id."""

    number: int
    began: float
    nodes: dict[int, int]
    surrogates: dict[int, str]
    sent: list[Message]
    screened: Screened | None = None
    updates: list[ClientUpdate] = field(default_factory=list)
    report: RoundReport | None = None
    spent: PrivacySpent | None = None
    kept: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    federated: dict[str, float] | None = None
    sent_at: float = 0.0

    def send(self, outgoing: list[Message]) -> list[Message]:
        """Note what goes out; Flower fills in the message ids of these very objects."""
        self.sent, self.sent_at = outgoing, time.monotonic()
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
    """Keeps rounds around a method's server half.

    Parameters
    ----------
    state
        Where to go on from; round 0 or a checkpoint's.
    num_classes
        Of the data set.
    prior
        Fingerprint of the prior, "" without one; it goes into the checkpoint.
    known
        Whom the run knew before it was resumed.
    num_threads
        CPU threads of the server's own computing.
    out_dir
        The run folder; gets ``result.json`` and the checkpoint after every round.
    show
        Draws a round's distilled images.
    judge
        Measures how real they look; None where there is nothing to judge by.
    ledger
        What clients have spent of their privacy; None where they add no noise.
    """

    def __init__(
        self,
        config: RunConfig,
        half: ServerHalf,
        state: ServerState,
        *,
        num_classes: int,
        prior: str,
        num_threads: int,
        results: Results,
        out_dir: Path,
        emit: Emit,
        score: Score,
        show: Show,
        known: checkpoint.Known = checkpoint.NOBODY,
        judge: Judge | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._config, self._half, self._num_classes = config, half, num_classes
        self.state, self.results, self._prior = state, results, prior
        self._out_dir, self._emit, self._score, self._show = out_dir, emit, score, show
        self._tell = Teller(emit)
        self._tell.round = state.server_round
        self._judge, self._ledger = judge, ledger
        self.roster = Roster(
            min_clients=config.rounds.min_clients,
            wait_s=config.rounds.node_wait_s,
            partitions=divided(known.partitions, config.rounds.partitions),
            clients=known.clients,
            owners=known.owners,
            own_data=known.own_data,
            takeover=config.rounds.takeover,
            widths=config.surrogate.widths,
        )
        self._threads = num_threads
        self._done_before = state.server_round
        self._unsaved: checkpoint.Checkpoint | None = None
        self._round = _Round(0, 0.0, {}, {}, [])

    def run(self, grid: Grid) -> None:
        """Do the rounds that are left.

        Raises
        ------
        NoReplyError
            No round, those before a resume counted in, used a reply.
        UnsavedError
            The last round could not be written.
        """
        left = self._config.num_server_rounds - self.state.server_round
        if left < 1:
            logger.info("all %d rounds were done before", self.state.server_round)
            # A crash may have come between the checkpoint and this.
            insist(partial(self.results.save, self._out_dir), "result.json", self._out_dir)
        else:
            with self._rescued():
                self.start(
                    WatchedGrid(grid, arrived=self._arrived),
                    messages.to_record(self.state.surrogate),
                    num_rounds=left,
                    timeout=self._config.rounds.timeout_s,
                    evaluate_fn=self.end_round,
                )
        if self._unsaved is not None:
            insist(self._write, "the last round", self._out_dir)
        if all(done.kept for done in self.results.rounds):
            raise NoReplyError(
                f"no round of {len(self.results.rounds)} made a new model, the last because "
                f"{self.results.rounds[-1].kept}; see the lines of the clients that were set "
                "aside, then go on with resume = true and a higher num-server-rounds"
            )

    def _arrived(self, asked: Metadata, reply: Message, seconds: float) -> None:
        sender = self._round.asked().get(asked.message_id)
        told = messages.guarded(lambda: self._tell.arrived(sender, asked, reply, seconds))
        if isinstance(told, messages.Rejection):
            logger.warning("what client %s replied cannot be told: %s", sender, told.reason)

    def meet(self, grid: Grid) -> dict[int, int]:
        """Wait until enough clients are online, tell who is, and return their nodes by partition.

        Raises
        ------
        TooFewClientsError
            They did not come in time.
        """
        with phase("wait", self._tell.round, self._emit):
            online = self.roster.online(grid)
        self._tell.online(online, self.roster.left_out)
        return online

    def summary(self) -> None:
        """Log what will happen."""
        config = self._config
        logger.info(
            "%s: rounds %d to %d, %.0f %% of the clients a round, seed %d",
            config.method,
            self.state.server_round + 1,
            config.num_server_rounds,
            100 * config.rounds.fraction_train,
            config.seed,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample partition ids and send the surrogate, and what the method adds, to them."""
        number, began = self._done_before + server_round, time.monotonic()
        self._tell.round = number
        online = self.meet(grid)
        chosen = sampled(
            list(online), self._config.rounds.fraction_train, self._config.seed, number
        )
        nodes = {p: online[p] for p in chosen}
        surrogates = {p: self._surrogate_for(p, node) for p, node in nodes.items()}
        self._round = _Round(number, began, nodes, surrogates, [])
        self.results.header["clients"] = max(self.results.header["clients"], len(online))
        self._tell.chosen(chosen, online=len(online), rounds=self._config.num_server_rounds)
        if self._ledger is not None:
            self._ledger.asked(chosen)
        return self._ask(
            "clients",
            MessageType.TRAIN,
            {
                p: replace(self._task(p, self.state), extra=self._half.down(self.state, p))
                for p in chosen
            },
        )

    def _surrogate_for(self, partition_id: int, node: int) -> str:
        said = self.roster.said_width(node)
        return self._config.surrogate.name_for(partition_id, said)

    def _task(self, partition_id: int, state: ServerState) -> Task:
        """Return a task with the client's own kind of surrogate."""
        name = self._round.surrogates[partition_id]
        return Task(state.surrogates[name], self._round.number)

    def _expected(self, name: str) -> messages.Expected:
        """Return what the replies of one surrogate's clients must be like."""
        return messages.Expected(
            self.state.surrogates[name] if self._half.takes_params else {},
            self._num_classes,
            self._config.client.share_label_counts,
            self._half.wrong,
            name,
            may_stay=self._config.may_leave_no_gradient,
        )

    def _ask(self, name: Phase, message_type: str, tasks: dict[int, Task]) -> list[Message]:
        """Return a message a client, and tell; Flower sends them and waits."""
        now = self._round
        # A list, not a generator: in deployment Flower walks it twice.
        outgoing = now.send(
            [
                Message(
                    content=messages.task_content(task),
                    dst_node_id=now.nodes[partition_id],
                    message_type=message_type,
                    ttl=self._config.rounds.timeout_s,
                )
                for partition_id, task in tasks.items()
            ]
        )
        self._tell.asked(name, dict(zip(tasks, outgoing, strict=True)), now.surrogates)
        return outgoing

    def _answered(self, name: Phase, replies: Iterable[Message]) -> list[Message]:
        """Return the replies, and tell that the wait for them is over."""
        now = self._round
        seconds = time.monotonic() - now.sent_at
        self._emit(PhaseEnd(round=now.number, phase=name, seconds=seconds))
        return now.receive(replies)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies and let the method make the next state of the rest."""
        now = self._round
        expected = {p: self._expected(name) for p, name in now.surrogates.items()}
        now.screened = screen(self._answered("clients", replies), now.asked(), expected)
        self._tell.judged(now.screened, self.state.surrogates)
        for aside in now.screened.set_aside:
            if aside.kind != "late" and aside.partition_id is not None:
                self.roster.doubt(now.nodes[aside.partition_id])
        self._count_privacy(now.screened)
        now.kept = self._too_few(now.screened.updates)
        limits = self._config.server.limits
        now.updates, cuts = within_limits(now.screened.updates, self.state.surrogates, limits)
        self._tell.cut(cuts)
        if not now.kept:
            self._advance(now.updates)
        if now.kept:
            logger.warning("round %d keeps the old model: %s", now.number, now.kept)
            self.state = replace(self.state, server_round=now.number)
        metrics = MetricRecord({"clients": len(now.screened.accepted)})
        return messages.to_record(self.state.surrogate), metrics

    def _count_privacy(self, screened: Screened) -> None:
        """Tell what clients have spent, whatever becomes of their replies."""
        if self._ledger is None:
            return
        said = [(u.partition_id, u.num_examples) for u in screened.updates]
        said += [
            (aside.partition_id, aside.num_examples)
            for aside in screened.set_aside
            if aside.partition_id is not None and aside.num_examples
        ]
        self._ledger.heard(said)
        self._round.spent = self._ledger.spent(self._round.number)
        self._emit(self._round.spent)
        if fewest := self._ledger.too_large_delta():
            logger.warning(
                "privacy.delta = %g is no less than one over the %d images of a client, so that "
                "publishing one of them whole would be within the guarantee; make it smaller",
                self._config.privacy.delta,
                fewest,
            )

    def _too_few(self, accepted: Sequence[ClientUpdate]) -> str:
        """Return why these replies are not enough, or ""."""
        wanted = self._config.rounds.min_replies
        if not accepted:
            return "no reply could be used"
        if len(accepted) < wanted:
            return f"rounds.min-replies = {wanted} replies must be usable, got {len(accepted)}"
        most = max(Counter(u.surrogate for u in accepted).values())
        if self._config.only_means and most < 2:
            return (
                "distill.of = 'aggregate' needs 2 usable replies of one width, got no more than 1, "
                "whose mean would be itself"
            )
        return ""

    def _advance(self, updates: Sequence[ClientUpdate]) -> None:
        """Take the method's next state, unless there is none or it is broken."""
        try:
            with threads(self._threads):
                state, report = self._half.advance(
                    self.state, updates, population=self.roster.population
                )
        except (ArithmeticError, ValueError, LinAlgError) as error:
            # Numbers that each pass as one reply's may still be no sum.
            logger.exception("%s makes nothing of these replies", self._config.method)
            self._round.kept = messages.harmless(f"the method failed on the replies: {error}")
            return
        if not all_finite([state.models, state.memory]):
            self._round.kept = "the new one holds NaN or infinity"
            return
        self.state, self._round.report = state, report
        self.roster.settle()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask the round's clients to score their new surrogate, where that is wanted."""
        now = self._round
        if not self._config.rounds.federated_evaluation:
            return []
        state = self._half.shown(self.state)
        tasks = {p: self._task(p, state) for p in now.nodes}
        return self._ask("evaluate", MessageType.EVALUATE, tasks)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' scores by their numbers of test images."""
        now = self._round
        if not self._config.rounds.federated_evaluation:
            return None
        scores = []
        for reply in self._answered("evaluate", replies):
            sender = now.asked().get(reply.metadata.reply_to_message_id)
            score = messages.guarded(partial(messages.parse_evaluation, reply))
            if sender is None:
                score = messages.Rejection("it answers no message of this round")
            if isinstance(score, messages.Rejection):
                aside = set_aside(sender, reply, score)
                logger.warning("client %s gives no score: %s", sender, aside.reason)
                self._tell.rejected(aside, "evaluate")
            else:
                assert sender is not None
                scores.append(score)
                self._tell.scored(sender, *score)
        if not scores:
            return None
        counts = within_median([n for _, n in scores], self._config.server.clip_examples)
        scores = [(e, n) for (e, _), n in zip(scores, counts, strict=True)]
        total = sum(counts)
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
        number = self._round.number
        with phase("score", number, self._emit), threads(self._threads):
            scores = self._score(self._half.shown(self.state))
        self._emit(Scored(round=number, **asdict(scores)))
        if server_round == 0:
            self.results.initial = scores
            with suppress(OSError):  # round 1 writes it again, and says what is wrong
                self.results.save(self._out_dir)
        else:
            self._compare_with_mean(scores)
            self._record(scores)
        return MetricRecord({k: float(v) for k, v in scores.accuracy.items()})

    def _record(self, scores: Scores) -> None:
        now = self._round
        assert now.screened is not None
        reports = () if now.report is None else now.report.distilled
        done = RoundResult(
            round=now.number,
            accuracy=scores.accuracy,
            loss=scores.loss,
            metrics=scores.metrics,
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
            distilled=[figures(report) for report in reports],
            fidelity=self._fidelity(),
            privacy=None if now.spent is None else spending(now.spent),
            kept=now.kept,
        )
        self.results.rounds.append(done)
        with phase("save", now.number, self._emit):
            self._save_or_go_on()
        # Only now: a picture must not cost a round.
        if now.report is not None:
            self._show(now.number, now.report)
        # How each client was distilled, and what it has spent, have events of their own.
        own = ("distilled", "privacy")
        told = {name: value for name, value in asdict(done).items() if name not in own}
        self._emit(RoundEnd(**told, eta_s=self._left_s()))

    def _fidelity(self) -> dict[str, float] | None:
        report = self._round.report
        if self._judge is None or report is None or not len(report.fresh):
            return None
        return self._judge(report.fresh)

    def _compare_with_mean(self, scores: Scores) -> None:
        """Warn where the first round's images made less of the replies than their mean is."""
        now = self._round
        updates = [u for u in now.updates if u.surrogate == SURROGATE]
        told = now.number == 1 and now.report is not None and scores.accuracy
        if not told or not updates or not self._half.takes_params:
            return
        mean = weighted_mean([u.params for u in updates], [u.num_examples for u in updates])
        with threads(self._threads):
            plain = self._score(replace(self.state, surrogate=mean, narrow={}, global_models={}))
        control = self.results.generator_only.get("accuracy", {}).get(SURROGATE)
        reached = (scores.accuracy[SURROGATE], plain.accuracy[SURROGATE], control)
        if said := falls_behind(*reached):
            logger.warning("%s", said)

    def _save_or_go_on(self) -> None:
        """Save the round; a disk that is full or gone costs none, as the next one saves all."""
        self._unsaved = checkpoint.Checkpoint(
            state=self.state,
            results=self.results.to_dict(),
            config=self._config.flat(),
            prior=self._prior,
            partitions=self.roster.partitions,
            clients=self.roster.clients,
            owners=self.roster.owners,
            own_data=sorted(self.roster.own_data),
            threads=self._threads,
        )
        self._written("make room there: the run goes on and holds in memory what it has trained")

    def _written(self, otherwise: str) -> bool:
        """Write what is unsaved; if the disk refuses it, log why and ``otherwise``."""
        assert self._unsaved is not None
        number = self._unsaved.state.server_round
        try:
            self._write()
        except OSError as error:
            logger.error(
                "round %d cannot be written to out-dir %r (%s); %s",
                number,
                str(self._out_dir),
                why(error),
                otherwise,
            )
            return False
        return True

    def _write(self) -> None:
        """Write the checkpoint, which comes first, and the result."""
        assert self._unsaved is not None
        checkpoint.save(self._out_dir, self._unsaved)
        self.results.save(self._out_dir)
        self._unsaved = None

    @contextmanager
    def _rescued(self) -> Iterator[None]:
        """Write what a full disk refused, before an error ends the run and its memory."""
        try:
            yield
        except BaseException:
            if self._unsaved is not None and self._written("it is lost with the run"):
                logger.info("the last round: written after all, before the run ends")
            raise

    def _left_s(self) -> float:
        spent = [r.seconds for r in self.results.rounds[self._done_before :]]
        left = self._config.num_server_rounds - self.state.server_round
        return left * sum(spent) / len(spent)


def divided(before: int, said: int) -> int:
    """Return into how many parts the data are divided, as far as that is known; else 0.

    Raises
    ------
    ValueError
        The rounds of the run so far rest on another division than is said.
    """
    if before and said and before != said:
        raise ValueError(
            f"rounds.partitions = {said}, and the rounds that this run has done rest on data that "
            f"are divided into {before} parts; leave it out, or start a new run in another out-dir"
        )
    return before or said


def spending(spent: PrivacySpent) -> dict[str, Any]:
    """Return what clients have spent, as ``result.json`` has it."""
    return {name: value for name, value in asdict(spent).items() if name != "round"}


def figures(report: DistillReport) -> dict[str, Scalar]:
    """Return the numbers of one client's distillation, without its classes."""
    return {name: value for name, value in asdict(report).items() if name != "classes"}
