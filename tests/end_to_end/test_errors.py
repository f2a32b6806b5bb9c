"""Errors of ours: in the caller's dialect, with a stable code, marked as ours, with a Retry-After that clients obey."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ollama_swap_proxy.simulator import SimModel
from ollama_swap_proxy.simulator.models import LoadFailure
from tests.end_to_end.stage import MARK, SCALE, Answer, Stage, eventually, staged

CHAT = [{"role": "user", "content": "x"}]
PATHS = ["/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


def body_for(path: str, model: str, **more: Any) -> dict[str, Any]:
    """The least that this path serves; never streamed."""
    said = {
        "/api/generate": {"prompt": "x", "options": {"num_predict": 2}},
        "/api/chat": {"messages": CHAT, "options": {"num_predict": 2}},
        "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
        "/v1/completions": {"prompt": "x", "max_tokens": 2},
        "/v1/responses": {"input": "x", "max_output_tokens": 2},
        "/v1/messages": {"messages": CHAT, "max_tokens": 2},
    }
    return {"model": model, "stream": False, **said[path], **more}


async def ask_all(stage: Stage, model: str) -> dict[str, Answer]:
    """The same of every dialect, at once."""
    answers = await asyncio.gather(*(stage.post(path, body_for(path, model)) for path in PATHS))
    return dict(zip(PATHS, answers, strict=True))


def check(path: str, answer: Answer, status: int, code: str, *, retry: bool = True) -> str:
    """See that this is an error of ours as documented; give its text."""
    assert (answer.status, answer.headers[MARK]) == (status, code)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert ("Retry-After" in answer.headers) == retry
    if retry:
        assert 1 <= int(answer.headers["Retry-After"]) <= 59
    shape = answer.json
    if path == "/v1/messages":
        assert set(shape) == {"type", "error", "request_id"}
        assert shape["type"] == "error"
        assert set(shape["error"]) == {"type", "message"}
        text = shape["error"]["message"]
    elif path.startswith("/v1/"):
        assert set(shape["error"]) == {"message", "type", "param", "code"}
        assert shape["error"]["code"] == code
        text = shape["error"]["message"]
    else:
        assert set(shape) == {"error"}
        text = shape["error"]
    assert text
    assert "refused" not in text.lower()
    assert "could not connect" not in text.lower()
    return text


def check_all(answers: dict[str, Answer], status: int, code: str, said: str, *, retry: bool = True) -> None:
    for path, answer in answers.items():
        assert said in check(path, answer, status, code, retry=retry)


async def test_model_unreadable():
    """Nobody's request: a model behind more blanks than we keep. Passed on, Ollama would load it when it pleases."""
    name = " " * 20_000 + "b"
    async with staged() as stage:
        await stage.served("a")
        check_all(await ask_all(stage, name), 400, "model_unreadable", "cannot tell which model", retry=False)
        assert stage.loads == ["a"]


async def test_upstream_down():
    async with staged(away=True) as stage:
        check_all(await ask_all(stage, "a"), 502, "upstream_down", "Ollama does not answer")


async def test_upstream_down_for_those_who_wait(monkeypatch):
    """Nobody waits for an Ollama that stays away longer than a restart takes."""
    monkeypatch.setattr("ollama_swap_proxy.core.intake.UPSTREAM_GRACE_S", 0.2)
    async with staged() as stage, stage.streaming("a"):
        asks = asyncio.create_task(ask_all(stage, "b"))
        await stage.wait_for_line(len(PATHS))
        await stage.ollama.stop()
        check_all(await asks, 502, "upstream_down", "Ollama does not answer")
        await stage.ollama.start()


async def test_upstream_down_on_passthrough(stage):
    await stage.ollama.stop()
    for path in ("/api/tags", "/v1/models", "/nothing"):
        check(path, await stage.request("GET", path), 502, "upstream_down")
    await stage.ollama.start()


