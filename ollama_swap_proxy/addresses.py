"""Where we listen and where Ollama is: reading the two spellings, and knowing our own door when we see it.

Owns the forms of addresses. Must not open anything: a socket is bound here only to learn whether an address is this
machine's.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from yarl import URL

OLLAMA_PORT = 11434
"""Ollama's own default port (envconfig/config.go); used where an upstream is given as a bare host."""

_HIGHEST_PORT = 65535
_LONGEST_NAME = 253 + len(".")

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen at. ``host`` is bare (no brackets around IPv6); ``port`` 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name counts when it is ``localhost``."""
        ip = _as_ip(self.host)
        return ip.is_loopback if ip is not None else self.host.lower() == "localhost"

    @property
    def to_connect_to(self) -> Address:
        """The address that a client on this machine uses: a listener on all addresses is reached by loopback."""
        ip = _as_ip(self.host)
        if ip is None or not ip.is_unspecified:
            return self
        return Address("127.0.0.1" if ip.version == 4 else "::1", self.port)


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT`` (``[IPV6]:PORT`` for IPv6).

    Raises:
        ValueError: with what is wrong with it.
    """
    if "://" in text:
        raise ValueError(f"an address is HOST:PORT, without {text.partition('://')[0].strip()}://")
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not isinstance(_as_ip(host), ipaddress.IPv6Address):
            raise ValueError(f"{host!r} between the brackets is no IPv6 address")
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets, as in [::1]:{port}")
    if not colon or not host or "/" in text or " " in host:
        raise ValueError(f"must be HOST:PORT, as in 127.0.0.1:11435; got {text!r}")
    if not (port.isascii() and port.isdigit() and int(port) <= _HIGHEST_PORT):
        raise ValueError(f"the port must be a number from 0 to {_HIGHEST_PORT}; got {port!r}")
    _must_be_possible(host)
    return Address(host, int(port))


def parse_upstream(text: str) -> URL:
    """Read ``http://HOST:PORT``, ``https://HOST:PORT``, ``HOST:PORT`` or ``HOST`` into an origin (no path).

    Ports follow Ollama's own rule for its clients: a bare host means 11434, ``http://`` without a port 80, ``https://``
    443.

    Raises:
        ValueError: with what is wrong with it.
    """
    bare = "://" not in text
    if not text.strip().isprintable():  # looked for here, for a tab or a line's end would be left out of the URL
        raise ValueError(f"must not have control characters; got {text!r}")
    try:
        url = URL(f"http://{text.strip()}" if bare else text.strip())
        port = url.explicit_port
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(f"must be http://HOST:PORT or https://HOST:PORT; got {text!r}")
    if url.raw_path not in {"", "/"} or url.raw_query_string or url.raw_fragment:
        raise ValueError("must not have a path or a query: every path on our port is passed on as it is")
    if url.user is not None or url.password is not None:
        raise ValueError("must not carry a user or a password: nothing would send them")
    if port == 0:
        raise ValueError("the port must not be 0")
    _must_be_possible(url.raw_host or "")
    origin = url.origin()
    return origin.with_port(OLLAMA_PORT) if bare and port is None else origin


def _must_be_possible(host: str) -> None:
    """Raise ValueError for what no host can be called; to look it up would raise more than OSError."""
    if not host.isprintable() or " " in host:
        raise ValueError(f"a host's name has no control characters and no spaces; got {host!r}")
    try:
        is_possible = len(host) <= _LONGEST_NAME and bool(host.encode("idna"))
    except UnicodeError:
        is_possible = False
    if not is_possible:
        raise ValueError(f"a host's name has 1 to 63 characters between dots and up to 253 in all; got {host!r}")


def is_own_listener(upstream: URL, listener: Address) -> bool:
    """Say whether a connection to ``upstream`` would end at our own ``listener``. Looks names up (may block).

    A name that does not resolve is not ours. Any loopback address counts as any other: ``localhost`` may be either
    kind.
    """
    if upstream.port != listener.port:
        return False
    ours = _addresses_of(listener.host)
    return any(_reaches(there, here) for there in _addresses_of(upstream.host or "") for here in ours)


def overlap(first: Address, second: Address) -> bool:
    """Say whether two listeners would want the same port of the same address. Looks names up (may block)."""
    if first.port != second.port or first.port == 0:
        return False
    firsts, seconds = _addresses_of(first.host), _addresses_of(second.host)
    return any(one == other or one.is_unspecified or other.is_unspecified for one in firsts for other in seconds)


def _reaches(there: _IP, here: _IP) -> bool:
    if there == here:
        return True
    if there.is_loopback or there.is_unspecified:  # to connect to 0.0.0.0 is to connect to this machine
        return here.is_loopback or here.is_unspecified
    return here.is_unspecified and _is_this_machine(there)


def _is_this_machine(ip: _IP) -> bool:
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True


def _addresses_of(host: str) -> set[_IP]:
    ip = _as_ip(host)
    if ip is not None:
        return {ip}
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {ip for entry in found if (ip := _as_ip(str(entry[4][0]))) is not None}


def _as_ip(host: str) -> _IP | None:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip
