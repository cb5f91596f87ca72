"""Laws of what the prior alone teaches: the control, and larger models beside any method."""

import logging

import pytest
from inprocess_run import run, said

TINY = {
    "num_server_rounds": 1,
    "clients": 2,
    "prior__kind": "glyphs",
    "prior__chunk": 64,
    "start__epochs": 1,
    "start__global_model_epochs": 1,
    "union__prior_images_per_class": 1,
    "distill__iterations": 1,
    "distill__student_steps": 1,
    "global_model__names": "convnet",
    "global_model__steps": 1,
}
BOTH = {"surrogate", "convnet"}
MISSING = (
    "global-model.names = 'convnet': method fedavg makes no images from which a larger model could "
    "learn in its rounds"
)


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    """Hear this package's log lines, and let the prior teach with few images."""
    caplog.set_level(logging.INFO, logger="feddgm_flwr")
    monkeypatch.setattr("feddgm_flwr.core.start.IMAGES_PER_CLASS", 2)


def missing(caplog):
    return [line for line in said(caplog) if line.startswith("global-model.names = ")]


def test_the_control_and_a_second_architecture_are_reported(tmp_path, caplog):
    ended = run(tmp_path / "run", start__control=True, **TINY)
    assert set(ended.result["generator_only"]["accuracy"]) == BOTH
    assert ended.result["generator_only"] == ended.result["initial"]
    assert set(ended.rounds[0]["accuracy"]) == BOTH
    assert set(ended.models) == BOTH
    [told] = ended.of("control-scored")
    assert told["accuracy"] == ended.result["generator_only"]["accuracy"]
    assert missing(caplog) == []


def test_the_control_of_a_random_start_is_taught_apart(tmp_path):
    ended = run(tmp_path / "run", start__control=True, start__weights="random", **TINY)
    assert set(ended.result["generator_only"]["accuracy"]) == BOTH
    assert ended.result["generator_only"]["loss"] != ended.result["initial"]["loss"]


def test_a_baseline_reports_larger_models_as_the_prior_taught_them(tmp_path, caplog):
    how = TINY | {"method": "fedavg", "start__weights": "prior", "start__control": True}
    ended = run(tmp_path / "run", **how)
    assert set(ended.result["generator_only"]["accuracy"]) == BOTH
    assert ended.result["initial"]["accuracy"].keys() == {"surrogate"}
    assert ended.rounds[0]["accuracy"].keys() == {"surrogate"}
    assert set(ended.models) == {"surrogate"}
    assert [e["model"] for e in ended.of("trained")] == ["surrogate", "convnet"]
    assert missing(caplog) == [f"{MISSING}; they are reported as the prior alone taught them"]


def test_a_baseline_without_the_control_promises_no_report(tmp_path, caplog):
    how = TINY | {"method": "fedavg", "start__weights": "prior", "start__control": False}
    ended = run(tmp_path / "run", **how)
    assert ended.result["generator_only"] == {}
    assert missing(caplog) == [MISSING]


def test_a_baseline_from_a_prior_that_knows_no_classes_promises_no_report(tmp_path, caplog):
    how = TINY | {"method": "fedavg", "start__weights": "prior", "start__control": True}
    ended = run(tmp_path / "run", **how | {"prior__kind": "pixel"})
    assert ended.result["generator_only"] == {}
    assert ended.of("trained") == []
    assert missing(caplog) == [MISSING]


def test_a_baseline_from_random_weights_trains_no_larger_model(tmp_path, caplog):
    ended = run(tmp_path / "run", method="fedavg", start__control=True, **TINY)
    assert ended.result["generator_only"] == {}
    assert ended.of("trained") == ended.of("control-scored") == []
    assert set(ended.models) == {"surrogate"}
    assert missing(caplog) == [MISSING]


def test_without_a_control_a_baseline_teaches_no_larger_model(tmp_path):
    """It would have nowhere to be reported."""
    ended = run(
        tmp_path / "run",
        method="fedavg",
        prior__kind="glyphs",
        start__weights="prior",
        start__epochs=1,
        start__control=False,
        global_model__names="convnet",
        num_server_rounds=1,
        clients=2,
    )
    assert {e["model"] for e in ended.of("trained")} == {"surrogate"}
