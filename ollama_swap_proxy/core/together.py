"""The one question of residency: may these models be resident together? Yes, no, or only by trying.

Owns the rules and the reason for each answer. Must not choose victims (`victims` does), learn (`proofs` does) or act.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Literal, NamedTuple

from ollama_swap_proxy.core.proofs import UNKNOWN_OPTIONS, Known, Proofs, Standing
from ollama_swap_proxy.core.tickets import Variant


class Verdict(Enum):
    """The three answers. No other module knows a fourth."""

    YES = "yes"
    NO = "no"
    TRY = "try"


class Reason(Enum):
    """The rule that decided, in the order in which the rules are asked."""

    ALONE = "alone"
    TWO_VARIANTS = "two_variants"
    GROUP = "group"
    EXCLUSIVE = "exclusive"
    OPTIONS_UNKNOWN = "options_unknown"
    REFUSED = "refused"
    PROVEN = "proven"
    ORDER_FAILED = "order_failed"
    TRIALS_SPENT = "trials_spent"
    OVER_BUDGET = "over_budget"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class Member:
    """A model in question, resident or wanted.

    ``variant.options`` is `UNKNOWN_OPTIONS` for a resident whose variant we do not know. ``name`` is for texts.
    ``size_bytes`` is the GPU memory that it needs: its size_vram at the last load of that variant, None before the
    first. ``embedder`` is by capability. ``priority``: the lowest leaves first. ``reload_cost_s`` is what a load of it
    takes. ``idle_since`` is when its last lease ended, None while it has leases; it means nothing for a swap's target.
    ``loaded_beside`` are the keys of those without which a newcomer is loaded only after this one was loaded anew
    (`Residency.outlives`).
    """

    variant: Variant
    name: str = ""
    size_bytes: int | None = None
    embedder: bool = False
    pinned: bool = False
    priority: int = 0
    groups: frozenset[str] = frozenset()
    reload_cost_s: float = 0.0
    idle_since: float | None = None
    loaded_beside: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """The weights."""
        return self.variant.key

    def __str__(self) -> str:
        size = "size unknown" if self.size_bytes is None else mib(self.size_bytes)
        return f"{self.name or self.variant} ({size})"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the answer depends on besides the members. Settings: docs/config.md.

    ``vram_budget_bytes`` is the one that is set; None: not known.
    """

    proofs: Proofs = field(default_factory=Proofs)
    residency: Literal["exclusive", "fit"] = "exclusive"
    companions: Literal["embedders", "none"] = "embedders"
    vram_budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """May these be together, and why.

    ``because`` are the members that decided (two of one key, the generating ones, those refused or over budget).
    ``standing`` is what is known of the set; UNTRIED also where that was not asked.
    """

    verdict: Verdict
    reason: Reason
    members: tuple[Member, ...]
    newcomer: str
    because: tuple[Member, ...] = ()
    standing: Standing = Standing.UNTRIED
    vram_budget_bytes: int | None = None

    @property
    def allowed(self) -> bool:
        """Say whether the set may be loaded, be it by trying."""
        return self.verdict is not Verdict.NO

    @property
    def trial(self) -> bool:
        """Say whether loading the newcomer is a trial, with everybody in the set closed and drained before it.

        It is where the verdict is TRY, and at a declared group's first load in an order: its failure is only reported.
        """
        return self.verdict is Verdict.TRY or (self.reason is Reason.GROUP and self.standing is Standing.UNTRIED)

    @property
    def needed_bytes(self) -> int:
        """The sizes together, as far as they are known."""
        return sum(member.size_bytes or 0 for member in self.members)

    @property
    def text(self) -> str:
        """The reason as half a sentence for people, with names and sizes."""
        return _TEXTS[self.reason].format(
            all=listing(self.members),
            these=listing(self.because),
            newcomer=listing([member for member in self.members if member.key == self.newcomer]),
            needed=mib(self.needed_bytes),
            budget=mib(self.vram_budget_bytes or 0),
            group=", ".join(sorted(_common_groups(self.members))),
            failed=", though they did not fit when tried" if self.standing in _DID_NOT_FIT else "",
        )


_DID_NOT_FIT = frozenset({Standing.FAILED, Standing.REFUSED})

