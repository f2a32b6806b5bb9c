"""Who asks, and of which class: judged from a request's headers, its address, its path and its model.

Owns the identity of clients, whom of what proxies say is believed, and the rules for classes. Must not turn anybody
away: nothing here is a proof of identity, and what a header says that cannot be read counts as not sent. It is told
once in the log who names a user and is not believed.

The answers are remembered, in bounded tables; while nothing is configured, a request costs three looks into its
headers and one into such a table.
"""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

import structlog
from multidict import CIMultiDictProxy, istr

from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.settings.tables import RuleTable
from ollama_swap_proxy.settings.values import Network

Headers = CIMultiDictProxy[str]
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address

_Key = TypeVar("_Key")
_Answer = TypeVar("_Answer")

_AUTHORIZATION: Final = istr("Authorization")
_API_KEY: Final = istr("X-Api-Key")
_USER_AGENT: Final = istr("User-Agent")

_REMEMBERED: Final = 1024
"""Answers kept of each kind; when there are more, all are forgotten."""

_LONGEST_REMEMBERED: Final = 4096
"""Characters of the headers that an answer is kept for: tokens that carry claims have some 1000."""

_DIGEST_SHOWN: Final = 12
"""Hex digits of a key's hash in a client's name: enough to tell keys apart, too few to stand for one."""

_HOPS: Final = 32
"""Forwarded addresses that are looked at, from the right."""

_TOLD_OF: Final = 16
"""So many addresses that send a user without being trusted are told of: more are no proxies that were forgotten."""

_SECONDS: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_PLAIN_USER: Final = re.compile(r"[A-Za-z0-9._@+=%-]{1,64}")
_FOR: Final = re.compile(r'(?:^|;)[ \t]*for=(?:"([^"]*)"|([^;" \t]*))', re.IGNORECASE)
"""The client's part of one element of a Forwarded header (RFC 7239)."""


class _Head(Protocol):
    """A request's head: its ``fields`` by lower-case name, of several the last; ``headers`` has all, and costs more."""

    @property
    def fields(self) -> Mapping[bytes, bytes]: ...

    @property
    def headers(self) -> Headers: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from.

    ``client`` tells clients apart, in the line and in the log; it has printable ASCII only. One of ``user:NAME``,
    ``key:HASH`` (a key that a rule names), ``key:HASH@ADDRESS`` or ``ADDRESS``. ``patience_s`` is None where nothing
    shorter than give_up_after_s was asked for.
    """

    client: str
    klass: TicketClass
    patience_s: float | None = None


class _Said(NamedTuple):
    """What headers say of who asks; the last two only where a trusted proxy sent them."""

    authorization: str
    api_key: str
    user: str = ""
    forwarded: str = ""


class _Source(NamedTuple):
    """What is known of a client before its class. ``key`` is the SHA-256 of its key in hex, or nothing."""

    client: str
    address: str
    key: str
    by_trusted: bool


class _Asked(NamedTuple):
    """What the rules look at."""

    path: str
    model: str
    source: _Source
    headers: Headers


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule, ready to be asked. None: the condition is not given."""

    klass: TicketClass
    model: re.Pattern[str] | None
    path: re.Pattern[str] | None
    keys: frozenset[str] | None
    client: tuple[Network, ...] | None
    headers: tuple[tuple[istr, re.Pattern[str]], ...]
    trusted_only: istr
    """The header that counts only from a trusted proxy."""

    @classmethod
    def of(cls, table: RuleTable, klass: TicketClass, trusted_only: istr) -> _Rule:
        headers = [(istr(name), _pattern(globs)) for name, globs in (table.header or {}).items()]
        if table.user_agent is not None:
            headers.append((_USER_AGENT, _pattern(table.user_agent)))
        return cls(
            klass=klass,
            model=None if table.model is None else _pattern(table.model),
            path=None if table.path is None else _pattern(table.path),
            keys=None if table.key_sha256 is None else frozenset(table.key_sha256),
            client=table.client,
            headers=tuple(headers),
            trusted_only=trusted_only,
        )

    def holds(self, asked: _Asked) -> bool:
        source = asked.source
        return (
            (self.model is None or self.model.fullmatch(asked.model) is not None)
            and (self.path is None or self.path.fullmatch(asked.path) is not None)
            and (self.keys is None or source.key in self.keys)
            and (self.client is None or _lies_in(_ip(source.address), self.client))
            and all(self._has(asked, name, pattern) for name, pattern in self.headers)
        )

    def _has(self, asked: _Asked, name: istr, pattern: re.Pattern[str]) -> bool:
        if name.lower() == self.trusted_only.lower() and not asked.source.by_trusted:
            return False
        return any(pattern.fullmatch(value) for value in asked.headers.getall(name, ()))


