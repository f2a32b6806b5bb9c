"""What is known of sets of models on this card: which fit together in which load order, and which do not.

Owns the proofs, what became of trials, and their form in the state file. Must not decide who may be together
(`together` does) or try anything. A proof comes only of a load of ours. It holds for that load order (which member came
last), because Ollama lets a newcomer in only where it predicts that 80 % of what is free suffices (server/sched.go).

A set is spelled as its variants. Weights and runner options other than num_ctx must be the same; a larger num_ctx needs
more memory, so a proof covers smaller ones and a failure larger ones. In the same way a proof covers the smaller sets
within it, and a failure the larger sets around it, with the same newcomer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

from ollama_swap_proxy.core.keeping import keep
from ollama_swap_proxy.core.tickets import Resident, Variant

UNKNOWN_OPTIONS = "unknown"
"""The options of a resident whose variant we do not know. What fitted beside it is
proven for as long as that runner stays (`Proofs.forget_unknown`), and in no state file."""

TRIALS_ALLOWED = 3
"""So often is a set of weights tried, whatever the options: a client may ask for any number of num_ctx."""

PROOFS_KEPT = 256
"""So many proofs, failures and counts of trials are kept each; those longest without news are forgotten."""

_FORMAT = 1
_NUM_CTX = "num_ctx="

T = TypeVar("T")


class Standing(Enum):
    """What is known of a set, its load order given."""

    PROVEN = "proven"
    FAILED = "failed"
    """Tried in this order, and did not fit; another order may do."""
    REFUSED = "refused"
    """It, or a set within it, was tried in two orders and fitted in none."""
    SPENT = "spent"
    """It, or a set within it, was tried as often as is allowed, and this order is not proven."""
    UNTRIED = "untried"


class Known(NamedTuple):
    """What is known, and because of which members' keys."""

    standing: Standing
    because: tuple[str, ...] = ()


class Outcome(Enum):
    """How a load of ours beside other models ended."""

    FITTED = "fitted"
    FAILED = "failed"
    UNDECIDED = "undecided"
    """It did not fit, but that may not be the set's fault."""


class Lesson(Enum):
    """What was learned from an outcome."""

    PROVEN = "proven"
    FAILED = "failed"
    REFUSED = "refused"
    REVOKED = "revoked"
    UNDECIDED = "undecided"
    """A trial that decided nothing; it counts as a trial."""
    NOTHING = "nothing"


def judge(members: Iterable[Variant], residents: Mapping[str, Resident] | None, *, disturbed: bool) -> Outcome:
    """Say how a load ended by the report after it.

    Args:
        members: The whole set, its newcomer included.
        residents: What the report lists, by key; None: no reliable report.
        disturbed: Another program held memory meanwhile: a failure is perhaps not the set's own.
    """
    if residents is None:
        return Outcome.UNDECIDED
    listed = [residents.get(member.key) for member in members]
    if all(resident is not None and resident.size_vram_bytes == resident.size_bytes > 0 for resident in listed):
        return Outcome.FITTED
    return Outcome.UNDECIDED if disturbed else Outcome.FAILED


class SetInOrder(NamedTuple):
    """A set of at least two models, sorted, and the key of the one that came last."""

    members: tuple[Variant, ...]
    newcomer: str

    @property
    def keys(self) -> frozenset[str]:
        """The weights in it."""
        return frozenset(member.key for member in self.members)

    def needs_at_most(self, other: SetInOrder) -> bool:
        """Say whether this needs no more than the other, in the same order: each member is there, as large or larger.

        What is true of the other as a proof is then true of this; what failed in this fails in the other.
        """
        theirs = dict(other.members)
        return self.newcomer == other.newcomer and all(
            key in theirs and _needs_at_most(options, theirs[key]) for key, options in self.members
        )

    def newcomer_is(self, key: str) -> SetInOrder:
        """Return the same set with another newcomer."""
        return SetInOrder(self.members, key)

    def within(self, keys: Collection[str]) -> SetInOrder:
        """Return the part of the set that has these keys."""
        return SetInOrder(tuple(member for member in self.members if member.key in keys), self.newcomer)


