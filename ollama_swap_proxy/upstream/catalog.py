"""What exists in Ollama's library, and which names are one runner.

Owns names, digests, keys and capabilities: learned from /api/tags and /api/show, keys kept by manifest digest, because
a name may be deleted or mean something else while its runner lives on. Must not know what is resident or decide.

A digest fixes everything that /api/show tells, so one /api/tags proves all entries of the catalog at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ollama_swap_proxy.core import names
from ollama_swap_proxy.core.tickets import NO_TRAITS, Resident, Traits
from ollama_swap_proxy.upstream.answers import PsEntry, ShowAnswer, TagEntry
from ollama_swap_proxy.upstream.control import Control, ControlError
from ollama_swap_proxy.upstream.flight import Flight

RESOLVE_TIMEOUT_S = 2.0
"""How long a report may wait for keys it does not know; it normally knows them all and asks nothing."""
_ROUNDS = 3
"""How often a model that changes while it is read is read again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that exists. ``name`` is canonical, ``spelled`` as on disk.

    ``key`` is the weights blob, for MLX models ``digest:`` and the manifest digest (server/sched.go:110).
    ``parameters`` are the model's own runner options, ``adapters`` its adapter and projector blobs. ``remote`` marks
    what loads nothing here; of such an entry nothing else is known.
    """

    name: str
    spelled: str
    digest: str
    key: str
    capabilities: frozenset[str] = frozenset()
    parameters: Mapping[str, object] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    remote: bool = False


Describe = Callable[[Collection[str], Collection[str]], Traits]
"""Tells the traits of a model by all its names and its capabilities."""


def _nothing_known(_names: Collection[str], _capabilities: Collection[str]) -> Traits:
    return NO_TRAITS


class Catalog:
    """What exists. Names given to it are canonical. ``clock`` is in seconds and need not be the time of day."""

    def __init__(
        self, control: Control, clock: Callable[[], float] = time.monotonic, describe: Describe = _nothing_known
    ) -> None:
        self._control = control
        self._clock = clock
        self._describe = describe
        self._capabilities: dict[str, frozenset[str]] = {}
        self._tags: dict[str, TagEntry] = {}
        self._tags_at = -math.inf
        self._changes = 0
        self._entries: dict[str, Entry] = {}
        self._keys: dict[str, str] = {}
        self._orphans: set[str] = set()  # digests of residents that no name had at the last look
        self._refreshing = Flight("catalog refresh", self._refresh)
        self._learning: dict[str, Flight[Entry | None]] = {}

    @property
    def listed(self) -> Mapping[str, TagEntry]:
        """What /api/tags told last, by canonical name."""
        return self._tags

    def cached(self, name: str) -> Entry | None:
        """Return what is known of this name, without asking; None says nothing about whether it exists."""
        return self._entries.get(name)

    async def find(self, name: str, max_age_s: float) -> Entry | None:
        """Return the entry of this name, proven within the last ``max_age_s`` seconds; None: surely no such model.

        Raises:
            ControlError: it cannot be told.
        """
        if isinstance(names.parse(name), names.CloudName):
            return Entry(name, name, digest="", key=f"cloud:{name}", remote=True)
        entry = self._entries.get(name)
        if entry is not None and self._clock() - self._tags_at > max_age_s:
            await self.refresh()
            entry = self._entries.get(name)
        return entry if entry is not None else await self._learned(name)

    async def refresh(self) -> None:
        """Ask /api/tags now; drop every entry whose digest changed or whose name is gone.

        Raises:
            ControlError: nothing was learned, nothing dropped.
        """
        await self._refreshing.join(fresh=True)

    def library_changed(self, name: str | None = None) -> None:
        """Forget what is known of this name, or of all: a pull, create, copy or delete of it passed by us.

        The keys of digests stay: they tell which runner a resident is whose name is gone.
        """
        self._changes += 1
        self._tags_at = -math.inf
        forgotten = [*self._tags, *self._learning] if name is None else [name]
        for each in forgotten:
            self._tags.pop(each, None)
            self._entries.pop(each, None)
            self._learning.pop(each, None)

    def names_of(self, key: str) -> tuple[str, ...]:
        """Return the names, as spelled on disk, that are known to mean the runner of this key now."""
        return tuple(tag.name for tag in self._tags.values() if not tag.remote and self._key_of(tag.digest) == key)

    async def names_reaching(self, key: str, listed_name: str) -> list[str]:
        """Return every name by which the runner of ``key`` can be asked to unload, the listed one first.

        Asks /api/tags, and /api/show of every model not yet known where no known name is left. Where nothing can be
        learned the listed name is all there is. Raises nothing.
        """
        key = self._keys.get(key.removeprefix("digest:"), key)
        try:
            await self.refresh()
            if not self.names_of(key):
                await self._learn_keys(self._unlearned())
        except ControlError:
            return list(self.names_of(key)) or [listed_name]
        reaching = sorted(self.names_of(key), key=lambda name: name != listed_name)
        if not any(tag.name == listed_name for tag in self._tags.values()):
            reaching.append(listed_name)  # not in the list: gone (then Ollama says 404), or the list is wrong
        return reaching

    async def resolve(self, listed: Iterable[PsEntry], timeout_s: float = RESOLVE_TIMEOUT_S) -> tuple[Resident, ...]:
        """Find the key of everything that /api/ps lists. Raises nothing.

        What cannot be learned within ``timeout_s`` gets the key ``digest:...`` for now. A runner whose name is gone
        keeps the key that its digest had.
        """
        listed = tuple(listed)
        with contextlib.suppress(TimeoutError, ControlError):
            async with asyncio.timeout(timeout_s):
                await self._learn_listed(listed)
        return tuple(self._resident(entry) for entry in listed)

    def cancel(self) -> None:
        """End the calls under way; their waiters are cancelled."""
        self._refreshing.cancel()
        for flight in self._learning.values():
            flight.cancel()

    def _resident(self, entry: PsEntry) -> Resident:
        return Resident(
            key=self._key_of(entry.digest),
            name=entry.name,
            digest=entry.digest,
            size_bytes=entry.size_bytes,
            size_vram_bytes=entry.size_vram_bytes,
            expires_in_s=entry.expires_in_s,
            traits=self._traits(self._key_of(entry.digest), entry.name, self._capabilities.get(entry.digest, ())),
        )

    def traits(self, entry: Entry) -> Traits:
        """Return the traits of a model that exists, by all names that it is known to have."""
        return self._traits(entry.key, entry.spelled, entry.capabilities)

    def _traits(self, key: str, name: str, capabilities: Collection[str]) -> Traits:
        return self._describe({name, *self.names_of(key)}, capabilities)

    def _key_of(self, digest: str) -> str:
        return self._keys.get(digest, f"digest:{digest}")

    async def _learn_listed(self, listed: tuple[PsEntry, ...]) -> None:
        unknown = {entry.digest for entry in listed} - self._keys.keys()
        if unknown - self._orphans or self._tags_at == -math.inf:
            await self.refresh()
        by_digest = {tag.digest: name for name, tag in self._tags.items()}
        self._orphans |= unknown - by_digest.keys()
        await self._learn_keys([by_digest[digest] for digest in unknown if digest in by_digest])

    def _unlearned(self) -> list[str]:
        """One name of every digest whose key is not known."""
        unlearned = {tag.digest: name for name, tag in self._tags.items() if not tag.remote}
        return [name for digest, name in unlearned.items() if digest not in self._keys]

    async def _learn_keys(self, wanted: list[str]) -> None:
        """Learn what can be learned of these names, one by one: a report is not worth a burst of calls."""
        for name in wanted:
            with contextlib.suppress(ControlError):
                await self._learned(name)

    async def _learned(self, name: str) -> Entry | None:
        flight = self._learning.get(name)
        if flight is None:
            flight = self._learning[name] = Flight(f"catalog learns {name}", lambda: self._learn(name))
        try:
            return await flight.join()
        finally:
            if self._learning.get(name) is flight:
                del self._learning[name]

    async def _learn(self, name: str) -> Entry | None:
        """Read a model between two looks at its digest, so that digest and answer surely belong together."""
        changes = self._changes
        if name not in self._tags:
            await self.refresh()
        for _ in range(_ROUNDS):
            before = self._tags.get(name)
            if before is not None and before.remote:
                return _stub(name, before)
            answer = await self._control.show(before.name if before is not None else name)
            if answer is None:
                self._tags.pop(name, None)
                self._entries.pop(name, None)
                return None
            await self.refresh()
            if _digest(before) == _digest(self._tags.get(name)):
                return self._note(name, before, answer, lasting=changes == self._changes)
        raise ControlError("malformed", f"{name} changed each time it was read")

    def _note(self, name: str, tag: TagEntry | None, answer: ShowAnswer, *, lasting: bool) -> Entry:
        digest = _digest(tag)
        key = answer.weights or f"digest:{digest or name}"
        if digest:
            self._keys[digest] = key
            self._capabilities[digest] = answer.capabilities
            self._orphans.discard(digest)
        entry = Entry(
            name=name,
            spelled=tag.name if tag is not None else name,
            digest=digest,
            key=key,
            capabilities=answer.capabilities,
            parameters=answer.parameters,
            adapters=answer.adapters,
            remote=answer.remote,
        )
        if lasting and digest:
            self._entries[name] = entry
        return entry

    async def _refresh(self) -> None:
        asked_at, changes = self._clock(), self._changes
        listed = await self._control.tags()
        if changes == self._changes:
            self._tags_at = asked_at
        self._tags = {names.canonical(tag.name): tag for tag in listed if _can_be_local(tag.name)}
        proven = (entry for entry in self._entries.values() if entry.digest == _digest(self._tags.get(entry.name)))
        self._entries = {entry.name: entry for entry in proven}
        self._entries |= {name: _stub(name, tag) for name, tag in self._tags.items() if tag.remote}


def _can_be_local(listed_name: str) -> bool:
    """Say whether a request with this name means the local model: one listed as ``x:cloud`` or ``x:local`` does not."""
    parsed = names.parse(listed_name)
    return isinstance(parsed, names.ModelName) and not parsed.explicitly_local


def _digest(tag: TagEntry | None) -> str:
    return tag.digest if tag is not None else ""


def _stub(name: str, tag: TagEntry) -> Entry:
    """Make the entry of what runs elsewhere; /api/show of it may be a 403 (cloud switched off) or ask ollama.com."""
    return Entry(name, tag.name, tag.digest, key=f"cloud:{name}", remote=True)
