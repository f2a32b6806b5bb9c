"""The real client libraries through the proxy: what they make of it is what they make of Ollama itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import ollama
import openai
import pytest

from ollama_swap_proxy.simulator.models import LoadFailure
from tests.end_to_end.stage import Stage, generate

SAID = [{"role": "user", "content": "What is the weather?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS}}
ANTHROPIC_TOOL = {"name": "weather", "description": "Tells it.", "input_schema": PARAMETERS}

VARYING = {
    *("created_at", "created", "id", "request_id", "modified_at", "expires_at"),
    *("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"),
    *("item_id", "call_id", "completed_at", "sequence_number"),
}


def plain(value: Any) -> Any:
    """What a library returned, without what differs between any two answers."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in VARYING}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass
class Libraries:
    """One client of each kind for one server."""

    ollama: ollama.AsyncClient
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic


@contextlib.asynccontextmanager
async def libraries(url: str, **how: Any) -> AsyncIterator[Libraries]:
    how = {"max_retries": 0, "timeout": 10, **how}
    native = ollama.AsyncClient(host=url, timeout=10)
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="ollama", **how) as first,
        anthropic.AsyncAnthropic(base_url=url, api_key="ollama", **how) as second,
    ):
        try:
            yield Libraries(native, first, second)
        finally:
            await native._client.aclose()


Call = Callable[[Libraries], Awaitable[Any]]


async def listed(stream: Awaitable[AsyncIterator[Any]]) -> list[Any]:
    return [piece async for piece in await stream]


async def anthropic_stream(on: Libraries, **fields: Any) -> list[Any]:
    async with on.anthropic.messages.stream(model="sighted", max_tokens=9, messages=SAID, **fields) as stream:
        events = [event async for event in stream]
        return [*events, await stream.get_final_message()]


