"""Whose turn it is, measured: our scheduler against three simpler rules and an offline lower bound, in virtual time.

    python bench/schedule.py [--quick] [--seed 1] [--variations 8] [--only NAME] [--recorded LOG] [--json] [--check]

The scheduler is the real one, driven through ``handle(event, now)`` (`contestants`); Ollama is a card in virtual time
(`virtual_ollama`), so an hour takes seconds and the same seed gives the same figures. Rivals see the same clients on
the same card under the same wait limits: *first come first served*; *longest queue first*; *ready model first*
(llama-swap's rule: what is resident is served, and the card changes hands when nobody waits for it). What the *offline
bound* bounds, and why: `offline_bound`.

For each workload: makespan (from the first request to the last answer) and its ratio to the best rival's and to the
bound; loads and their ratio to the bound; the share of the time in which something was being loaded or unloaded; waits
by class until an answer begins to be generated, and how near to its class's maximum the nearest came (negative: past
it). At the end, the goals. ``--check`` makes the exit code 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import goals
from play import CONTESTANTS, Result, measure
from workloads import chosen, recorded

_COLUMNS = (
    f"  {'':<24}{'makespan s':>11}{'/rival':>8}{'/bound':>8}{'loads':>7}{'/bound':>8}{'swapping':>9}"
    f"{'p50 s':>9}{'p95 s':>8}{'max s':>8}{'margin s':>9}"
)


def table(result: Result) -> str:
    """Return one workload's table."""
    workload, least = result.workload, result.bound
    best_s = min(score.makespan_s for score in result.scores[1:])
    limits = ", ".join(f"{rank} {limit_s:.0f} s" for rank, limit_s in workload.max_wait_s.items())
    size = f"{workload.requests} requests, {len(workload.asked_for)} models, {workload.slots} slots"
    lines = [f"{workload.name}  ({workload.shape}; {size}; longest wait allowed: {limits})", _COLUMNS]
    for each in result.scores:
        head = (
            f"  {each.contestant:<24}{each.makespan_s:>11.1f}{each.makespan_s / best_s:>8.2f}"
            f"{each.makespan_s / least.makespan_s:>8.2f}{each.loads:>7}{each.loads / least.loads:>8.2f}"
            f"{each.swapping:>9.2f}"
        )
        for rank, waits in each.waits.items():
            row = f"{waits.p50_s:>9.2f}{waits.p95_s:>8.2f}{waits.max_s:>8.2f}{waits.margin_s:>9.2f}"
            lines.append(f"{head}{row}{f'  {rank}' if len(each.waits) > 1 else ''}")
            head = " " * len(head)
        if each.refused:
            lines.append(f"  {'':<24}{each.refused} refused")
    lines.append(f"  {'offline bound':<24}{least.makespan_s:>11.1f}{'':>16}{least.loads:>7}")
    return "\n".join(lines)


def as_json(results: list[Result], reached: list[goals.Goal], seed: int) -> str:
    """Return everything as one JSON object."""
    workloads = [
        {
            "name": result.workload.name,
            "shape": result.workload.shape,
            "requests": result.workload.requests,
            "bound": asdict(result.bound),
            "scores": [asdict(score) for score in result.scores],
        }
        for result in results
    ]
    return json.dumps({"seed": seed, "workloads": workloads, "goals": [asdict(goal) for goal in reached]}, indent=1)


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two generated workloads of each kind, shorter long ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variations", type=int, default=8, help="generated workloads of each kind")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument(
        "--recorded", type=Path, action="append", default=[], help="a JSON log of the proxy; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    options = parser.parse_args()
    began = time.perf_counter()
    variations = 2 if options.quick else options.variations
    workloads = chosen(options.seed, variations, long=not options.quick) + [recorded(log) for log in options.recorded]
    results = []
    for workload in workloads:
        if options.only in workload.name:
            results.append(measure(workload))
            if not options.json:
                print(table(results[-1]), end="\n\n", flush=True)
    reached = goals.judge(results)
    if options.json:
        print(as_json(results, reached, options.seed))
    else:
        print(goals.summary(reached))
        total = sum(result.workload.requests for result in results) * len(CONTESTANTS)
        took_s = time.perf_counter() - began
        print(f"{total} requests played in {took_s:.1f} s, seed {options.seed}")
    return 1 if options.check and any(goal.verdict == goals.MISSED for goal in reached) else 0


if __name__ == "__main__":
    sys.exit(main())
