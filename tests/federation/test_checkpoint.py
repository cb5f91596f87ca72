"""Laws of the checkpoint: what is saved comes back bit for bit, and only the same run goes on."""

import pytest
import torch

from feddgm_flwr.core.state import ServerState
from feddgm_flwr.core.synthetic import Latents, SyntheticSet
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.checkpoint import Checkpoint

STATE = ServerState(
    server_round=4,
    surrogate={"b": torch.randn(3), "a": torch.randn(2, 2).double()},
    global_models={"vit": {"n": torch.tensor(7), "w": torch.randn(2)}},
    latents={
        5: Latents(torch.randn(2, 3), torch.tensor([0, 1]), torch.randn(2, 4), 0.1),
        2: Latents(torch.randn(1, 3), torch.tensor([3]), None, 0.2),
    },
    replay=(
        SyntheticSet(torch.rand(1, 1, 4, 4), torch.rand(1, 4), torch.ones(1), torch.tensor([5])),
    ),
    memory={
        "momentum": [torch.randn(3)],
        "m": None,
        "clients": {7: {"a": torch.randn(2, 2).double()}, 1: {"a": torch.zeros(2, 2)}},
    },
)
CONFIG = {"num-server-rounds": 5, "seed": 0, "client.lr": 0.1, "client.threads": 1}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = Checkpoint(STATE, {"rounds": [{"round": 1}]}, CONFIG, "0123456789abcdef")
    checkpoint.save(tmp_path, saved)
    assert same(checkpoint.load(tmp_path), saved)
    assert [f.name for f in tmp_path.iterdir()] == [checkpoint.FILE]


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("caught",))

    torch.save({"format": 1, "state": Trap()}, tmp_path / checkpoint.FILE)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoint.load(tmp_path)


def test_another_format_is_refused(tmp_path):
    for other in (1, 99, None):
        torch.save({"format": other}, tmp_path / checkpoint.FILE)
        with pytest.raises(ValueError, match=f"format 2, got {other}; .* start a new run"):
            checkpoint.load(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"needs a checkpoint in out-dir, got none at .*\.pt"):
        checkpoint.load(tmp_path)


def test_only_where_and_how_fast_may_differ():
    checkpoint.check_same_run(CONFIG, CONFIG | {"num-server-rounds": 9, "client.threads": 2})
    with pytest.raises(ValueError, match=r"client.lr = 0.5 \(was 0.1\), seed = 1 \(was 0\)"):
        checkpoint.check_same_run(CONFIG, CONFIG | {"seed": 1, "client.lr": 0.5})
    with pytest.raises(ValueError, match=r"num-server-rounds = 4 \(was 5\)"):
        checkpoint.check_same_run(CONFIG, CONFIG | {"num-server-rounds": 4})


def test_a_key_that_only_one_of_two_versions_has_is_a_difference():
    with pytest.raises(ValueError, match=r"client.new = 1 \(was None\)"):
        checkpoint.check_same_run(CONFIG, CONFIG | {"client.new": 1})
    with pytest.raises(ValueError, match=r"client.lr = None \(was 0.1\)"):
        checkpoint.check_same_run(CONFIG, {k: v for k, v in CONFIG.items() if k != "client.lr"})


def test_the_prior_must_be_the_same():
    checkpoint.check_same_prior("", "")
    checkpoint.check_same_prior("aa", "aa")
    for saved, now in (("aa", "bb"), ("aa", ""), ("", "bb")):
        with pytest.raises(ValueError, match=f"fingerprint is '{saved}', got '{now}'"):
            checkpoint.check_same_prior(saved, now)
