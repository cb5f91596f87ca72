"""Laws of the run log: every line is JSON, and people hear each client and each round once."""

import json
import logging
import math

import pytest

from feddgm_flwr.monitoring.events import EventLog, LogFollower, duration

PROGRESS = {"partition_id": 3, "iteration": 1, "iterations": 9, "loss": 0.5, "eta_s": 65.0}


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_every_event_is_one_json_object_on_the_disk_at_once(tmp_path):
    with EventLog(tmp_path) as log:
        log.emit("round-start", round=1, clients=[0, 2])
        [event] = lines(tmp_path)
    assert event["kind"] == "round-start"
    assert event["clients"] == [0, 2]
    assert event["time"] > 1e9


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(value, tmp_path):
    with EventLog(tmp_path) as log:
        log.emit("round-end", loss={"surrogate": value}, many=[value, 1.0])
    assert lines(tmp_path)[0]["loss"] == {"surrogate": None}
    assert lines(tmp_path)[0]["many"] == [None, 1.0]


def test_a_run_that_breaks_says_so_at_its_end(tmp_path):
    with pytest.raises(RuntimeError), EventLog(tmp_path):
        raise RuntimeError("no power")
    [end] = lines(tmp_path)
    assert (end["kind"], end["status"], end["reason"]) == (
        "run-end",
        "failed",
        "RuntimeError: no power",
    )


def test_a_second_log_appends(tmp_path):
    for _ in range(2):
        with EventLog(tmp_path):
            pass
    assert [e["kind"] for e in lines(tmp_path)] == ["run-end", "run-end"]


def test_progress_is_said_now_and_then_with_time_left(caplog):
    caplog.set_level(logging.INFO)
    follow = LogFollower(every_s=3600.0)
    for _ in range(50):
        follow({"kind": "distill-progress", **PROGRESS})
    [line] = caplog.messages
    assert "client 3" in line
    assert "about 1 min 05 s left" in line


def test_unknown_events_are_written_but_not_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with EventLog(tmp_path, LogFollower()) as log:
        log.emit("moon-phase", phase="full")
    assert lines(tmp_path)[0]["phase"] == "full"
    assert caplog.messages == ["the run is complete"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.0, "59 s"), (60.0, "1 min 00 s"), (7800.0, "2 h 10 min")],
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
