"""What there is to see: one immutable picture of the scheduler, ready for JSON.

Owns the shapes that the operator's pages and calls read, and nothing else reads. Must not change anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ollama_swap_proxy.core import bounds, granting, plans, upkeep, waiting
from ollama_swap_proxy.core.policy import Mode
from ollama_swap_proxy.core.state import NEVER, State
from ollama_swap_proxy.core.tickets import Ticket, Variant
from ollama_swap_proxy.core.turns import End


@dataclass(frozen=True, slots=True)
class ResidentSeen:
    """A resident model; ``options`` is None where its runner options are unknown. Sizes in bytes. ``ttl_left_s``: until
    we unload it if nobody asks for it; None: it has no time to live, or is in use.
    """

    key: str
    name: str
    digest: str
    size_bytes: int
    size_vram_bytes: int
    spilled_bytes: int
    options: str | None
    pinned: bool
    leases: int
    leases_most: int
    leaving: bool
    expires_in_s: float | None
    ttl_left_s: float | None


@dataclass(frozen=True, slots=True)
class ClassSeen:
    """The tickets of one class that wait for one variant."""

    klass: str
    waiting: int
    longest_wait_s: float


@dataclass(frozen=True, slots=True)
class LineSeen:
    """The tickets that wait for one variant; ``longest_wait_s`` is that of the first of them, ``expected_wait_s`` how
    much longer the one that goes next is expected to wait, None where that cannot be told. ``classes``: by class, the
    highest first.
    """

    key: str
    name: str
    options: str
    waiting: int
    longest_wait_s: float
    expected_wait_s: float | None
    classes: tuple[ClassSeen, ...]


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """A running request; ``silent_s`` since its last byte (or its grant)."""

    id: int
    name: str
    key: str
    client: str
    klass: str
    running_s: float
    silent_s: float


@dataclass(frozen=True, slots=True)
class ReloadSeen:
    """Who has a resident model loaded anew: the client, the id of its request, and the options that differ, as in
    ``num_ctx 4096 -> 8192``; none of these where it is unknown with which it was loaded.
    """

    client: str
    request: int | None
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SwapSeen:
    """The swap under way. ``overdue_s``: for how long its step is past its bound; 0 where it is not.

    ``beside``: who is to stay beside the target. ``trial``: whether it is being tried if they fit together.
    """

    id: int
    target: str
    options: str
    reason: str
    phase: str
    phase_s: float
    overdue_s: float
    total_s: float
    victims: tuple[str, ...]
    beside: tuple[str, ...]
    trial: bool
    reload: ReloadSeen | None
    waits_for_leases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TurnSeen:
    """The turn of what is resident. ``next`` is the model that comes after it, None while nobody waits for another;
    then ``ends_in_s`` (None: not before those it was loaded for are served) and ``ends_because`` say when and why it
    makes room, if nothing else happens; ``lingers``: it is idle, and kept for who is likely to come back.
    """

    age_s: float
    next: str | None
    ends_in_s: float | None
    ends_because: str | None
    lingers: bool


@dataclass(frozen=True, slots=True)
class CoolDownSeen:
    """A variant that failed to load lately."""

    key: str
    options: str
    remaining_s: float
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class ResistingSeen:
    """A resident that a swap was given up on lately: it is left in peace, and who waits for another model waits on."""

    key: str
    remaining_s: float
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it. ``report_age_s`` is None before the first report; ``unknown`` says why residency is unknown now.

    ``preloads``: pinned models that are yet to be loaded since our start or upstream's. ``home_in_s``: until the card
    goes back to the ``home`` model if nothing moves before; None: it is there, or is kept from it.
    ``forecast_error``: `accuracy.Accuracy.median_error`.
    ``mode_for_s``: since when the mode is what it is. ``paused_for_s``: None while nothing is paused.
    """

    residents: tuple[ResidentSeen, ...]
    lines: tuple[LineSeen, ...]
    leases: tuple[LeaseSeen, ...]
    swap: SwapSeen | None
    cool_downs: tuple[CoolDownSeen, ...]
    resisting: tuple[ResistingSeen, ...]
    unknown: str | None
    unreachable_for_s: float | None
    report_age_s: float | None
    settle_s: float
    swaps_begun: int
    turn: TurnSeen
    preloads: tuple[str, ...]
    home: str | None
    home_in_s: float | None
    forecast_error: float | None
    mode: Mode
    mode_for_s: float
    paused_for_s: float | None
    stopping: bool


