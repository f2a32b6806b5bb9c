"""The kinds of values that settings have, and how each is read from a text, a list or a number.

Owns the reading of single values and what is said when one is bad. Must not know which settings there are. A secret is
never repeated in what is said.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, Field
from yarl import URL

from ollama_swap_proxy.addresses import Address, parse_address, parse_upstream
from ollama_swap_proxy.core import durations, endpoints, names

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

AUTO_STATE_FILE = "auto"
NO_STATE_FILE = "none"

_WILD = re.compile(r"[*?\[]")
"""What makes a text a glob that stands for more than itself."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110."""

_CLASS_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

CREDENTIALS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
"""Headers that carry secrets, in lower case."""


_IPV4_IN_IPV6 = ipaddress.IPv6Network("::ffff:0:0/96")

_SHOWN = 200
"""Characters of a bad value that are repeated."""


def shown(value: object) -> str:
    """Write a bad value for whoever reads the complaint, cut where it is long."""
    try:
        written = repr(value)
    except (RecursionError, ValueError):  # tables in tables in tables; more digits than Python writes
        return f"something (type {type(value).__name__}) too large to be written here"
    return written if len(written) <= _SHOWN else f"{written[:_SHOWN]}..."


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  # pydantic reports ValueError only
    return value


def text(value: object) -> str:
    """Return a text as it is.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be a text; got {shown(value)}")  # noqa: TRY004  # pydantic reports ValueError only
    return value


def _read_address(value: object) -> Address:
    return value if isinstance(value, Address) else parse_address(text(value))


def _read_upstream(value: object) -> URL:
    return value if isinstance(value, URL) else parse_upstream(text(value))


def _read_hosts(value: object) -> tuple[str, ...]:
    hosts = tuple(item.strip().lower().rstrip(".") for item in _items(value, "host names"))
    for host in hosts:
        if "/" in host or " " in host:
            raise ValueError(f"must be host names without scheme, port or path; got {shown(host)}")
        if not host.isprintable():
            raise ValueError(f"must not have control characters; got {shown(host)}")
    return tuple(host for host in hosts if host)


def _read_networks(value: object) -> tuple[Network, ...]:
    return tuple(_network(item.strip()) for item in _items(value, "addresses and networks") if item.strip())


def _read_own_networks(value: object) -> tuple[Network, ...]:
    return tuple(_network(item.strip()) for item in _some(value))


def _network(item: str) -> Network:
    try:
        return _ipv4_if_it_is(ipaddress.ip_network(item))
    except ValueError as error:
        hint = ""
        if "host bits" in str(error):
            address, _, bits = item.partition("/")
            if ipaddress.ip_address(address) in _IPV4_IN_IPV6 and int(bits) < _IPV4_IN_IPV6.prefixlen:
                hint = f"; an IPv4 address written as IPv6 has 96 bits more: /96 to /128, not /{bits}"
            else:
                hint = f"; the network is {_ipv4_if_it_is(ipaddress.ip_network(item, strict=False))}"
        raise ValueError(
            f"must be addresses or networks, as in 192.168.1.7 or 10.0.0.0/8; got {shown(item)}{hint}"
        ) from None


def _ipv4_if_it_is(network: Network) -> Network:
    """Return what ``::ffff:10.0.0.0/104`` and the like stand for; clients are known by their IPv4 addresses."""
    if isinstance(network, ipaddress.IPv4Network) or not network.subnet_of(_IPV4_IN_IPV6):
        return network
    ipv4 = ipaddress.IPv4Address(int(network.network_address) & 0xFFFF_FFFF)
    return ipaddress.IPv4Network((ipv4, network.prefixlen - _IPV4_IN_IPV6.prefixlen))


def _read_globs(value: object) -> tuple[str, ...]:
    globs = _some(value)
    for glob in globs:
        if "[" in re.sub(r"\[!?\]?[^\]]*\]", "", glob):
            raise ValueError(f"has a [ without its ]; got {shown(glob)}")
    return globs


def _read_header_globs(value: object) -> tuple[str, ...]:
    """Read globs on a header, which may hold a secret."""
    try:
        return _read_globs(value)
    except ValueError as error:
        raise ValueError(str(error).partition("; got ")[0]) from None


def _read_model_globs(value: object) -> tuple[str, ...]:
    return tuple(glob.lower() if _WILD.search(glob) else model_name(glob) for glob in _read_globs(value))


def _read_path_globs(value: object) -> tuple[str, ...]:
    globs = _read_globs(value)
    paths = [endpoint.path for endpoint in endpoints.GATED]
    for glob in globs:
        if not any(fnmatch.fnmatchcase(path, glob.lower()) for path in paths):
            raise ValueError(
                f"only the gated routes wait, and {shown(glob)} is none of them; they are {', '.join(paths)}"
            )
    return globs


def _read_key_hashes(value: object) -> tuple[str, ...]:
    try:
        hashes = tuple(item.lower() for item in _some(value))
    except ValueError:  # it repeats what may be the key
        hashes = ()
    if not hashes or not all(_SHA256.fullmatch(item) for item in hashes):
        raise ValueError("must be the 64 hex digits of the key's SHA-256, not the key (printf %s KEY | sha256sum)")
    return hashes


def _read_state_file(value: object) -> str:
    path = text(value)
    if path in {"", NO_STATE_FILE}:
        return NO_STATE_FILE
    if path != AUTO_STATE_FILE and (not Path(path).is_absolute() or path.endswith("/") or not path.isprintable()):
        raise ValueError(f"must be the absolute path of a file, auto or none; got {shown(path)}")
    return path


def _read_header_name(value: object) -> str:
    if value != "" and not _HEADER_NAME.fullmatch(text(value)):
        raise ValueError(f"must be the name of a header; got {shown(value)}")
    return str(value)


def _read_condition_name(value: object) -> str:
    name = _read_header_name(value)
    if name.lower() in CREDENTIALS:
        raise ValueError(f"{name} carries secrets, which do not belong in a file: name a key by key_sha256")
    if not name:
        raise ValueError("a header's name must not be empty")
    return name


def _read_class_name(value: object) -> str:
    if not _CLASS_NAME.fullmatch(text(value)):
        raise ValueError(
            f"a class's name has up to 32 lower-case letters, digits, - and _, and no dot; got {shown(value)}"
        )
    return str(value)


def model_name(value: object) -> str:
    """Return the canonical spelling of a model that this server can have.

    Raises:
        ValueError: no such name is possible.
    """
    parsed = names.parse(text(value))
    if isinstance(parsed, names.ModelName):
        return parsed.canonical
    reason = parsed.reason if isinstance(parsed, names.InvalidName) else "it runs at ollama.com and never waits"
    raise ValueError(f"must be the name of a model; got {shown(value)}: {reason}")


def _read_keep_alive(value: object) -> float:
    try:
        if isinstance(value, str) and not value.strip("+-0123456789."):
            value = float(value)  # from the environment, where there are no numbers
        seconds = durations.parse_keep_alive_ns(value) / 1e9
    except ValueError:
        raise ValueError(f'must be seconds, a text as "30m", or -1 for ever; got {shown(value)}') from None
    if 0 < seconds < 1:
        raise ValueError(f"must be 1 s or more, -1 for ever, or 0 for clients' own; got {shown(value)}")
    if seconds >= durations.FOREVER_NS / 1e9 or seconds < 0:
        return -1.0
    return seconds


def _read_model_or_none(value: object) -> str:
    return "" if value == "" else model_name(value)


def _items(value: object, what: str) -> Iterable[str]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"must be a list of {what}")  # noqa: TRY004  # pydantic reports ValueError only
    return [str(item) if isinstance(item, Network) else text(item) for item in items]


def _some(value: object) -> tuple[str, ...]:
    """Read one text or a list of them; nothing at all would be a condition that never holds."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"must be a text or a list of texts; got {shown(value)}")  # noqa: TRY004
    found = tuple(str(item) if isinstance(item, Network) else text(item) for item in items)
    if not found or not all(found):
        raise ValueError("must not be empty")
    return found


