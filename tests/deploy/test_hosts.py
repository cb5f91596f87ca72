"""A server and four devices on hosts of their own: a poor link, a link that is cut and comes back.

With TLS and keys, by the scripts of the kit. Each device has images of its own in a folder that
only it is told of.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from flwr.common.config import flatten_dict
from hosts import SERVER, network, refused
from inprocess_run import run
from kit import DEPLOY, ROOT, credentials

from feddgm_flwr.data.partition import client_images
from feddgm_flwr.data.settings import DataConfig

DEVICES, POOR, CUT = 4, 1, 3
"""How many; whose link is slow and breaks; whose is cut for a while."""
FLEET, CONTROL, SERVERAPPIO = 9092, 9093, 9091
WAIT_S = 1800
DATA = DataConfig(name="digits", alpha=0.5)

WHY_NOT = refused()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.deploy,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "allowed"),
]


@contextmanager
def going(command, log, **said):
    """Run a command beside the test, and its children, until the context ends."""
    with (
        log.open("a") as file,
        subprocess.Popen(
            command,
            env=environment(log.parent) | {k: str(v) for k, v in said.items()},
            stdout=file,
            stderr=file,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(process.pid, signal.SIGKILL)


def environment(home):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {"PATH": path, "FLWR_HOME": str(home / "operator"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **said}


def until(true, what, log):
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, f"{what}: {log.read_text()[-3000:]}"
        time.sleep(0.5)


class Federation:
    """A server and devices that are up, on ``network``."""

    def __init__(self, folder, server, devices):
        self.folder, self.server, self.devices = folder, server, devices
        self.keys = folder / "keys"
        cred = credentials()
        cred.write_authority(self.keys)
        cred.write_server(self.keys, [SERVER, "127.0.0.1"])
        operator = folder / "operator"
        operator.mkdir()
        (operator / "config.toml").write_text(
            f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "127.0.0.1:{CONTROL}"\n'
            f'root-certificates = "{self.keys / "ca.crt"}"\n'
        )
        for i in range(DEVICES):
            cred.write_node(folder / f"node-{i}.key")
            images = client_images(DATA, "train", partition_id=i, num_partitions=DEVICES, seed=0)
            pixels = (images.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
            home = folder / f"data-{i}"
            home.mkdir()
            labels = images.labels.numpy().astype(np.int64)
            np.savez(home / "own.npz", train_images=pixels, train_labels=labels)

    @contextmanager
    def up(self):
        with ExitStack() as stack:
            log = self.folder / "server.log"
            stack.enter_context(
                going(
                    self.server.command("bash", DEPLOY / "server.sh"),
                    log,
                    FEDDGM_CREDENTIALS=self.keys,
                    FEDDGM_STATE=self.folder / "server",
                    FEDDGM_FLEET=f"{SERVER}:{FLEET}",
                    FEDDGM_CONTROL=f"127.0.0.1:{CONTROL}",
                    FEDDGM_SERVERAPPIO=f"127.0.0.1:{SERVERAPPIO}",
                )
            )
            until(lambda: self.online() is not None, "the server", log)
            stack.enter_context(going(self.relay(), self.folder / "relay.log"))
            for i, host in enumerate(self.devices):
                told = self.flwr("supernode", "register", f"{self.folder / f'node-{i}.key.pub'}")
                assert told["success"], told
                stack.enter_context(
                    going(
                        host.command("bash", DEPLOY / "device.sh"),
                        self.folder / f"device-{i}.log",
                        FEDDGM_SUPERLINK=f"{'127.0.0.1' if i == POOR else SERVER}:{FLEET}",
                        FEDDGM_CA=self.keys / "ca.crt",
                        FEDDGM_KEY=self.folder / f"node-{i}.key",
                        FEDDGM_STATE=self.folder / f"device-{i}",
                        FEDDGM_NODE_CONFIG=f"partition-id={i} num-partitions=0 "
                        f'data-dir="{self.folder / f"data-{i}" / "own.npz"}"',
                    )
                )
            until(lambda: self.online() == DEVICES, "devices", log)
            yield self

    def relay(self):
        """The poor device's own end of its link: whatever it sends and gets goes through."""
        ends = (f"127.0.0.1:{FLEET}", f"{SERVER}:{FLEET}", self.folder / "relay.json")
        script = Path(__file__).with_name("relay.py")
        return self.devices[POOR].command(sys.executable, script, *ends, "--reset-every", 10)

    def flwr(self, *arguments):
        """Call ``flwr`` on the server; return its answer, or none while it cannot answer."""
        ended = subprocess.run(
            self.server.command("flwr", *arguments, "it", "--format", "json"),
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=120,
        )
        try:
            return json.loads(ended.stdout)
        except json.JSONDecodeError:
            return {"success": False}

    def online(self):
        told = self.flwr("supernode", "list")
        if not told["success"]:
            return None
        return sum(node["status"] == "online" for node in told["nodes"])

    @contextmanager
    def running(self, name, *said):
        """Submit a run from the server; yield what to ask of it."""
        out = self.folder / name
        work = self.folder / f"{name}-work"
        command = ["bash", DEPLOY / "submit.sh", work, f"127.0.0.1:{CONTROL}"]
        command += [self.keys / "ca.crt", "-c", ROOT / "conf" / "smoke.toml"]
        command += [part for one in (f'out-dir="{out}"', *said) for part in ("-c", one)]
        log = self.folder / f"{name}.log"
        with going(self.server.command(*command), log) as process:
            yield Submitted(out, log, process)


