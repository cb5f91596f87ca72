"""Laws of robust means: a few lies move them little, and limits touch nobody who is honest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddgm_flwr.core.params import distance, weighted_mean
from feddgm_flwr.core.robust import (
    Cut,
    Limits,
    Mean,
    geometric_median,
    within_limits,
    within_median,
)
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.federation.flower_strategies import FlowerArithmetic, build_strategy

KINDS = ("median", "trimmed", "geometric-median", "clipped")
START = {"w": torch.zeros(3, 2), "b": torch.zeros(2)}
RNG = np.random.default_rng(5)


def replies(count=10, scale=1.0):
    return [
        {
            k: torch.tensor(1 + scale * RNG.normal(size=v.shape), dtype=v.dtype)
            for k, v in START.items()
        }
        for _ in range(count)
    ]


def updates(params, counts=None):
    counts = counts or [10 + i for i in range(len(params))]
    return [ClientUpdate(i, p, n) for i, (p, n) in enumerate(zip(params, counts, strict=True))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lie", [-1.0, 1e3, 1e12, -1e30])
def test_two_lies_of_ten_move_a_robust_mean_no_further_than_the_honest_are_apart(kind, lie):
    honest = replies(8, scale=0.1)
    told = [*honest, *({k: torch.full_like(v, lie) for k, v in START.items()} for _ in range(2))]
    without = Mean(kind)(honest, [1] * 8, START)
    with_them = Mean(kind)(told, [1] * 10, START)
    apart = max(distance(a, b) for a in honest for b in honest)
    shift = distance(without, with_them)
    # A movement that is shortened still points its way: two of ten, there and back.
    assert shift < (0.5 * distance(START, without) if kind == "clipped" else apart)
    if abs(lie) > 1:
        assert distance(without, weighted_mean(told, [1] * 10)) > 100 * shift


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
@pytest.mark.parametrize(
    ("kind", "flowers"), [("median", "fedmedian"), ("trimmed", "fedtrimmedavg")]
)
def test_median_and_trimmed_mean_are_flowers_own(kind, flowers, count):
    told = replies(count)
    strategy = build_strategy(flowers, lr=0.0, momentum=0.0, tau=1e-3, trim=0.2, malicious=0)
    theirs, _ = FlowerArithmetic(strategy)(ServerState(0, START), updates(told), count)
    ours = Mean(kind, 0.2)(told, [1] * count, START)
    for name, value in theirs.surrogate.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-7)


def test_the_geometric_median_is_where_the_distances_are_least():
    told = replies(7)
    found = geometric_median(told)
    least = sum(distance(found, r) for r in told)
    for _ in range(50):
        near = {
            k: v + 0.01 * torch.tensor(RNG.normal(size=v.shape)).float() for k, v in found.items()
        }
        assert sum(distance(near, r) for r in told) > least


def test_the_geometric_median_is_the_point_of_most():
    same, other = replies(1)[0], replies(3)
    found = geometric_median([same] * 4 + other)
    assert distance(found, same) < 1e-4


def test_the_clipped_mean_takes_no_movement_beyond_the_median_one():
    far = [{k: torch.full_like(v, x) for k, v in START.items()} for x in (1.0, 2.0, 50.0)]
    got = Mean("clipped")(far, [1, 1, 1], START)
    assert torch.allclose(got["w"], torch.full((3, 2), (1 + 2 + 2) / 3))


def test_the_plain_mean_weighs_by_examples_and_the_others_do_not():
    told = updates(replies(5), [1, 1, 1, 1, 100])
    assert distance(Mean().of(told, START), told[-1].params) < 0.1 * distance(
        START, told[-1].params
    )
    for kind in ("median", "trimmed", "geometric-median"):
        equal = updates([u.params for u in told], [1] * 5)
        assert distance(Mean(kind).of(told, START), Mean(kind).of(equal, START)) == 0


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=12), st.integers(0, 10**9))
@settings(deadline=None, max_examples=50)
def test_no_count_is_above_its_multiple_and_those_below_stay(counts, lie):
    got = within_median([*counts, lie], 10.0)
    most = 10 * np.median([n for n in (*counts, lie) if n])
    assert max(got) <= most
    assert all(g == min(n, int(most)) for g, n in zip(got, [*counts, lie], strict=True))


def test_what_is_within_its_limits_is_the_same_object():
    told = updates(replies(10))
    got, cuts = within_limits(told, {"surrogate": START}, Limits(10.0, 5.0))
    assert all(a is b for a, b in zip(got, told, strict=True))
    assert cuts == []


def test_a_lie_is_cut_and_told():
    honest = replies(9, scale=0.01)
    far = {k: 100 * v for k, v in honest[0].items()}
    told = [*updates(honest, [100] * 9), ClientUpdate(9, far, 10**9)]
    got, cuts = within_limits(told, {"surrogate": START}, Limits(10.0, 5.0))
    assert [(c.partition_id, c.what) for c in cuts] == [(9, "examples"), (9, "movement")]
    assert cuts[0] == Cut(9, "examples", 1e9, 1000.0)
    assert cuts[1].claimed == pytest.approx(20 * cuts[1].counted, rel=0.05)
    assert (got[9].num_examples, got[9].claimed) == (1000, 10**9)
    assert got[0].claimed == 0
    assert distance(START, got[9].params) == pytest.approx(cuts[1].counted)
    assert got[:9] == told[:9]


def test_limits_are_off_at_0_and_for_few():
    far = {k: v + 1e6 for k, v in START.items()}
    told = [*updates(replies(4)), ClientUpdate(4, far, 10**9)]
    assert within_limits(told, {"surrogate": START}, Limits()) == (told, [])
    few = told[-2:]
    assert within_limits(few, {"surrogate": START}, Limits(10.0, 5.0)) == (few, [])


def test_each_width_has_a_median_of_its_own_and_replies_without_parameters_pass():
    wide = {"w": torch.zeros(2)}
    near = [ClientUpdate(i, {"w": torch.ones(2)}, 10) for i in range(3)]
    far = [
        ClientUpdate(i, {"w": torch.full((2,), 90.0)}, 10, surrogate="surrogate-16")
        for i in range(3, 6)
    ]
    silent = [ClientUpdate(6, {}, 10)]
    sent = {"surrogate": wide, "surrogate-16": wide}
    got, cuts = within_limits([*near, *far, *silent], sent, Limits(0.0, 5.0))
    assert (got, cuts) == ([*near, *far, *silent], [])


def test_who_stays_where_it_began_says_nothing_of_how_far_to_go():
    limits, sent = Limits(0.0, 5.0), {"surrogate": START}
    moved = replies(4, scale=0.01)
    told = updates([START] * 5 + moved, [10] * 9)
    assert within_limits(told, sent, limits) == (told, [])
    far = {k: v + 1e3 for k, v in START.items()}
    got, cuts = within_limits([*told, ClientUpdate(9, far, 10)], sent, limits)
    assert [c.partition_id for c in cuts] == [9]
    usual = np.median([*(distance(START, p) for p in moved), distance(START, far)])
    assert distance(START, got[9].params) == pytest.approx(5 * usual, rel=1e-4)
    few = [START] * 3 + moved[:2]
    assert distance(Mean("clipped")(few, [1] * 5, START), Mean()(few, [1] * 5, START)) == 0