def _read_groups(value: object) -> tuple[str, ...]:
    return () if value in ([], ()) else _some(value)


_NoBool = BeforeValidator(_no_bool)
Listen = Annotated[Address, BeforeValidator(_read_address)]
Upstream = Annotated[URL, BeforeValidator(_read_upstream)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_read_hosts)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_read_networks)]
Count = Annotated[int, _NoBool, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, _NoBool, Field(ge=0, le=1_000_000)]
Rank = Annotated[int, _NoBool, Field(ge=0, le=1000)]
Seconds = Annotated[float, _NoBool, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, _NoBool, Field(ge=0, allow_inf_nan=False)]
Interval = Annotated[float, _NoBool, Field(ge=0.1, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, _NoBool, Field(ge=0, le=2**63 - 1)]  # as large as TOML's own numbers
StateFilePath = Annotated[str, BeforeValidator(_read_state_file)]
KeepAlive = Annotated[float, BeforeValidator(_read_keep_alive)]
ModelOrNone = Annotated[str, BeforeValidator(_read_model_or_none)]
HeaderName = Annotated[str, BeforeValidator(_read_header_name)]
ClassName = Annotated[str, BeforeValidator(_read_class_name)]

Groups = Annotated[tuple[str, ...], BeforeValidator(_read_groups)]

# Conditions of a rule: one value or several, of which any will do.
Globs = Annotated[tuple[str, ...], BeforeValidator(_read_globs)]
HeaderGlobs = Annotated[tuple[str, ...], BeforeValidator(_read_header_globs)]
ModelGlobs = Annotated[tuple[str, ...], BeforeValidator(_read_model_globs)]
PathGlobs = Annotated[tuple[str, ...], BeforeValidator(_read_path_globs)]
KeyHashes = Annotated[tuple[str, ...], BeforeValidator(_read_key_hashes)]
ClientNetworks = Annotated[tuple[Network, ...], BeforeValidator(_read_own_networks)]
ConditionName = Annotated[str, BeforeValidator(_read_condition_name)]
