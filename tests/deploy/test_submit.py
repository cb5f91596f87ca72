"""A submitter's script: it follows a run to its end, and says when nobody tells of it."""

import pytest
from kit import stand_ins, started

FLWR = """#!/bin/sh
case $1 in
  run) echo '{"success": true, "run-id": "7"}' ;;
  list)
    echo asked >>"$HOME/asked"
    [ "$(wc -l <"$HOME/asked")" -gt SILENT ] || { echo "no server there" >&2; exit 1; }
    echo '{"success": true, "runs": [{"status": "STATUS"}]}' ;;
esac
"""


@pytest.fixture
def submit(tmp_path):
    programs = stand_ins(tmp_path / "programs")
    (tmp_path / "ca.crt").touch()

    def run(status, silent):
        text = FLWR.replace("STATUS", status).replace("SILENT", str(silent))
        (programs / "flwr").write_text(text)
        where = (tmp_path / "work", "a:1", tmp_path / "ca.crt")
        return started("submit.sh", programs, *where, HOME=tmp_path)

    return run


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1)])
def test_the_exit_code_is_the_run_s(submit, status, code):
    ended = submit(status, silent=0)
    assert (ended.returncode, ended.stdout.splitlines()) == (code, ["run 7", f"run 7 {status}"])
    assert "says nothing" not in ended.stderr


def test_a_silent_server_is_told_once_and_asked_on(submit):
    ended = submit("finished:completed", silent=2)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "run 7 finished:completed")
    assert ended.stderr.count("the SuperLink says nothing of run 7") == 1