@dataclass(slots=True)
class Proofs:
    """What trials showed, on one device and with one version of Ollama. Oldest news first in each of the three."""

    device: str | None = None
    version: str | None = None
    proven: dict[SetInOrder, frozenset[str]] = field(default_factory=dict)
    failed: dict[SetInOrder, frozenset[str]] = field(default_factory=dict)
    """Each with its keys: comparing those first makes a question cost microseconds."""
    trials: dict[frozenset[str], int] = field(default_factory=dict)
    """How often a set of weights was tried, by its keys."""

    def standing(self, members: Iterable[Variant], newcomer: str) -> Known:
        """Say what is known of these members (of different keys) where the one of key ``newcomer`` came last."""
        asked = _set_in_order(members, newcomer)
        keys = asked.keys
        refused = self._refused_within(asked)
        if refused:
            return Known(Standing.REFUSED, refused)
        if self._is_proven(asked):
            return Known(Standing.PROVEN)
        for failure, failed_keys in self.failed.items():
            if failed_keys <= keys and failure.needs_at_most(asked):
                return Known(Standing.FAILED, tuple(sorted(failed_keys)))
        for tried, times in self.trials.items():
            is_spent = times >= TRIALS_ALLOWED and newcomer in tried and tried <= keys
            if is_spent and not self._is_proven(asked.within(tried)):
                return Known(Standing.SPENT, tuple(sorted(tried)))
        return Known(Standing.UNTRIED)

    def note(self, members: Iterable[Variant], newcomer: str, outcome: Outcome, *, trial: bool) -> Lesson:
        """Learn from a load of ours that ended, the one of key ``newcomer`` last.

        ``trial`` says that it was begun as one. A failure of any other load revokes the proof it went by, and decides
        nothing else. Newer news replaces what it contradicts.
        """
        loaded = _set_in_order(members, newcomer)
        if len(loaded.keys) < 2:
            return Lesson.NOTHING
        if _has_unknown(loaded) and outcome is not Outcome.FITTED:
            if trial:
                self._count(loaded.keys)
            return Lesson.NOTHING
        if trial:
            self._count(loaded.keys)
        if outcome is Outcome.UNDECIDED:
            return Lesson.UNDECIDED if trial else Lesson.NOTHING
        if outcome is Outcome.FITTED:
            for failure in [failure for failure in self.failed if failure.needs_at_most(loaded)]:
                del self.failed[failure]
            keep(self.proven, loaded, loaded.keys, PROOFS_KEPT)
            return Lesson.PROVEN
        revoked = [proof for proof in self.proven if loaded.needs_at_most(proof)]
        for proof in revoked:
            del self.proven[proof]
        if not trial:
            return Lesson.REVOKED if revoked else Lesson.NOTHING
        keep(self.failed, loaded, loaded.keys, PROOFS_KEPT)
        return Lesson.REFUSED if self._refused_within(loaded) else Lesson.FAILED

    def forget_unknown(self, key: str) -> None:
        """Forget what was proven beside a resident of unknown options that is gone: the next one may have others."""
        gone = Variant(key, UNKNOWN_OPTIONS)
        self.proven = {proof: keys for proof, keys in self.proven.items() if gone not in proof.members}

    def clear(self) -> None:
        """Forget all: the operator wants everything tried again, or the card or Ollama is another one."""
        self.proven.clear()
        self.failed.clear()
        self.trials.clear()

    def found(self, device: str | None, version: str | None) -> str | None:
        """Take note of the device and Ollama version we have, and forget everything if one of them is new.

        None means unknown, which changes nothing. Returns why all was forgotten, or None if nothing was.
        """
        why = None
        if None not in {device, self.device} and device != self.device:
            why = f"the device is {device}, no longer {self.device}"
        elif None not in {version, self.version} and version != self.version:
            why = f"Ollama is {version}, no longer {self.version}"
        self.device = device if device is not None else self.device
        self.version = version if version is not None else self.version
        if why is None or not (self.proven or self.failed or self.trials):
            return None
        self.clear()
        return why

    def to_json(self) -> dict[str, object]:
        """Return it all as plain JSON values; `from_json` reads them."""
        return {
            "format": _FORMAT,
            "device": self.device,
            "version": self.version,
            "proven": [_set_to_json(proof) for proof in self.proven if not _has_unknown(proof)],
            "failed": [_set_to_json(failure) for failure in self.failed],
            "trials": [{"keys": sorted(keys), "times": times} for keys, times in self.trials.items()],
        }

    def _is_proven(self, asked: SetInOrder) -> bool:
        if asked in self.proven:
            return True
        keys = asked.keys
        return any(keys <= proven_keys and asked.needs_at_most(proof) for proof, proven_keys in self.proven.items())

    def _refused_within(self, asked: SetInOrder) -> tuple[str, ...]:
        """Return the keys of a set within this one that failed in two orders and is proven in none; else nothing."""
        keys = asked.keys
        failed_in: dict[frozenset[str], str] = {}
        for failure, failed_keys in self.failed.items():
            if not (failed_keys <= keys and failure.needs_at_most(asked.newcomer_is(failure.newcomer))):
                continue
            if failed_in.setdefault(failed_keys, failure.newcomer) != failure.newcomer:
                within = asked.within(failed_keys)
                if not any(self._is_proven(within.newcomer_is(key)) for key in failed_keys):
                    return tuple(sorted(failed_keys))
        return ()

    def _count(self, keys: frozenset[str]) -> None:
        keep(self.trials, keys, self.trials.get(keys, 0) + 1, PROOFS_KEPT)