SHORT = {"num_predict": 5}
CALLS: dict[str, Call] = {
    "ollama generate": lambda on: on.ollama.generate("a", "x", options=SHORT),
    "ollama generate, streaming": lambda on: listed(on.ollama.generate("a", "x", options=SHORT, stream=True)),
    "ollama chat": lambda on: on.ollama.chat("a", SAID, options=SHORT),
    "ollama chat, streaming": lambda on: listed(on.ollama.chat("a", SAID, options=SHORT, stream=True)),
    "ollama chat, tools": lambda on: on.ollama.chat("sighted", SAID, tools=[TOOL]),
    "ollama chat, tools, streaming": lambda on: listed(on.ollama.chat("sighted", SAID, tools=[TOOL], stream=True)),
    "ollama chat, format": lambda on: on.ollama.chat("a", SAID, format="json"),
    "ollama embed": lambda on: on.ollama.embed("embedder", ["x", "y"]),
    "ollama embeddings": lambda on: on.ollama.embeddings("embedder", "x"),
    "ollama list": lambda on: on.ollama.list(),
    "ollama show": lambda on: on.ollama.show("a"),
    "openai chat": lambda on: on.openai.chat.completions.create(model="a", messages=SAID, max_tokens=5),
    "openai chat, streaming": lambda on: listed(
        on.openai.chat.completions.create(
            model="a", messages=SAID, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    ),
    "openai chat, tools": lambda on: on.openai.chat.completions.create(model="sighted", messages=SAID, tools=[TOOL]),
    "openai chat, tools, streaming": lambda on: listed(
        on.openai.chat.completions.create(model="sighted", messages=SAID, tools=[TOOL], stream=True)
    ),
    "openai completions": lambda on: on.openai.completions.create(model="a", prompt="x", max_tokens=5),
    "openai completions, streaming": lambda on: listed(
        on.openai.completions.create(model="a", prompt="x", max_tokens=5, stream=True)
    ),
    "openai responses": lambda on: on.openai.responses.create(model="a", input="x", max_output_tokens=5),
    "openai responses, streaming": lambda on: listed(
        on.openai.responses.create(model="a", input="x", max_output_tokens=5, stream=True)
    ),
    "openai embeddings": lambda on: on.openai.embeddings.create(model="embedder", input=["x", "y"]),
    "openai models": lambda on: on.openai.models.list(),
    "anthropic": lambda on: on.anthropic.messages.create(model="a", max_tokens=5, messages=SAID),
    "anthropic, streaming": anthropic_stream,
    "anthropic, tools": lambda on: on.anthropic.messages.create(
        model="sighted", max_tokens=9, messages=SAID, tools=[ANTHROPIC_TOOL]
    ),
    "anthropic, tools, streaming": lambda on: anthropic_stream(on, tools=[ANTHROPIC_TOOL]),
}

FAILING: dict[str, Call] = {
    "ollama, unknown model": lambda on: on.ollama.chat("nobody", SAID),
    "ollama, unknown model, streaming": lambda on: listed(on.ollama.generate("nobody", "x", stream=True)),
    "ollama, embedder": lambda on: on.ollama.generate("embedder", "x"),
    "ollama, no tools": lambda on: on.ollama.chat("a", SAID, tools=[TOOL]),
    "openai, unknown model": lambda on: on.openai.chat.completions.create(model="nobody", messages=SAID),
    "openai, unknown model, streaming": lambda on: listed(
        on.openai.chat.completions.create(model="nobody", messages=SAID, stream=True)
    ),
    "openai, unknown embedder": lambda on: on.openai.embeddings.create(model="nobody", input="x"),
    "anthropic, unknown model": lambda on: on.anthropic.messages.create(model="nobody", max_tokens=5, messages=SAID),
}


def ours(stage: Stage) -> str:
    return str(stage.service.url).rstrip("/")


async def test_each_answer_is_what_ollama_itself_gives(stage):
    """One stage for all calls: most of them need a swap, which nobody notices."""
    async with libraries(stage.ollama.url) as direct, libraries(ours(stage)) as proxied:
        for name, call in CALLS.items():
            through = plain(await call(proxied))
            assert through, name
            assert through == plain(await call(direct)), name
    assert stage.overlaps == []
    assert stage.evictions_by_ollama == []


async def test_each_error_is_what_ollama_itself_gives(stage):
    async with libraries(stage.ollama.url) as direct, libraries(ours(stage)) as proxied:
        for name, call in FAILING.items():
            assert await failure(call, proxied) == await failure(call, direct), name
    assert stage.loads == []


async def test_an_error_that_only_ollama_can_tell_is_what_it_gives_too(stage):
    """Whether a tool of Anthropic's needs the capability is in doubt: such a request takes a lease."""
    fields = {"model": "a", "max_tokens": 5, "messages": SAID, "tools": [ANTHROPIC_TOOL]}

    async def call(on: Libraries) -> Any:
        return await on.anthropic.messages.create(**fields)

    async with libraries(stage.ollama.url) as direct, libraries(ours(stage)) as proxied:
        assert await failure(call, proxied) == await failure(call, direct)


async def failure(call: Call, on: Libraries) -> tuple[str, int, str]:
    """The exception's class, its status and its words."""
    with pytest.raises((ollama.ResponseError, openai.APIStatusError, anthropic.APIStatusError)) as caught:
        await call(on)
    error = caught.value
    return type(error).__name__, error.status_code, getattr(error, "error", None) or error.body.get("message", "")


OURS: dict[str, Call] = {name: CALLS[name] for name in ("ollama chat", "openai chat", "anthropic")}


@pytest.mark.parametrize("name", OURS)
async def test_an_error_of_ours_is_the_librarys_own_exception_with_our_words(stage, name):
    stage.ollama.faults.fail_load = LoadFailure("no luck today", model="a", times=None)
    async with libraries(ours(stage)) as proxied:
        kind, status, _ = await failure(OURS[name], proxied)
        with pytest.raises(Exception, match="no luck today"):
            await OURS[name](proxied)
    assert status == 500
    assert kind in {"ResponseError", "InternalServerError"}


@pytest.mark.parametrize("name", ["openai chat", "anthropic"])
async def test_a_library_that_retries_gets_its_answer_when_ollama_is_back(monkeypatch, name, stage):
    """Their own retries obey our Retry-After (5 s), which this test hurries up."""
    monkeypatch.setattr("ollama_swap_proxy.errors.LONGEST_RETRY_AFTER_S", 1)
    await stage.ollama.stop()
    slept: list[float] = []

    async def back(seconds: float) -> None:
        slept.append(seconds)
        await stage.ollama.start()

    library = {"openai chat": openai, "anthropic": anthropic}[name]
    monkeypatch.setattr(library._base_client.anyio, "sleep", back)
    async with libraries(ours(stage), max_retries=2) as proxied:
        assert plain(await OURS[name](proxied))
    assert slept == [1.0]


async def test_the_tokens_of_a_stream_come_one_by_one(stage):
    """Nothing is held back: the first token is here long before the last is made."""
    async with libraries(ours(stage)) as proxied:
        stream = await proxied.ollama.generate("a", "x", options={"num_predict": 30_000}, stream=True)
        first = await anext(stream)
        assert not first.done
        assert stage.ollama.ledger.count("serve_end") == 0
        await stream.aclose()


async def test_a_streamed_answer_asks_front_proxies_not_to_hold_it_back(stage):
    body = generate("a")
    streamed = await stage.post("/api/generate", body)
    assert streamed.headers["X-Accel-Buffering"] == "no"
    assert [json.loads(line)["done"] for line in streamed.body.splitlines()] == [False, False, True]
    whole = await stage.post("/api/generate", {**body, "stream": False})
    assert "X-Accel-Buffering" not in whole.headers
