"""Audio from an http or https address, for servers that were told to fetch it.

Only public addresses are reached: the name is resolved once, every address that it has must be public, and the
connection goes to the very address that was checked. Each redirect is treated like a new address.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from time import monotonic
from urllib.parse import SplitResult, urljoin, urlsplit

from indextts2.audio.loader import AudioTooLongError
from indextts2.errors import AudioError, UsageError

MAX_REDIRECTS = 3
TIMEOUT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
BLOCK_BYTES = 65_536
PORTS = {"http": 80, "https": 443}
REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch_audio(url: str, max_bytes: int) -> tuple[bytes, str]:
    """The body at `url` and its media type.

    Raises:
        UsageError: the address is not one that may be fetched. AudioTooLongError: the body exceeds `max_bytes`.
        AudioError: it could not be fetched.
    """
    deadline = monotonic() + TOTAL_SECONDS
    for _ in range(MAX_REDIRECTS + 1):
        target = check_url(url)
        try:
            found = _get(target, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise AudioError(f"{target.hostname} could not be read: {error}") from None
        if isinstance(found, tuple):
            return found
        url = urljoin(url, found)
    raise AudioError(f"the address redirects more than {MAX_REDIRECTS} times; give the final one")


def check_url(url: str) -> SplitResult:
    """The parts of an address that may be fetched; UsageError for another scheme, port, or a name with a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the address of the audio is not valid: {error}") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise UsageError("audio is fetched from http and https addresses only")
    if parts.username is not None or parts.password is not None or "\\" in url:
        raise UsageError("an address with a user name is not fetched; leave out what stands before the @")
    if port not in (None, PORTS[parts.scheme]):
        raise UsageError(f"audio is fetched from the usual ports only, not from {port}")
    return parts


def public_address(host: str, port: int) -> str:
    """The first IP address of `host`; UsageError unless all that it has are public.

    Raises:
        OSError: the name is not known.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise UsageError(f"{host} is not a public address; audio is not fetched from inside the network")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _get(target: SplitResult, max_bytes: int, deadline: float) -> tuple[bytes, str] | str:
    """The body and its type, or where it redirects to."""
    connection = _connect(target)
    try:
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        connection.request("GET", path, headers={"Accept": "audio/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status in REDIRECTS and (location := response.getheader("Location")):
            return location
        if response.status != 200:
            raise AudioError(f"{target.hostname} answered with status {response.status} instead of the audio")
        body = bytearray()
        while block := response.read1(BLOCK_BYTES):
            body += block
            if len(body) > max_bytes:
                raise AudioTooLongError(f"the audio at {target.hostname} has more than {max_bytes} bytes")
            if monotonic() > deadline:
                raise AudioError(f"{target.hostname} did not deliver the audio within {TOTAL_SECONDS:g} s")
        return bytes(body), response.headers.get_content_type()
    finally:
        connection.close()


def _connect(target: SplitResult) -> http.client.HTTPConnection:
    """A connection to an address that was checked, so that a second look-up cannot lead elsewhere."""
    host = target.hostname or ""
    port = PORTS[target.scheme]
    sock = socket.create_connection((public_address(host, port), port), TIMEOUT_SECONDS)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    if target.scheme == "https":
        try:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        except OSError:
            sock.close()
            raise
    connection.sock = sock
    return connection
