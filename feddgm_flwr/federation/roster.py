"""Who is online, by partition id: node ids are random in every run, these are not.

Each new node is asked who it is. One that stays silent, or whose answer was of no use, is asked
again each time that it is looked for, as it may be busy or may be put right meanwhile, and an
answer is heard whenever it comes; but only ``ATTEMPTS`` of its silences are waited for. A known
node is asked only when it is doubted, for it may be started again as another device under the same
key. Waiting is bounded and says every ``SAY_S`` seconds who is missing. A partition id belongs to
the node that first answered for it. Knows nothing of rounds.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from feddgm_flwr.federation.messages import (
    CONFIG,
    WHOAMI,
    Identity,
    Rejection,
    expired,
    guarded,
    parse_identity,
)

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""Unanswered questions to a node that are waited for; it is asked more often."""
POLL_S = 1.0
SAY_S = 15.0
"""Seconds between two lines that say who is missing."""
NEWCOMER_S = 30.0
"""Longest wait for a newcomer's answer, once there have been enough clients: a silent node must
not hold up every round."""
LIVES_S = 43_200.0
"""Seconds that a question lives: an answer may come while nobody waits for one, in a round."""
NAMED = 10
"""Clients that a line names, at most."""


class TooFewClientsError(RuntimeError):
    """Fewer clients came online than the run needs."""


@dataclass(frozen=True)
class _Asked:
    """A question that is not answered yet, and when it was asked."""

    node: int
    at: float


def _named(numbers: list[int]) -> str:
    """Return numbers as a line names them, the first of many."""
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{', '.join(map(str, numbers[:NAMED]))}{more}"


