"""Laws of the checkpoint: what is saved comes back bit for bit, and only the same run goes on."""

import io
import logging
import random
from dataclasses import replace

import pytest
import torch

from feddgm_flwr.config import DELETED
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.core.synthetic import Latents
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.checkpoint import Checkpoint
from feddgm_flwr.files import seal

STATE = ServerState(
    server_round=4,
    surrogate={"b": torch.randn(3), "a": torch.randn(2, 2).double()},
    global_models={"vit": {"n": torch.tensor(7), "w": torch.randn(2)}},
    latents={
        5: Latents(torch.randn(2, 3), torch.tensor([0, 1]), torch.randn(2, 4), 0.1),
        2: Latents(torch.randn(1, 3), torch.tensor([3]), None, 0.2),
    },
    memory={
        "momentum": [torch.randn(3)],
        "m": None,
        "clients": {7: {"a": torch.randn(2, 2).double()}, 1: {"a": torch.zeros(2, 2)}},
    },
    narrow={"surrogate-16": {"b": torch.randn(2)}, "surrogate-8": {"b": torch.randn(1)}},
)
CONFIG = {"num-server-rounds": 5, "seed": 0, "client.lr": 0.1, "rounds.min-clients": 1}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


OWNERS = {0: 2**64 - 1, 5: 7}
RESULTS = {"rounds": [{"round": 1}]}
SAVED = Checkpoint(STATE, RESULTS, CONFIG, "0123456789abcdef", 5, [0, 2, 5], 2, OWNERS, [5])


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoint.save(tmp_path, SAVED)
    assert same(checkpoint.load(tmp_path), SAVED)
    assert [f.name for f in tmp_path.iterdir()] == [checkpoint.FILE]


def test_a_checkpoint_from_before_a_field_was_added_is_read(tmp_path, monkeypatch):
    plain = checkpoint.torch.save
    monkeypatch.setattr(
        checkpoint.torch,
        "save",
        lambda all_of_it, to: plain(
            {k: v for k, v in all_of_it.items() if k not in ("owners", "own_data")}, to
        ),
    )
    checkpoint.save(tmp_path, SAVED)
    assert same(checkpoint.load(tmp_path), replace(SAVED, owners={}, own_data=[]))


def twice(folder):
    """Save two checkpoints into ``folder``; return the first."""
    first = replace(SAVED, state=replace(STATE, server_round=3))
    checkpoint.save(folder, first)
    checkpoint.save(folder, SAVED)
    return first


DAMAGES = {
    "empty": lambda data, rng: b"",
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "a byte short": lambda data, rng: data[:-1],
    "a byte more": lambda data, rng: data + b"\0",
    "text": lambda data, rng: b"not a checkpoint",
    "torch's own": lambda data, rng: data[data.index(b"PK") :],
    **{
        f"flipped {n}": lambda data, rng, n=n: flipped(data, rng.sample(range(len(data)), n))
        for n in (1, 64)
    },
}


def flipped(data, places):
    data = bytearray(data)
    for place in places:
        data[place] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_costs_one_round_or_is_refused_in_a_sentence(
    how, seed, tmp_path, caplog
):
    first = twice(tmp_path)
    newest, rng = tmp_path / checkpoint.FILE, random.Random(seed)
    newest.write_bytes(DAMAGES[how](newest.read_bytes(), rng))
    with caplog.at_level(logging.WARNING, "feddgm_flwr"):
        assert same(checkpoint.load(tmp_path), first)
    assert "going on from the checkpoint before it" in caplog.text
    (tmp_path / checkpoint.PREVIOUS).unlink()
    with pytest.raises(ValueError, match=r"needs a sound checkpoint in out-dir, got .*; restore"):
        checkpoint.load(tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path):
    checkpoint.save(tmp_path, SAVED)
    file = tmp_path / checkpoint.FILE
    whole = file.read_bytes()
    for place in [*range(80), *range(80, len(whole), 97)]:
        file.write_bytes(flipped(whole, [place]))
        with pytest.raises(ValueError, match="which is damaged"):
            checkpoint.load(tmp_path)


def test_a_crash_between_two_files_leaves_the_one_before(tmp_path):
    first = twice(tmp_path)
    (tmp_path / checkpoint.FILE).unlink()
    assert checkpoint.is_there(tmp_path)
    assert same(checkpoint.load(tmp_path), first)


def test_a_folder_in_its_place_is_no_checkpoint(tmp_path):
    (tmp_path / checkpoint.FILE).mkdir()
    with pytest.raises(ValueError, match="needs a sound checkpoint"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("caught",))

    buffer = io.BytesIO()
    torch.save({"state": Trap()}, buffer)
    seal(tmp_path / checkpoint.FILE, checkpoint.KIND, buffer.getvalue())
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoint.load(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"needs a checkpoint in out-dir, got none in {tmp_path}"):
        checkpoint.load(tmp_path)


def test_only_where_and_how_fast_may_differ():
    checkpoint.check_same_run(CONFIG, CONFIG | {"num-server-rounds": 9, "rounds.min-clients": 2})
    with pytest.raises(ValueError, match=r"client.lr = 0.5 \(was 0.1\), seed = 1 \(was 0\)"):
        checkpoint.check_same_run(CONFIG, CONFIG | {"seed": 1, "client.lr": 0.5})
    with pytest.raises(ValueError, match=r"num-server-rounds = 4 \(was 5\)"):
        checkpoint.check_same_run(CONFIG, CONFIG | {"num-server-rounds": 4})


def test_a_key_that_only_one_of_two_versions_has_is_a_difference():
    with pytest.raises(ValueError, match=r"client.new = 1 \(was None\)"):
        checkpoint.check_same_run(CONFIG, CONFIG | {"client.new": 1})
    with pytest.raises(ValueError, match=r"client.lr = None \(was 0.1\)"):
        checkpoint.check_same_run(CONFIG, {k: v for k, v in CONFIG.items() if k != "client.lr"})


def test_a_key_that_is_gone_since_is_no_difference_where_it_was_off():
    off = {key: deleted.off for key, deleted in DELETED.items()}
    checkpoint.check_same_run(CONFIG | off, CONFIG)
    with pytest.raises(ValueError, match=r"got client.checkpoints = None \(was 2\);"):
        checkpoint.check_same_run(CONFIG | off | {"client.checkpoints": 2}, CONFIG)


def test_the_prior_must_be_the_same():
    checkpoint.check_same_prior("", "")
    checkpoint.check_same_prior("aa", "aa")
    for saved, now in (("aa", "bb"), ("aa", ""), ("", "bb")):
        with pytest.raises(ValueError, match=f"fingerprint is '{saved}', got '{now}'"):
            checkpoint.check_same_prior(saved, now)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_sound_one(tmp_path):
    first = twice(tmp_path)
    newest = tmp_path / checkpoint.FILE
    newest.write_bytes(flipped(newest.read_bytes(), [500]))
    checkpoint.save(tmp_path, SAVED)
    newest.unlink()  # as if cut off before the new one was in its place
    assert same(checkpoint.load(tmp_path), first)
