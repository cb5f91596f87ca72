"""A real federation for drills: a SuperLink, SuperNodes, runs, and what may befall them.

Everything is started by the scripts of deploy/, under TLS and with keys. Each process leads a group
of its own, and `closing` ends every group, whatever a test did.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from kit import DEPLOY, ROOT, credentials
from ports import free_ports
from tiny import SMALL

OWN = "127.0.0.1"
WAIT_S = 300
"""Longest wait for anything; a busy machine needs it."""

TINY = {
    **SMALL,
    "server.threads": 1,
    "rounds.min-clients": 2,
    "rounds.node-wait-s": WAIT_S,
    "rounds.timeout-s": WAIT_S,
}
"""Settings of a run whose rounds take as long as Flower needs to start its processes."""


def until(true, what, seconds=WAIT_S, tell=lambda: ""):
    """Wait until ``true()`` returns something, and return that; ``tell()`` explains a failure."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s\n{tell()}"
        time.sleep(0.1)
    return found


def kill(process, *, whole_group=True, how=signal.SIGKILL):
    """Send a signal to a process, with its children or without."""
    with suppress(ProcessLookupError):
        (os.killpg if whole_group else os.kill)(process.pid, how)
    if how == signal.SIGKILL:
        process.wait()


class Node:
    """One SuperNode: started, killed, and started anew by hand or as its unit would."""

    def __init__(self, node_config, log, start):
        self.node_config, self._log, self._start = node_config, log, start
        self.process = start()
        self.left = []
        self._over, self._unit = threading.Event(), None

    def log(self):
        return self._log.read_text(errors="replace")

    def keep(self, pause_s):
        """Start it again whenever it leaves, whatever its exit code, as the systemd unit does."""

        def again():
            while not self._over.wait(0.1):
                if self.process.poll() is None:
                    continue
                self.left.append(self.process.returncode)
                kill(self.process)  # the control group goes with it
                if not self._over.wait(pause_s):
                    self.process = self._start()

        self._unit = threading.Thread(target=again, daemon=True)
        self._unit.start()

    def end(self):
        """End it for good: politely, so that the SuperLink knows at once, then not."""
        self._over.set()
        if self._unit is not None:
            self._unit.join()
        kill(self.process, how=signal.SIGCONT)
        kill(self.process, whole_group=False, how=signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        kill(self.process)


class Run:
    """One submitted run, as it is seen in its folder and by `flwr`."""

    def __init__(self, federation, number, folder):
        self.federation, self.number, self.folder = federation, number, folder
        self._log = federation.folder / f"run-{number}.log"
        following = ["flwr", "log", str(number), "it", "--stream"]
        self._follower = federation.start(following, self._log)

    @property
    def log(self):
        """What `flwr log` has shown so far."""
        return self._log.read_text(errors="replace")

    def says(self, sentence, seconds=WAIT_S):
        """Wait until the log holds ``sentence``."""
        until(lambda: sentence in self.log, f"the log says {sentence!r}", seconds, self.tell)

    def events(self):
        """Return the events so far, this run's and those of before a resume."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True)
                if line.endswith("\n")]  # fmt: skip

    def all(self, kind, **fields):
        """Return the events of a kind, and with these fields, since this run began."""
        events = self.events()
        starts = [i for i, e in enumerate(events)
                  if e["kind"] == "run-start" and e["flower_run"] == str(self.number)]  # fmt: skip
        own = events[starts[0] :] if starts else []
        wanted = {"kind": kind, **fields}
        return [e for e in own if wanted.items() <= e.items()]

    def event(self, kind, seconds=WAIT_S, **fields):
        """Wait for an event and return the first."""
        found = until(lambda: self.all(kind, **fields), f"{kind} {fields}", seconds, self.tell)
        return found[0]

    @property
    def pid(self):
        """The ServerApp's process."""
        return self.event("run-start")["pid"]

    def stop(self):
        """Stop it, as the operator of a run that nobody does any more."""
        self.federation.flwr("stop", str(self.number))

    def status(self):
        told = self.federation.flwr("list", options=("--run-id", str(self.number)))
        runs = json.loads(told.stdout).get("runs") or [{"status": ""}]
        return runs[0]["status"]

    def ended(self, seconds=WAIT_S):
        """Wait for the end and return the status that Flower gives the run."""

        def over():
            status = self.status()
            return status if status.startswith("finished:") else ""

        status = until(over, "the end of the run", seconds, self.tell)
        with suppress(subprocess.TimeoutExpired):  # the last lines are on their way
            self._follower.wait(30)
        return status

    def result(self):
        return json.loads((self.folder / "result.json").read_text())

    def tell(self):
        nodes = "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.federation.folder.glob("node-*.log"))
        )
        server = self.federation.server_log.read_text(errors="replace")[-1500:]
        return f"--- run\n{self.log[-4000:]}\n--- server\n{server}\n{nodes}"


