"""Laws of the lock: one run a folder, the other is told whose it is, and death releases it."""

import os
import signal
import subprocess
import sys

import pytest
from inprocess_run import run

from feddgm_flwr.federation.lock import FILE, InUseError, held

HOLDER = """
import sys, time
from pathlib import Path
from feddgm_flwr.federation.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_holds_the_folder_and_what_to_do(tmp_path):
    with held(tmp_path):
        with pytest.raises(InUseError) as caught, held(tmp_path):
            pass
        assert str(caught.value).startswith(
            f"out-dir must be one run's alone, got '{tmp_path}', which process {os.getpid()} on "
        )
        assert "name another out-dir" in str(caught.value)
        with pytest.raises(InUseError, match=f"process {os.getpid()} on "), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_a_holder_that_is_killed_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(InUseError, match=f"process {holder.pid} on "), held(tmp_path):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with held(tmp_path):
        assert (tmp_path / FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_told_and_the_run_begins(tmp_path, monkeypatch, caplog):
    def none(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    with held(tmp_path):
        assert (tmp_path / FILE).exists()
    assert f"{tmp_path} cannot be locked (Operation not supported)" in caplog.text


def test_a_run_is_refused_before_it_touches_what_another_writes(tmp_path):
    (tmp_path / "events.jsonl").write_text("another's\n")
    with held(tmp_path), pytest.raises(InUseError):
        run(tmp_path, method="fedavg", clients=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", FILE]
    assert (tmp_path / "events.jsonl").read_text() == "another's\n"
