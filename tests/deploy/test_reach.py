"""A real server.sh: what a device's network reaches of it, and what it remembers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import DEPLOY, credentials, mode
from ports import free_ports

DEVICES, OWN = "127.0.0.2", "127.0.0.1"
"""The server's address in the devices' network, and the one that it alone has."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 as it is"),
]


def reached(address, port):
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


class Federation:
    """Keys, ports and a state folder of one server."""

    def __init__(self, folder):
        self.folder, self.state = folder, folder / "state"
        self.fleet, self.control, self.serverappio = free_ports(3)
        self.keys = folder / "keys"
        cred = credentials()
        cred.write_authority(self.keys)
        cred.write_server(self.keys, [DEVICES])
        cred.write_node(folder / "node.key")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "FLWR_HOME": str(folder / "operator")}

    @contextmanager
    def running(self):
        """Run the server, and kill it and its children without a warning."""
        said = {
            "FEDDGM_CREDENTIALS": str(self.keys),
            "FEDDGM_STATE": str(self.state),
            "FEDDGM_FLEET": f"{DEVICES}:{self.fleet}",
            "FEDDGM_CONTROL": f"{OWN}:{self.control}",
            "FEDDGM_SERVERAPPIO": f"{OWN}:{self.serverappio}",
        }
        with (
            (self.folder / "server.log").open("a") as log,
            subprocess.Popen(
                ["bash", str(DEPLOY / "server.sh")],
                env=self.environment | said,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                end = time.monotonic() + 180
                # An open port may still refuse its first calls.
                while self.nodes() is None or not reached(DEVICES, self.fleet):
                    assert process.poll() is None, (self.folder / "server.log").read_text()
                    assert time.monotonic() < end, (self.folder / "server.log").read_text()
                    time.sleep(0.2)
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)

    def flwr(self, address, *arguments):
        """Call ``flwr`` with no more than the authority's certificate."""
        home = Path(self.environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "{address}"\n'
            f'root-certificates = "{self.keys / "ca.crt"}"\n'
        )
        return subprocess.run(
            ["flwr", *arguments, "it", "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def registered(self, address):
        """Return what comes of registering the node's key there."""
        told = self.flwr(address, "supernode", "register", f"{self.folder / 'node.key.pub'}")
        try:
            answer = json.loads(told.stdout)
        except json.JSONDecodeError:
            return None
        return answer.get("node-id") if answer["success"] else None

    def nodes(self):
        """Return the ids of all registered nodes; None while the server does not answer."""
        told = self.flwr(f"{OWN}:{self.control}", "supernode", "list")
        answer = json.loads(told.stdout)
        return [node["node-id"] for node in answer["nodes"]] if answer["success"] else None


def test_devices_reach_one_port_and_registrations_outlive_a_kill(tmp_path):
    federation = Federation(tmp_path)
    with federation.running():
        assert not reached(DEVICES, federation.control)
        assert not reached(DEVICES, federation.serverappio)
        for port in (federation.control, federation.fleet):
            assert federation.registered(f"{DEVICES}:{port}") is None
        assert federation.nodes() == []
        node = federation.registered(f"{OWN}:{federation.control}")
        assert str(node).isdigit()
        assert [mode(federation.state), mode(federation.state / "state.db")] == [0o700, 0o600]
    assert not reached(DEVICES, federation.fleet)
    with federation.running():
        assert [str(known) for known in federation.nodes()] == [str(node)]
