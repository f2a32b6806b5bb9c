"""The proxy is restarted in front of an Ollama that goes on: what was learned is not learned again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_swap_proxy.simulator import SimGPU, SimulatedOllama
from tests.end_to_end.stage import EMBEDDER, SCALE, A, Stage, before, client_session

Lines = list[dict[str, Any]]

HOW = {"companions": "embedders", "settle_max_s": 0.2}
"""Trials wait for 0.2 s here; in earnest for 6 s."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def _simulated(vram_mib: int, **more: Any) -> SimulatedOllama:
    return SimulatedOllama((A, EMBEDDER), SimGPU(vram_mib, lag_s=0.0), num_parallel=4, time_scale=SCALE, **more)


async def _alternate(stage: Stage, times: int) -> None:
    for _ in range(times):
        await stage.served("a")
        answer = await stage.post("/api/embed", {"model": "embedder", "input": "x"})
        assert answer.status == 200, answer.body


def _trials(lines: Lines) -> int:
    return sum(1 for line in lines if line["event"] == "swap_decided" and line["trial"])


def _sections(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["upstreams"])


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _change(path: Path, old: str, new: str) -> None:
    _put(path, path.read_text(encoding="utf-8").replace(old, new))


def _learned(path: Path) -> dict[str, Any]:
    (section,) = _sections(path).values()
    return dict(section["learned"])


async def test_a_proven_pair_is_together_again_after_a_restart_without_a_second_trial(path: Path, lines: Lines) -> None:
    async with _simulated(8000) as ollama, client_session() as session:
        async with before(ollama, session, state_file=str(path), **HOW) as stage:
            await _alternate(stage, 2)
        assert _trials(lines) == 1
        async with before(ollama, session, state_file=str(path), **HOW) as stage:
            await _alternate(stage, 3)
            assert stage.resident == ["a", "embedder"]
            loads = len(stage.loads)
            await _alternate(stage, 3)
            assert len(stage.loads) == loads
        assert _trials(lines) == 1
        assert [trial["times"] for trial in _learned(path)["proofs"]["trials"]] == [1]


async def test_without_a_state_file_the_pair_is_tried_again(lines: Lines) -> None:
    """So that the test above can fail."""
    async with _simulated(8000) as ollama, client_session() as session:
        for _ in range(2):
            async with before(ollama, session, **HOW) as stage:
                await _alternate(stage, 3)
    assert _trials(lines) == 2


async def test_a_pair_that_does_not_fit_is_never_tried_again_restarts_included(path: Path, lines: Lines) -> None:
    async with _simulated(4600) as ollama, client_session() as session:
        async with before(ollama, session, state_file=str(path), **HOW) as stage:
            await _alternate(stage, 4)
        tried = _trials(lines)
        assert 1 <= tried <= 3
        for _ in range(3):
            async with before(ollama, session, state_file=str(path), **HOW) as stage:
                await _alternate(stage, 3)
        assert _trials(lines) == tried


async def test_another_version_of_ollama_is_tried_anew(path: Path, lines: Lines) -> None:
    async with _simulated(8000) as ollama, client_session() as session:
        async with before(ollama, session, state_file=str(path), **HOW) as stage:
            await _alternate(stage, 2)
        _change(path, _learned(path)["version"], "0.1.0")
        async with before(ollama, session, state_file=str(path), **HOW) as stage:
            await _alternate(stage, 3)
    assert [line["reason"] for line in lines if line["event"] == "proofs_forgotten"]
    assert _trials(lines) == 2


async def test_a_damaged_file_holds_up_nobody(path: Path, lines: Lines) -> None:
    _put(path, "{")
    async with (
        _simulated(8000) as ollama,
        client_session() as session,
        before(ollama, session, state_file=str(path), **HOW) as stage,
    ):
        await _alternate(stage, 2)
    assert [line["log_level"] for line in lines if line["event"] == "state_not_read"] == ["warning"]
    assert _learned(path)["proofs"]["proven"]


async def test_a_second_proxy_on_the_same_file_does_no_harm(path: Path) -> None:
    async with _simulated(8000) as one, _simulated(8000) as other, client_session() as session:
        async with (
            before(one, session, state_file=str(path), **HOW) as first,
            before(other, session, state_file=str(path), **HOW) as second,
        ):
            await _alternate(first, 2)
            await second.served("a")
        sections = _sections(path)
        assert sections[one.url]["learned"]["proofs"]["proven"]
        assert not sections[other.url]["learned"]["proofs"]["proven"]