class Roster:
    """The partition ids behind the nodes.

    Parameters
    ----------
    min_clients
        Clients that must be online.
    wait_s
        Longest wait for them, each time.
    partitions
        Parts that the data are divided into, if that is known; else most nodes decide, anew until
        ``settle`` is called.
    clients
        Partition ids that were known before a resume.
    owners
        Partition id -> the node that answered for it before a resume. Where nodes have keys their
        ids outlive a restart.
    own_data
        Partition ids that a device with data of its own answered for before a resume.
    takeover
        Whether another node may answer for a partition id while its own is away.
    widths
        Of the run's surrogates; a node that says another is left out.

    Attributes
    ----------
    left_out
        Node -> why it may not take part, in words.
    owners
        Partition id -> the node that first answered for it.
    own_data
        Partition ids that a device with data of its own was ever online for.
    """

    def __init__(
        self,
        *,
        min_clients: int,
        wait_s: float,
        partitions: int = 0,
        clients: Iterable[int] = (),
        owners: Mapping[int, int] | None = None,
        own_data: Iterable[int] = (),
        takeover: bool = True,
        widths: Iterable[int] = (),
    ) -> None:
        self._widths = frozenset(widths)
        self._min_clients, self._wait_s, self._takeover = min_clients, wait_s, takeover
        self.partitions, self._before = partitions, frozenset(clients)
        self._settled, self._met = bool(partitions), False
        self._known: dict[int, Identity] = {}
        self._doubted: set[int] = set()
        self._silences: Counter[int] = Counter()
        self._asked_now: set[int] = set()
        self._open: dict[str, _Asked] = {}
        self._said: set[tuple[int, str]] = set()
        self._away: list[int] = []
        self.owners: dict[int, int] = dict(owners or {})
        self.own_data: set[int] = set(own_data)
        self.left_out: dict[int, str] = {}

    @property
    def num_partitions(self) -> int:
        """Parts the data are divided into; 0 if any known client has data of its own."""
        return min((i.num_partitions for i in self._fitting().values()), default=0)

    @property
    def clients(self) -> list[int]:
        """Partition ids of all that were ever known, online or not."""
        return sorted(self._before | {i.partition_id for i in self._fitting().values()})

    @property
    def population(self) -> int:
        """How many clients there are, known or not: at least the parts of the data."""
        return max(len(self.clients), self.partitions)

    def said_width(self, node: int) -> int:
        """Return the width of the surrogate that a known node says it can bear; 0 if it does not.

        A device may be another one after a resume, so nothing of this is in a checkpoint.
        """
        return self._known[node].surrogate_width

    def doubt(self, node: int) -> None:
        """Ask ``node`` anew before it takes part again: its reply was not that of who it said."""
        if node in self._known and node not in self._doubted:
            self._doubted.add(node)

    @property
    def _sure(self) -> set[int]:
        """The known nodes that are not doubted."""
        return set(self._known) - self._doubted

    def settle(self) -> None:
        """Take the present division of the data for the rest of the run: a model rests on it."""
        self._settled = bool(self.partitions)

    def online(self, grid: Grid) -> dict[int, int]:
        """Return partition id -> node id of everyone online, in order of partition id.

        Raises
        ------
        TooFewClientsError
            Fewer than ``min_clients`` after ``wait_s``.
        ValueError
            The nodes speak of another division of the data than the run, or of several.
        """
        began = said = time.monotonic()
        deadline = began + self._wait_s
        self._asked_now = set()
        while True:
            nodes = set(grid.get_node_ids())
            self._forget_absent(nodes)
            self._ask(nodes, grid)
            self._hear(grid)
            dispute = self._agree()
            online = {} if dispute else self._by_partition(nodes)
            now = time.monotonic()
            if len(online) >= self._min_clients and (now >= deadline or not self._awaited(now)):
                self._met = True
                self._leave_silent_out()
                self.own_data |= {p for p, n in online.items() if not self._known[n].num_partitions}
                self._say_who_stays_away(online)
                return online
            if now >= deadline:
                raise ValueError(dispute) if dispute else self._too_few(len(online))
            if now - said >= SAY_S:
                said = now
                self._say_who_is_missing(nodes, online, deadline - now)
            time.sleep(POLL_S)

    def _awaited(self, now: float) -> bool:
        """Return whether an answer may come for which it is worth to wait."""
        if not self._met:
            return bool(self._open)
        return any(
            now < asked.at + NEWCOMER_S and self._silences[asked.node] <= ATTEMPTS
            for asked in self._open.values()
        )

    def _leave_silent_out(self) -> None:
        """Name the nodes that have not answered as such."""
        for node in sorted({a.node for a in self._open.values()} - self.left_out.keys()):
            reason = "it has not answered yet who it is"
            self._leave_out(node, reason, logging.WARNING)

    def _too_few(self, found: int) -> TooFewClientsError:
        return TooFewClientsError(
            f"rounds.min-clients = {self._min_clients} clients must come online "
            f"within rounds.node-wait-s = {self._wait_s:g} s, got {found}; "
            "start more SuperNodes (or raise the wait), then run again with "
            "resume = true if a round was done"
        )

    def _say_who_is_missing(
        self, nodes: set[int], online: Mapping[int, int], left_s: float
    ) -> None:
        """Log how many are here, and who is not as far as that is known."""
        parts = [f"{len(online)} of rounds.min-clients = {self._min_clients} clients are online"]
        if missing := self._missing(online):
            parts.append(f"missing: {_named(missing)}")
        if silent := sorted({a.node for a in self._open.values()} & nodes):
            parts.append(f"not answered yet: node {_named(silent)}")
        logger.info("waiting: %s; %.0f s left", "; ".join(parts), left_s)

    def _missing(self, online: Mapping[int, int]) -> list[int]:
        """Return the partition ids, as far as they are known, of clients that are not here."""
        expected = sorted({*range(self.partitions), *self.clients})
        return [p for p in expected if p not in online]

    def _say_who_stays_away(self, online: Mapping[int, int]) -> None:
        """Log without whom the run goes on, if that has changed."""
        missing = self._missing(online)
        if missing == self._away:
            return
        self._away = missing
        if missing:
            everyone = len(online) + len(missing)
            here, names = len(online), _named(missing)
            logger.warning(
                "the run goes on with %d of %d clients; missing: %s", here, everyone, names
            )
        else:
            logger.info("all %d clients are online", len(online))

    def _forget_absent(self, nodes: set[int]) -> None:
        """Let a node that left be asked at once when it returns."""
        for node in set(self._silences) - nodes - self._sure:
            del self._silences[node]
            self.left_out.pop(node, None)
        self._asked_now &= nodes
        self._open = {i: a for i, a in self._open.items() if a.node in nodes}

    def _ask(self, nodes: set[int], grid: Grid) -> None:
        """Ask the nodes that are not known who they are, if none of this wait has been asked yet.

        A question that is younger than a wait is not repeated.
        """
        now = time.monotonic()
        young = {a.node for a in self._open.values() if now < a.at + self._wait_s}
        new = sorted(nodes - self._sure - self._asked_now - young)
        if not new:
            return
        self._asked_now |= set(new)
        self._silences.update(new)
        questions = [
            Message(
                content=RecordDict({CONFIG: ConfigRecord()}),
                message_type=f"{MessageType.QUERY}.{WHOAMI}",
                dst_node_id=node,
                ttl=LIVES_S,
            )
            for node in new
        ]
        grid.push_messages(questions)
        self._open |= {
            q.metadata.message_id: _Asked(q.metadata.dst_node_id, now) for q in questions
        }

    def _hear(self, grid: Grid) -> None:
        """Take in the answers that are here."""
        if not self._open:
            return
        answers: dict[int, Identity | Rejection] = {}
        for reply in grid.pull_messages(set(self._open)):
            asked = self._open.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None and not expired(reply):
                answers[asked.node] = guarded(partial(parse_identity, reply))
        for node, answer in sorted(answers.items()):
            self._silences[node] = 0
            self._take(node, answer)
        self._open = {i: a for i, a in self._open.items() if a.node not in answers}

    def _take(self, node: int, answer: Identity | Rejection) -> None:
        if isinstance(answer, Rejection):
            self._leave_out(node, answer.reason, logging.WARNING)
        elif answer.surrogate_width not in {0, *self._widths}:
            said = f"it says surrogate-width = {answer.surrogate_width}"
            widths = " or ".join(map(str, sorted(self._widths)))
            self._leave_out(
                node,
                f"{said}, and this run's surrogates have {widths}; start it with one of these, or "
                "the run with surrogate.narrow-widths",
            )
        else:
            self._know(node, answer)

    def _know(self, node: int, identity: Identity) -> None:
        """Take a node for what it says, whatever it said before it was doubted."""
        old = self._known.get(node)
        if old is not None and old.partition_id != identity.partition_id:
            self._before |= {old.partition_id}
            if self.owners.get(old.partition_id) == node:
                del self.owners[old.partition_id]
        self._known[node] = identity
        self._doubted.discard(node)
        self.left_out.pop(node, None)

    def _agree(self) -> str:
        """Find into how many parts the data are divided; return why that cannot be said, or ""."""
        said = Counter(i.num_partitions for i in self._known.values() if i.num_partitions)
        if not said:
            return ""
        (first, votes), *others = said.most_common()
        if not self._settled:
            if others and others[0][1] == votes:
                return (
                    "node-config num-partitions must be the same for all nodes, got "
                    f"{' and '.join(map(str, sorted(said)))}; start every SuperNode with the "
                    "number of clients, or say it by rounds.partitions"
                )
            self.partitions = first
        elif self.partitions not in said:
            return (
                f"this run's data are divided into {self.partitions} parts, and the nodes say "
                f"num-partitions = {first}; start {self.partitions} clients as before, or a new "
                "run in another out-dir"
            )
        for node, identity in self._known.items():
            if node in self._fitting():
                continue
            reason = (
                f"it says num-partitions = {identity.num_partitions}, the others {self.partitions}"
            )
            self._leave_out(node, reason)
        return ""

    def _fitting(self) -> dict[int, Identity]:
        """Return the known nodes that say these parts of the data, or have data of their own."""
        fits = (0, self.partitions)
        return {n: i for n, i in self._known.items() if i.num_partitions in fits}

    def _leave_out(
        self, node: int, reason: str, level: int = logging.ERROR, line: str = ""
    ) -> None:
        """Note why a node may not take part, and log it once."""
        self.left_out[node] = reason
        if (node, reason) not in self._said:
            self._said.add((node, reason))
            logger.log(level, "%s", line or f"node {node} is left out: {reason}")

    def _by_partition(self, nodes: set[int]) -> dict[int, int]:
        """Return the online nodes by partition id; of several that claim one, its owner.

        While the owner is away the first known of the others stands in, if that is allowed.
        """
        claims: dict[int, list[int]] = {}
        fitting = self._fitting()
        # Who turned out to speak of another division of the data owns nothing here.
        self.owners = {p: n for p, n in self.owners.items() if n in fitting or n not in self._known}
        for node, identity in fitting.items():
            self.owners.setdefault(identity.partition_id, node)
            if node in nodes and node not in self._doubted:
                claims.setdefault(identity.partition_id, []).append(node)
        found: dict[int, int] = {}
        for partition_id, claimants in sorted(claims.items()):
            owner = self.owners[partition_id]
            there = owner in claimants
            if there or self._takeover:
                found[partition_id] = owner if there else claimants[0]
                self.left_out.pop(found[partition_id], None)
            for node in claimants:
                first = found.get(partition_id, owner)
                if node == first:
                    continue
                self._leave_out(
                    node,
                    f"node {first} says partition-id = {partition_id} too",
                    line=f"nodes {first} and {node} both say partition-id = {partition_id}; only "
                    "the first takes part, so give each SuperNode a partition-id of its own",
                )
        return found
