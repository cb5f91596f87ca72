"""Figures in the documents are those of the committed tables."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LABELS = {
    "FedDGM": "feddgm",
    "FedAvg": "fedavg",
    "FedAvgM": "fedavgm",
    "FedAdam": "fedadam",
    "FedDM": "feddm",
    "FedDF": "feddf",
    "DENSE": "dense",
    "DynaFed": "dynafed",
    "FedYogi": "fedyogi",
    "FedProx": "fedprox",
    "SCAFFOLD": "scaffold",
    "FedNova": "fednova",
    "MOON": "moon",
    "FedRS": "fedrs",
    "FedLC": "fedlc",
    "FedAvg with balanced softmax": "fedavg + balanced softmax",
    "all images in one place (ceiling)": "central (ceiling)",
    "CCVR": "ccvr",
    "images not matched": "feddgm, images not matched",
    "images not matched: the prior's samples": "feddgm, no descent",
    "not matched, and the replies' word in place of labels": "feddgm, not matched, teachers alone",
    "no images, the rest of the server's step": "feddgm, no descent",
    "no images, the rest of FedDGM's step": "feddgm, no descent",
    "FedAvg from the prior-taught surrogate": "fedavg, prior start",
    "the prior alone, no client": "generator only",
    "TAEF2 with a bank": "feddgm",
    "bare TAEF2": "bare autoencoder",
    "no descent from the bank": "no descent",
    "FedAvg, the bank's start": "fedavg, bank's start",
    "the bank's samples alone, no client": "bank's samples alone",
    "the public pictures alone, 20 epochs a round": "public pictures alone (ceiling)",
}
"""What a document calls a row -> what a table calls it."""
CLAIMS = {
    ("README.md", "Dirichlet 0.1"): ("cifar10-small/alpha-0.1", "fashion/alpha-0.1"),
    ("docs/results.md", "all rows, Dirichlet 0.1"): (
        "cifar10-small/alpha-0.1",
        "fashion/alpha-0.1",
    ),
    ("docs/results.md", "Dirichlet 0.05"): ("cifar10-small/alpha-0.05", "fashion/alpha-0.05"),
    ("docs/results.md", "Dirichlet 0.5"): ("cifar10-small/alpha-0.5", "fashion/alpha-0.5"),
    ("docs/results.md", "two classes"): ("cifar10-small/classes-2", "fashion/classes-2"),
    ("README.md", "mnist5k"): ("mnist5k/alpha-0.1",),
    ("docs/priors.md", "by prior"): ("cifar10-small/alpha-0.1-priors-5-rounds",),
    ("docs/results.md", "one shot"): ("cifar10-oneshot/alpha-0.1",),
    ("docs/results.md", "hundred clients"): ("hundred/alpha-0.1",),
    ("docs/results.md", "the recipe minus: five"): ("cifar10-small/alpha-0.1-parts-3-rounds",),
    ("docs/results.md", "the recipe minus: two"): ("cifar10-small/alpha-0.1-parts-3-rounds",),
    ("docs/results.md", "larger model"): ("mnist5k/alpha-0.1-larger-resnet18",),
    ("docs/results.md", "three larger models"): ("mnist5k/alpha-0.1-larger-vgg11-alexnet-vit",),
    ("docs/results.md", "under pixel latents"): (
        "cifar10-small/alpha-0.1-larger-resnet18",
        "fashion/alpha-0.1-larger-resnet18",
    ),
    ("docs/results.md", "weaker devices"): ("cifar10-small/alpha-0.1",),
    ("docs/priors.md", "the bank minus"): ("cifar10-small/alpha-0.1-priors-5-rounds",),
}
"""Document and a table's first cell -> the committed tables whose columns follow one another."""

SKEWS = {
    "two classes a client": "classes-2",
    "Dirichlet 0.05": "alpha-0.05",
    "Dirichlet 0.1": "alpha-0.1",
    "Dirichlet 0.5": "alpha-0.5",
}
"""What a document calls a division -> what a folder calls it."""
SETS = "cifar10-small", "fashion"


def rows(lines):
    """Return the cells of each line of a table but the rule's."""
    split = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [cells for cells in split if not re.fullmatch(r"[-: ]*", "".join(cells))]


def said(document, first):
    """Return the head, and first cell -> the rest, of the table whose first cell begins so."""
    lines = (ROOT / document).read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    head, *others = rows(takewhile(lambda line: line.startswith("|"), lines[begin:]))
    return head[1:], {called: cells for called, *cells in others}


def committed(folder, first):
    """Return label -> column -> what stands there, of ``folder``'s accuracies or differences."""
    head, others = said(f"benchmarks/results/{folder}/table.md", first)
    return {label: dict(zip(head, cells, strict=True)) for label, cells in others.items()}


def label_of(called, there):
    """Return what a table calls a row, whatever a document adds after a colon or a comma."""
    plain = called.removeprefix("*controls:* ").removesuffix(" (control)")
    for name in (plain, re.split("[:,] ", plain)[0]):
        for found in (LABELS.get(name, name), name):
            if found in there:
                return found
    raise KeyError(called)


def short(found):
    """Return a table's figure without its spread, interval or seeds."""
    return re.sub(r" (±|\[|\().*", "", found).removeprefix("none: ")


@pytest.mark.parametrize(("place", "folders"), CLAIMS.items(), ids=lambda x: str(x[-1]))
def test_a_documents_figures_are_the_tables(place, folders):
    head, claimed = said(*place)
    first = "feddgm minus" if "minus" in place[1] else "method"
    tables = [committed(folder, first) for folder in folders]
    compared, at = 0, -1
    for column, name in enumerate(head):
        at += not column or ":" in name  # a set's name stands over its first round
        there = tables[at]
        number = re.search(r"\d+$", name).group()
        for called, cells in claimed.items():
            if not (cell := cells[column]):
                continue
            found = there[label_of(called, there)][f"r{number}"]
            assert cell in (found, short(found)), (called, name)
            compared += 1
    assert at == len(tables) - 1
    assert compared >= 6


def test_the_leads_by_skew_are_the_tables():
    """In brackets stand those whose interval holds zero, or that one seed alone has."""
    head, claimed = said("README.md", "points ahead of")
    rounds = [re.search(r"\d+$", name).group() for name in head]
    for called, cells in claimed.items():
        rival, skew = called.split(", ")
        whole = [committed(f"{name}/{SKEWS[skew]}", "feddgm minus")[LABELS[rival]] for name in SETS]
        found = [of[f"r{r}"] for of, r in zip(half_each(whole, rounds), rounds, strict=True)]
        for cell, lead in zip(cells, found, strict=True):
            sure = not lead.startswith("none") and "(one seed)" not in lead
            assert cell == (short(lead) if sure else f"({short(lead)})"), called
    assert len(claimed) >= len(SKEWS)


def half_each(two, of):
    """Return each of ``two`` for one half of ``of``."""
    return [one for one in two for _ in range(len(of) // 2)]