def json_members(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of what `dataclasses.asdict` gives: what Python cannot call ``class`` is called so there."""
    return {"class" if name == "klass" else name: value for name, value in pairs}


def take(state: State, now: float) -> Snapshot:
    """Draw the picture as of ``now`` (seconds, the scheduler's clock)."""
    residency = state.residency
    residents = tuple(
        ResidentSeen(
            key=resident.key,
            name=resident.name,
            digest=resident.digest,
            size_bytes=resident.size_bytes,
            size_vram_bytes=resident.size_vram_bytes,
            spilled_bytes=resident.spilled_bytes,
            options=residency.options.get(resident.key),
            pinned=plans.is_pinned(state, resident.key),
            leases=state.leases.running.get(resident.key, 0),
            leases_most=granting.most_leases(state, Variant(resident.key, residency.options.get(resident.key, ""))),
            leaving=resident.key in residency.leaving,
            expires_in_s=resident.expires_in_s,
            ttl_left_s=_left_s(upkeep.lives_until(state, resident.key), now),
        )
        for resident in residency.residents.values()
    )
    leases = tuple(
        LeaseSeen(
            id=lease.ticket.id,
            name=lease.ticket.name,
            key=lease.ticket.variant.key,
            client=lease.ticket.client,
            klass=lease.ticket.klass.name,
            running_s=round(now - lease.granted_at, 3),
            silent_s=round(now - lease.moved_at, 3),
        )
        for lease in state.leases
    )
    return Snapshot(
        residents=residents,
        lines=_lines(state, now),
        leases=leases,
        swap=_swap(state, now),
        cool_downs=tuple(
            CoolDownSeen(v.key, v.options, round(pause.until - now, 3), pause.failures, pause.rejection.message)
            for v, pause in state.cool_downs.items()
            if pause.until > now
        ),
        resisting=tuple(
            ResistingSeen(key, round(pause.until - now, 3), pause.failures, pause.rejection.message)
            for key, pause in state.resisting.items()
            if pause.until > now
        ),
        unknown=state.unknown_reason,
        unreachable_for_s=None if state.unreachable_since is None else round(now - state.unreachable_since, 3),
        report_age_s=None if residency.at == NEVER else round(now - residency.at, 3),
        settle_s=state.forecast.settle_usual_s,
        swaps_begun=state.swaps_begun,
        turn=_turn(state, now),
        preloads=tuple(state.preloads),
        home=state.policy.home or None,
        home_in_s=_left_s(upkeep.home_due_at(state), now),
        forecast_error=None if (error := state.accuracy.median_error) is None else round(error, 3),
        mode=state.mode,
        mode_for_s=round(now - state.mode_since, 3),
        paused_for_s=None if state.paused_at is None else round(now - state.paused_at, 3),
        stopping=state.stopping,
    )


def _left_s(until: float | None, now: float) -> float | None:
    return None if until is None else round(max(0.0, until - now), 3)


def _lines(state: State, now: float) -> tuple[LineSeen, ...]:
    grants = waiting.expected_grants(state, now) if len(state.line) else {}
    return tuple(
        LineSeen(
            key=oldest.variant.key,
            name=oldest.name,
            options=oldest.variant.options,
            waiting=len(state.line.waiting_for(oldest.variant)),
            longest_wait_s=round(now - oldest.arrived_at, 3),
            expected_wait_s=_wait_s(grants, granting.next_ticket(state, oldest.variant, now), now),
            classes=_classes(state, oldest.variant, now),
        )
        for oldest in map(state.line.oldest, state.line.variants())
        if oldest is not None
    )


def _classes(state: State, variant: Variant, now: float) -> tuple[ClassSeen, ...]:
    count = Counter(ticket.klass.name for ticket in state.line.waiting_for(variant))
    highest_first = sorted(state.line.oldest_by_class(variant), key=lambda ticket: -ticket.klass.rank)
    return tuple(
        ClassSeen(oldest.klass.name, count[oldest.klass.name], round(now - oldest.arrived_at, 3))
        for oldest in highest_first
    )


def _wait_s(grants: dict[int, float], ticket: Ticket | None, now: float) -> float | None:
    granted_at = None if ticket is None else grants.get(ticket.id)
    return None if granted_at is None else round(max(0.0, granted_at - now), 3)


def _turn(state: State, now: float) -> TurnSeen:
    age_s = round(now - state.turn.began_at, 3)
    target = granting.foremost(state, now) if state.swap is None else None
    if target is None:
        return TurnSeen(age_s, None, None, None, lingers=False)
    ending = granting.turn_ending(state, target)
    ends_in_s = None if ending.at == float("inf") else round(max(0.0, ending.at - now), 3)
    lingers = ending.why is End.IDLE and ending.at > now
    return TurnSeen(age_s, target.name, ends_in_s, ending.why.value, lingers)


def _swap(state: State, now: float) -> SwapSeen | None:
    swap = state.swap
    if swap is None:
        return None
    name_of, reload = state.residency.name_of, swap.reload
    return SwapSeen(
        id=swap.id,
        target=swap.name,
        options=swap.target.options,
        reason=swap.reason,
        phase=swap.phase.value,
        phase_s=round(now - swap.phase_since, 3),
        overdue_s=round(max(0.0, now - bounds.step_ends_at(state, swap)), 3),
        total_s=round(now - swap.decided_at, 3),
        victims=tuple(map(name_of, sorted(swap.expected_victims))),
        beside=tuple(map(name_of, sorted(swap.staying))),
        trial=swap.trial,
        reload=None if reload is None else ReloadSeen(reload.client, reload.ticket_id, reload.changes),
        waits_for_leases=tuple(lease.ticket.id for lease in plans.blocking(state, swap)),
    )
