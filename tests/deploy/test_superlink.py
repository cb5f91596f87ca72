"""The SuperLink's database: it waits for its lock longer than Flower lets it."""

import importlib.util
import sqlite3
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest
from flwr.supercore import sql_mixin
from kit import DEPLOY

PROGRAM = """import sys
print(sys.argv[1:], __name__)
from flwr.supercore.sql_mixin import SQLITE_PRAGMAS
print(dict(SQLITE_PRAGMAS)["busy_timeout"])
"""


@pytest.fixture
def superlink(monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    spec = importlib.util.spec_from_file_location("superlink", DEPLOY / "superlink.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked_for(seconds, file):
    """Hold the write lock of ``file`` in a thread; return once it is held."""
    held = threading.Event()

    def hold():
        own = sqlite3.connect(file, isolation_level=None)
        own.execute("BEGIN IMMEDIATE")
        held.set()
        threading.Event().wait(seconds)
        own.execute("COMMIT")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    return thread


@pytest.mark.parametrize(("wait_s", "written"), [(0, False), (60, True)])
def test_a_call_waits_for_whoever_writes(superlink, tmp_path, wait_s, written):
    superlink.wait_longer(wait_s)
    file = tmp_path / "state.db"
    connection = sqlite3.connect(file, isolation_level=None)
    sql_mixin._set_sqlite_pragmas(connection, None)  # as Flower opens its file
    connection.execute("CREATE TABLE replies (n)")
    writing = locked_for(0.5, file)
    refused = pytest.raises(sqlite3.OperationalError, match="database is locked")
    with nullcontext() if written else refused:
        connection.execute("INSERT INTO replies VALUES (1)")
    writing.join()
    assert bool(connection.execute("SELECT n FROM replies").fetchall()) == written


def test_nothing_else_of_flowers_settings_changes(superlink):
    before = dict(sql_mixin.SQLITE_PRAGMAS)
    superlink.wait_longer()
    after = dict(sql_mixin.SQLITE_PRAGMAS)
    assert after == before | {"busy_timeout": "120000"}


def test_it_runs_the_program_it_is_given(tmp_path):
    program = tmp_path / "flower-superlink"
    program.write_text(PROGRAM)
    command = [sys.executable, str(DEPLOY / "superlink.py"), str(program), "--insecure", "a b"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines() == ["['--insecure', 'a b'] __main__", "120000"], ended.stderr


def test_a_flower_without_that_setting_runs_as_it_is(superlink, monkeypatch, capsys):
    monkeypatch.delattr(sql_mixin, "SQLITE_PRAGMAS")
    superlink.wait_longer()
    assert "this Flower's database waits as long as Flower says" in capsys.readouterr().err
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("synchronous", "NORMAL"),), raising=False)
    superlink.wait_longer()
    assert "must name busy_timeout, got ['synchronous']" in capsys.readouterr().err
