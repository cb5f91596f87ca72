"""The parts of our recipe: each left out, each alone, and what was tried and is off.

A row is the recipe with other settings, and takes over what tuning chose for it. Knows no data set.
"""

from comparing.entries import NO_DESCENT, NOT_MATCHED, OURS, Entry
from comparing.presets import Said

PARTS: dict[str, tuple[Said, Said]] = {
    "learning by the prior": ({"union.learns": "by-prior"}, {"union.learns": "all"}),
    "replies as teachers": ({"union.teacher-share": 0.3}, {"union.teacher-share": 0.0}),
    "share of the mean": ({"union.aggregate-share": 0.1}, {"union.aggregate-share": 0.0}),
    "owners' rows": ({"union.classifier-mean": "owners"}, {"union.classifier-mean": "all"}),
    "server momentum": ({"union.server-momentum": 0.5}, {"union.server-momentum": 0.0}),
    "classes weigh the same": ({"union.balance-classes": True}, {"union.balance-classes": False}),
}
"""Part of the server's step -> what says it, and what leaves it out."""

TRIED: dict[str, Said] = {
    "no descent": NO_DESCENT,
    "images not matched": NOT_MATCHED,
    "not matched, teachers alone": {**NOT_MATCHED, "union.teacher-share": 1.0},
    "20 descents a warm round": {"distill.warm-iterations": 20},
    "12 descents at first": {"distill.iterations": 12},
    "no warm start": {"distill.warm-start": False},
    "teachers alone": {"union.teacher-share": 1.0},
    "0.4 of the mean": {"union.aggregate-share": 0.4},
    "clients with balanced softmax": {"client.loss": "balanced-softmax"},
    "6 images a class": {"distill.images-per-class": 6},
    "soft labels": {"distill.labels": "soft"},
}
"""What differs from the recipe in one thing."""

NONE: Said = {key: value for _, without in PARTS.values() for key, value in without.items()}


def _row(label: str, said: Said) -> Entry:
    return Entry(label, {"method": OURS, **said}, tuned_as=OURS)


ROWS = (
    Entry(OURS, tuned_as=OURS),
    *(_row(f"without {part}", without) for part, (_, without) in PARTS.items()),
    _row("no part", NONE),
    *(_row(f"{part}, alone", {**NONE, **only}) for part, (only, _) in PARTS.items()),
    *(_row(label, said) for label, said in TRIED.items()),
)
"""In the order in which they are run."""