class Callers:
    """Says of each request whom it comes from. Build one for the settings; it never waits."""

    def __init__(self, settings: Settings) -> None:
        classes = settings.ticket_classes()
        self._classes = classes
        self._default = classes[settings.default_class]
        self._of_models = {name: classes[table.klass] for name, table in settings.models.items() if table.klass}
        self._user_header = istr(settings.user_header)
        self._rules = [_Rule.of(table, classes[table.klass], self._user_header) for table in settings.rules]
        self._named_keys = frozenset[str]().union(*(rule.keys or () for rule in self._rules))
        self._seen_by_rules = tuple({name for rule in self._rules for name, _ in rule.headers})
        self._trusted = settings.trusted_proxies
        self._forwarded_header = istr(settings.forwarded_header)
        self._class_header = istr(settings.class_header)
        self._patience_header = settings.patience_header.lower().encode()
        self._longest_patience_s = settings.give_up_after_s
        self._is_plain = not (
            self._rules or self._of_models or self._trusted or self._class_header or self._user_header
        )
        self._plain: dict[tuple[str, bytes | None, bytes | None], Caller] = {}
        self._peers: dict[str, tuple[_IP | None, bool]] = {}
        self._sources: dict[tuple[str, ...], _Source] = {}
        self._judged: dict[tuple[object, ...], TicketClass] = {}
        self._told_of: set[str] = set()
        self._log = structlog.get_logger("callers")

    def identify(self, head: _Head, peer: str, path: str, model: str) -> Caller:
        """Return whom a request comes from.

        ``peer`` is the address of the connection ("" for a socket without one), ``path`` the gated route's own
        spelling, ``model`` the canonical name.
        """
        if not self._is_plain:
            source = self._source(head.headers, peer)
            caller = Caller(source.client, self._class(head.headers, source, path, model))
        else:
            about = peer, head.fields.get(b"authorization"), head.fields.get(b"x-api-key")
            known = self._plain.get(about)
            caller = self._find_plain(about) if known is None else known
        if self._patience_header in head.fields:
            return Caller(caller.client, caller.klass, self._patience(head.fields[self._patience_header]))
        return caller

    def _find_plain(self, about: tuple[str, bytes | None, bytes | None]) -> Caller:
        """Find out whom a request comes from while no proxy is believed and all are of one class."""
        peer, *given = about
        authorization, api_key = [(value or b"").decode("utf-8", "surrogateescape") for value in given]
        source = self._find_source(_Said(authorization, api_key), peer, _ip(peer), trusted=False)
        caller = Caller(source.client, self._default)
        if len(authorization) + len(api_key) <= _LONGEST_REMEMBERED:
            _remember(self._plain, about, caller)
        return caller

    def _source(self, headers: Headers, peer: str) -> _Source:
        known = self._peers.get(peer)
        if known is None:
            ip = _ip(peer)
            known = ip, _lies_in(ip, self._trusted)
            _remember(self._peers, peer, known)
        ip, trusted = known
        user = forwarded = ""
        if trusted:
            user = headers.get(self._user_header, "")
            forwarded = ",".join(headers.getall(self._forwarded_header, ())[-_HOPS:])
        elif self._user_header and self._user_header in headers:
            self._tell_of(peer)
        about = peer, headers.get(_AUTHORIZATION, ""), headers.get(_API_KEY, ""), user, forwarded
        source = self._sources.get(about)
        if source is None:
            source = self._find_source(_Said(*about[1:]), peer, ip, trusted=trusted)
            if sum(map(len, about)) <= _LONGEST_REMEMBERED:
                _remember(self._sources, about, source)
        return source

    def _tell_of(self, peer: str) -> None:
        """Say once that an address sends what it is not believed: it may be an application that was forgotten."""
        if peer in self._told_of or len(self._told_of) >= _TOLD_OF:
            return
        self._told_of.add(peer)
        self._log.warning(
            "user_not_believed",
            address=peer,
            header=str(self._user_header),
            reason="it is none of trusted_proxies, so that the user whom it names does not count, nor do rules on that "
            "header; add the address there if it is your application's",
        )

    def _find_source(self, said: _Said, peer: str, ip: _IP | None, *, trusted: bool) -> _Source:
        if said.forwarded:
            ip = self._forwarded_ip(said.forwarded) or ip
        address = peer if ip is None else str(ip)
        secret = _secret_in(said.authorization) or said.api_key
        key = _sha256(secret) if secret else ""
        if said.user:
            client = f"user:{_user_name(said.user)}"
        elif key in self._named_keys:
            client = f"key:{key[:_DIGEST_SHOWN]}"
        elif key:
            client = f"key:{key[:_DIGEST_SHOWN]}@{address}"
        else:
            client = address
        return _Source(client, address, key, trusted)

    def _forwarded_ip(self, forwarded: str) -> _IP | None:
        """Return the rightmost address that is no trusted proxy's, else the leftmost one; None: none can be read."""
        is_rfc7239 = self._forwarded_header.lower() == "forwarded"
        farthest = None
        for element in reversed(forwarded[-_LONGEST_REMEMBERED:].rsplit(",", _HOPS)[-_HOPS:]):
            text = element
            if is_rfc7239:
                found = _FOR.search(element)
                text = (found[1] or found[2]) if found else ""
            ip = _ip(_without_port(text.strip()))
            if ip is None:
                return farthest
            farthest = ip
            if not _lies_in(ip, self._trusted):
                return ip
        return farthest

    def _class(self, headers: Headers, source: _Source, path: str, model: str) -> TicketClass:
        if self._rules:
            klass = self._by_rules(_Asked(path, model, source, headers))
        else:
            klass = self._of_models.get(model, self._default)
        if self._class_header and self._class_header in headers:
            wanted = self._classes.get(headers[self._class_header].strip().lower())
            steps_back = wanted is not None and wanted.rank <= klass.rank and wanted.max_wait_s >= klass.max_wait_s
            if wanted is not None and (source.by_trusted or steps_back):
                return wanted
        return klass

    def _by_rules(self, asked: _Asked) -> TicketClass:
        values = [tuple(asked.headers.getall(name, ())) for name in self._seen_by_rules]
        about = (asked.path, asked.model, asked.source, *values)
        klass = self._judged.get(about)
        if klass is None:
            otherwise = self._of_models.get(asked.model, self._default)
            klass = next((rule.klass for rule in self._rules if rule.holds(asked)), otherwise)
            size = len(asked.model) + len(asked.path) + sum(len(text) for value in values for text in value)
            if size <= _LONGEST_REMEMBERED:
                _remember(self._judged, about, klass)
        return klass

    def _patience(self, value: bytes) -> float | None:
        value = value.strip()
        if not _SECONDS.fullmatch(value):
            return None
        patience_s = float(value)
        return patience_s if patience_s < self._longest_patience_s else None


def _remember(answers: dict[_Key, _Answer], about: _Key, answer: _Answer) -> None:
    if len(answers) >= _REMEMBERED:
        answers.clear()
    answers[about] = answer


def _secret_in(authorization: str) -> str:
    """Return the bearer token, or the whole value of another scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else authorization


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _user_name(user: str) -> str:
    """Return a name as it came where it can stand in a log or a metric, else its hash."""
    return user if _PLAIN_USER.fullmatch(user) else f"sha256-{_sha256(user)[:_DIGEST_SHOWN]}"


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _ip(text: str) -> _IP | None:
    """Read an address; the zone behind % is cut off (it may be any text), and IPv4 in IPv6 is IPv4."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _lies_in(ip: _IP | None, networks: Iterable[Network]) -> bool:
    return ip is not None and any(ip in network for network in networks)


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs), re.IGNORECASE)
