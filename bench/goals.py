"""What the scheduler shall reach, and whether it did.

Owns the goals. Must not measure: it reads scores. A goal that not even the offline bound reaches on a workload is told
as out of reach there, and one that its premise does not hold for is not asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from contestants import shortest_turn_s
from play import FIRST_COME, OURS, READY_FIRST, Result, Score
from workloads import BURST, CLOSED

REACHED: Final = "reached"
MISSED: Final = "MISSED"
OUT_OF_REACH: Final = "out of reach"

WORST_TO_BEST_RIVAL = 1.05
BETTER_THAN_FIRST_COME = 3.0
BETTER_THAN_READY_FIRST = 2.0
LOADS_TO_BOUND = 1.25


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal on one workload: what it came to, what it shall be, and the verdict."""

    goal: str
    workload: str
    value: float
    limit: float
    verdict: str
    is_at_least: bool = False

    @property
    def shortfall(self) -> float:
        """How far from the limit: the larger the worse, above 1 past it."""
        return self.limit / self.value if self.is_at_least else self.value / max(self.limit, 1e-9)


def judge(results: Iterable[Result]) -> list[Goal]:
    """Return all goals on all workloads that they are asked of, those of one workload together."""
    return [goal for result in results for goal in _goals(result)]


def summary(goals: Iterable[Goal]) -> str:
    """Return the goals in a few lines: each once, with the worst it came to; below it, where it is missed."""
    by_goal: dict[str, list[Goal]] = defaultdict(list)
    for goal in goals:
        by_goal[goal.goal].append(goal)
    lines = []
    for name, asked in by_goal.items():
        missed = [goal for goal in asked if goal.verdict == MISSED]
        counted = [goal for goal in asked if goal.verdict != OUT_OF_REACH]
        reached = f"{len(counted) - len(missed)} of {len(counted)}"
        if len(counted) < len(asked):
            reached += f", {len(asked) - len(counted)} out of reach"
        lines.append(f"{MISSED if missed else REACHED:<9}{name:<46}{reached:<26}{_worst(counted)}")
        lines += [f"{'':<11}{goal.workload:<44}{goal.value:.2f}  (goal {goal.limit:g})" for goal in missed]
    return "\n".join(lines)


def _worst(goals: list[Goal]) -> str:
    if not goals:
        return ""
    worst = max(goals, key=lambda goal: goal.shortfall)
    return f"worst {worst.value:.2f}  (goal {worst.limit:g}) on {worst.workload}"


def _goals(result: Result) -> Iterator[Goal]:
    workload = result.workload
    scores = {score.contestant: score for score in result.scores}
    ours = scores[OURS]
    yield _at_most(result, "requests refused", ours.refused, 0)
    if len(workload.max_wait_s) == 1:
        best_s = min(score.makespan_s for score in result.scores if score is not ours)
        yield _at_most(result, "makespan, to the best rival's", ours.makespan_s / best_s, WORST_TO_BEST_RIVAL)
    if workload.shape == CLOSED:
        for rival, factor in ((FIRST_COME, BETTER_THAN_FIRST_COME), (READY_FIRST, BETTER_THAN_READY_FIRST)):
            yield _times_better(result, ours, scores[rival], factor)
    if workload.shape in {CLOSED, BURST}:
        yield _at_most(result, "loads, to the offline bound", ours.loads / result.bound.loads, LOADS_TO_BOUND)
    if workload.most_loads is not None:
        yield _at_most(result, "loads", ours.loads, workload.most_loads)
    if workload.most_swapping is not None:
        yield _at_most(result, "share of the time spent in swapping", ours.swapping, workload.most_swapping)
    if ours.newcomer_after is not None:
        yield _at_most(result, "grants until the newcomer's", ours.newcomer_after, workload.newcomer_within)
    for rank, waits in ours.waits.items():
        limit_s = workload.max_wait_s[rank]
        if _load_permits(result, rank):
            yield _at_most(result, f"longest wait of class {rank}, s", waits.max_s, limit_s)


def _at_most(result: Result, goal: str, value: float, limit: float) -> Goal:
    return Goal(goal, result.workload.name, value, limit, REACHED if value <= limit else MISSED)


def _times_better(result: Result, ours: Score, rival: Score, factor: float) -> Goal:
    value = rival.makespan_s / ours.makespan_s
    verdict = REACHED if value >= factor else MISSED
    if verdict == MISSED and rival.makespan_s / result.bound.makespan_s < factor:
        verdict = OUT_OF_REACH
    return Goal(f"times as fast as {rival.contestant}", result.workload.name, value, factor, verdict, is_at_least=True)


def _load_permits(result: Result, rank: str) -> bool:
    """Say whether the waits can be kept within the class's maximum.

    They can where a whole cycle (each model loaded, and served for the shortest turn) fits into it. Where nobody waits
    for an answer before asking again, they also can where a rival kept it: closed loops prove nothing so, because there
    a rule that wastes the card on swapping slows down those who ask.
    """
    workload = result.workload
    limit_s = workload.max_wait_s[rank]
    if sum(model.load_s + shortest_turn_s(model) for model in workload.asked_for) <= limit_s:
        return True
    if workload.is_closed:
        return False
    return any(score.waits[rank].max_s <= limit_s for score in result.scores if score.contestant != OURS)
