"""Clients that ask for different contexts of one model: the reloads, with the rule that merges them and without."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.stage import Stage, generate, staged

LEAST = {"a:latest": {"min_num_ctx": 16384}}


async def _in_turn(stage: Stage, **more: object) -> None:
    """A chat that names none, an agent that wants much, and one that names little, one after the other, twice."""
    for _ in range(2):
        for options in ({}, {"num_ctx": 16384}, {"num_ctx": 4096}):
            await stage.served("a", options=options, **more)


async def test_each_change_of_the_context_is_a_reload_unless_the_smaller_ones_are_raised(lines):
    async with staged() as stage:
        await _in_turn(stage)
        assert len(stage.loads) == 6
    lines.clear()
    async with staged(models=LEAST) as stage:
        await _in_turn(stage)
        assert stage.loads == ["a"]
        assert stage.evictions_by_ollama == []
        (resident,) = stage.snapshot.residents
        assert resident.options == "num_ctx=16384"
    told = [line["changed"] for line in lines if line["event"] == "request"]
    assert told == ["num_ctx=16384", "", "num_ctx=16384"] * 2


async def test_what_is_sent_is_as_long_as_it_says_and_another_name_stays_as_it_was(lines):
    async with staged(models=LEAST) as stage:
        for chunked in (False, True):
            body = json.dumps(generate("a", 3, stream=False, options={"num_ctx": 512})).encode()

            async def pieces(body: bytes = body):
                yield body

            answer = await stage.request("POST", "/api/generate", data=pieces() if chunked else body)
            assert answer.json["done"] is True
        await stage.served("b", options={"num_ctx": 512})
        assert stage.loads == ["a", "b"]
    sizes = [line["request_bytes"] - len(body) for line in lines if line["event"] == "request"][:2]
    assert sizes == [2, 2]
    assert [line["changed"] for line in lines if line["event"] == "request"][2] == ""


@pytest.mark.parametrize("mode", ["auto", "bypass"])
async def test_a_body_in_a_file_and_everything_in_bypass_mode_stay_as_they_were_sent(mode, lines):
    memory = 8 * 1024**2 if mode == "bypass" else 10_000
    async with staged(models=LEAST, mode=mode, body_memory_bytes=memory) as stage:
        await stage.served("a", prompt="x" * 50_000, options={"num_ctx": 4096})
        (runner,) = stage.ollama.world.table.values()
        assert runner.wanted.options["num_ctx"] == 4096
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["changed"] == ""
