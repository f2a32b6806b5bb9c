"""The schedule benchmark can be trusted: same seed, same figures; a bound that bounds; rivals true to their rules."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from ollama_swap_proxy import journal
from ollama_swap_proxy.core.endpoints import Dialect

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def _bench_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark finds its modules beside it, as any script does."""
    monkeypatch.syspath_prepend(BENCH)


def of_bench(name: str) -> Any:
    return importlib.import_module(name)


def loads_by_contestant(workload: Any) -> dict[str, int]:
    return {score.contestant: score.loads for score in of_bench("play").measure(workload).scores}


def test_the_same_seed_gives_the_same_scores() -> None:
    def play() -> Any:
        return [of_bench("play").measure(workload) for workload in of_bench("workloads").chosen(3, 1, long=False)[:3]]

    assert play() == play()


def test_rivals_load_as_their_rules_say() -> None:
    loads = loads_by_contestant(of_bench("workloads").abaacabc())

    assert loads["first come first served"] == 7, "A B AA C A B C"
    assert loads["ready model first"] == loads["longest queue first"] == 3
    assert loads["this scheduler"] >= 3


def test_the_longest_queue_goes_before_an_older_one() -> None:
    workloads, play = of_bench("workloads"), of_bench("play")
    streams = tuple(workloads.Stream(f"c{n}", (workloads.Ask(model, 1.0),)) for n, model in enumerate("ABCC"))
    models = tuple(of_bench("virtual_ollama").Model(name, 1.0) for name in "ABC")
    workload = workloads.Workload("x", workloads.BURST, models, streams)

    def order(rival: str) -> str:
        playing = play.Play(workload, play.CONTESTANTS[rival])
        playing.run()
        return "".join(model for _, model in playing.ollama.loads)

    assert order("longest queue first") == "ACB"
    assert order("ready model first") == "ABC"


def test_rivals_keep_the_wait_limit() -> None:
    workloads, play = of_bench("workloads"), of_bench("play")
    endless = tuple(workloads.Stream(f"a{n}", (workloads.Ask("A", 1.0 + 0.3 * n),) * 60) for n in range(2))
    models = tuple(of_bench("virtual_ollama").Model(name, 2.0) for name in "AB")
    streams = (*endless, workloads.Stream("b", (workloads.Ask("B", 1.0, 2.5),)))
    workload = workloads.Workload("x", "endless", models, streams, max_wait_s={"normal": 30.0})

    score = play.score(workload, "ready model first")

    assert 28.0 < score.waits["normal"].max_s < 32.0


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_below_the_bound_whose_waits_are_within_the_limit(seed: int) -> None:
    workloads, play = of_bench("workloads"), of_bench("play")
    for workload in (workloads.some_burst(seed), workloads.some_loops(seed)):
        result = play.measure(workload)
        for score in result.scores:
            if score.waits["normal"].margin_s >= 0:
                assert score.loads >= result.bound.loads
                assert score.makespan_s >= result.bound.makespan_s


def test_loops_that_outlast_the_wait_limit_need_more_loads_than_models() -> None:
    workloads, bound = of_bench("workloads"), of_bench("offline_bound").bound
    streams = tuple(workloads.Stream(name, (workloads.Ask(name, 1.0),) * 300) for name in "AB")
    models = tuple(of_bench("virtual_ollama").Model(name, 10.0) for name in "AB")
    workload = workloads.Workload("x", workloads.CLOSED, models, streams, max_wait_s={"normal": 120.0})

    # The second of them to finish is away for 310 s, at most 120 s each time, of which its own load takes 10 s.
    assert bound(workload).loads == 1 + 3
    assert bound(workload, overrun_s=200.0).loads == 2


def test_bursts_far_apart_are_bounded_each_by_its_own() -> None:
    workloads, bound = of_bench("workloads"), of_bench("offline_bound").bound
    asks = [("A", 0.0), ("B", 0.0), ("B", 500.0), ("A", 500.0)]
    streams = tuple(workloads.Stream("c", (workloads.Ask(model, 1.0, at),)) for model, at in asks)
    models = tuple(of_bench("virtual_ollama").Model(name, 1.0) for name in "AB")

    assert bound(workloads.Workload("x", workloads.BURST, models, streams)).loads == 3


def test_what_is_let_through_without_its_model_is_a_defect() -> None:
    virtual = of_bench("virtual_ollama")
    ollama = virtual.VirtualOllama(virtual.Clock(), (virtual.Model("A", 1.0),), 1, 8000, 0.005)

    with pytest.raises(RuntimeError, match="let through"):
        ollama.start(virtual.Request(1, "c", "normal", "A", 1.0, 0.0))


def test_a_goal_that_is_missed_is_told() -> None:
    goals, play, workloads = of_bench("goals"), of_bench("play"), of_bench("workloads")
    result = play.measure(workloads.abaacabc())
    wasteful = play.Result(result.workload, result.bound, (_renamed(play, result.scores[1]), *result.scores[1:]))

    verdicts = {goal.goal: goal.verdict for goal in goals.judge([wasteful])}

    assert verdicts["loads"] == verdicts["loads, to the offline bound"] == "MISSED"
    assert "MISSED   loads  " in goals.summary(goals.judge([wasteful]))


def _renamed(play: Any, score: Any) -> Any:
    return play.Score(
        play.OURS, score.makespan_s, score.loads, score.swapping, score.waits, score.refused, score.newcomer_after
    )


def test_a_log_of_the_proxy_is_a_workload(tmp_path: Path) -> None:
    told = journal.Journey(1, "POST", "/api/chat", Dialect.NATIVE, "10.0.0.7", began_at=100.0)
    told.model, told.gated, told.waited_s, told.ended_at = "a:latest", True, 2.0, 105.0
    request = {"event": "request", **journal._line(told)}
    loaded = {"event": "swap_ended", "outcome": "loaded", "target": "a:latest", "load_s": 1.5}
    lines = [
        {"timestamp": "2026-01-01T00:00:05.000000Z", **request},
        {"timestamp": "2026-01-01T00:00:05.000000Z", **loaded},
        {"timestamp": "2026-01-01T00:00:09.000000Z", **request},
    ]
    log = tmp_path / "proxy.log"
    log.write_text("plain words\n" + "\n".join(json.dumps(line) for line in lines), encoding="utf-8")

    workload = of_bench("workloads").recorded(log)

    assert [stream.asks[0].gap_s for stream in workload.streams] == [0.0, 4.0]
    assert [stream.asks[0].hold_s for stream in workload.streams] == [3.0, 3.0]
    assert [(model.name, model.load_s) for model in workload.models] == [("a:latest", 1.5)]


@pytest.mark.parametrize("name", ["Zipf", "four agents", "batch and interactive"])
def test_the_waits_that_our_scheduler_foretells_are_right_within_a_quarter(name: str) -> None:
    """The median error of the newest forecasts, in the workloads in which models change hands often."""
    workloads, play = of_bench("workloads"), of_bench("play")
    workload = next(each for each in workloads.chosen(1, 0, long=False) if name in each.name)
    playing = play.Play(workload, play.CONTESTANTS[play.OURS])
    playing.run()

    assert len(playing.ollama.loads) > 5 * len(workload.models)
    assert playing._contestant._scheduler.snapshot(playing.clock.now).forecast_error <= 0.25