async def test_load_failed_tells_all_who_wait_ollamas_own_words(stage):
    stage.ollama.faults.fail_load = LoadFailure("llama runner process has terminated: no luck", model="b", times=None)
    check_all(await ask_all(stage, "b"), 500, "load_failed", "llama runner process has terminated: no luck")
    assert stage.loads == ["b"]


async def test_load_failed_begins_a_cool_down_in_which_nobody_is_thrown_out(stage):
    await stage.served("a")
    stage.ollama.faults.fail_load = LoadFailure("no luck", model="b", times=None)
    check("/api/generate", await stage.ask("b"), 500, "load_failed")
    loads = stage.loads
    check_all(await ask_all(stage, "b"), 500, "load_failed", "no luck")
    assert stage.loads == loads
    await stage.served("a")
    check("/api/generate", await stage.ask("b"), 500, "load_failed")
    assert stage.resident == ["a"]


async def test_another_variant_of_a_model_that_failed_to_load_is_not_held_up(stage):
    stage.ollama.faults.fail_load = LoadFailure("no luck with that context", model="b", times=1)
    check("/api/generate", await stage.ask("b", options={"num_ctx": 1 << 20}), 500, "load_failed")
    await stage.served("b")
    check("/api/generate", await stage.ask("b", options={"num_ctx": 1 << 20}), 500, "load_failed")
    await stage.served("b")


async def test_a_cool_down_is_over_in_time_and_by_a_new_model():
    async with staged(cool_down_s=0.2) as stage:
        stage.ollama.faults.fail_load = LoadFailure("no luck", model="b", times=1)
        assert (await stage.ask("b")).code == "load_failed"
        assert (await stage.ask("b")).code == "load_failed"
        await eventually(lambda: all(seen.remaining_s <= 0 for seen in stage.snapshot.cool_downs))
        await stage.served("b")
    async with staged(cool_down_s=60) as stage:
        stage.ollama.faults.fail_load = LoadFailure("no luck", model="b", times=1)
        assert (await stage.ask("b")).code == "load_failed"
        again = {"model": "b", "from": "b", "system": "Be lucky.", "stream": False}
        assert (await stage.post("/api/create", again)).status == 200
        await stage.served("b")


async def test_a_full_queue_of_ollama_is_no_failed_load():
    async with staged() as stage:
        stage.ollama.faults.queue_full = True
        waits = stage.begin("a")
        await eventually(lambda: stage.ollama.ledger.count("queue_full"))
        stage.ollama.faults.queue_full = False
        assert (await waits).status == 200


async def test_load_timeout():
    async with staged(load_timeout_s=0.2) as stage:
        stage.ollama.faults.hang_load = "b"
        check_all(await ask_all(stage, "b"), 504, "load_timeout", "did not finish loading within 0.2 s")
        await stage.served("a")


async def test_unload_not_confirmed():
    async with staged(unload_timeout_s=0.2) as stage:
        await stage.served("a")
        stage.ollama.faults.lose_unloads = 1.0
        check_all(await ask_all(stage, "b"), 504, "unload_not_confirmed", "a:latest")
        await stage.served("a")
        assert stage.loads == ["a"]


async def test_after_an_unload_that_was_not_confirmed_the_victim_is_left_alone_and_then_tried_again():
    async with staged(unload_timeout_s=0.2, cool_down_s=0.4) as stage:
        await stage.served("a")
        stage.ollama.faults.lose_unloads = 1.0
        assert (await stage.ask("b")).code == "unload_not_confirmed"
        asked = stage.unloads()
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        await stage.served("a")
        assert stage.unloads() == asked
        stage.ollama.faults.lose_unloads = 0.0
        assert (await waits).status == 200
        assert stage.overlaps == []


async def test_line_full():
    async with staged(line_limit=2) as stage, stage.streaming("a"):
        stage.begin("b")
        stage.begin("b")
        await stage.wait_for_line(2)
        check_all(await ask_all(stage, "c"), 503, "line_full", "2 requests wait already")
        assert stage.waiting == 2


