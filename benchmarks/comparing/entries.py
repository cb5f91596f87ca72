"""The rows of a comparison, in one place: each method and control, and the grid that tunes it.

Every grid has ``GRID`` settings. A row with a key setting of its own tries two values of it at two
learning rates of the client; one without tries four rates. Knows no data set.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from comparing.presets import Said
from feddgm_flwr import methods
from feddgm_flwr.config import settings
from feddgm_flwr.core.settings import Scalar

logger = logging.getLogger(__name__)

RATES = (0.02, 0.05, 0.1, 0.2)
"""Learning rates of a client, where nothing else is tuned."""
TWO_RATES = (0.05, 0.1)
"""The same beside two values of a key setting."""
GRID = 4
OURS = "feddgm"
NO_DESCENT: Said = {"distill.iterations": 0, "distill.warm-iterations": 0}
"""Under a prior that knows no class there are no images then, and so no lessons and no teachers."""
NOT_MATCHED: Said = {
    "distill.iterations": 1,
    "distill.warm-iterations": 1,
    "distill.latent-lr": 1e-6,
}
"""Images stay as they began, bare samples of the prior, and all else is as ever."""


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes
    ----------
    said
        What makes it differ from the preset's common settings.
    rate, rates
        The learning rate that is tuned, the client's where clients train; two values of it are
        tried beside a key setting, and four of the client's without.
    key, values
        The setting of its own that is tuned beside the rate, and the two values tried.
    tuned_as
        The row whose tuned settings it takes over; "" tunes it itself.
    clients
        How many clients own all the images; None as the preset says.
    taught
        Whether it means something only where the prior knows the classes.
    rounds
        Whether there are rounds; without, the start alone is scored.
    ceiling
        Whether it is out of competition: it sees what no federation sees.
    """

    label: str
    said: Said = field(default_factory=dict)
    rate: str = "client.lr"
    rates: tuple[float, ...] = TWO_RATES
    key: str = ""
    values: tuple[Scalar, ...] = ()
    tuned_as: str = ""
    clients: int | None = None
    taught: bool = False
    rounds: bool = True
    ceiling: bool = False

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.said.get("method", self.label))

    @property
    def wanted(self) -> dict[str, Scalar]:
        """What it says, its method among it."""
        return {"method": self.method, **self.said}

    @property
    def grid(self) -> tuple[dict[str, Scalar], ...]:
        """The settings that are tried; none where it is not tuned itself."""
        if self.tuned_as or not self.rounds:
            return ()
        if not self.key:
            return tuple({self.rate: rate} for rate in RATES)
        return tuple({self.rate: r, self.key: v} for r, v in product(self.rates, self.values))


ENTRIES = (
    Entry(OURS, key="union.lr", values=(0.003, 0.01)),
    Entry("fedavg"),
    Entry("scaffold"),
    Entry("feddm", rate="feddm.lr", rates=(0.01, 0.03), key="feddm.image-lr", values=(1.0, 5.0)),
    Entry("feddf", key="feddf.lr", values=(0.0003, 0.001)),
    Entry("feddgm, no descent", {"method": OURS, **NO_DESCENT}, tuned_as=OURS),
    Entry("feddgm, images not matched", {"method": OURS, **NOT_MATCHED}, tuned_as=OURS),
    Entry("feddgm, not matched, teachers alone", {"method": OURS, **NOT_MATCHED,
          "union.surrogate-update": "aggregate+synthetic", "union.teacher-share": 1.0},
          tuned_as=OURS),
    Entry("fedavg, prior start", {"method": "fedavg", "start.weights": "prior"}, taught=True),
    Entry("generator only", {"method": "fedavg", "start.weights": "prior"}, taught=True,
          rounds=False),
    Entry("feddgm, half the clients half as wide", {"method": "feddgm",
          "surrogate.narrow-widths": "16"}, tuned_as=OURS),
    Entry("feddgm, all half as wide", {"method": "feddgm", "surrogate.width": 16},
          tuned_as=OURS),
    Entry("fedavg, all half as wide", {"method": "fedavg", "surrogate.width": 16},
          tuned_as="fedavg"),
    Entry("central", {"method": "fedavg", "data.partition": "iid", "rounds.fraction-train": 1.0},
          clients=1, ceiling=True),
    Entry("fedprox", key="fedprox.mu", values=(0.01, 0.1)),
    Entry("fedavgm", key="fedopt.momentum", values=(0.5, 0.9)),
    Entry("fedadam", key="fedopt.lr", values=(0.01, 0.1)),
    Entry("fedyogi", key="fedopt.lr", values=(0.01, 0.1)),
    Entry("fednova"),
    Entry("moon", key="moon.mu", values=(1.0, 5.0)),
    Entry("fedrs", key="fedrs.alpha", values=(0.5, 0.9)),
    Entry("fedlc", key="fedlc.tau", values=(0.5, 1.0)),
    Entry("fedavg + balanced softmax", {"method": "fedavg", "client.loss": "balanced-softmax"}),
    Entry("ccvr"),
    Entry("dynafed", key="dynafed.lr", values=(0.001, 0.003)),
    Entry("dense", key="dense.lr", values=(0.003, 0.01)),
    Entry("coboosting", key="coboosting.lr", values=(0.003, 0.01)),
)  # fmt: skip
"""In the order in which they are run: ours and the strongest first."""


def roster(
    entries: Sequence[Entry], *, wanted: Iterable[str] | None, conditional: bool
) -> list[Entry]:
    """Return the rows that can be run here, and say in a line each which cannot, and why.

    Parameters
    ----------
    entries
        All that there are.
    wanted
        Labels; None for all.
    conditional
        Whether the preset's prior knows the classes.

    Raises
    ------
    ValueError
        No row has one of the ``wanted`` labels.
    """
    labels = None if wanted is None else list(wanted)
    known = [entry.label for entry in entries]
    if unknown := sorted(set(labels or ()) - set(known)):
        raise ValueError(f"--methods must be of {known}, got {unknown}; correct them")
    chosen = [e for e in entries if labels is None or e.label in labels]
    able = []
    for entry in chosen:
        if why := _lacking(entry, conditional):
            logger.info("%s is left out: %s", entry.label, why)
        else:
            able.append(_with_known_key(entry))
    return able


def _lacking(entry: Entry, conditional: bool) -> str:
    if entry.method not in methods.names():
        return f"there is no method {entry.method!r} in this version"
    if missing := sorted(set(entry.said) - set(settings())):
        return f"there is no setting {', '.join(missing)} in this version"
    if entry.taught and not conditional:
        return "the prior of this preset does not know the classes"
    return ""


def _with_known_key(entry: Entry) -> Entry:
    """Return the entry; its grid is of rates alone where its key setting has another name here."""
    if not entry.key or entry.key in settings():
        return entry
    logger.warning("%s is tuned by its rate alone: there is no setting %s", entry.label, entry.key)
    return Entry(**{**vars(entry), "key": "", "values": ()})
