"""What would happen to a request if it came now, and why: asked of the scheduler's state, with nothing done.

Owns the answer and its words. Must not decide: it asks `granting`, `plans`, `failing` and `waiting`, which do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ollama_swap_proxy.core import failing, granting, intake, plans, waiting
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Ticket
from ollama_swap_proxy.core.turns import End, precedence
from ollama_swap_proxy.core.victims import Victims


class Prospect(Enum):
    """What would happen first."""

    GRANTED = "granted"
    WAITS_FOR_LEASE = "waits_for_lease"
    """The model is resident, and as many requests as it serves side by side are running or wait."""
    WAITS_FOR_TURN = "waits_for_turn"
    """Another model is served, and keeps its turn for now, or others come first."""
    WAITS_FOR_SWAP = "waits_for_swap"
    """A swap is under way, be it to this model or to another."""
    HELD_OFF = "held_off"
    """A swap that would need the same victims was given up lately, or what is resident is unknown."""
    SWAP = "swap"
    """It is loaded at once, if anybody must go after that."""
    COOL_DOWN = "cool_down"
    """It is rejected: the model failed to load lately."""
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class VictimSeen:
    """A model that would have to go, and why: half a sentence. ``returns``: it is loaded again beside the target."""

    name: str
    because: str
    returns: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to a request for ``model`` that came now.

    ``victims``, ``stays``, ``stays_because`` and ``trial`` speak of the swap that the model would need by what is
    resident now; empty where it needs none. ``expected_wait_s`` is None where it is rejected or cannot be told.
    """

    model: str
    options: str
    klass: str
    resident: bool
    prospect: str
    """A `Prospect`'s value."""
    why: str
    victims: tuple[VictimSeen, ...]
    stays: tuple[str, ...]
    stays_because: str
    trial: bool
    expected_wait_s: float | None


_ENDS = {
    End.IDLE: "it is idle, and kept for who is likely to come back",
    End.LIMIT: "then its turn limit is used up",
    End.OVERDUE: "then this request would near its maximum wait",
    End.HIGHER_CLASS: "a higher class may end a turn only so often",
    End.NOT_SERVED: "those that it was loaded for are not served yet",
}

_OPENINGS = {
    Prospect.GRANTED: "would be served at once",
    Prospect.WAITS_FOR_LEASE: "would wait for a lease",
    Prospect.WAITS_FOR_TURN: "would wait for its turn",
    Prospect.WAITS_FOR_SWAP: "would wait for the swap under way",
    Prospect.HELD_OFF: "would wait, held off",
    Prospect.SWAP: "would be loaded now",
    Prospect.COOL_DOWN: "would be turned away",
    Prospect.REJECTED: "would be turned away",
}

_LOADED_ANEW = "it was loaded beside a model that is gone, whose memory Ollama counts as taken as long as it stays"

_TURNED_AWAY = frozenset({Prospect.COOL_DOWN, Prospect.REJECTED})


def explain(state: State, ticket: Ticket, now: float) -> Explanation:
    """Say what would become of a ticket that is not in the line. ``state`` is not changed, nor is anything begun."""
    there = state.imagined(ticket)
    prospect, why = _prospect(there, ticket, now)
    wait_s: float | None = None
    victims: tuple[VictimSeen, ...] = ()
    stays: tuple[str, ...] = ()
    stays_because, trial = "", False
    if prospect not in _TURNED_AWAY:
        wait_s = 0.0 if prospect is Prospect.GRANTED else waiting.expected_wait_s(there, ticket, now)
        chosen = plans.plan(there, ticket.variant)
        if isinstance(chosen, Victims) and not granting.is_servable(there, ticket.variant):
            victims = _victims(there, chosen)
            beside = (each for each in chosen.answer.members if each.key in chosen.staying and each not in chosen.anew)
            stays = tuple(sorted(each.name for each in beside))
            stays_because = chosen.answer.text if stays else ""
            trial = chosen.trial
    return Explanation(
        model=ticket.name,
        options=ticket.variant.options,
        klass=ticket.klass.name,
        resident=there.residency.holds(ticket.variant) or there.residency.may_be_tried(ticket.variant.key),
        prospect=prospect.value,
        why=why,
        victims=victims,
        stays=stays,
        stays_because=stays_because,
        trial=trial,
        expected_wait_s=None if wait_s is None else round(wait_s, 1),
    )


