"""Ports for servers that tests start."""

import socket


def free_ports(number):
    """Return ports of this machine that nothing listens at now."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
