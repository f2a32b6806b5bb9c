"""What the log tells of a request and of a swap, and what it must never tell."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
import structlog

from ollama_swap_proxy import logs
from ollama_swap_proxy.simulator import SimModel
from ollama_swap_proxy.simulator.models import LoadFailure
from tests.end_to_end.stage import eventually, generate, staged

FIELDS = {
    *("id", "method", "path", "dialect", "client", "class", "model", "status", "error", "passed", "changed"),
    *("waited_s", "swapped", "first_byte_s", "total_s", "request_bytes", "response_bytes", "event", "log_level"),
}


def requests(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "request" and line["log_level"] != "debug"]


async def test_each_gated_request_has_one_line(stage, lines):
    answer = await stage.ask("a", 5)
    (line,) = requests(lines)
    assert set(line) == FIELDS
    assert (line["method"], line["path"], line["dialect"]) == ("POST", "/api/generate", "native")
    assert (line["model"], line["status"], line["error"], line["swapped"]) == ("a:latest", 200, "", True)
    assert line["response_bytes"] == len(answer.body)
    assert line["request_bytes"] == len(json.dumps(generate("a", 5, stream=False)))
    assert 0 < line["waited_s"] < line["first_byte_s"] <= line["total_s"] < 5
    assert (line["client"], line["class"]) == ("127.0.0.1", "normal")


async def test_a_warm_request_waited_for_nothing_and_swapped_nothing(stage, lines):
    await stage.served("a")
    await stage.served("a")
    warm = requests(lines)[-1]
    assert warm["swapped"] is False
    assert warm["waited_s"] < 0.05


async def test_passthrough_is_told_only_to_those_who_want_to_know_all(stage, lines):
    await stage.request("GET", "/api/tags?x=secret")
    assert requests(lines) == []
    (quiet,) = [line for line in lines if line["event"] == "request"]
    assert (quiet["log_level"], quiet["path"]) == ("debug", "/api/tags")


async def test_whatever_becomes_of_a_request_it_has_one_line(lines):
    async with staged(line_limit=1, body_limit_bytes=10_000) as stage:
        stage.ollama.faults.fail_load = LoadFailure("no luck", model="c", times=None)
        await stage.ask("c")
        await stage.ask("nobody")
        await stage.ask("a", prompt="x" * 20_000)
        async with stage.streaming("a"):
            leaver = stage.begin("b")
            await stage.wait_for_line(1)
            await stage.ask("b")
            leaver.cancel()
            await stage.wait_for_line(0)
        await eventually(lambda: len(requests(lines)) == 6)
        told = [(line["status"], line["error"], bool(line["passed"])) for line in requests(lines)]
        assert told == [
            (500, "load_failed", False),
            (404, "", True),
            (413, "body_too_large", False),
            (503, "line_full", False),
            (0, "client_left", False),
            (200, "client_left", False),
        ]


async def test_every_step_of_a_swap_is_told_with_its_reason(stage, lines):
    await stage.served("a")
    async with stage.streaming("a", 20):
        await stage.served("b")
    steps = [line for line in lines if "swap" in line and line["swap"] == 2]
    names = [line["event"] for line in steps]
    assert names == ["swap_decided", "eviction_sent", "eviction_confirmed", "load_started", "swap_ended"]
    assert steps[0]["victims"] == ["a:latest"]
    assert steps[0]["target"] == "b:latest"
    assert steps[1]["reason"] == "request"
    assert steps[-1]["outcome"] == "loaded"


async def test_a_reload_names_the_option_the_client_and_the_request_in_the_log_and_the_snapshot(stage, lines):
    await stage.served("a", options={"num_ctx": 4096})
    async with stage.streaming("a", 200, options={"num_ctx": 4096}):
        asked = stage.begin("a", options={"num_ctx": 8192}, keep_alive="5m")
        await eventually(lambda: stage.snapshot.swap, 15)
        reload = stage.snapshot.swap.reload
    answer = await asked
    assert answer.status == 200
    (told,) = [line for line in lines if line["event"] == "variant_reload"]
    request = requests(lines)[-1]
    assert (told["changes"], told["client"], told["request"]) == (
        ["num_ctx 4096 -> 8192"],
        "127.0.0.1",
        request["id"],
    )
    assert (reload.changes, reload.client, reload.request) == (tuple(told["changes"]), told["client"], told["request"])
    assert stage.loads == ["a", "a"]


CANARY = "xyzzy-plugh-4711"
ANSWER = "plover-2718"

TALK: dict[str, dict[str, Any]] = {
    "/api/generate": {"model": "says", "prompt": CANARY, "system": CANARY, "suffix": ""},
    "/api/chat": {"model": "says", "messages": [{"role": "user", "content": CANARY}]},
    "/api/embed": {"model": "embedder", "input": [CANARY]},
    "/v1/chat/completions": {"model": "says", "messages": [{"role": "user", "content": CANARY}], "stream": True},
    "/v1/completions": {"model": "says", "prompt": CANARY},
    "/v1/responses": {"model": "says", "input": CANARY},
    "/v1/messages": {"model": "says", "max_tokens": 9, "messages": [{"role": "user", "content": CANARY}]},
}


@pytest.mark.parametrize("log_format", ["json", "pretty"])
async def test_no_word_of_a_prompt_or_an_answer_is_ever_written(log_format):
    """With every line written, as it would be, and with everything that may fail failing."""
    written = io.StringIO()
    says = SimModel("says", 4500, load_s=1.5, token_ms=50, reply=f"{ANSWER} {ANSWER}")
    embedder = SimModel("embedder", 300, load_s=1, embed=True)
    try:
        logs.configure(log_format, "debug", written)
        async with staged((says, embedder), body_memory_bytes=10, stuck_after_s=0.3) as stage:
            for path, body in TALK.items():
                answer = await stage.post(path, body)
                assert answer.status == 200
                assert ANSWER.encode() in answer.body or path == "/api/embed"
                cut = await stage.post(path, json.dumps(body).encode()[:-3])
                assert cut.status == 400
                wrong = await stage.post(path, {**body, "model": [CANARY]})
                assert wrong.status >= 400
            stage.ollama.faults.crash_in_stream = 1
            await stage.post("/api/generate", TALK["/api/generate"])
            stage.ollama.faults.crash_in_stream = None
            stage.ollama.faults.drop_connections = True
            for path, body in TALK.items():
                assert (await stage.post(path, body)).status >= 500
            leaver = asyncio.create_task(stage.post("/api/generate", TALK["/api/generate"]))
            await asyncio.sleep(0)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
    finally:
        structlog.reset_defaults()
    text = written.getvalue()
    assert text.count("/api/generate") >= 4
    assert CANARY not in text
    assert ANSWER not in text


async def test_a_failure_of_the_proxys_own_is_told_without_the_body(stage, lines, monkeypatch):
    """An error that nobody foresaw: an error line with its traceback, and still a JSON answer with a code."""

    def fails(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(stage.service._gate, "ask", fails)
    answer = await stage.ask("a", prompt=CANARY)
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "error" in answer.json
    (told,) = [line for line in lines if line["log_level"] == "error"]
    assert told["event"] == "handler_failed"
    assert CANARY not in repr({key: value for key, value in told.items() if key != "exc_info"})
    lines.remove(told)
