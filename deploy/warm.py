"""A warm Python for a device's messages: it imports torch and Flower once, a message is a fork.

Usage::

    warm.py FOLDER        # FOLDER/flwr-clientapp hands over to it; put FOLDER first in PATH

Flower starts the program ``flwr-clientapp`` anew for every message, which imports torch and Flower
before it reads one: two to four CPU seconds. Here that is done once; FOLDER/flwr-clientapp sends
its arguments, folder, environment and files here, and a fork goes on as the program would. The
app's own code still comes with each run and is imported by each fork. If nobody takes a message,
the program itself is started, and says so. Ends with the process that started it.

It knows of Flower its program's name and entry, and of the app what it imports. Threads of OpenMP
are those of this process's environment.
"""

import json
import os
import shlex
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM, SOCKET, HANDS_OVER = "flwr-clientapp", "socket", "hand_over.py"
ANSWER_S = 60.0
"""Within it a message is taken, or starts cold."""
PAUSE_S = 0.2
"""After a fork or an acceptance that the system refused."""

# Not a "#!" with Python's path, which may hold blanks and be longer than such a line may be.
STARTS = """#!/bin/sh
exec {python} -IS {script} "$@"
"""
HAND_OVER = """import json, os, socket, sys
here, program = {folder!r}, {program!r}
argv = [program, *sys.argv[1:]]
cwd = os.getcwd()
try:
    warm = socket.socket(socket.AF_UNIX)
    warm.settimeout({answer})
    os.chdir(here)  # the path of a socket must be short
    warm.connect({socket!r})
    socket.send_fds(warm, [b"+"], [0, 1, 2])
    warm.sendall(json.dumps([argv, cwd, dict(os.environ)]).encode())
    warm.shutdown(socket.SHUT_WR)
    if not warm.recv(1):
        raise OSError("it did not take it")
except OSError as error:
    print("the warm process does not answer, this message starts cold:", error, file=sys.stderr)
    os.chdir(cwd)
    path = os.environ["PATH"].split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(p for p in path if os.path.realpath(p) != here)
    os.execvp(program, argv)
"""


def main() -> None:
    """Make the program and the socket; serve until the parent is gone."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    parent = os.getppid()  # before the seconds of importing, in which it may end
    import_all()
    os.chdir(folder)
    Path(SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(SOCKET)
        listening.listen(256)
        listening.settimeout(1.0)
        write_program(folder)
        while os.getppid() == parent:
            bury()
            try:
                connection, _ = listening.accept()
                with connection:  # closed without an answer, who asked starts cold
                    if os.fork() == 0:
                        listening.close()
                        become(connection)
            except TimeoutError:
                continue
            except OSError as error:  # out of files or of processes, say
                complain(error)


def write_program(folder: Path) -> None:
    """Write what Flower starts for a message; it is there once all is ready for it."""
    script = folder / HANDS_OVER
    hand_over = HAND_OVER.format(
        folder=str(folder), socket=SOCKET, program=PROGRAM, answer=ANSWER_S
    )
    script.write_text(hand_over, encoding="utf-8")
    program = folder / f"{PROGRAM}.new"
    starts = STARTS.format(python=shlex.quote(sys.executable), script=shlex.quote(str(script)))
    program.write_text(starts, encoding="utf-8")
    program.chmod(0o700)
    program.replace(folder / PROGRAM)


def complain(error: OSError) -> None:
    """Say why a message was not taken, and give the system time."""
    print(f"the warm process cannot take a message: {error}", file=sys.stderr, flush=True)
    time.sleep(PAUSE_S)


def bury() -> None:
    """Let go of forks that have ended; nobody asks how."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def import_all() -> None:
    """Import what a message needs, but for the app itself, which comes with each run."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's; a process with threads must not fork
    path = sys.path[:]
    sys.path.insert(0, str(ROOT))

    import client_app  # noqa: F401

    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in ("client_app", "feddgm_flwr"):
            del sys.modules[name]


def become(connection: socket.socket) -> None:
    """Be the program that ``connection`` tells of; never returns."""
    code = 1
    try:
        connection.settimeout(ANSWER_S)
        _, files, *_ = socket.recv_fds(connection, 1, 3)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        connection.sendall(b"+")  # from here on it is this process's, and no other's
        connection.close()
        for wanted, given in enumerate(files):
            os.dup2(given, wanted)
            os.close(given)
        sys.argv, cwd, environment = json.loads(said)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        from flwr.supernode.cli import flwr_clientapp

        flwr_clientapp()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
