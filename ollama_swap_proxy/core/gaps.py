"""How long an idle model keeps its turn for the request that is likely to come back (linger): measured, never set.

Owns the gaps of the clients, and what follows from them. Must not know whose turn it is, who waits, or what is
resident: a client's gap is noted across swaps too, for it is the client's own time and not the card's.
"""

from __future__ import annotations

from collections import deque
from math import prod
from typing import Final

from ollama_swap_proxy.core.tickets import Variant

NEWCOMER_LINGER_S: Final = 1.0
"""So soon a client is thought to be back that has not come back twice yet, or within `NEWCOMER_SHARE` of a swap."""

NEWCOMER_SHARE: Final = 0.25
"""No more than this part of the swap that it may save is spent on a client of which nothing is known: a burst of
clients that ask once would pay it at every turn."""

GAPS_KEPT: Final = 8
"""So many recent gaps of a client count: it may have another rhythm tomorrow."""

CLIENTS_KEPT: Final = 256
"""So many clients are remembered, each once for every variant that it uses; then the half not seen for longest goes."""

_LATER: Final = 1.1
_LATER_S: Final = 0.05
"""A client is waited for until just past its gap: it may be a little later this time."""

_LONGEST_SHARE: Final = 0.03
"""So much of the swap that it may save is a gap thought to be longer than all before: few gaps show little of how long
they can be, and where a swap is dear it is cheap to allow for that."""

_SWAPS_AT_STAKE: Final = 2

_UNKNOWN: Final = 0.5
"""What counts as seen of both before anybody has come back or stayed away: little, so that the first burst teaches."""


class _Habit:
    """How one client uses one variant.

    ``open`` counts its requests that wait or run. ``ended_at`` is when the last answer ended, and None while any is
    open. ``back_in_s`` are its recent gaps, each lengthened to just past it.
    """

    __slots__ = ("back_in_s", "ended_at", "open", "seen_at")

    def __init__(self) -> None:
        self.open = 0
        self.seen_at = 0.0
        self.ended_at: float | None = None
        self.back_in_s: deque[float] = deque(maxlen=GAPS_KEPT)

    def returns(self, away_s: float, newcomer_s: float, longer_s: float) -> list[tuple[float, float]]:
        """Return in how long from now this client may be back that has been away for ``away_s``, each with the chance
        that it then is not. It has come back before.

        Each gap longer than it has been away is as likely as the next, and as likely as that it is up to ``longer_s``
        later than ever, or does not come back at all: these two have one part between them. One gap alone says too
        little: ``newcomer_s`` counts beside it.
        """
        gaps_s = [*self.back_in_s, newcomer_s] if len(self.back_in_s) == 1 else list(self.back_in_s)
        outcomes = [(gap_s - away_s, 1.0) for gap_s in sorted(gaps_s)]
        outcomes.append((max(self.back_in_s) + longer_s - away_s, 0.5))
        outcomes = sorted(outcome for outcome in outcomes if outcome[0] > 0)
        parts = sum(part for _, part in outcomes) + 0.5
        returns = []
        for back_s, part in outcomes:
            returns.append((back_s, (parts - part) / parts))
            parts -= part
        return returns


