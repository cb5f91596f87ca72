"""The numbers of this version: who changes them must say so."""

import json
from pathlib import Path

import torch
from golden import measure

MOVED = (
    "{} moved from tests/golden. A change that moves these numbers must say so in CHANGELOG.md "
    "under **numerics**; then `python tests/golden/rewrite.py` writes them anew."
)


def golden(name: str):
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def leaves(value, path: str = "") -> dict:
    """Return every number of nested lists and dicts by its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in leaves(part, f"{path}/{key}").items()}
    return {path: value}


def test_seeds_and_first_draws_are_the_committed_ones():
    found, expected = measure.seeding(), golden("seeding")
    assert found == expected, MOVED.format("Randomness")


def test_a_round_and_a_warm_one_after_it_have_the_committed_numbers():
    found, expected = leaves(measure.toy_rounds()), leaves(golden("toy_round"))
    assert list(found) == list(expected), MOVED.format("What is measured")
    for place, number in expected.items():
        if isinstance(number, int):
            assert found[place] == number, MOVED.format(place)
            continue
        # Other CPUs round otherwise; a sum that cancels has no digits of its own.
        mine, theirs = (torch.tensor(v, dtype=torch.float64) for v in (found[place], number))
        torch.testing.assert_close(
            mine, theirs, rtol=1e-5, atol=1e-6,
            msg=lambda said, place=place: f"{MOVED.format(place)}\n{said}",
        )  # fmt: skip
