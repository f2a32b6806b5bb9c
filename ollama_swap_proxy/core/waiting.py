"""How long a ticket will wait: the turns and swaps before it, played ahead with what things usually take.

Owns the expected waits. Must not decide anything, nor change what it looks at. It plays by the rules of `turns` and
`granting`, somewhat simplified: it sees who waits now (and who is likely to come back at once), nobody who may come
yet; companions count only while what is resident stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Final, NamedTuple

from ollama_swap_proxy.core import bounds, granting, plans, turns
from ollama_swap_proxy.core.policy import SHORTEST_TURN_S
from ollama_swap_proxy.core.state import Phase, State, Swap
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant
from ollama_swap_proxy.core.turns import End, Served, Turn

TURNS_FORESEEN: Final = 24
"""So many turns are played ahead; of who comes later nothing is said."""

NOTED_MOST: Final = 16
NOTED_TICKETS: Final = 64
"""While more variants or tickets wait, nothing is foretold at an arrival: it would cost each of them too much."""

LONGEST_RETRY_S: Final = 59
"""Client libraries do not obey a Retry-After of 60 s and more."""

ROOM_KEPT_S: Final = 1.0
"""For so long an answer is good as to when the line has room: whoever fills it asks at once again."""

_LATE_SHARE: Final = 0.25
"""What takes longer than usual is expected to take so much of its time again."""


def expected_grants(state: State, now: float, also: Ticket | None = None) -> dict[int, float]:
    """Return when each waiting ticket is expected to be granted, by its id, as a time of the scheduler's clock.

    ``also`` is one that does not wait, asked about as if it came now. Of whom nothing can be said has no entry: whose
    model cannot be resident, or who stands too far behind.
    """
    play = _Play(state, now)
    for variant in state.line.variants():
        play.put(state.line.waiting_for(variant))
    if also is not None:
        play.put([*(play.lines[also.variant].tickets if also.variant in play.lines else ()), also])
    _play_present(play)
    for _ in range(TURNS_FORESEEN):
        target = play.next_target()
        if target is None:
            break
        _swap_to(play, target.variant, sum(map(state.forecast.unload_takes_s, play.occupants)))
    return play.grants


def expected_wait_s(state: State, ticket: Ticket, now: float) -> float | None:
    """Return for how long a ticket, waiting or not, is expected to wait from now on; None: it cannot be told."""
    also = None if ticket.id in state.line else ticket
    granted_at = expected_grants(state, now, also).get(ticket.id)
    return None if granted_at is None else max(0.0, granted_at - now)


def room_expected_at(state: State, now: float) -> float:
    """Return when somebody in the line is expected to be granted next; infinity: it cannot be told."""
    asked_at, room_at = state.room_expected
    if now - asked_at > ROOM_KEPT_S:
        room_at = min(expected_grants(state, now).values(), default=inf)
        state.room_expected = now, room_at
    return room_at


def retry_after_s(at: float | None, now: float) -> int:
    """Return the Retry-After, in whole seconds, for who should come back at a time; None: that cannot be told."""
    return LONGEST_RETRY_S if at is None else ceil(min(max(at - now, 1.0), LONGEST_RETRY_S))


def foretell(state: State, ticket: Ticket, now: float) -> None:
    """Note what is expected of a ticket that has just come and waits for a swap, to be compared with its wait."""
    if ticket.id not in state.line or granting.serves(state, ticket.variant):
        return
    if len(state.line) > NOTED_TICKETS or len(state.line.variants()) > NOTED_MOST:
        return
    wait_s = expected_wait_s(state, ticket, now)
    if wait_s is not None:
        state.accuracy.foretell(ticket.id, now, wait_s)


class _Waiting(NamedTuple):
    """Who waits for one variant: in the order in which they are served, and the oldest of each class."""

    tickets: list[Ticket]
    heads: list[Ticket]


@dataclass(slots=True)
class _Play:
    """Where the play ahead has come to: ``at`` the card is free for another model, its ``occupants`` idle."""

    state: State
    at: float
    lines: dict[Variant, _Waiting] = field(default_factory=dict)
    grants: dict[int, float] = field(default_factory=dict)
    occupants: list[str] = field(default_factory=list)

    def put(self, tickets: Iterable[Ticket]) -> None:
        """Let these wait for the variant that they have in common, instead of those who did."""
        nth: dict[tuple[int, str], int] = {}
        oldest: dict[int, Ticket] = {}
        order = []
        for ticket in tickets:
            about = ticket.klass.rank, ticket.client
            nth[about] = nth.get(about, 0) + 1
            order.append((-ticket.klass.rank, nth[about], ticket.arrived_at, ticket.id, ticket))
            oldest.setdefault(ticket.klass.rank, ticket)
        order.sort()
        waiting = [each[-1] for each in order]
        self.lines[waiting[0].variant] = _Waiting(waiting, list(oldest.values()))

    def next_target(self, spared: frozenset[str] = frozenset()) -> Ticket | None:
        """Return whose model comes next, at ``at`` or when the pause is over that holds it off."""
        state = self.state
        held_off = {v: granting.resisted_until(state, v, self.at) for v in self.lines} if state.resisting else {}
        candidates = [
            (turns.precedence(ticket, self.at, state.forecast.swap_cost_s(variant)), ticket)
            for variant, waiting in self.lines.items()
            if variant.key not in spared and not plans.is_impossible(state, variant)
            for ticket in waiting.heads
        ]
        free = [each for each in candidates if held_off.get(each[1].variant, self.at) <= self.at]
        if free or not candidates:
            return min(free)[1] if free else None
        self.at = min(held_off[ticket.variant] for _, ticket in candidates)
        return self.next_target(spared)

    def serve(
        self, variant: Variant, began_at: float, until: float, running: Iterable[Lease] = ()
    ) -> tuple[bool, float]:
        """Serve who waits for a variant, beside these leases; say whether somebody is left, and when all have ended."""
        state = self.state
        answer_s = state.forecast.answer_takes_s(variant)
        ends = [_ends_at(state, lease, began_at) for lease in running]
        ended_at = max(ends, default=began_at)
        waiting = self.lines.pop(variant, _Waiting([], [])).tickets
        heapify(ends)
        at, most = began_at, granting.most_leases(state, variant)
        for number, ticket in enumerate(waiting):
            while len(ends) >= most:
                at = max(at, heappop(ends))
            if at >= until:
                self.put(sorted(waiting[number:], key=lambda each: (each.arrived_at, each.id)))
                return True, ended_at
            self.grants[ticket.id] = at
            heappush(ends, at + answer_s)
            ended_at = max(ended_at, at + answer_s)
        return False, ended_at

    def free_at(
        self, variants: Iterable[Variant], limit_at: float, ended_at: float, cost_s: float, *, cut: bool
    ) -> float:
        """Return when these make room: their requests end at ``ended_at``, but for those that the limit ``cut`` off."""
        if cut or ended_at >= limit_at:
            return max(limit_at, ended_at)
        stays_s = 0.0
        for variant in variants:
            linger_s, nobody_back = self.state.gaps.outlook(variant, cost_s, ended_at)
            rounds = 1 / max(nobody_back, 1e-9) - 1  # so often somebody comes back before once nobody does
            answer_s = self.state.forecast.answer_takes_s(variant)
            stays_s = max(stays_s, linger_s + rounds * (linger_s + answer_s))
        return min(limit_at, ended_at + stays_s)


def _play_present(play: _Play) -> None:
    """Play the turn that is, or the swap that is under way and the turn after it."""
    state, now, swap = play.state, play.at, play.state.swap
    if swap is not None:
        for variant in [variant for variant in play.lines if granting.serves(state, variant)]:
            play.serve(variant, now, inf, _leases_of(state, variant))
        if swap.unloads:
            play.at = now + state.forecast.unload_takes_s(swap.target.key)
            return
        loaded_at = _loaded_at(state, swap, now)
        _begin_turn(play, swap.target, loaded_at)
        return
    served = [variant for variant in play.lines if granting.is_servable(state, variant)]
    target = play.next_target(frozenset(variant.key for variant in served))
    if target is None:
        for variant in served:
            play.serve(variant, now, inf, _leases_of(state, variant))
        return
    spared = plans.spared(state, target.variant)
    free_at = _make_room(play, target, served, spared, max(now, play.at))
    play.at = free_at
    unload_s = sum(state.forecast.unload_takes_s(victim.key) for victim in plans.evicted(state, target.variant))
    play.at += sum(state.forecast.load_takes_s(each.variant) for each in plans.plan(state, target.variant).anew)
    _swap_to(play, target.variant, unload_s)


def _make_room(play: _Play, target: Ticket, served: list[Variant], spared: frozenset[str], now: float) -> float:
    """Play the present turn until it makes room for a target; return when."""
    state = play.state
    cost_s = state.forecast.swap_cost_s(target.variant)
    ending = granting.turn_ending(state, target)
    limit_at = ending.at if ending.at < inf else now + max(SHORTEST_TURN_S, 2 * cost_s)
    blocking = plans.leases_in_the_way(state, target.variant, spared)
    ended_at = max((_ends_at(state, lease, now) for lease in blocking), default=now)
    cut = False
    for variant in served:
        closes = variant.key not in spared
        left, last_at = play.serve(variant, now, limit_at if closes else inf, _leases_of(state, variant))
        if closes:
            cut, ended_at = cut or left, max(ended_at, last_at)
    if ending.why is End.IDLE and not blocking and ended_at <= now:
        return max(now, ending.at)
    closing = {lease.ticket.variant for lease in blocking} | {each for each in served if each.key not in spared}
    return play.free_at(sorted(closing), limit_at, ended_at, cost_s, cut=cut)


def _swap_to(play: _Play, target: Variant, unload_s: float) -> None:
    """Play the swap to a target, from when the card is free for it, and its turn."""
    forecast = play.state.forecast
    settle_s = play.state.policy.settle_max_s if plans.is_trial(play.state, target) else 0.0
    if unload_s > 0:
        settle_s = max(settle_s, forecast.settle_before_s(target))
    _begin_turn(play, target, play.at + unload_s + settle_s + forecast.load_takes_s(target))


def _begin_turn(play: _Play, variant: Variant, began_at: float) -> None:
    """Play the turn of a model from its load to when it makes room for the next."""
    state = play.state
    waiting = play.lines.pop(variant, None)
    play.at, play.occupants = began_at, [variant.key]
    following = play.next_target()
    until, cost_s = inf, 0.0
    if waiting is not None:
        play.lines[variant] = waiting
        if following is not None:
            cost_s = state.forecast.swap_cost_s(following.variant)
            rank = max(ticket.klass.rank for ticket in waiting.heads)
            until = turns.ending(
                Turn(began_at, began_at),
                Served(leases=1, waiting=1, rank=rank, idle_since=began_at, linger_s=0.0),
                following,
                waiting_since=following.arrived_at,
                swap_cost_s=cost_s,
                early_end_at=state.early_end_at,
                policy=state.policy,
            ).at
            until = max(until, began_at + 1e-9)  # whom it was loaded for is served in any case
    cut, ended_at = play.serve(variant, began_at, until)
    play.at = play.free_at([variant], until, ended_at, cost_s, cut=cut)


def _loaded_at(state: State, swap: Swap, now: float) -> float:
    """Return when the swap under way is expected to have loaded its target."""
    forecast = state.forecast
    load_s = forecast.load_takes_s(swap.target)
    unload_s = sum(forecast.unload_takes_s(key) for key in swap.expected_victims if key in state.residency.residents)
    settle_s = state.policy.settle_max_s if swap.trial else 0.0
    if swap.expected_victims:
        settle_s = max(settle_s, forecast.settle_before_s(swap.target))
    match swap.phase:
        case Phase.DRAINING:
            drained_at = max((_ends_at(state, lease, now) for lease in plans.blocking(state, swap)), default=now)
            return drained_at + unload_s + settle_s + load_s
        case Phase.EVICTING:
            begun_at = now if swap.victim is None else swap.first_asked_at
            return _not_before(begun_at + unload_s, begun_at, now) + settle_s + load_s
        case Phase.SETTLING:
            return max(now, bounds.settled_at(state, swap)) + load_s
        case _:
            return _not_before(swap.load_sent_at + load_s, swap.load_sent_at, now)


def _leases_of(state: State, variant: Variant) -> list[Lease]:
    return [lease for lease in state.leases if lease.ticket.variant == variant]


def _ends_at(state: State, lease: Lease, now: float) -> float:
    usual_end_at = lease.granted_at + state.forecast.answer_takes_s(lease.ticket.variant)
    return _not_before(usual_end_at, lease.granted_at, now)


def _not_before(expected_at: float, begun_at: float, now: float) -> float:
    """Return when something ends that should have ended at a time, which may be past."""
    return expected_at if expected_at > now else now + _LATE_SHARE * max(0.0, now - begun_at)