class Gaps:
    """The recent gaps of each client for each variant, in seconds. All times are of one clock, which only grows.

    Each `came` is followed by one `ended` or one `gave_up`. These three cost O(1), but for the forgetting: that comes
    once in half of `CLIENTS_KEPT` new clients.
    """

    def __init__(self) -> None:
        self._habits: dict[Variant, dict[str, _Habit]] = {}
        self._kept = 0

    def __len__(self) -> int:
        """Return how many clients are remembered, counted once for each variant."""
        return self._kept

    def came(self, client: str, variant: Variant, now: float) -> None:
        """Note a ticket of this client. A gap ends with it where all that the client had asked for was answered."""
        habits = self._habits.get(variant)
        habit = None if habits is None else habits.get(client)
        if habit is None:
            habit = self._meet(client, variant)
        habit.open += 1
        habit.seen_at = now
        if habit.ended_at is not None:
            habit.back_in_s.append((now - habit.ended_at) * _LATER + _LATER_S)
            habit.ended_at = None

    def ended(self, client: str, variant: Variant, now: float | None) -> None:
        """Note the end of an answer, whole or not. With the last one that is open, a gap begins (None: none does)."""
        habits = self._habits.get(variant)
        habit = None if habits is None else habits.get(client)
        if habit is None or not habit.open:
            return  # forgotten meanwhile
        habit.open -= 1
        if not habit.open:
            habit.ended_at = now

    def gave_up(self, client: str, variant: Variant) -> None:
        """Note a ticket that ended without a grant. No gap begins: what may follow is the same request once more."""
        self.ended(client, variant, None)

    def linger_s(self, variant: Variant, swap_cost_s: float, since: float) -> float:
        """Return how long after ``since`` the idle model keeps its turn, in seconds: 0 to ``swap_cost_s``.

        ``since`` is the later of the end of its last answer and the arrival of the first waiter: idleness that nobody
        waits for costs nothing. Of zero and the moments just past the recent gaps, the one with the least expected cost
        is taken: the time that the card idles until then, or until the first client is back, and two swaps if none is.
        How many wait does not matter: they wait for either.

        """
        return _cheapest(self._returns(variant, swap_cost_s, since), swap_cost_s)

    def outlook(self, variant: Variant, swap_cost_s: float, ends_at: float) -> tuple[float, float]:
        """Return the linger, as `linger_s`, if all that is open now ends at ``ends_at``; and the chance that none of
        the clients that have come back before does so within it. Others are lingered for, but not counted on.
        """
        linger_s = _cheapest(self._returns(variant, swap_cost_s, ends_at, all_ended=True), swap_cost_s)
        known = self._returns(variant, linger_s, ends_at, all_ended=True, known_only=True)
        return linger_s, prod(stays_away for _, stays_away in known)

    def _returns(
        self, variant: Variant, within_s: float, since: float, *, all_ended: bool = False, known_only: bool = False
    ) -> list[tuple[float, float]]:
        """Return moments after ``since`` by which a client may be back, each with the chance that it then is not.

        Clients that never came back yet are one case, not many: if one who asks once is among them, they all are (a
        burst). They are as likely to be back as others were, to whatever model, before they had been away so long.
        """
        newcomer_s, longer_s = min(NEWCOMER_LINGER_S, NEWCOMER_SHARE * within_s), _LONGEST_SHARE * within_s
        returns, newcomer_left_s = [], 0.0
        for habit in self._habits.get(variant, {}).values():
            if (habit.ended_at is None and not all_ended) or (known_only and len(habit.back_in_s) <= 1):
                continue  # it waits or is served: it need not come back
            away_s = 0.0 if habit.ended_at is None else since - habit.ended_at
            if habit.back_in_s:
                returns += [each for each in habit.returns(away_s, newcomer_s, longer_s) if each[0] <= within_s]
            else:
                newcomer_left_s = max(newcomer_left_s, newcomer_s - away_s)
        if newcomer_left_s > 0:
            returns.append((newcomer_left_s, self._newcomers_stay_away(since, newcomer_s)))
        return returns

    def _newcomers_stay_away(self, since: float, newcomer_s: float) -> float:
        """Return the chance that none of those is back within ``newcomer_s`` who never came back yet."""
        came_back = stayed_away = 0
        for habits in self._habits.values():
            for habit in habits.values():
                if habit.back_in_s:
                    came_back += 1
                elif habit.ended_at is not None and since - habit.ended_at >= newcomer_s:
                    stayed_away += 1
        return (stayed_away + _UNKNOWN) / (came_back + stayed_away + 2 * _UNKNOWN)

    def _meet(self, client: str, variant: Variant) -> _Habit:
        if self._kept >= CLIENTS_KEPT:
            self._forget_older_half()
        habit = _Habit()
        self._habits.setdefault(variant, {})[client] = habit
        self._kept += 1
        return habit

    def _forget_older_half(self) -> None:
        known = [(v, client, habit) for v, habits in self._habits.items() for client, habit in habits.items()]
        known.sort(key=lambda each: each[2].seen_at)
        for variant, client, _ in known[: len(known) // 2]:
            del self._habits[variant][client]
            if not self._habits[variant]:
                del self._habits[variant]
        self._kept = len(known) - len(known) // 2


def _cheapest(returns: list[tuple[float, float]], swap_cost_s: float) -> float:
    """Return the linger of least expected cost, in seconds."""
    best_s = idle_s = last_s = 0.0
    best_cost_s = stake_s = _SWAPS_AT_STAKE * swap_cost_s
    nobody_back = 1.0
    for back_s, stays_away in sorted(returns):
        idle_s += nobody_back * (back_s - last_s)
        last_s = back_s
        nobody_back *= stays_away
        cost_s = idle_s + nobody_back * stake_s
        if cost_s < best_cost_s:
            best_s, best_cost_s = back_s, cost_s
    return best_s
