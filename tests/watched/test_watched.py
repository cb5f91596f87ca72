"""Laws of a watched strategy: it does what it did, and tells it as docs/events.md says."""

import logging
import random

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
)
from small_app import FIRST, broken, grid, of, told

from flwr_dashboard import writer
from flwr_dashboard.story import _bytes as size_told
from flwr_dashboard.watched import HOOKS, Watched, new_folder

STOCK = {
    "fedavg": FedAvg,
    "fedprox": lambda: FedProx(proximal_mu=0.1),
    "fedadam": FedAdam,
    "fedmedian": FedMedian,
    "private": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.0, clipping_norm=10.0, num_sampled_clients=3
    ),
}


def score(server_round, arrays):
    return MetricRecord({"accuracy": 0.1 * server_round, "loss": 1.0, "f1": 0.5})


def start(strategy, tmp_path, *, nodes=None, **kwargs):
    watched = Watched(strategy, tmp_path, config={"lr": 0.1, "names": ["no scalar"]})
    kwargs = {"num_rounds": 2, "timeout": 0.1, **kwargs}
    result = watched.start(nodes or grid(), ArrayRecord(FIRST), **kwargs)
    return result, told(watched.folder)


@pytest.mark.parametrize("name", STOCK)
def test_a_watched_strategy_gives_what_it_gives_unwatched(tmp_path, name):
    # Flower draws whom it asks, and in which order, from Python's own generator.
    random.seed(0)
    plain = STOCK[name]().start(grid(), ArrayRecord(FIRST), 2, 0.1)
    random.seed(0)
    strategy = STOCK[name]()
    watched, events = start(strategy, tmp_path)
    for a, b in zip(
        plain.arrays.to_numpy_ndarrays(), watched.arrays.to_numpy_ndarrays(), strict=True
    ):
        assert np.array_equal(a, b)
    assert watched.train_metrics_clientapp == plain.train_metrics_clientapp
    assert watched.evaluate_metrics_clientapp == plain.evaluate_metrics_clientapp
    assert not set(HOOKS) & vars(strategy).keys()
    assert events[0]["method"] == type(strategy).__name__
    assert events[-1]["status"] == "completed"


ROUND = [
    *("phase-start", "phase-end", "round-start", "phase-start"),
    *["client-asked"] * 3,
    *["reply-arrived", "client-reply"] * 3,
    *("phase-end", "phase-start", "phase-end", "phase-start"),
    *["client-asked"] * 3,
    *["reply-arrived", "client-scored"] * 3,
    "phase-end",
]


def test_a_run_is_told_in_order(tmp_path):
    _, events = start(FedAvg(), tmp_path, evaluate_fn=score)
    scored = ["phase-start", "phase-end", "scored"]
    first = [*ROUND[:2], "clients-online", *ROUND[2:]]
    kinds = [e["kind"] for e in events]
    assert kinds == [
        *("run-start", *scored),
        *(*first, *scored, "round-end"),
        *(*ROUND, *scored, "round-end"),
        "run-end",
    ]
    begin = events[0]
    assert (begin["rounds"], begin["seed"], begin["resumed"]) == (2, None, False)
    assert begin["config"] == {"lr": 0.1}
    assert begin["flower_run"] == "1"
    assert begin["versions"].keys() == {"python", "flwr", "flwr-dashboard"}
    assert [e["phase"] for e in of(events, "phase-start", round=1)] == [
        *("wait", "clients", "aggregate", "evaluate", "score"),
    ]


def test_a_round_is_told_with_what_it_came_to(tmp_path):
    _, events = start(FedAvg(), tmp_path, evaluate_fn=score)
    _, end = of(events, "round-end")
    assert end["accuracy"] == {"model": 0.2}
    assert end["loss"] == {"model": 1.0}
    # By examples: (10 * 1 + 20 / 2 + 30 / 3) / 60.
    assert end["metrics"]["train-loss"]["clients"] == pytest.approx(0.5)
    assert end["metrics"]["f1"] == {"model": 0.5}
    assert end["federated"] == {"loss": 0.5, "accuracy": 0.75}
    assert end["replies"] == {"accepted": 3, "failed": 0, "malformed": 0, "late": 0}
    asked = [e["num_bytes"] for e in of(events, "client-asked", round=2)]
    came = [e["num_bytes"] for e in of(events, "reply-arrived", round=2)]
    assert (end["bytes_down"], end["bytes_up"]) == (sum(asked), sum(came))
    assert end["eta_s"] == 0 < of(events, "round-end")[0]["eta_s"]


def test_without_the_servers_own_score_the_clients_stands_in(tmp_path):
    _, events = start(FedAvg(), tmp_path)
    assert [e["accuracy"] for e in of(events, "round-end")] == [{"clients": 0.75}] * 2
    assert of(events, "scored") == []


