"""Several hosts on one machine: Linux network namespaces on one switch, each with its own address.

The server is 10.77.0.1, device ``i`` is 10.77.0.1<i>. Nothing is added to this machine's own
network. A link that is down loses packets, as a pulled cable does: nobody is told. Knows no Flower.
"""

import os
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass

SERVER = "10.77.0.1"


def ip(*arguments):
    """Call ``ip``; raise with what it said."""
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if ended.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """A namespace, and its end of the switch."""

    name: str
    address: str
    switch: str
    port: str

    def command(self, *arguments):
        """Return ``arguments`` as a command that runs on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]

    def plug(self, state):
        """Set the link ``up`` or ``down``."""
        ip("-n", self.switch, "link", "set", self.port, state)


@contextmanager
def network(devices):
    """Yield the server and the devices; take all away at the end."""
    tag = f"fd{uuid.uuid4().hex[:6]}"
    switch = f"{tag}-switch"
    hosts = [Host(f"{tag}-server", SERVER, switch, "server")]
    hosts += [Host(f"{tag}-{i}", f"10.77.0.1{i}", switch, f"d{i}") for i in range(devices)]
    made = []
    try:
        for name in (switch, *(host.name for host in hosts)):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            far = ("type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("-n", switch, "link", "add", host.port, *far)
            ip("-n", switch, "link", "set", host.port, "master", "bridge", "up")
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")
        yield hosts[0], hosts[1:]
    finally:
        for name in made:
            ip("netns", "delete", name)


def refused():
    """Return why this machine cannot have such hosts, or nothing."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "network namespaces need root"
    try:
        with network(1):
            return ""
    except OSError as error:
        return f"network namespaces are not allowed here ({error})"
