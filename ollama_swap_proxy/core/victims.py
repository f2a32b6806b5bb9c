"""Who must go for a model: the cheapest residents whose going leaves a set that may be together with it.

Owns the choice. Must not say what may be together (`together` does) or evict anything.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

from ollama_swap_proxy.core.together import Answer, Facts, Member, Reason, Verdict, listing, may_be_together

RELOAD_COST_HALF_LIFE_S = 60.0
"""What a reload would cost counts half after so much idle time: a model of 60 s that nobody uses outweighs two of 5 s
that swap for one another for about 3.5 min, not for ever."""

SEARCHED_MOST = 8
"""Up to so many residents every choice of victims is looked at (256). Beyond, the dearest are kept one by one."""

RETURNS_MOST = 2
"""So many residents at most are evicted and loaded again in another order."""


@dataclass(frozen=True, slots=True)
class Return:
    """A resident that is evicted before the target is loaded, and loaded beside it afterwards.

    For a companion or a pinned model where only that load order is not known to fail. ``answer`` is to its load.
    """

    member: Member
    answer: Answer


@dataclass(frozen=True, slots=True)
class Victims:
    """What a swap to the target costs others.

    ``victims`` go for good, cheapest first; among them is another variant of the target's own key, pinned or not.
    ``answer`` is to the load of the target beside those that stay, its ``members`` less the target. Nobody in either
    of the two: the target is loaded beside all residents.
    """

    target: Member
    victims: tuple[Member, ...]
    returns: tuple[Return, ...]
    answer: Answer
    anew: tuple[Member, ...] = ()
    """Who stays, but is loaded anew before the target, because it would outlive a model (`Residency.outlives`)."""

    @property
    def evicted(self) -> tuple[Member, ...]:
        """All that are unloaded before the target is loaded."""
        return (*self.victims, *(each.member for each in self.returns), *self.anew)

    @property
    def staying(self) -> frozenset[str]:
        """The keys of those that stay beside the target."""
        return frozenset(member.key for member in self.answer.members) - {self.target.key}

    @property
    def trial(self) -> bool:
        """Say whether one of the loads is a trial: then everybody who stays is drained before it too."""
        return self.answer.trial or any(each.answer.trial for each in self.returns)


@dataclass(frozen=True, slots=True)
class Impossible:
    """Even with every unpinned resident gone the target may not be loaded: ``answer`` says why, and nobody goes."""

    target: Member
    pins: tuple[Member, ...]
    answer: Answer
    returns: tuple[Return, ...] = ()
    anew: tuple[Member, ...] = ()
    evicted: tuple[Member, ...] = ()
    staying: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The refusal for people: the pins, the sizes, the reason."""
        return f"{self.target} cannot be resident beside what is pinned, {listing(self.pins)}: {self.answer.text}"


def choose_victims(target: Member, residents: Collection[Member], facts: Facts, now: float) -> Victims | Impossible:
    """Choose who goes so that the target may be loaded; a set that must be tried counts as allowed.

    The lowest priority leaves first: a choice is cheaper than another if the highest priority in which they differ
    loses fewer by it. Between equals the sum of the decayed reload costs decides, then who was idle longest, then the
    keys. A resident that is exactly the target is left out of account. One of its key with other options must go, even
    if it is pinned (a pin protects the key); so must one whose options are not known: leave it out to try it instead.
    """
    replaced = tuple(each for each in residents if each.key == target.key and each.variant != target.variant)
    others = [each for each in residents if each.key != target.key]
    pins = tuple(sorted((each for each in others if each.pinned), key=lambda pin: pin.variant))
    unpinned = sorted((each for each in others if not each.pinned), key=lambda each: _rank((each,), now))
    for going in _choices(target, unpinned, pins, facts, now):
        staying = [*pins, *(each for each in unpinned if each not in going)]
        plan = _plan(target, staying, facts)
        if plan is not None:
            returns, answer = plan
            return Victims(target, (*replaced, *going), returns, answer, _anew(answer, facts))
    return Impossible(target, pins, may_be_together((target, *pins), facts, target.key))


