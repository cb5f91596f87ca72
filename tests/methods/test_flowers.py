"""Laws of Flower's strategies here: their arithmetic, on our replies, with our memory."""

import math

import numpy as np
import pytest
import torch
import toy

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.state import ClientUpdate, ServerState
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.methods.halves import method_of

FLOWERS = [
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
]
STATE = ServerState(0, {"w": torch.zeros(3), "b": torch.ones(1)})
COUNTS = (10, 30, 60, 20, 20)


def advance(method, **said):
    """Return the server half's ``advance``, freshly built."""
    config = RunConfig.from_run_config({"method": method, **said})
    return method_of(method).server(config, None, toy.quiet).advance


def replies(seed, counts=COUNTS):
    rng = torch.Generator().manual_seed(seed)
    return [
        ClientUpdate(
            i,
            {"w": torch.randn(3, generator=rng), "b": torch.randn(1, generator=rng)},
            count,
        )
        for i, count in enumerate(counts)
    ]


def stacked(updates):
    return torch.stack([u.params["w"] for u in updates]).numpy()


def mean(updates):
    return np.average(stacked(updates), axis=0, weights=[u.num_examples for u in updates])


def rounds(method, seeds, **said):
    """Return the state after a round for each of ``seeds``."""
    step, state = advance(method, **said), STATE
    for seed in seeds:
        state, report = step(state, replies(seed), 5)
        assert report is None
    return state


def test_fedavg_weighs_by_examples():
    got = rounds("fedavg", [1])
    np.testing.assert_allclose(got.surrogate["w"], mean(replies(1)), rtol=1e-6)
    assert (got.server_round, got.memory) == (1, {})


def test_fedavgm_is_the_mean_with_momentum():
    """Two rounds by hand: v <- m v + (x - mean), x <- x - lr v."""
    x, v = np.zeros(3), np.zeros(3)
    for seed in (1, 2):
        v = 0.5 * v + (x - mean(replies(seed)))
        x = x - 0.7 * v
    got = rounds("fedavgm", (1, 2), **{"fedopt.lr": 0.7, "fedopt.momentum": 0.5})
    np.testing.assert_allclose(got.surrogate["w"], x, rtol=1e-5)


def test_fedadagrad_is_the_papers():
    """Two rounds by hand: v <- v + d^2, x <- x + lr d / (sqrt(v) + tau), d = mean - x."""
    x, v = np.zeros(3), np.zeros(3)
    for seed in (1, 2):
        d = mean(replies(seed)) - x
        v = v + d**2
        x = x + 0.2 * d / (np.sqrt(v) + 0.01)
    got = rounds("fedadagrad", (1, 2), **{"fedopt.lr": 0.2, "fedopt.tau": 0.01})
    np.testing.assert_allclose(got.surrogate["w"], x, rtol=1e-5)


def test_fedadam_is_flowers():
    """Two rounds by hand, with Flower's bias correction of the rate."""
    x, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    for number, seed in ((1, 1), (2, 2)):
        d = mean(replies(seed)) - x
        m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d**2
        rate = 0.2 * math.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        x = x + rate * m / (np.sqrt(v) + 0.01)
    got = rounds("fedadam", (1, 2), **{"fedopt.lr": 0.2, "fedopt.tau": 0.01})
    np.testing.assert_allclose(got.surrogate["w"], x, rtol=1e-5)


def test_the_robust_ones_are_robust():
    updates = replies(1)
    wild = ClientUpdate(4, {"w": torch.full((3,), 1e3), "b": torch.ones(1)}, 20)
    updates[4] = wild
    ordered = np.sort(stacked(updates), axis=0)

    def one(method, **said):
        return advance(method, **said)(STATE, updates, 5)[0].surrogate["w"].numpy()

    np.testing.assert_allclose(one("fedmedian"), ordered[2])
    trimmed = one("fedtrimmedavg", **{"robust.trim": 0.2})
    np.testing.assert_allclose(trimmed, ordered[1:-1].mean(0), rtol=1e-6)
    chosen = one("krum", **{"robust.malicious": 1})
    assert any(np.array_equal(chosen, reply) for reply in stacked(updates)[:4])
    assert abs(one("fedavg")).max() > 100


@pytest.mark.parametrize("method", FLOWERS)
def test_what_it_keeps_stands_in_the_state_alone(method, tmp_path):
    """A server that is built anew each round, from a checkpoint, is the one that went on."""
    whole, state = rounds(method, (1, 2, 3)), STATE
    for seed in (1, 2, 3):
        state = advance(method)(state, replies(seed), 5)[0]
        checkpoint.save(tmp_path, checkpoint.Checkpoint(state, {}, {}, "", 0, [], 1))
        state = checkpoint.load(tmp_path).state
    assert state.server_round == whole.server_round == 3
    assert list(state.surrogate) == ["w", "b"]
    for name, value in whole.surrogate.items():
        assert torch.equal(state.surrogate[name], value)
        assert value.dtype == torch.float32


@pytest.mark.parametrize("method", FLOWERS)
def test_nothing_is_sent_or_taken_beside_the_parameters(method):
    config = RunConfig.from_run_config({"method": method})
    half = method_of(method).server(config, None, toy.quiet)
    assert half.down(STATE, 0).tensors == half.down(STATE, 0).numbers == {}
    assert half.wrong(half.down(STATE, 0), 5) == ""
