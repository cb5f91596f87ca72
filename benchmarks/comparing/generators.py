"""The rows that compare priors: ours on each of them, and what each of them knows by itself.

A row is the recipe with another prior, and takes over what tuning chose for the recipe. Knows no
data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparing.entries import NO_DESCENT, OURS, Entry
from comparing.presets import Said

BANKED: dict[str, Said] = {
    "feature inside, block 1": {"prior.feature-block": 1},
    "feature inside, block 3": {"prior.feature-block": 3},
    "held near by 0.01": {"distill.prior-weight": 0.01},
    "held near by 0.1": {"distill.prior-weight": 0.1},
    "held near by 1": {"distill.prior-weight": 1.0},
    "100 of the bank a class among the lessons": {"union.prior-images-per-class": 100},
}
"""What is tried under a bank."""


@dataclass(frozen=True)
class Places:
    """Where things are.

    Attributes
    ----------
    autoencoder
        Folder of the bare autoencoder.
    bank
        Folder of the same with a bank of public pictures.
    pictures
        The public pictures themselves, and the test images.
    judge
        Images of the judge of fidelity.
    """

    autoencoder: Path
    bank: Path
    pictures: Path
    judge: Path


def rows(at: Places, scale: int) -> Sequence[Entry]:
    """Return the rows, the four priors first; the autoencoder decodes at ``scale`` times."""
    judged = {"server.fidelity-data": str(at.judge)}
    bare: Said = {
        "prior.kind": "autoencoder",
        "prior.path": str(at.autoencoder),
        "prior.image-scale": scale,
        **judged,
    }
    bank: Said = {"prior.kind": "autoencoder", "prior.path": str(at.bank), **judged}
    taught: Said = {"method": "fedavg", "start.weights": "prior", **bank}

    def ours(label: str, said: Said) -> Entry:
        return Entry(label, {"method": OURS, **said}, tuned_as=OURS)

    return (
        ours(OURS, {**bank}),
        ours("bare autoencoder", bare),
        ours("pixels", {"prior.kind": "pixel", **judged}),
        ours("pixels, smooth at first", {"prior.kind": "pixel", "prior.pixel-start": "smooth",
             **judged}),
        ours("no descent", {**bank, **NO_DESCENT}),
        Entry("fedavg, bank's start", taught, tuned_as="fedavg"),
        Entry("bank's samples alone", taught, rounds=False),
        Entry("public pictures alone", {"method": "fedavg", "data.partition": "iid",
              "rounds.fraction-train": 1.0, "client.epochs": 20, "data.root": str(at.pictures)},
              clients=1, tuned_as="fedavg", ceiling=True),
        *(ours(label, {**bank, **said}) for label, said in BANKED.items()),
    )  # fmt: skip
