"""What no scheduler can do better, even one that knows all that is to come: fewest loads, shortest makespan.

Owns the lower bounds. Must not be used to schedule by: nothing says that a schedule reaches them.

Why they are bounds. Where the card is not exclusive (some two of the models fit together), only the simplest things are
claimed: each model that is asked for is loaded once at least, and no stream is over before its first load, its answers
and its gaps. Where it is exclusive:

- *Resident time.* Model m must be resident for T(m), the longer of: all its answers spread evenly over the slots; the
  answers and gaps of its longest stream. Gaps can also pass while m is away, but only one of each stream at a time:
  with L loads, T(m) - (L - 1) * g of it is left, g being the longest gap. Where a load is shorter than that, or a
  stream is not all over one model, gaps are left out of T(m), and g is 0.
- *Loads.* Each model once at least. If besides every stream is a closed loop over one model, let W be the maximum wait,
  and m the j-th model to finish. Until then some stream of m is unfinished: at any moment it is being answered, in a
  gap, or waiting. So whenever m is away, it is so for at most W and a gap (the gap passes, then a wait begins, which
  must end). Those who finished before m held the card, or had it loaded for them, while m was away: with L loads of m,
  each of at least S seconds, L * (W + gap) >= L * S + the sum over them of what is left of T, and of their loads.
  Sorted by T, each such sum is smallest. This bounds schedules that keep the limit. For one that breaks it by some
  seconds, W is that much longer: it is then compared with what can be done by letting others wait as long.
- *Bursts far apart.* A request has to be served within W of its coming; where nobody comes for longer than W, those
  before and those after are served in windows of time that do not overlap. All models of a window are resident in it,
  one after another, and at most one, if both windows need it, is so already at its beginning.
- *Makespan.* The card is never doing two things at once among: being loaded, being unloaded (before each load but the
  first), and being resident for what is left of T(m). So their sum is a bound (a load more never makes it smaller); so
  is the longest stream with its first load.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import ceil

from workloads import Stream, Workload


@dataclass(frozen=True, slots=True)
class Bound:
    """The fewest loads and the least makespan, in seconds."""

    loads: int
    makespan_s: float


def bound(workload: Workload, overrun_s: float = 0.0) -> Bound:
    """Return what no schedule is below whose waits pass the longest limit by ``overrun_s`` at most."""
    load_s = {model.name: model.load_s for model in workload.asked_for}
    longest_stream_s = max(_alone_s(stream, load_s) for stream in workload.streams)
    if not _is_exclusive(workload):
        return Bound(len(load_s), longest_stream_s)
    limit_s = max(workload.max_wait_s[stream.rank] for stream in workload.streams) + overrun_s
    gap_s = _gap_that_counts_s(workload)
    resident_s = _resident_times(workload, with_gaps=gap_s > 0.0)
    loads = max(len(load_s), _loads_of_loops(workload, resident_s, limit_s, gap_s), _loads_of_bursts(workload, limit_s))
    repeated = loads - len(load_s)
    unload_s = min(model.unload_s for model in workload.asked_for)
    card_s = sum(load_s.values()) + sum(resident_s.values())
    card_s += repeated * (min(load_s.values()) - gap_s) + (loads - 1) * unload_s
    return Bound(loads, max(card_s, longest_stream_s))


def _alone_s(stream: Stream, load_s: dict[str, float]) -> float:
    """Return when the last answer of a stream can be there; its first model can be loaded before it comes."""
    first = stream.asks[0]
    return max(load_s[first.model], first.gap_s) - first.gap_s + sum(ask.gap_s + ask.hold_s for ask in stream.asks)


def _is_exclusive(workload: Workload) -> bool:
    smallest = sorted(model.size_mib for model in workload.asked_for)[:2]
    return len(smallest) < 2 or sum(smallest) > workload.total_mib


def _gap_that_counts_s(workload: Workload) -> float:
    longest_s = _longest_gap_s(workload, first_too=False)
    cheapest_load_s = min(model.load_s for model in workload.asked_for)
    counts = all(_is_over_one(stream) for stream in workload.streams) and longest_s <= cheapest_load_s
    return longest_s if counts else 0.0


def _longest_gap_s(workload: Workload, *, first_too: bool) -> float:
    return max((ask.gap_s for stream in workload.streams for ask in stream.asks[not first_too :]), default=0.0)


def _resident_times(workload: Workload, *, with_gaps: bool) -> dict[str, float]:
    together: dict[str, float] = defaultdict(float)
    longest: dict[str, float] = defaultdict(float)
    for stream in workload.streams:
        own: dict[str, float] = defaultdict(float)
        for number, ask in enumerate(stream.asks):
            together[ask.model] += ask.hold_s
            own[ask.model] += ask.hold_s + (ask.gap_s if with_gaps and number else 0.0)
        for model, seconds in own.items():
            longest[model] = max(longest[model], seconds)
    return {model: max(together[model] / workload.slots, longest[model]) for model in together}


def _is_over_one(stream: Stream) -> bool:
    return len({ask.model for ask in stream.asks}) == 1


def _loads_of_loops(workload: Workload, resident_s: dict[str, float], limit_s: float, gap_s: float) -> int:
    if not all(len(stream.asks) > 1 and _is_over_one(stream) for stream in workload.streams):
        return 0
    load_s = min(model.load_s for model in workload.asked_for)
    away_s = limit_s + _longest_gap_s(workload, first_too=True) - load_s
    if away_s <= 0:
        return 0
    total, finished_s = 0, 0.0
    for seconds in sorted(resident_s.values()):
        loads = max(1, ceil(finished_s / away_s))
        total += loads
        finished_s += seconds - (loads - 1) * gap_s + loads * load_s
    return total


def _loads_of_bursts(workload: Workload, limit_s: float) -> int:
    if workload.is_closed:
        return 0
    arrivals = sorted((stream.asks[0].gap_s, stream.asks[0].model) for stream in workload.streams)
    loads, last_at, window, before = 0, arrivals[0][0], set[str](), set[str]()
    for at, model in arrivals:
        if at - last_at > limit_s:
            loads += len(window) - bool(window & before)
            window, before = set(), window
        window.add(model)
        last_at = at
    return loads + len(window) - bool(window & before)
