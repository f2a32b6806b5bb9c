"""The benchmark beside plain Ollama: where it says the seconds went, and what it finds missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from ollama_swap_proxy.simulator.ledger import Ledger


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    return importlib.import_module("beside")


def side_of(beside: Any, asked: list[tuple[float, float, float]], entries: list[tuple[float, str]]) -> Any:
    """One side with requests (sent, first byte, end), each an answer of 1 s, and the machine's records."""
    course = beside.Course()
    course.asked = [beside.Asked(beside.Ask("A", 1.0), *times) for times in asked]
    ledger = Ledger()
    for at, kind in entries:
        ledger.note(at, kind, "A", 1)
    return beside.Side(course, ledger)


def test_seconds_in_which_somebody_waits_and_nobody_is_served_go_to_the_step_of_that_moment(beside: Any) -> None:
    side = side_of(
        beside,
        [(0.0, 4.0, 6.0), (4.5, 7.5, 8.0)],
        [(1.0, "load_start"), (3.0, "load_done"), (4.0, "serve_start"), (6.0, "serve_end"), (7.0, "serve_start")],
    )
    side.course.steps = [(0.0, "linger"), (0.5, "load"), (3.25, "linger")]

    assert side.lost() == {"linger": 0.5 + 0.75 + 1.0, "load": 0.5 + 0.25, "loading": 2.0}
    assert side.slowed_s == (6.0 - 4.0) + (8.0 - 7.0) - 2.0
    assert (side.wall_s, side.loads, side.waits_s) == (8.0, 1, [4.0, 3.0])


def test_what_ollama_does_by_itself_has_no_steps(beside: Any) -> None:
    side = side_of(beside, [(0.0, 2.0, 3.0)], [(1.0, "load_start"), (2.0, "load_done"), (2.0, "serve_start")])

    assert side.lost() == {"Ollama's own": 1.0, "loading": 1.0}


def test_a_missed_aim_is_found(beside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    play = beside.plays(orders=1)[1]
    quick = side_of(beside, [(0.0, 2.0, 9.0)], [(1.0, "load_start"), (2.0, "load_done")])
    slow = side_of(beside, [(0.0, 2.0, 12.0)], [(1.0, "load_start"), (2.0, "load_done")])

    assert beside.tell(play, {beside.OURS: quick, beside.PLAIN: slow}) == []
    assert beside.tell(play, {beside.OURS: slow, beside.PLAIN: quick}) == ["wall time, s: 12.0 (aim 9.3)"]
    assert "MISSED   wall time, s: 12.0 (aim 9.3)" in capsys.readouterr().out


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("logs_as_before")
async def test_both_sides_are_asked_the_same_and_answer_it(beside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "MODELS", tuple(replace(model, load_s=0.02) for model in beside.MODELS))
    streams = (beside.Stream("one", (beside.Ask("A", 0.05), beside.Ask(beside.EMBEDDER, 0.01))),)
    workload = beside.Workload("small", "loops", beside.MODELS, streams)
    options = type("Options", (), {"real": False, "one_address": False})
    for with_us in (True, False):
        side = await beside.measure(beside.Play(workload), options, with_us=with_us)
        assert [asked.problem for asked in side.course.asked] == ["", ""]
        assert side.loads == 2
