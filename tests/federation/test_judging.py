"""Laws of the judge of fidelity, and of the word that images cost accuracy."""

import logging

import numpy as np
import pytest
import torch
from inprocess_run import run, said

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core import telling
from feddgm_flwr.data.datasets import read as read_data
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.federation import judging
from feddgm_flwr.federation.judging import read
from feddgm_flwr.federation.scoring import falls_behind

SPEC = spec_of(DataConfig(name="digits"))


@pytest.fixture
def data(tmp_path):
    """Real digits; that clients of these tests have them too is of no matter here."""
    digits = read_data(DataConfig(name="digits"), "train")
    file = tmp_path / "judge.npz"
    np.savez(file, train_images=digits.images[:600, 0], train_labels=digits.labels[:600])
    return file


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.INFO, logger="feddgm_flwr")


def test_a_run_tells_how_real_its_images_look_by_round(tmp_path, data):
    ended = run(tmp_path / "run", server__fidelity_data=str(data), prior__kind="glyphs",
                prior__chunk=64)  # fmt: skip
    told = [r["fidelity"] for r in ended.rounds]
    assert len(told) == 2
    for each in told:
        assert 0 <= each["in-class"] <= 1
        assert 0 < each["nearest"] < 0.5
    assert [e["fidelity"] for e in ended.of("round-end")] == told
    about = ended.result["judge"]
    assert about["accuracy"] > 0.7
    assert 0 < about["nearest"] < told[0]["nearest"]
    assert 400 < about["images"] < 600


def test_the_judge_says_how_far_its_learning_is(data, monkeypatch, caplog):
    monkeypatch.setattr(telling, "PAUSE_S", 0.0)
    config = RunConfig.from_run_config({"server.fidelity-data": str(data)})
    judging.appoint(config, SPEC, torch.device("cpu"))
    told = [r.getMessage() for r in caplog.records if "epoch" in r.getMessage()]
    epochs = judging.TRAINING.epochs
    assert len(told) == epochs
    assert told[-1] == f"the judge of fidelity learns: epoch {epochs} of {epochs}, 0 s left"


def test_noise_is_told_from_digits(tmp_path, data):
    ended = run(tmp_path / "run", server__fidelity_data=str(data), num_server_rounds=1)
    assert ended.rounds[0]["fidelity"]["in-class"] < 0.5


def test_without_data_or_images_nothing_is_judged(tmp_path, data, monkeypatch):
    def never(*arguments):
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(judging, "read", never)
    plain = run(tmp_path / "plain", num_server_rounds=1)
    assert "fidelity" not in plain.rounds[0]
    assert "judge" not in plain.result
    bare = run(
        tmp_path / "bare", method="fedavg", num_server_rounds=1, server__fidelity_data=str(data)
    )
    assert "judge" not in bare.result


def test_what_is_learned_and_what_is_tried_share_no_image(data):
    seen, unseen = read(data, SPEC)
    assert len(seen) + len(unseen) == 600
    assert len(unseen) == pytest.approx(120, abs=5)


@pytest.mark.parametrize("what", ["relative", "gone", "few"])
def test_data_of_no_use_are_refused_with_the_key(tmp_path, data, what):
    path = {"relative": "judge.npz", "gone": "/nowhere/judge.npz", "few": str(tmp_path / "few.npz")}
    with np.load(data) as full:
        images, labels = full["train_images"], full["train_labels"]
        np.savez(tmp_path / "few.npz", train_images=images[labels < 9],
                 train_labels=labels[labels < 9])  # fmt: skip
    config = RunConfig.from_run_config({"server.fidelity-data": path[what]})
    with pytest.raises(ValueError, match=r"server\.fidelity-data must"):
        judging.appoint(config, SPEC, torch.device("cpu"))


def test_falling_behind_the_plain_mean_is_told_beyond_a_point():
    assert falls_behind(0.531, 0.54, 0.3) == ""
    assert falls_behind(0.6, 0.54, None) == ""
    assert falls_behind(0.48, 0.543, 0.31).startswith(
        "the images cost accuracy: the surrogate scores 48.0 % after round 1, the plain mean of the"
        " clients' replies 54.3 % (the prior alone teaches 31.0 %); try another prior.kind"
    )
    assert "prior alone" not in falls_behind(0.48, 0.543, None)


def warned(caplog):
    return [line for line in said(caplog) if line.startswith("the images cost accuracy")]


HARMFUL = {
    "clients": 2,
    "client__epochs": 6,
    "client__lr": 0.05,
    "data__alpha": 100.0,
    "union__lr": 0.5,
    "union__learns": "all",
    "union__aggregate_share": 0.0,
}
"""Clients that learn well, and a server that unlearns it from noise."""


def test_round_one_warns_where_images_undo_what_the_mean_had(tmp_path, caplog):
    ended = run(tmp_path / "run", **HARMFUL)
    (line,) = warned(caplog)
    first = ended.rounds[0]["accuracy"]["surrogate"]
    assert f"the surrogate scores {100 * first:.1f} % after round 1" in line


def test_no_word_where_the_mean_itself_is_the_model_or_the_method_makes_no_images(tmp_path, caplog):
    run(tmp_path / "mean", **HARMFUL | {"union__aggregate_share": 1.0})
    run(tmp_path / "fedavg", method="fedavg", **HARMFUL)
    assert warned(caplog) == []


def test_the_images_of_feddms_clients_are_judged_too(data, tmp_path):
    small = {"feddm__iterations": 1, "feddm__images_per_class": 1, "num_server_rounds": 1}
    ended = run(tmp_path / "run", method="feddm", server__fidelity_data=str(data), **small)
    assert 0 <= ended.rounds[0]["fidelity"]["in-class"] <= 1