def test_clients_are_numbers_and_their_nodes_are_told(tmp_path):
    nodes = grid()
    _, events = start(FedAvg(), tmp_path, nodes=nodes)
    [online] = of(events, "clients-online")
    assert online["nodes"] == {str(i): str(n) for i, n in enumerate(sorted(nodes.contexts))}
    replies = {e["partition_id"]: e for e in of(events, "client-reply", round=1)}
    assert {i: (e["num_examples"], e["train_loss"]) for i, e in replies.items()} == {
        0: (10, 1.0), 1: (20, 0.5), 2: (30, pytest.approx(1 / 3)),
    }  # fmt: skip


@pytest.mark.parametrize("how", ["failed", "late"])
def test_who_fails_and_who_is_late_is_told_with_the_reason(tmp_path, how):
    _, events = start(FedAvg(), tmp_path, nodes=grid(tamper=broken(1, how)))
    [first, _] = of(events, "client-rejected")
    assert (first["partition_id"], first["reply"]) == (1, how)
    said = "the client failed: out of battery" if how == "failed" else "it did not answer in time"
    assert first["reason"] == said
    replies = of(events, "round-end")[0]["replies"]
    assert replies == {"accepted": 2, "failed": 0, "malformed": 0, "late": 0} | {how: 1}
    errors = [e["error"] for e in of(events, "reply-arrived", phase="clients", round=1)]
    assert sorted(errors) == (["", "", "out of battery"] if how == "failed" else ["", ""])


class Own(FedAvg):
    """A strategy with a ``start`` of its own, which asks without Flower's loop."""

    def start(self, grid, initial_arrays, *, laps):
        for lap in range(1, laps + 1):
            asked = list(self.configure_train(lap, initial_arrays, ConfigRecord(), grid))
            ids = grid.push_messages(asked)
            replies = []
            while len(replies) < len(asked):
                replies += grid.pull_messages(ids)
            initial_arrays, _ = self.aggregate_train(server_round=lap, replies=replies)
        return initial_arrays


def test_a_strategy_with_a_loop_of_its_own_is_watched_too(tmp_path):
    watched = Watched(Own(), tmp_path)
    arrays = watched.start(grid(), ArrayRecord(FIRST), laps=2)
    assert arrays.to_numpy_ndarrays()[0] == pytest.approx(np.full(3, 2 * (10 + 40 + 90) / 60))
    events = told(watched.folder)
    assert len(of(events, "reply-arrived", phase="clients")) == 6
    assert [e["round"] for e in of(events, "round-end")] == [1, 2]


class Breaks(FedAvg):
    def aggregate_train(self, server_round, replies):
        raise ZeroDivisionError("no replies")


def test_a_strategy_that_breaks_breaks_and_its_end_is_told(tmp_path):
    strategy = Breaks()
    watched = Watched(strategy, tmp_path)
    with pytest.raises(ZeroDivisionError):
        watched.start(grid(), ArrayRecord(FIRST), num_rounds=1)
    end = told(watched.folder)[-1]
    assert (end["kind"], end["status"]) == ("run-end", "failed")
    assert end["reason"] == "ZeroDivisionError: no replies"
    assert not set(HOOKS) & vars(strategy).keys()


def test_no_disk_ends_a_run(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)

    def full(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.EventFile, "append", full)
    result = Watched(FedAvg(), tmp_path).start(grid(), ArrayRecord(FIRST), num_rounds=1)
    assert result.arrays
    assert len([m for m in caplog.messages if "No space left" in m]) == 1


def test_a_folder_is_never_anothers_and_must_be_absolute(tmp_path, monkeypatch):
    folders = {new_folder(tmp_path, "FedAvg") for _ in range(3)}
    assert len(folders) == 3
    with pytest.raises(ValueError, match="runs must be an absolute path or begin with ~"):
        Watched(FedAvg(), "runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    watched = Watched(FedAvg(), "~/seen")
    watched.start(grid(), ArrayRecord(FIRST), num_rounds=1)
    assert watched.folder.parent == tmp_path / "seen"


def test_what_a_strategy_has_beyond_flowers_is_there(tmp_path):
    watched = Watched(FedAvg(fraction_train=0.5), tmp_path)
    assert watched.fraction_train == 0.5
    with pytest.raises(AttributeError, match="mood"):
        _ = watched.mood


def test_a_reply_whose_size_flower_cannot_tell_is_told_without_one():
    content = RecordDict({"more": ConfigRecord({"empty": []})})
    with pytest.raises(IndexError):
        content["more"].count_bytes()
    assert size_told(Message(content, dst_node_id=1, message_type="train")) == 0
