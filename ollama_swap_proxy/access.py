"""Who may talk to us: for now, which Host names; keys have their place here later.

Owns the check that every request on the proxy port passes first. Must not read bodies.

Ollama itself keeps web pages out that reach a loopback server by DNS rebinding (server/routes.go:1803). We send it a
Host of our own, so that guard is ours to keep: the same list, and like Ollama's only while we listen on loopback.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.errors import MARK

TURNED_AWAY = (MARK, "host_not_allowed")
"""The header that marks the empty 403 of ours."""

_LOCAL_NAMES = ("localhost",)
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


LONGEST_HOST = 253 + len(":65535")
"""Characters of the longest name in the DNS, with a port: a longer Host is nobody's, and not worth remembering."""


class HostGuard:
    """Says whether a request's Host header may be served. Answers are remembered: the names are few."""

    _REMEMBERED = 1024

    def __init__(self, listen: Address, allowed_hosts: Iterable[str] = ()) -> None:
        self._guards = listen.is_loopback
        self._names = {*_LOCAL_NAMES, socket.gethostname().lower(), *(host.lower() for host in allowed_hosts)}
        self._known: dict[str, bool] = {}

    def allows(self, host: str) -> bool:
        """Say whether this value of a Host header (port included, may be empty) is one of ours."""
        if not self._guards:
            return True
        if len(host) > LONGEST_HOST:
            return False
        known = self._known.get(host)
        if known is None:
            known = self._judge(host)
            if len(self._known) >= self._REMEMBERED:
                self._known.clear()
            self._known[host] = known
        return known

    def _judge(self, host: str) -> bool:
        name = _without_port(host.strip()).lower().rstrip(".")
        if not name or name in self._names or name.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified or _is_private(address) or _is_own(address)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") > 1:
        return host
    return host.partition(":")[0]


def _is_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Go's net.IP.IsPrivate: RFC 1918 and fc00::/7, narrower than Python's ``is_private``."""
    networks = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
    return any(
        address in ipaddress.ip_network(network)
        for network in networks
        if ipaddress.ip_network(network).version == address.version
    )


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