def reload_cost_s(member: Member, now: float) -> float:
    """Return what its reload would cost in seconds, less the longer nobody has used it."""
    idle_s = 0.0 if member.idle_since is None else max(0.0, now - member.idle_since)
    return member.reload_cost_s * math.exp2(-idle_s / RELOAD_COST_HALF_LIFE_S)


def _rank(going: tuple[Member, ...], now: float) -> tuple[object, ...]:
    """Return what choices are compared by: fewer victims always rank lower than those and one more."""
    recency = sorted((float("inf") if each.idle_since is None else each.idle_since for each in going), reverse=True)
    return (
        sorted((each.priority for each in going), reverse=True),
        sum(reload_cost_s(each, now) for each in going),
        recency,
        sorted(each.variant for each in going),
    )


def _choices(
    target: Member, unpinned: list[Member], pins: tuple[Member, ...], facts: Facts, now: float
) -> Iterator[tuple[Member, ...]]:
    """Yield the choices of victims, cheapest first; the last is all of them."""
    if len(unpinned) <= SEARCHED_MOST:
        every = (going for count in range(len(unpinned) + 1) for going in combinations(unpinned, count))
        yield from sorted(every, key=lambda going: _rank(going, now))
        return
    kept: list[Member] = []
    for dearest in reversed(unpinned):
        if _plan(target, [*pins, *kept, dearest], facts) is not None:
            kept.append(dearest)
    yield tuple(each for each in unpinned if each not in kept)


def _plan(target: Member, staying: list[Member], facts: Facts) -> tuple[tuple[Return, ...], Answer] | None:
    """Say how the target can be loaded so that it ends beside these: who must return after it, and by which answer."""
    for first, returning in _first_loads(target, staying, facts, RETURNS_MOST):
        rest = [each for each in staying if each not in returning]
        for in_order in permutations(returning):
            returns = _return(target, rest, in_order, facts)
            if returns is not None:
                return returns, first
    return None


def _anew(answer: Answer, facts: Facts) -> tuple[Member, ...]:
    """Return who of those that are to be beside a newcomer is loaded anew before it: nobody where that cannot be, nor
    for a pinned one: it comes once and stays, and two that come back would send each other away.
    """
    older = [member for member in answer.members if member.key != answer.newcomer]
    if any(member.pinned for member in answer.members if member not in older):
        return ()
    keys = {member.key for member in older}
    anew = tuple(member for member in older if not member.loaded_beside <= keys)
    there = [member for member in older if member not in anew]
    for each in anew:
        there.append(each)
        if may_be_together(there, facts, each.key).verdict is not Verdict.YES:
            return ()
    return anew


def _first_loads(
    target: Member, staying: list[Member], facts: Facts, returns_most: int
) -> Iterator[tuple[Answer, tuple[Member, ...]]]:
    """Yield how the target may be loaded beside these or beside fewer: the answer, and who must return after it."""
    answer = may_be_together((target, *staying), facts, target.key)
    if answer.allowed:
        yield answer, ()
    elif returns_most > 0 and answer.reason in {Reason.ORDER_FAILED, Reason.TRIALS_SPENT}:
        # Another load order may do, and only one in which somebody who decided comes after the target.
        for each in staying:
            if each in answer.because and (each.embedder or each.pinned):
                rest = [other for other in staying if other is not each]
                for first, returning in _first_loads(target, rest, facts, returns_most - 1):
                    yield first, (each, *returning)


def _return(
    target: Member, staying: list[Member], returning: tuple[Member, ...], facts: Facts
) -> tuple[Return, ...] | None:
    """Return the loads of those who return, in this order, or None where one of them is not allowed."""
    there = [target, *staying]
    returns: list[Return] = []
    for each in returning:
        there.append(each)
        answer = may_be_together(there, facts, each.key)
        if not answer.allowed:
            return None
        returns.append(Return(each, answer))
    return tuple(returns)