_TEXTS = {
    Reason.ALONE: "{all} is alone",
    Reason.TWO_VARIANTS: "{these} are the same model with other runner options",
    Reason.GROUP: "{all} are in the group {group}{failed}",
    Reason.EXCLUSIVE: "only one of {these} may be resident at a time (residency is exclusive)",
    Reason.OPTIONS_UNKNOWN: "with which options {these} was loaded is not known",
    Reason.REFUSED: "{these} were tried together in both load orders and did not fit",
    Reason.PROVEN: "{all} have been together wholly in GPU memory before",
    Reason.ORDER_FAILED: "{these} were tried together, {newcomer} loaded last, and did not fit",
    Reason.TRIALS_SPENT: "{these} were tried together as often as is allowed",
    Reason.OVER_BUDGET: "{all} need {needed} of GPU memory, of which there is {budget}",
    Reason.UNTRIED: "{all} have not been tried together, {newcomer} loaded last",
}


def may_be_together(members: Collection[Member], facts: Facts, newcomer: str | None = None) -> Answer:
    """Answer the question for these members, the one of key ``newcomer`` loaded last.

    Without a newcomer any load order will do: the best answer of all orders. A variant counts once.
    """
    one_each = {member.variant: member for member in members}
    asked = tuple(one_each[variant] for variant in sorted(one_each))
    if newcomer is not None:
        return _answer(asked, facts, newcomer)
    answers = [_answer(asked, facts, key) for key in [member.key for member in asked] or [""]]
    return min(answers, key=lambda answer: (Verdict.YES, Verdict.TRY, Verdict.NO).index(answer.verdict))


class _Ruling(NamedTuple):
    verdict: Verdict
    reason: Reason
    because: Collection[Member] = ()


def _answer(members: tuple[Member, ...], facts: Facts, newcomer: str) -> Answer:
    ruling = _by_nature(members, facts)
    known = Known(Standing.UNTRIED)
    if ruling is None or ruling.reason is Reason.GROUP:
        known = facts.proofs.standing((member.variant for member in members), newcomer)
    if ruling is None:
        ruling = _by_proofs(members, facts, known)
    return Answer(
        ruling.verdict,
        ruling.reason,
        members,
        newcomer,
        tuple(ruling.because),
        known.standing,
        vram_budget_bytes=facts.vram_budget_bytes,
    )


def _by_nature(members: tuple[Member, ...], facts: Facts) -> _Ruling | None:
    """Rule by what the members and the settings are; None: they are eligible, and proofs and sizes decide."""
    if len(members) <= 1:
        return _Ruling(Verdict.YES, Reason.ALONE)
    same = _of_one_key(members)
    if same:
        return _Ruling(Verdict.NO, Reason.TWO_VARIANTS, same)
    if _common_groups(members):
        return _Ruling(Verdict.YES, Reason.GROUP)
    exclusive = [member for member in members if not _is_exempt(member, facts)]
    if len(exclusive) > 1 and facts.residency == "exclusive":
        return _Ruling(Verdict.NO, Reason.EXCLUSIVE, exclusive)
    unknown = [member for member in members if member.variant.options == UNKNOWN_OPTIONS and not member.pinned]
    return _Ruling(Verdict.NO, Reason.OPTIONS_UNKNOWN, unknown) if unknown else None


def _by_proofs(members: tuple[Member, ...], facts: Facts, known: Known) -> _Ruling:
    if known.standing is not Standing.UNTRIED:
        verdict, reason = _BY_STANDING[known.standing]
        return _Ruling(verdict, reason, [member for member in members if member.key in known.because])
    budget_bytes = facts.vram_budget_bytes
    if budget_bytes is not None and sum(member.size_bytes or 0 for member in members) > budget_bytes:
        return _Ruling(Verdict.NO, Reason.OVER_BUDGET, members)
    return _Ruling(Verdict.TRY, Reason.UNTRIED)


_BY_STANDING = {
    Standing.REFUSED: (Verdict.NO, Reason.REFUSED),
    Standing.PROVEN: (Verdict.YES, Reason.PROVEN),
    Standing.FAILED: (Verdict.NO, Reason.ORDER_FAILED),
    Standing.SPENT: (Verdict.NO, Reason.TRIALS_SPENT),
}


def _common_groups(members: Collection[Member]) -> frozenset[str]:
    return frozenset[str].intersection(*(member.groups for member in members)) if members else frozenset()


def _of_one_key(members: tuple[Member, ...]) -> list[Member]:
    """Return the first members that are one key in two variants; members are sorted by variant."""
    for member, following in pairwise(members):
        if member.key == following.key:
            return [member, following]
    return []


def _is_exempt(member: Member, facts: Facts) -> bool:
    return member.pinned or (member.embedder and facts.companions == "embedders")


def listing(members: Collection[Member]) -> str:
    """Name these models with their sizes."""
    names = [str(member) for member in members]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def mib(size_bytes: int) -> str:
    """Spell a size for people."""
    return f"{round(size_bytes / 2**20)} MiB"
