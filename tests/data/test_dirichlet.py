"""Dirichlet partitions at their edges: bounded, the same as ever, right or one sentence."""

import hashlib
import time

import numpy as np
import pytest

from feddgm_flwr.data import partition as module
from feddgm_flwr.data.partition import PartitionError, partition
from feddgm_flwr.data.settings import DataConfig

EVEN = np.repeat(np.arange(10), 60)
UNEVEN = np.random.default_rng(7).integers(0, 7, 1500)

# Of the version before draws were made faster, (labels, alpha, clients, min-examples, seed).
STORED = {
    ("even", 1e-06, 1, 1, 0): "c6f1a209e5af3dc3",
    ("even", 1e-06, 5, 7, 0): "66929ceeeca79cc2",
    ("even", 1e-06, 10, 20, 0): "db4b02e230433204",
    ("even", 0.01, 3, 10, 0): "40005ebae1ceea2c",
    ("even", 0.01, 10, 10, 0): "46588f149c014d5f",
    ("even", 0.05, 1, 1, 0): "c6f1a209e5af3dc3",
    ("even", 0.05, 5, 7, 0): "8f8eb1c9196aa965",
    ("even", 0.05, 10, 20, 0): "ffe976846437ecdf",
    ("even", 0.1, 3, 10, 0): "0a41fcd380789766",
    ("even", 0.1, 10, 10, 0): "0bfdfdbda112fb57",
    ("even", 0.5, 1, 1, 0): "c6f1a209e5af3dc3",
    ("even", 0.5, 5, 7, 0): "ba5b1fdab6a34a42",
    ("even", 0.5, 10, 20, 0): "a2df44da650ec7b5",
    ("even", 1.0, 3, 10, 0): "c589ea1477988519",
    ("even", 1.0, 10, 10, 0): "7f5179ea4a2bcae5",
    ("even", 100.0, 1, 1, 0): "c6f1a209e5af3dc3",
    ("even", 100.0, 5, 7, 0): "672c81e449b5c5da",
    ("even", 100.0, 10, 20, 0): "76cf3aa44ac47a51",
    ("even", 1000000.0, 3, 10, 0): "ee6412a42a54ee03",
    ("even", 1000000.0, 10, 10, 0): "14245571065bb958",
    ("uneven", 1e-06, 1, 1, 0): "5241f75c571d5da0",
    ("uneven", 1e-06, 5, 7, 0): "3c1b20d2eaece5b0",
    ("uneven", 0.01, 3, 10, 0): "23328fc85005cd66",
    ("uneven", 0.01, 10, 10, 0): "40568fd55086f252",
    ("uneven", 0.05, 1, 1, 0): "5241f75c571d5da0",
    ("uneven", 0.05, 5, 7, 0): "dd8f53e41ca69953",
    ("uneven", 0.05, 10, 20, 0): "91336fe713d8d9f3",
    ("uneven", 0.1, 3, 10, 0): "fa45da5c42e8e99f",
    ("uneven", 0.1, 10, 10, 0): "db5aa400e7d499ce",
    ("uneven", 0.5, 1, 1, 0): "5241f75c571d5da0",
    ("uneven", 0.5, 5, 7, 0): "82af673c9011bba2",
    ("uneven", 0.5, 10, 20, 0): "a3479e6ba28debc2",
    ("uneven", 1.0, 3, 10, 0): "c4c1a4aa2014093d",
    ("uneven", 1.0, 10, 10, 0): "4d856662aa5ebdab",
    ("uneven", 100.0, 1, 1, 0): "5241f75c571d5da0",
    ("uneven", 100.0, 5, 7, 0): "32a3be79ea41b59f",
    ("uneven", 100.0, 10, 20, 0): "b9f531b4da3bdc32",
    ("uneven", 1000000.0, 3, 10, 0): "d78fc8bdc20af940",
    ("uneven", 1000000.0, 10, 10, 0): "f1a2cbb4d664419d",
}


def divided(labels, alpha, clients, least, seed=0):
    asked = DataConfig(alpha=alpha, min_examples=least)
    return partition(labels, asked, num_clients=clients, seed=seed)


@pytest.mark.parametrize("case", STORED)
def test_parts_are_those_of_earlier_versions(case):
    which, alpha, clients, least, seed = case
    parts = divided(EVEN if which == "even" else UNEVEN, alpha, clients, least, seed)
    data = b"|".join(part.astype("<i8").tobytes() for part in parts)
    assert hashlib.sha256(data).hexdigest()[:16] == STORED[case]


@pytest.mark.parametrize("alpha", [1e15, 1e307, 1e308, 1.7e308])
@pytest.mark.parametrize("clients", [1, 2, 7])
def test_an_enormous_alpha_divides_evenly(alpha, clients):
    for part in divided(EVEN, alpha, clients, 1):
        assert np.abs(np.bincount(EVEN[part], minlength=10) - 60 / clients).max() <= 1


@pytest.mark.parametrize("alpha", [5e-324, 1e-308, 1e-300])
def test_a_vanishing_alpha_gives_a_class_to_one(alpha):
    parts = divided(EVEN, alpha, 5, 1)
    assert sorted(np.concatenate(parts)) == list(range(600))
    owners = sum((np.bincount(EVEN[p], minlength=10) > 0).astype(int) for p in parts)
    assert (owners == 1).all()


def test_a_hopeless_draw_is_given_up_soon_and_told_once():
    labels = np.repeat(np.arange(10), 6000)
    began = time.perf_counter()
    with pytest.raises(PartitionError, match="raise the second or use fewer clients"):
        divided(labels, 0.1, 1000, 10)
    first = time.perf_counter() - began
    assert first < 5
    began = time.perf_counter()
    with pytest.raises(PartitionError):
        divided(labels, 0.1, 1000, 10)
    assert time.perf_counter() - began < 0.5


def test_a_second_client_divides_nothing(monkeypatch):
    first = divided(EVEN, 0.5, 5, 3, seed=77)
    monkeypatch.setattr(module, "_divide", None)
    again = divided(EVEN, 0.5, 5, 3, seed=77)
    assert all(a is b for a, b in zip(first, again, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        again[0][0] = 1
    with pytest.raises(TypeError):
        divided(EVEN, 0.5, 5, 3, seed=78)


def test_what_the_sentence_promises_works():
    with pytest.raises(PartitionError, match="lower the first to") as caught:
        divided(EVEN, 0.1, 10, 55)
    best = int(str(caught.value).split("lower the first to ")[1].split(",")[0])
    assert 1 <= best < 55
    assert min(map(len, divided(EVEN, 0.1, 10, best))) == best


def test_too_few_images_are_refused_without_a_draw(monkeypatch):
    monkeypatch.setattr(module, "_dirichlet_draw", None)
    with pytest.raises(PartitionError, match=r"data\.min-examples = 61"):
        divided(EVEN, 0.1, 10, 61, seed=5)
