"""Who is online, by partition id: node ids are random in every run, these are not.

Each new node is asked once (again if it stays silent, at most ``ATTEMPTS`` times);
waiting is bounded. Knows nothing of rounds.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from feddgm_flwr.federation.messages import (
    CONFIG,
    WHOAMI,
    Identity,
    Rejection,
    parse_identity,
)

logger = logging.getLogger(__name__)

ATTEMPTS = 2
POLL_S = 1.0


class TooFewClientsError(RuntimeError):
    """Fewer clients came online than the run needs."""


class Roster:
    """The partition ids behind the nodes.

    Parameters
    ----------
    min_clients
        Clients that must be online.
    wait_s
        Longest wait for them, each time.
    partitions
        Parts that the data are divided into, if that is known; else most nodes decide.
    clients
        Partition ids that were known before a resume.
    widths
        Of the run's surrogates; a node that says another is left out.
    """

    def __init__(
        self,
        *,
        min_clients: int,
        wait_s: float,
        partitions: int = 0,
        clients: Iterable[int] = (),
        widths: Iterable[int] = (),
    ) -> None:
        self._widths = frozenset(widths)
        self._min_clients, self._wait_s = min_clients, wait_s
        self.partitions, self._before = partitions, frozenset(clients)
        self._known: dict[int, Identity] = {}
        self._asked: Counter[int] = Counter()
        self._warned: set[tuple[int, int]] = set()

    @property
    def num_partitions(self) -> int:
        """Parts the data are divided into; 0 if any known client has data of its own."""
        return min((i.num_partitions for i in self._known.values()), default=0)

    @property
    def clients(self) -> list[int]:
        """Partition ids of all that were ever known, online or not."""
        return sorted(self._before | {i.partition_id for i in self._known.values()})

    @property
    def population(self) -> int:
        """How many clients there are, known or not: at least the parts of the data."""
        return max(len(self.clients), self.partitions)

    def said_width(self, node: int) -> int:
        """Return the width of the surrogate that a known node says it can bear; 0 if it does not.

        A device may be another one after a resume, so nothing of this is in a checkpoint.
        """
        return self._known[node].surrogate_width

    def online(self, grid: Grid) -> dict[int, int]:
        """Return partition id -> node id of everyone online, in order of partition id.

        Raises
        ------
        TooFewClientsError
            Fewer than ``min_clients`` after ``wait_s``.
        ValueError
            The nodes speak of another division of the data than the run, or of several.
        """
        deadline = time.monotonic() + self._wait_s
        while True:
            nodes = list(grid.get_node_ids())
            new = [n for n in nodes if n not in self._known and self._asked[n] < ATTEMPTS]
            if new:
                self._ask(new, grid, timeout_s=max(POLL_S, deadline - time.monotonic()))
            self._agree()
            online = self._by_partition(set(nodes))
            if len(online) >= self._min_clients:
                return online
            if time.monotonic() >= deadline:
                raise TooFewClientsError(
                    f"rounds.min-clients = {self._min_clients} clients must come online "
                    f"within rounds.node-wait-s = {self._wait_s:g} s, got {len(online)}; "
                    "start more SuperNodes (or raise the wait), then run again with "
                    "resume = true if a round was done"
                )
            time.sleep(POLL_S)

    def _ask(self, nodes: list[int], grid: Grid, *, timeout_s: float) -> None:
        self._asked.update(nodes)
        questions = [
            Message(
                content=RecordDict({CONFIG: ConfigRecord()}),
                message_type=f"{MessageType.QUERY}.{WHOAMI}",
                dst_node_id=node,
            )
            for node in nodes
        ]
        replies = list(grid.send_and_receive(questions, timeout=timeout_s))
        asked = {q.metadata.message_id: q.metadata.dst_node_id for q in questions}
        answers = {asked.get(r.metadata.reply_to_message_id): parse_identity(r) for r in replies}
        for node in sorted(nodes):
            answer = answers.get(node, Rejection("it did not answer in time"))
            if isinstance(answer, Rejection):
                logger.warning("node %d is left out: %s", node, answer.reason)
            elif answer.surrogate_width not in {0, *self._widths}:
                logger.error(
                    "node %d is left out: it says surrogate-width = %d, and this run's surrogates "
                    "have %s; start it with one of these, or the run with "
                    "surrogate.narrow-widths",
                    node,
                    answer.surrogate_width,
                    " or ".join(map(str, sorted(self._widths))),
                )
                self._asked[node] = ATTEMPTS
            else:
                self._known[node] = answer

    def _agree(self) -> None:
        """Settle into how many parts the data are divided; who says otherwise is left out."""
        said = Counter(i.num_partitions for i in self._known.values() if i.num_partitions)
        if not said:
            return
        (first, votes), *others = said.most_common()
        if not self.partitions:
            if others and others[0][1] == votes:
                raise ValueError(
                    "node-config num-partitions must be the same for all nodes, got "
                    f"{' and '.join(map(str, sorted(said)))}; start every SuperNode with the "
                    "number of clients"
                )
            self.partitions = first
        elif self.partitions not in said:
            raise ValueError(
                f"this run's data are divided into {self.partitions} parts, and the nodes say "
                f"num-partitions = {first}; start {self.partitions} clients as before, or a new "
                "run in another out-dir"
            )
        for node, identity in list(self._known.items()):
            if identity.num_partitions not in (0, self.partitions):
                logger.error(
                    "node %d is left out: it says num-partitions = %d, the others %d",
                    node,
                    identity.num_partitions,
                    self.partitions,
                )
                del self._known[node]
                self._asked[node] = ATTEMPTS

    def _by_partition(self, nodes: set[int]) -> dict[int, int]:
        """Return the online nodes by partition id; of two that claim one, the first known."""
        found: dict[int, int] = {}
        for node, identity in self._known.items():
            if node not in nodes:
                continue
            first = found.setdefault(identity.partition_id, node)
            if first != node and (first, node) not in self._warned:
                self._warned.add((first, node))
                logger.error(
                    "nodes %d and %d both say partition-id = %d; only the first takes part, "
                    "so give each SuperNode a partition-id of its own",
                    first,
                    node,
                    identity.partition_id,
                )
        return dict(sorted(found.items()))