async def test_waited_too_long():
    async with staged(give_up_after_s=0.2) as stage, stage.streaming("a"):
        check_all(await ask_all(stage, "b"), 503, "waited_too_long", "b:latest was waited for 0.2 s")
        assert stage.loads == ["a"]


async def test_drain_stuck_names_whom_it_waited_for():
    """A's answer moves no more: who waits for B is told, and A's own go on."""
    async with staged(stuck_after_s=0.4, turn_limit_s=0.05) as stage, stage.streaming("a"):
        stage.ollama.faults.hang_in_stream = 0
        await asyncio.sleep(0.02)
        check_all(await ask_all(stage, "b"), 503, "drain_stuck", "behind a:latest")
        stage.ollama.faults.hang_in_stream = None
        await stage.served("a")
        assert stage.loads == ["a"]


async def test_nothing_moved():
    """A's own line waits behind an answer that moves no more."""
    async with staged(stuck_after_s=0.4, parallel=1) as stage, stage.streaming("a"):
        stage.ollama.faults.hang_in_stream = 0
        check_all(await ask_all(stage, "a"), 503, "nothing_moved", "nothing moved for 0.4 s")
        stage.ollama.faults.hang_in_stream = None


async def test_nobody_is_refused_while_things_move():
    """Far longer than `stuck_after_s`, but a token comes now and then."""
    slow = SimModel("slow", 4500, load_s=1.5, token_ms=100 / SCALE)
    async with staged((slow,), stuck_after_s=0.3 + 1.0, parallel=1) as stage:
        async with stage.streaming("slow", 20) as stream:
            waits = stage.begin("slow", 1)
            await stream.read()
        assert (await waits).status == 200


async def test_stopping():
    async with staged(shutdown_grace_s=2) as stage:
        async with stage.streaming("a"):
            asks = asyncio.create_task(ask_all(stage, "b"))
            await stage.wait_for_line(len(PATHS))
            stopping = asyncio.create_task(stage.service.stop())
            check_all(await asks, 503, "stopping", "the proxy is being stopped")
        await stopping


async def test_body_too_large():
    async with staged(body_limit_bytes=10) as stage:
        check_all(await ask_all(stage, "a"), 413, "body_too_large", "larger than the 10 bytes", retry=False)


async def test_a_host_that_is_not_ours_is_refused_as_ollama_refuses_it(stage):
    ours = await stage.request("GET", "/api/tags", headers={"Host": "evil.test"})
    direct = await stage.request("GET", "/api/tags", headers={"Host": "evil.test"}, direct=True)
    assert (ours.status, ours.body) == (direct.status, direct.body) == (403, b"")


@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions", "/v1/messages"])
async def test_an_error_of_ollamas_is_not_marked_as_ours(stage, path):
    answer = await stage.post(path, body_for(path, "nobody"))
    assert answer.status == 404
    assert answer.code is None
    assert "Retry-After" not in answer.headers


async def test_a_defect_of_ours_is_told_in_the_callers_dialect(monkeypatch: pytest.MonkeyPatch, lines):
    def broken(*_: object) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr("ollama_swap_proxy.app._why_no_lease", broken)
    async with staged() as stage:
        for path, answer in (await ask_all(stage, "alpha")).items():
            text = check(path, answer, 500, "internal_error", retry=False)
            assert "a defect" not in text
    assert [line for line in lines if line["event"] == "handler_failed"]
    lines[:] = [line for line in lines if line["event"] != "handler_failed"]


async def test_a_name_that_a_web_page_could_rebind_is_turned_away_as_ollama_does():
    async with staged() as stage:
        answer = await stage.post("/api/generate", body_for("/api/generate", "alpha"), headers={"Host": "evil.test"})
        assert (answer.status, answer.body, answer.headers[MARK]) == (403, b"", "host_not_allowed")
        assert stage.ollama.ledger.loads() == []