def from_json(value: object) -> tuple[Proofs, str | None]:
    """Read what `Proofs.to_json` wrote. What cannot be understood is ignored as a whole: then also say why."""
    try:
        saved = _a(dict, value, "proofs")
        if saved.get("format") != _FORMAT:
            return Proofs(), f"proofs of a format that is not known: {str(saved.get('format'))[:40]}"
        proofs = Proofs(_text_or_none(saved.get("device")), _text_or_none(saved.get("version")))
        for each in _a(list, saved.get("proven"), "proven"):
            proof = _set_from_json(each)
            keep(proofs.proven, proof, proof.keys, PROOFS_KEPT)
        for each in _a(list, saved.get("failed"), "failed"):
            failure = _set_from_json(each)
            keep(proofs.failed, failure, failure.keys, PROOFS_KEPT)
        for each in _a(list, saved.get("trials"), "trials"):
            counted = _a(dict, each, "a count of trials")
            keys = frozenset(_a(str, key, "a key") for key in _a(list, counted.get("keys"), "keys"))
            keep(proofs.trials, keys, _a(int, counted.get("times"), "times"), PROOFS_KEPT)
    except ValueError as error:
        return Proofs(), str(error)
    return proofs, None


def _has_unknown(known: SetInOrder) -> bool:
    return any(member.options == UNKNOWN_OPTIONS for member in known.members)


def _set_in_order(members: Iterable[Variant], newcomer: str) -> SetInOrder:
    return SetInOrder(tuple(sorted(members)), newcomer)


def _set_to_json(known: SetInOrder) -> dict[str, object]:
    return {"newcomer": known.newcomer, "members": dict(known.members)}


def _set_from_json(value: object) -> SetInOrder:
    saved = _a(dict, value, "a set")
    members = _a(dict, saved.get("members"), "the members of a set")
    variants = [Variant(_a(str, key, "a key"), _a(str, options, "options")) for key, options in members.items()]
    newcomer = _a(str, saved.get("newcomer"), "a newcomer")
    if newcomer not in members or len(members) < 2:
        raise ValueError("proofs are damaged: a set without its newcomer, or of fewer than two models")
    return _set_in_order(variants, newcomer)


def _text_or_none(value: object) -> str | None:
    return None if value is None else _a(str, value, "device or version")


def _a(kind: type[T], value: object, what: str) -> T:
    """Return the value if it is of this kind (True and False are no numbers here), else raise ValueError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"proofs are damaged: {what}: {type(value).__name__}, not {kind.__name__}")
    return value


def _needs_at_most(options: str, others: str) -> bool:
    """Say whether these runner options, in their canonical spelling, need no more memory than the others."""
    if options == others:
        return True
    (rest, num_ctx), (their_rest, their_num_ctx) = _split(options), _split(others)
    return rest == their_rest and num_ctx is not None and their_num_ctx is not None and num_ctx <= their_num_ctx


def _split(options: str) -> tuple[tuple[str, ...], int | None]:
    """Return the options without num_ctx, and num_ctx; None where it is absent (a value of its own) or no number."""
    parts = options.split(",")
    for part in parts:
        digits = part.removeprefix(_NUM_CTX)
        if digits != part and digits.isascii() and digits.isdigit() and len(digits) < 20:
            return tuple(other for other in parts if other != part), int(digits)
    return tuple(parts), None