class Submitted:
    """A run that goes on."""

    def __init__(self, folder, log, process):
        self.folder, self.log, self.process = folder, log, process

    def events(self, kind):
        file = self.folder / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        # The last line may be half written.
        return [e for e in map(json.loads, lines[:-1]) if e["kind"] == kind]

    def completed(self):
        """Wait for the end; return its rounds."""
        until(lambda: self.process.poll() is not None, "the run", self.log)
        assert self.process.returncode == 0, self.log.read_text()[-5000:]
        return json.loads((self.folder / "result.json").read_text())["rounds"]


def reached(host, address, port):
    code = f"import socket; socket.create_connection(({address!r}, {port}), 5)"
    return not subprocess.run(host.command(sys.executable, "-c", code), stderr=-3).returncode


def smoke():
    """Return conf/smoke.toml as keys of a run in this process."""
    flat = flatten_dict(tomllib.loads((ROOT / "conf" / "smoke.toml").read_text()))
    return {key.replace(".", "__").replace("-", "_"): value for key, value in flat.items()}


def without(going_on):
    """Return the rounds that the cut device had no part in, so far."""
    ended = going_on.events("round-end")
    return [e["round"] for e in ended if e["replies"]["accepted"] < DEVICES]


def digests(folder):
    files = sorted((folder / "models").glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    with network(DEVICES) as (server, devices), Federation(folder, server, devices).up() as up:
        yield up


def test_a_device_reaches_the_one_port_that_is_for_it(federation):
    device = federation.devices[0]
    assert reached(device, SERVER, FLEET)
    assert not reached(device, SERVER, CONTROL)
    assert not reached(device, SERVER, SERVERAPPIO)
    assert not reached(device, federation.devices[2].address, 9094)


def test_hosts_and_a_poor_link_leave_the_numbers_of_the_simulation(federation, tmp_path):
    with federation.running("whole", "server.threads=1") as going_on:
        rounds = going_on.completed()
    assert [r["replies"]["accepted"] for r in rounds] == [DEVICES, DEVICES]
    relayed = json.loads((federation.folder / "relay.json").read_text())
    assert relayed["resets"] >= 1, relayed
    assert relayed["stalls"] >= 1, relayed
    assert min(relayed["up"], relayed["down"]) > 100_000, relayed
    print(relayed)
    simulated = run(tmp_path / "simulated", clients=DEVICES, server__threads=1, **smoke())
    assert [(r["accuracy"], r["loss"]) for r in rounds] == [
        (r["accuracy"], r["loss"]) for r in simulated.rounds
    ]
    assert digests(federation.folder / "whole") == digests(simulated.folder) != {}


def test_a_run_goes_on_without_a_device_and_takes_it_back(federation):
    said = "num-server-rounds=6 rounds.min-clients=3 rounds.min-replies=3 rounds.timeout-s=120.0"
    lost = federation.devices[CUT]
    with federation.running("cut", said) as going_on:
        until(lambda: going_on.events("round-end"), "round 1", going_on.log)
        lost.plug("down")
        try:
            until(lambda: 2 in without(going_on), "a round without it", going_on.log)
        finally:
            lost.plug("up")
        rounds = going_on.completed()
    accepted = [r["replies"]["accepted"] for r in rounds]
    print(accepted)
    assert len(accepted) == 6
    assert accepted[0] == accepted[-1] == DEVICES
    assert min(accepted) == DEVICES - 1
    assert all(r["replies"]["malformed"] == 0 for r in rounds)