def in_words(told: Explanation) -> str:
    """Say all of an explanation in a few lines."""
    prospect = Prospect(told.prospect)
    lines = [f"A request for {told.model} {_OPENINGS[prospect]}: {told.why}."]
    for victim in told.victims:
        goes = "would have to go, and come back" if victim.returns else "would have to go"
        lines.append(f"{victim.name} {goes}: {victim.because}.")
    if told.stays:
        lines.append(f"{', '.join(told.stays)} would stay: {told.stays_because}.")
    if told.trial:
        lines.append(
            "That would be a trial: all of them are drained before it, and it shows whether they fit together."
        )
    if told.expected_wait_s is not None:
        lines.append(f"Expected wait: {told.expected_wait_s:g} s, in class {told.klass}.")
    elif prospect not in _TURNED_AWAY:
        lines.append(f"Expected wait, in class {told.klass}: it cannot be told.")
    return "\n".join(lines)


def _victims(state: State, chosen: Victims) -> tuple[VictimSeen, ...]:
    for_good = [VictimSeen(each.name, plans.why_it_goes(state, chosen, each), returns=False) for each in chosen.victims]
    back = [VictimSeen(each.member.name, each.answer.text, returns=True) for each in chosen.returns]
    anew = [VictimSeen(each.name, _LOADED_ANEW, returns=True) for each in chosen.anew]
    return (*for_good, *back, *anew)


def _prospect(state: State, ticket: Ticket, now: float) -> tuple[Prospect, str]:
    """Return what would happen first, and why: half a sentence."""
    rejection = intake.turned_away(state, ticket, now)
    if rejection is not None:
        if rejection == failing.cooling(state, ticket.variant, now):
            why = f"it failed to load lately, and is not tried for {rejection.retry_after_s} s: {rejection.message}"
            return Prospect.COOL_DOWN, why
        return Prospect.REJECTED, f"{rejection.code}: {rejection.message}"
    if granting.serves(state, ticket.variant):
        return _at_the_resident(state, ticket)
    swap = state.swap
    if swap is not None:
        whose = "to it" if swap.target == ticket.variant else f"to {swap.name}"
        return Prospect.WAITS_FOR_SWAP, f"a swap {whose} is under way ({swap.phase.value})"
    held_off = _held_off(state, ticket, now)
    return (Prospect.HELD_OFF, held_off) if held_off else _before_its_swap(state, ticket, now)


def _held_off(state: State, ticket: Ticket, now: float) -> str:
    """Say what keeps any swap to it from beginning for now; empty if nothing does."""
    if not state.residency.known:
        return f"what is resident is unknown: {state.unknown_reason or 'no report has come yet'}"
    resisted = granting.resisted_by(state, ticket.variant, now)
    if not resisted:
        return ""
    until_s = max(pause.until for pause in resisted) - now
    return f"a swap was given up, and is not tried again for {until_s:.0f} s: {resisted[0].rejection.message}"


def _at_the_resident(state: State, ticket: Ticket) -> tuple[Prospect, str]:
    key = ticket.variant.key
    waits = len(state.line.waiting_for(ticket.variant))
    if not waits and granting.has_free_lease(state, ticket.variant):
        return Prospect.GRANTED, "it is resident, and a lease is free"
    if state.residency.holds_unknown_variant(key):
        return Prospect.WAITS_FOR_LEASE, "it is resident with options that we do not know, so one request goes alone"
    runs, most = state.leases.running.get(key, 0), granting.most_leases(state, ticket.variant)
    return Prospect.WAITS_FOR_LEASE, f"it is resident, {runs} of at most {most} requests run and {waits} wait"


def _before_its_swap(state: State, ticket: Ticket, now: float) -> tuple[Prospect, str]:
    cost_s = state.forecast.swap_cost_s
    foremost = granting.foremost(state, now)
    if (
        foremost is not None
        and foremost.variant != ticket.variant
        and precedence(foremost, now, cost_s(foremost.variant)) < precedence(ticket, now, cost_s(ticket.variant))
    ):
        waited_s = now - foremost.arrived_at
        return Prospect.WAITS_FOR_TURN, f"{foremost.name}, waited for since {waited_s:.0f} s, comes first"
    goes_by = ticket if foremost is None or foremost.variant != ticket.variant else foremost
    ending = granting.turn_ending(state, goes_by)
    if now >= ending.at:
        return Prospect.SWAP, "nothing resident keeps its turn" if state.residency.residents else "nothing is resident"
    names = [resident.name for resident in plans.evicted(state, ticket.variant)] or ["what is resident"]
    until = "" if ending.at == float("inf") else f" for {ending.at - now:.1f} s at most"
    return Prospect.WAITS_FOR_TURN, f"{', '.join(names)} has the turn{until}; {_ENDS[ending.why]}"
