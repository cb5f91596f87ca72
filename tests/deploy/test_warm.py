"""The warm process: a message's program is a fork of it, or itself where nobody answers."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import DEPLOY, mode

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


@contextmanager
def warm(folder):
    """Run the process; it has one thread, or a fork of it would not be safe."""
    process = subprocess.Popen([sys.executable, str(DEPLOY / "warm.py"), str(folder)])
    try:
        end = time.monotonic() + 300
        while not (folder / "flwr-clientapp").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def asked(folder, *arguments, tmp_path):
    """Call the program by its name; return what came on both its files, once all is there."""
    said, wrong = tmp_path / "said", tmp_path / "wrong"
    with said.open("w") as out, wrong.open("w") as err:
        subprocess.run(
            ["flwr-clientapp", *arguments],
            env={**os.environ, "PATH": f"{folder}{os.pathsep}{BIN}{os.pathsep}/usr/bin"},
            cwd=tmp_path,
            stdout=out,
            stderr=err,
            timeout=120,
            check=True,
        )
    end = time.monotonic() + 60
    while "usage:" not in said.read_text():
        assert time.monotonic() < end, wrong.read_text()
        time.sleep(0.1)
    return said.read_text(), wrong.read_text()


def test_a_program_is_a_fork_and_a_cold_start_where_nobody_answers(tmp_path):
    folder = tmp_path / ("a long one " * 16) / "warm"  # longer than a socket's path may be
    with warm(folder) as process:
        assert mode(folder) == 0o700
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 1
        said, wrong = asked(folder, "--help", tmp_path=tmp_path)
        assert "--clientappio-api-address" in said
        assert "cold" not in wrong
    link = tmp_path / "link"
    link.symlink_to(folder)
    for way in (folder, link):  # through a link it must not find itself again
        cold, why = asked(way, "--help", tmp_path=tmp_path)
        assert cold == said
        assert "this message starts cold" in why
    cold, why = asked_of_one_that_takes_nothing(folder, tmp_path)
    assert cold == said
    assert "this message starts cold: it did not take it" in why


def asked_of_one_that_takes_nothing(folder, tmp_path):
    """Call the program where a process listens that hears all and ends before it is a fork."""
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.listen()\n"
        "print('listens', flush=True); c, _ = s.accept(); s.close()\n"
        "while c.recv(1 << 16): pass\n"
    )
    (folder / "socket").unlink()
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as listens:
        listens.stdout.readline()
        return asked(folder, "--help", tmp_path=tmp_path)
