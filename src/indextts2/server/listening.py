"""Sockets to listen on, made before anything that takes long, so that a port in use is told at once."""

from __future__ import annotations

import socket

from indextts2.errors import UsageError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on this address; of a name with several addresses on one, of IPv4 if there is one.

    Raises:
        UsageError: there is no such address here, the port is in use, or it needs rights that are missing.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from error
