"""Sums over parameters: as numpy has them, and without touching the module."""

import numpy as np
import pytest
import torch
from torch import nn

from feddgm_flwr.core.params import (
    all_finite,
    blend,
    dot,
    fingerprint,
    load_params,
    params_of,
    squared_distance,
    weighted_mean,
)
from feddgm_flwr.core.seeding import derive


def draw(seed: int, dtype=torch.float32):
    rng = derive(seed, "params")
    shapes = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (1, 2, 3, 3)}
    return {k: torch.randn(s, generator=rng).to(dtype) for k, s in shapes.items()}


def flat(params) -> np.ndarray:
    return np.concatenate([p.numpy().ravel() for p in params.values()]).astype(np.float64)


@pytest.mark.parametrize("weights", [[1, 1, 1], [24, 12, 400], [0.5, 0, 0.25], [3, 0, 0]])
def test_weighted_mean_is_numpys(weights):
    many = [draw(seed) for seed in range(3)]
    mean = weighted_mean(many, weights)
    expected = np.average([flat(p) for p in many], axis=0, weights=weights)
    np.testing.assert_allclose(flat(mean), expected, rtol=1e-6, atol=1e-7)
    assert list(mean) == list(many[0])
    assert [p.shape for p in mean.values()] == [p.shape for p in many[0].values()]


def test_the_mean_of_one_is_it():
    assert all(torch.equal(weighted_mean([draw(0)], [7])[k], p) for k, p in draw(0).items())


def test_only_the_ratio_of_the_weights_counts():
    many = [draw(0), draw(1)]
    few, lots = weighted_mean(many, [1, 3]), weighted_mean(many, [100, 300])
    for k in few:
        torch.testing.assert_close(few[k], lots[k])


def test_as_many_weights_as_replies_are_asked_for():
    with pytest.raises(ValueError, match="shorter"):
        weighted_mean([draw(0), draw(1)], [1])


def test_squared_distance_and_inner_product_are_numpys():
    a, b = draw(0), draw(1)
    assert float(squared_distance(a, b)) == pytest.approx(((flat(a) - flat(b)) ** 2).sum())
    assert float(dot(a, b)) == pytest.approx(flat(a) @ flat(b))
    assert float(squared_distance(a, a)) == 0
    reordered = dict(reversed(b.items()))
    assert float(squared_distance(a, reordered)) == pytest.approx(float(squared_distance(a, b)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_one_value_that_is_not_finite_is_found(bad, name):
    params = draw(0)
    assert all_finite(params)
    params[name].view(-1)[-1] = bad
    assert not all_finite(params)


def module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))


def test_parameters_go_into_a_module_and_come_out_as_they_went():
    a, b = module(), module()
    load_params(b, params_of(a))
    assert list(params_of(b)) == [name for name, _ in a.named_parameters()]
    for k, p in params_of(b).items():
        assert torch.equal(p, params_of(a)[k])
        assert not p.requires_grad


def test_what_came_out_is_a_copy_and_so_is_what_went_in():
    m = module()
    taken = params_of(m)
    before = {k: p.clone() for k, p in taken.items()}
    with torch.no_grad():
        for p in m.parameters():
            p.add_(1)
    assert all(torch.equal(taken[k], before[k]) for k in taken)
    load_params(m, taken)
    taken["0.weight"].zero_()
    assert torch.equal(params_of(m)["0.weight"], before["0.weight"])


def test_parameters_of_another_module_are_refused():
    with pytest.raises(KeyError):
        load_params(module(), draw(0))
    wrong = params_of(module()) | {"0.weight": torch.zeros(3, 1, 3, 3)}
    with pytest.raises(RuntimeError, match="size"):
        load_params(module(), wrong)


def test_a_fingerprint_is_the_same_for_the_same_tensors_in_any_order_or_layout():
    whole = fingerprint(draw(0))
    assert len(whole) == 16
    assert int(whole, 16) >= 0
    assert fingerprint(dict(reversed(draw(0).items()))) == whole
    strided = {k: p.t().contiguous().t() if p.ndim == 2 else p for k, p in draw(0).items()}
    assert not strided["a.weight"].is_contiguous()
    assert fingerprint(strided) == whole


def flip_a_bit(params):
    params["b.weight"].view(torch.int32).view(-1)[-1] ^= 1
    return params


@pytest.mark.parametrize(
    "change",
    [
        flip_a_bit,
        lambda p: {("c" if k == "a.bias" else k): v for k, v in p.items()},
        lambda p: p | {"a.weight": p["a.weight"].reshape(3, 2)},
        lambda p: p | {"a.bias": p["a.bias"].view(torch.int32)},
        lambda p: p | {"more": torch.zeros(0)},
        lambda p: {k: v for k, v in p.items() if k != "a.bias"},
    ],
    ids=["bit", "name", "shape", "type", "more", "fewer"],
)
def test_a_fingerprint_changes_with(change):
    assert fingerprint(change(draw(0))) != fingerprint(draw(0))


def test_a_fingerprint_takes_scalars_and_half_precision():
    scalar = {"steps": torch.tensor(3)}
    assert fingerprint(scalar) != fingerprint({"steps": torch.tensor(4)})
    half = draw(0, torch.bfloat16)
    assert fingerprint(half) != fingerprint(draw(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_soundness_is_looked_for_at_any_depth(bad):
    whole = {"m": None, "c": {3: {"w": torch.ones(2)}}, "n": [1, 2.5, "x"]}
    assert all_finite(whole)
    assert not all_finite(whole | {"n": [1, bad]})
    assert not all_finite(whole | {"c": {3: {"w": torch.tensor([1.0, bad])}}})


def test_a_blend_lies_between_its_ends():
    a, b = {"x": torch.zeros(2), "y": torch.ones(1)}, {"x": torch.ones(2), "y": torch.zeros(1)}
    assert same(blend(a, b, 0.0), a)
    assert same(blend(a, b, 1.0), b)
    assert blend(a, b, 0.25)["x"].tolist() == [0.25, 0.25]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
