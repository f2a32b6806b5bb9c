"""The operator's mode and pause, set while clients are there."""

from __future__ import annotations

import json
from typing import Any

from tests.end_to_end.stage import Stage, eventually, generate, staged

JSON = {"Content-Type": "application/json"}


async def set_by(stage: Stage, route: str, body: dict[str, Any] | None = None) -> None:
    async with stage.session.post(stage.service.admin_url / "v1" / route, json=body or {}) as answer:
        assert answer.status == 200, await answer.text()


async def test_a_paused_line_keeps_its_place_and_is_served_after_the_resume(stage):
    await stage.served("a")
    await set_by(stage, "pause")
    asks = [stage.begin(model) for model in "aba"]
    await stage.wait_for_line(3)
    assert stage.loads == ["a"]
    await set_by(stage, "resume")
    for ask in asks:
        assert (await ask).status == 200
    assert stage.loads == ["a", "b"]


async def test_in_manual_mode_a_request_waits_until_the_operator_has_loaded_its_model():
    async with staged(mode="manual") as stage:
        waits = stage.begin("a")
        await stage.wait_for_line(1)
        assert stage.loads == []
        assert (await stage.ask("a", direct=True)).status == 200
        assert (await waits).status == 200
        assert stage.loads == ["a"]


async def test_in_manual_mode_it_is_refused_at_once_where_that_is_set():
    async with staged(mode="manual", manual_refuses=True) as stage:
        answer = await stage.ask("a")
        assert (answer.status, answer.code) == (503, "not_resident")
        assert "Retry-After" in answer.headers
        assert stage.loads == []


async def test_in_bypass_mode_whoever_waits_is_let_go_and_ollama_decides(stage):
    async with stage.streaming("a") as running:
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        await set_by(stage, "mode", {"mode": "bypass"})
        await eventually(lambda: stage.waiting == 0)
        assert {lease.name for lease in stage.snapshot.leases} == {"a:latest", "b:latest"}
        assert await running.content.readline()
    assert (await waits).status == 200
    assert stage.unloads() == 0


async def test_back_in_auto_mode_what_was_relayed_is_drained_before_its_model_goes():
    async with staged(mode="bypass", turn_limit_s=0.1) as stage:
        async with stage.streaming("a") as running:
            await set_by(stage, "mode", {"mode": "auto"})
            waits = stage.begin("b")
            await eventually(lambda: stage.phase == "draining")
            assert await running.content.readline()
            assert stage.resident == ["a"]
        assert (await waits).status == 200
        assert stage.evictions_by_ollama == []


async def test_bypass_mode_relays_what_we_could_not_read_or_keep():
    async with staged(mode="bypass", body_limit_bytes=1000) as stage:
        large = json.dumps(generate("a", stream=False, prompt="x" * 2000)).encode()
        assert (await stage.post("/api/generate", large, headers=JSON)).status == 200
        unreadable = json.dumps({"model": "y" * 9000}).encode()[:900]
        answer = await stage.post("/api/generate", unreadable, headers=JSON)
        assert (answer.status, answer.code) == (400, None)
        assert (await stage.ask("nobody-has-it")).code is None
        assert stage.snapshot.leases == ()
    async with staged() as stage:
        unjudged = json.dumps(generate(" " * 20_000 + "b", stream=False)).encode()
        assert (await stage.post("/api/generate", unjudged, headers=JSON)).code == "model_unreadable"
        await set_by(stage, "mode", {"mode": "bypass"})
        assert (await stage.post("/api/generate", unjudged, headers=JSON)).code is None