class Federation:
    """Keys, ports, one server and its nodes in a folder."""

    def __init__(self, folder, nodes):
        self.folder = folder
        self.keys, self.state = folder / "keys", folder / "server"
        self.server_log = folder / "server.log"
        self.control, self.fleet, self.serverappio = free_ports(3)
        credentials().write_trial(self.keys, nodes)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "PATH": path,
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "FLWR_HOME": str(folder / "operator"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        home = folder / "operator"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "{OWN}:{self.control}"\n'
            f'root-certificates = "{self.keys / "ca.crt"}"\n'
        )
        self.server, self.nodes, self.registered = None, {}, {}
        self._started, self._runs = [], 0

    def start(self, command, log, **said):
        """Start a command as the leader of its group."""
        with log.open("a") as file:
            process = subprocess.Popen(
                command,
                env=self.environment | {name: str(value) for name, value in said.items()},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def close(self):
        for node in self.nodes.values():
            node._over.set()
        for process in self._started:
            kill(process)

    def flwr(self, *command, options=(), timeout=120):
        """Call ``flwr`` as the operator does."""
        return subprocess.run(
            ["flwr", *command, "it", *options, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def serve(self):
        """Start the server, and wait until it answers."""
        self.server = self.start(
            ["bash", str(DEPLOY / "server.sh")],
            self.server_log,
            FEDDGM_CREDENTIALS=self.keys,
            FEDDGM_STATE=self.state,
            FEDDGM_FLEET=f"{OWN}:{self.fleet}",
            FEDDGM_CONTROL=f"{OWN}:{self.control}",
            FEDDGM_SERVERAPPIO=f"{OWN}:{self.serverappio}",
        )

        def answers():
            assert self.server.poll() is None, self.server_log.read_text()
            # A server that is still starting may leave a call hanging: then it is asked anew.
            with suppress(subprocess.TimeoutExpired):
                return '"success": true' in self.flwr("supernode", "list", timeout=30).stdout
            return False

        until(answers, "the server answers", tell=self.server_log.read_text)

    def register(self, number):
        """Register a node's key once, and return the id that Flower gives it."""
        if number not in self.registered:
            told = self.flwr("supernode", "register", str(self.keys / f"node-{number}.pub"))
            self.registered[number] = int(json.loads(told.stdout)["node-id"])
        return self.registered[number]

    def join(self, number, node_config):
        """Start a node; one that ran before with other words of itself is ended first."""
        self.register(number)
        self.leave(number)

        def start():
            [own] = free_ports(1)
            return self.start(
                ["bash", str(DEPLOY / "device.sh")],
                self.folder / f"node-{number}.log",
                FEDDGM_SUPERLINK=f"{OWN}:{self.fleet}",
                FEDDGM_CA=self.keys / "ca.crt",
                FEDDGM_KEY=self.keys / f"node-{number}",
                FEDDGM_STATE=self.folder / f"node-{number}",
                FEDDGM_CLIENTAPPIO=f"{OWN}:{own}",
                FEDDGM_NODE_CONFIG=node_config,
            )

        self.nodes[number] = Node(node_config, self.folder / f"node-{number}.log", start)
        return self.nodes[number]

    def leave(self, number):
        if number in self.nodes:
            self.nodes.pop(number).end()

    def whole(self, *numbers, parts=2):
        """See to it that the server runs, and that just these nodes are there."""
        if self.server is None or self.server.poll() is not None:
            if self.server is not None:
                kill(self.server)
            self.serve()
        for number in set(self.nodes) - set(numbers):
            self.leave(number)
        for number in numbers:
            node, said = self.nodes.get(number), f"partition-id={number} num-partitions={parts}"
            if node is None or node.node_config != said or node.process.poll() is not None:
                self.join(number, said)

    def submit(self, folder, **said):
        """Submit a run of tiny settings and what is ``said``; return it at once."""
        settings = TINY | {k.replace("__", ".").replace("_", "-"): v for k, v in said.items()}
        settings["out-dir"] = str(folder)
        self._runs += 1
        file = self.folder / f"run-{self._runs}.toml"
        # JSON writes bools, numbers and strings as TOML does.
        file.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in settings.items()))
        told = self.flwr("run", str(ROOT), options=("-c", str(file)))
        try:
            number = int(json.loads(told.stdout)["run-id"])
        except (json.JSONDecodeError, KeyError) as error:
            raise AssertionError(f"{told.stdout}{told.stderr}") from error
        return Run(self, number, folder)
