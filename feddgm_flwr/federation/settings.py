"""The settings of a federation: how a round is kept, the server's machine, what is shown."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feddgm_flwr.core.robust import Limits, Mean
from feddgm_flwr.core.settings import Settings, check, key_of, setting


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(Settings):
    """How a round is kept: who is asked, and how long the server waits."""

    section: ClassVar[str] = "rounds"

    fraction_train: float = setting(
        1.0,
        "Fraction of the clients online that are asked a round, by partition id, seeded.",
        gt=0,
        le=1,
    )
    min_clients: int = setting(
        1,
        "A round waits (at most `node-wait-s`) until this many clients are online.",
        ge=1,
        may_differ=True,
    )
    partitions: int = setting(
        0,
        "Parts that the data are divided into, where nodes divide a data set; 0 believes most of "
        "the nodes, anew until a round has used a reply.",
        ge=0,
        le=100_000,
        may_differ=True,
    )
    takeover: bool = setting(
        True,
        "Whether another node may answer for a partition id while the node that had it first is "
        "away. Needed where SuperNodes have no keys, as each start then makes a new node; false "
        "where they have.",
        may_differ=True,
    )
    min_replies: int = setting(
        1,
        "A round with fewer usable replies keeps the old model. A run none of whose rounds used a "
        "reply has failed.",
        ge=1,
        may_differ=True,
    )
    node_wait_s: float = setting(
        300.0,
        "Longest wait for `min-clients`, in seconds; then the run ends with a sentence.",
        gt=0,
        may_differ=True,
    )
    timeout_s: float = setting(
        3600.0,
        "Replies later than this, in seconds, are counted as missing. A message lives as long, so "
        "nobody works on one of a round that is over; clocks of devices must be right to within "
        "it.",
        gt=0,
        may_differ=True,
    )
    federated_evaluation: bool = setting(
        False,
        "Let clients score the surrogate on their own test images too.",
        may_differ=True,
    )


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Settings):
    """The server: its machine, and what it makes of replies that may lie."""

    section: ClassVar[str] = "server"

    aggregate: Literal["mean", "median", "trimmed", "geometric-median", "clipped"] = setting(
        "mean",
        "How replies become one where the method takes a mean of them; all but `mean` bear some "
        "that lie (docs/robustness.md). `median`, `trimmed` and `geometric-median` count every "
        "client the same.",
    )
    trim: float = setting(
        0.2,
        "Fraction of the replies that is cut at each end, entry by entry.",
        ge=0,
        lt=0.5,
        only={"aggregate": ("trimmed",)},
    )
    clip_examples: float = setting(
        10.0,
        "A reply's number of examples counts up to this multiple (1 or more) of the round's "
        "median, from 3 replies on; 0 is no limit.",
        ge=0,
    )
    clip_movement: float = setting(
        5.0,
        "The same of how far a reply moved from the surrogate that was sent: beyond, its movement "
        "is shortened.",
        ge=0,
    )

    device: str = setting(
        "auto", "As `client.device`, for all that the server computes: it distils, trains, scores."
    )
    threads: int = setting(
        0,
        "CPU threads with which the server trains and scores (distillation takes one a client); "
        "they decide the last bits. 0 is one a core of the machine that begins the run; a resumed "
        "run keeps their number.",
        ge=0,
        le=1024,
    )
    fidelity_data: str = setting(
        "",
        "Absolute folder or `.npz` of real images (part `train`) that nobody else has: a "
        'classifier of them tells how many distilled images are of their class, by round. "" '
        "measures nothing.",
        may_differ=True,
    )

    def __post_init__(self) -> None:
        """Check that a limit leaves the median itself alone."""
        super().__post_init__()
        for name in ("clip_examples", "clip_movement"):
            value = getattr(self, name)
            check(not 0 < value < 1, key_of(ServerConfig, name), value, "0 or at least 1")

    @property
    def mean(self) -> Mean:
        """How replies become one."""
        return Mean(self.aggregate, self.trim)

    @property
    def limits(self) -> Limits:
        """What one reply may claim."""
        return Limits(self.clip_examples, self.clip_movement)


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Settings):
    """What is written and offered for those who watch; none of it changes a number."""

    section: ClassVar[str] = "watch"

    images: int = setting(
        400,
        "Images of a round in its sprite, at most, spread over clients and classes; 0 draws none.",
        ge=0,
        le=10_000,
        may_differ=True,
    )
    growing: int = setting(
        100,
        "Images a round, at most, that are drawn as they grow: at 0, 25, 50 and 100 % of the "
        "iterations, shared out among the clients; 0 draws none.",
        ge=0,
        le=10_000,
        may_differ=True,
    )
    pictures_mb: float = setting(
        200.0,
        "Room for both on the disk, in MB; once it is used up, no more are written.",
        ge=0,
        may_differ=True,
    )
    metrics_port: int = setting(
        0,
        "Port at which the server offers `/metrics` to Prometheus while the run lasts; 0 offers "
        "none.",
        ge=0,
        le=65535,
        may_differ=True,
    )
    metrics_host: str = setting(
        "127.0.0.1",
        "Address of that port. Whoever reaches it can read the figures, so leave it at this "
        "machine, or guard it.",
        may_differ=True,
    )
