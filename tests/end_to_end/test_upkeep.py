"""What the operator wishes for models that nobody asks for, on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.end_to_end.stage import Stage, eventually, staged


async def test_an_idle_model_is_unloaded_after_its_time_to_live_and_loaded_anew_for_who_asks():
    async with staged(ttl_s=0.3) as stage:
        await stage.served("a")
        async with stage.streaming("a"):
            await asyncio.sleep(0.35)
            assert stage.resident == ["a"]
        assert await eventually(lambda: stage.resident == []) > 0.15
        assert stage.unloads() == 1
        await eventually(lambda: stage.phase == "")
        await stage.served("a")
        assert stage.loads == ["a", "a"]


async def test_a_models_own_time_to_live_goes_before_that_of_all():
    async with staged(ttl_s=0.1, models={"a": {"ttl_s": 0}}) as stage:
        await stage.served("b")
        await eventually(lambda: stage.resident == [])
        await stage.served("a")
        await asyncio.sleep(0.4)
        assert stage.resident == ["a"]


PINNED = {"a": {"pinned": True}}


async def test_a_pinned_model_is_loaded_at_the_start_and_after_a_restart_of_ollama():
    async with staged(preload_pinned=True, models=PINNED) as stage:
        await eventually(lambda: stage.loads == ["a"])
        await eventually(lambda: stage.snapshot.preloads == ())
        await stage.served("a")
        assert stage.loads == ["a"]
        await stage.ollama.restart()
        await eventually(lambda: stage.loads == ["a", "a"])
        await eventually(lambda: stage.phase == "")
        assert stage.resident == ["a"]


async def test_it_is_not_loaded_unasked_in_manual_mode_or_without_the_setting():
    for settings in ({"mode": "manual", "preload_pinned": True}, {}):
        async with staged(models=PINNED, **settings) as stage:
            await asyncio.sleep(0.3)
            assert stage.loads == []


async def test_a_pinned_model_that_ollama_does_not_have_is_told_and_holds_nobody_up(lines):
    async with staged(preload_pinned=True, models={"nobody": {"pinned": True}}) as stage:
        await eventually(lambda: any(line["event"] == "wish_not_granted" for line in lines))
        await stage.served("a")
        assert stage.snapshot.preloads == ("nobody:latest",)


async def test_the_card_goes_back_to_its_home_model_when_nobody_needs_another():
    async with staged(home="b", home_after_s=0.4) as stage:
        await eventually(lambda: stage.loads == ["b"])
        await eventually(lambda: stage.phase == "")
        for _ in range(3):
            await stage.served("a")
            await asyncio.sleep(0.1)
        assert stage.loads == ["b", "a"]
        await eventually(lambda: stage.loads == ["b", "a", "b"])
        await eventually(lambda: stage.phase == "")
        assert stage.resident == ["b"]
        assert stage.overlaps == []
        await stage.served("a")


async def test_the_home_model_is_loaded_with_the_context_that_its_requests_get():
    async with staged(home="b", home_after_s=0.0, models={"b": {"min_num_ctx": 16384}}) as stage:
        await eventually(lambda: stage.loads == ["b"])
        await eventually(lambda: stage.phase == "")
        await stage.served("b")
        await stage.served("b", options={"num_ctx": 2048})
        assert stage.loads == ["b"]


def _lifetimes(stage: Stage) -> list[float]:
    """How long each runner is kept once it is idle, in seconds; what Ollama itself has on it."""
    return [runner.session_s for runner in stage.ollama.world.table.values()]


async def test_clients_may_not_override_a_keep_alive_and_nothing_is_loaded_by_setting_it():
    async with staged(keep_alive=77, models={"b": {"keep_alive": -1}}) as stage:
        await stage.served("a")
        await eventually(lambda: _lifetimes(stage) == [77])
        for own in (5, "1h", -1):
            await stage.served("a", keep_alive=own)
            await eventually(lambda: _lifetimes(stage) == [77])
        await stage.served("b", keep_alive=5)
        await eventually(lambda: _lifetimes(stage) == [float("inf")])
        await stage.served("b", options={"num_ctx": 8192}, keep_alive=5)
        await eventually(lambda: _lifetimes(stage) == [float("inf")])
        await asyncio.sleep(0.2)
        assert stage.loads == ["a", "b", "b"]
        assert stage.evictions_by_ollama == []


@pytest.mark.parametrize(("tokens", "stays"), [(600, True), (1, False)])
async def test_a_keep_alive_of_0_is_overruled_where_its_request_runs_for_long_enough(tokens, stays):
    async with staged(keep_alive="30m") as stage:
        await stage.served("a")
        await eventually(lambda: _lifetimes(stage) == [1800])
        await stage.served("a", tokens, keep_alive=0)
        await asyncio.sleep(0.3)
        assert (stage.resident == ["a"]) is stays
        assert stage.loads == ["a"]


async def test_without_a_setting_what_a_client_sends_counts():
    async with staged() as stage:
        await stage.served("a", keep_alive=5)
        await asyncio.sleep(0.1)
        assert _lifetimes(stage) == [5]
