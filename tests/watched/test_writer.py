"""Laws of the writing end: whole lines from any thread, a heartbeat, and an end that is said."""

import json
import shutil
import threading
import time
import urllib.request

import pytest

from feddgm_flwr import events
from feddgm_flwr.monitoring.figures import figures
from flwr_dashboard.endpoint import Endpoint
from flwr_dashboard.writer import SCHEMA, EventFile, Load, RunLog, machine


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_both_ends_speak_of_one_schema():
    assert SCHEMA == events.SCHEMA


def test_lines_from_many_threads_stay_whole(tmp_path):
    file = EventFile(tmp_path / "new" / "events.jsonl")
    many = [
        threading.Thread(target=lambda n=n: [file.append(f"{n}" * 5000) for _ in range(20)])
        for n in range(8)
    ]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    file.close()
    said = (tmp_path / "new" / "events.jsonl").read_text().splitlines()
    assert sorted(said) == sorted(f"{n}" * 5000 for n in range(8) for _ in range(20))


@pytest.mark.parametrize("how", ["removed", "moved away"])
def test_a_log_that_is_gone_is_begun_anew(how, tmp_path):
    folder = tmp_path / "run"
    file = EventFile(folder / "events.jsonl")
    file.append("first")
    if how == "removed":
        shutil.rmtree(folder)
    else:
        folder.rename(tmp_path / "elsewhere")
    file.append("second")
    file.close()
    assert (folder / "events.jsonl").read_text() == "second\n"


def test_a_log_whose_folder_cannot_be_made_again_says_so_and_goes_on_once_it_can(tmp_path):
    folder = tmp_path / "run"
    file = EventFile(folder / "events.jsonl")
    shutil.rmtree(folder)
    folder.touch()
    for _ in range(2):
        with pytest.raises(FileExistsError):
            file.append("lost")
    folder.unlink()
    file.append("kept")
    file.close()
    assert (folder / "events.jsonl").read_text() == "kept\n"


def test_a_run_beats_and_says_how_it_ended(tmp_path):
    def stopped():
        with RunLog(tmp_path, beat_s=0.02) as log:
            log.tell("round-start", 3, rounds=5, clients=[], online=0)
            time.sleep(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    first, *beats, end = lines(tmp_path)
    assert first["round"] == 3
    assert len(beats) >= 2
    for beat in beats:
        known = events.from_line(json.dumps(beat)).event
        assert isinstance(known, events.Heartbeat)
        assert known.round == 3
        assert known.load["cpu_percent"] >= 0
        assert known.load["rss_mb"] > 10
    assert (end["kind"], end["status"], end["reason"]) == (
        "run-end",
        "stopped",
        "KeyboardInterrupt",
    )


def test_load_counts_the_cpu_of_this_process():
    load = Load()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert load()["cpu_percent"] > 1
    assert load().keys() >= {"cpu_percent"}


def test_a_user_without_a_name_is_nobody(monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert machine()["user"] == ""


def get(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def test_figures_are_there_while_the_run_is(tmp_path):
    with Endpoint("mine", "127.0.0.1", 0) as endpoint:
        assert "flwr_run_rounds{" not in get(endpoint.port)  # nobody has said how many
        with RunLog(tmp_path, endpoint.take) as log:
            log.tell("run-start", 0, method="FedAvg", rounds=4, config={})
            log.tell("scored", 2, accuracy={"model": 0.5}, loss={})
            text = get(endpoint.port)
        assert 'flwr_run_rounds{run="mine"} 4.0' in text
        assert 'flwr_run_accuracy{run="mine",model="model"} 0.5' in text
        assert 'flwr_run_state{run="mine",state="running"} 1.0' in text
        assert 'flwr_run_state{run="mine",state="completed"} 1.0' in get(endpoint.port)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(endpoint.port, "/")
    with pytest.raises(urllib.error.URLError):
        get(endpoint.port)


def test_a_port_that_is_taken_is_one_sentence():
    sentence = r"watch.metrics-port: metrics need a port .*free"
    with Endpoint("mine", "127.0.0.1", 0) as endpoint, pytest.raises(ValueError, match=sentence):
        figures("other", "127.0.0.1", endpoint.port).__enter__()


def test_a_run_offers_figures_where_it_is_asked_to():
    with figures("mine", "127.0.0.1", 0) as nobody:
        assert nobody == ()
    with Endpoint("x", "127.0.0.1", 0) as endpoint:
        free = endpoint.port
    with figures("mine", "127.0.0.1", free) as [listen]:
        listen(events.RoundStart(round=1, rounds=7, clients=(0, 1), online=2))
        assert 'flwr_run_clients_online{run="mine"} 2.0' in get(free)
