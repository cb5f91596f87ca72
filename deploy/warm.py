"""A warm Python for a device's messages: it imports torch and Flower once, a message is a fork.

Usage::

    warm.py FOLDER        # FOLDER/flwr-clientapp hands over to it; put FOLDER first in PATH

Flower starts the program ``flwr-clientapp`` anew for every message, which imports torch and Flower
before it reads one: two to four CPU seconds. Here that is done once; FOLDER/flwr-clientapp sends
its arguments, folder, environment and files here, and a fork goes on as the program would. The
app's own code still comes with each run and is imported by each fork. If nobody listens, the
program itself is started, and says so. Ends with the process that started it.

It knows of Flower its program's name and entry, and of the app what it imports. Threads of OpenMP
are those of this process's environment.
"""

import json
import os
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM, SOCKET = "flwr-clientapp", "socket"

HAND_OVER = """#!{python} -IS
import json, os, socket, sys
here = {folder!r}
said = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
try:
    warm = socket.socket(socket.AF_UNIX)
    os.chdir(here)  # the path of a socket must be short
    warm.connect({socket!r})
    socket.send_fds(warm, [b"+"], [0, 1, 2])
    warm.sendall(said)
except OSError as error:
    print("the warm process does not answer, this message starts cold:", error, file=sys.stderr)
    os.chdir(json.loads(said)[1])
    path = os.environ["PATH"].split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(p for p in path if p != here)
    os.execvp({program!r}, sys.argv)
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
        hand_over = HAND_OVER.format(
            python=sys.executable, folder=str(folder), socket=SOCKET, program=PROGRAM
        )
        Path(PROGRAM).write_text(hand_over, encoding="utf-8")
        Path(PROGRAM).chmod(0o700)
        while os.getppid() == parent:
            bury()
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listening.close()
                become(connection)
            connection.close()


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
        connection.settimeout(60.0)
        _, files, *_ = socket.recv_fds(connection, 1, 3)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
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
