"""What loads nothing costs no resident model its place, and is answered as Ollama answers it."""

from __future__ import annotations

import re

import pytest

from tests.end_to_end.stage import Answer, Stage, eventually, generate, staged

CHAT = {"messages": [{"role": "user", "content": "x"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]

LOADS_NOTHING = {
    "unknown model": ("/api/generate", generate("nobody")),
    "unknown model, chat": ("/api/chat", {"model": "nobody", **CHAT}),
    "unknown model, embed": ("/api/embed", {"model": "nobody", "input": "x"}),
    "unknown model, embeddings": ("/api/embeddings", {"model": "nobody", "prompt": "x"}),
    "unknown model, OpenAI": ("/v1/chat/completions", {"model": "nobody", **CHAT}),
    "unknown model, completions": ("/v1/completions", {"model": "nobody", "prompt": "x"}),
    "unknown model, OpenAI embeddings": ("/v1/embeddings", {"model": "nobody", "input": "x"}),
    "unknown model, responses": ("/v1/responses", {"model": "nobody", "input": "x"}),
    "unknown model, Anthropic": ("/v1/messages", {"model": "nobody", "max_tokens": 3, **CHAT}),
    "no model": ("/api/generate", {"prompt": "x"}),
    "no model, chat": ("/api/chat", CHAT),
    "no model, OpenAI": ("/v1/chat/completions", CHAT),
    "model of the wrong type": ("/api/generate", {"model": 3, "prompt": "x"}),
    "bad name": ("/api/generate", generate("b\u00e9:::")),
    "empty body": ("/api/generate", b""),
    "empty body, OpenAI": ("/v1/chat/completions", b""),
    "no JSON": ("/api/generate", b"hello"),
    "cut JSON": ("/api/chat", b'{"model": "b", "messages": ['),
    "cut JSON, OpenAI": ("/v1/chat/completions", b'{"model": "b", "messages": ['),
    "cut JSON, Anthropic": ("/v1/messages", b'{"model": "b", "messages": ['),
    "JSON with a comma too many": ("/api/generate", b'{"model": "b",}'),
    "bad keep_alive": ("/api/generate", generate("b", keep_alive="soon")),
    "bad keep_alive, chat": ("/api/chat", {"model": "b", "keep_alive": "5 minutes", **CHAT}),
    "option of the wrong type": ("/api/generate", generate("b", options={"num_ctx": "large"})),
    "option of the wrong type, chat": ("/api/chat", {"model": "b", "options": {"temperature": "hot"}, **CHAT}),
    "options of the wrong type": ("/api/generate", {"model": "b", "options": [1]}),
    "stream of the wrong type": ("/api/generate", {"model": "b", "prompt": "x", "stream": "yes"}),
    "prompt of the wrong type": ("/api/generate", {"model": "b", "prompt": ["x"]}),
    "embedder asked to generate": ("/api/generate", generate("embedder")),
    "embedder asked to chat": ("/v1/chat/completions", {"model": "embedder", **CHAT}),
    "tools for a model without": ("/api/chat", {"model": "b", "tools": TOOLS, **CHAT}),
    "tools for a model without, OpenAI": ("/v1/chat/completions", {"model": "b", "tools": TOOLS, **CHAT}),
    "thinking of a model without": ("/api/chat", {"model": "b", "think": True, **CHAT}),
    "insertion by a model without": ("/api/generate", generate("b", suffix="y")),
    "no messages, OpenAI": ("/v1/chat/completions", {"model": "b", "messages": []}),
    "no messages, Anthropic": ("/v1/messages", {"model": "b", "max_tokens": 3, "messages": []}),
    "no max_tokens, Anthropic": ("/v1/messages", {"model": "b", **CHAT}),
    "no input, OpenAI embeddings": ("/v1/embeddings", {"model": "embedder"}),
    "cloud model": ("/api/generate", generate("gpt-oss:120b-cloud")),
    "cloud model, chat": ("/api/chat", {"model": "qwen3-coder:480b-cloud", **CHAT}),
    "cloud model, OpenAI": ("/v1/chat/completions", {"model": "gpt-oss:120b-cloud", **CHAT}),
    "cloud model, Anthropic": ("/v1/messages", {"model": "x:cloud", "max_tokens": 3, **CHAT}),
    "unload of a model that is not resident": ("/api/generate", {"model": "b", "keep_alive": 0}),
    "unload by chat": ("/api/chat", {"model": "b", "messages": [], "keep_alive": "0s"}),
    "unload of an unknown model": ("/api/generate", {"model": "nobody", "keep_alive": 0}),
    "images": ("/v1/images/generations", {"model": "b", "prompt": "x"}),
    "edited images": ("/v1/images/edits", {"model": "b", "prompt": "x"}),
    "no form": ("/v1/audio/transcriptions", b"hello"),
}
"""Each by what is odd about it; ``b`` exists and is not resident."""


def comparable(answer: Answer) -> tuple:
    """What must be the same; ids and times vary, and so does the length of a time."""
    body = re.sub(rb'"(request_id|created_at)":"[^"]*"', rb'"\1":""', answer.body)
    kept = ("Content-Type", "Content-Length", "Transfer-Encoding", "Allow", "Location", "X-Ollama-Swap-Proxy-Error")
    headers = {name: answer.headers.get(name) for name in kept}
    if b"created_at" in body and headers["Content-Length"] == str(len(answer.body)):
        headers["Content-Length"] = "right"
    return answer.status, headers, body


async def same_as_direct(stage: Stage, method: str, path: str, **how) -> Answer:
    direct = await stage.request(method, path, direct=True, allow_redirects=False, **how)
    ours = await stage.request(method, path, allow_redirects=False, **how)
    assert comparable(ours) == comparable(direct)
    return ours


@pytest.mark.parametrize("odd", LOADS_NOTHING)
async def test_it_is_answered_as_by_ollama_and_the_resident_stays(stage, odd, lines):
    path, body = LOADS_NOTHING[odd]
    await stage.served("a")
    how = {"data": body} if isinstance(body, bytes) else {"json": body}
    await same_as_direct(stage, "POST", path, **how)
    assert stage.loads == ["a"]
    assert stage.resident == ["a"]
    assert stage.snapshot.swaps_begun == 1
    assert not [line for line in lines if line["event"] == "judged_wrongly"]


@pytest.mark.parametrize("query", ["", "?model=b"])
@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n--B--\r\n',
    ],
    ids=["no form", "no file"],
)
async def test_a_transcription_without_a_recording_leaves_the_resident(stage, query, body):
    await stage.served("a")
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = await same_as_direct(stage, "POST", "/v1/audio/transcriptions" + query, data=body, headers=headers)
    assert answer.status == 400
    assert stage.resident == ["a"]


NOT_GATED = [
    ("GET", "/api/generate"),
    ("HEAD", "/api/generate"),
    ("PUT", "/api/chat"),
    ("DELETE", "/v1/chat/completions"),
    ("OPTIONS", "/api/generate"),
    ("POST", "/api/generate/"),
    ("POST", "/api//generate"),
    ("POST", "/api/./generate"),
    ("POST", "/API/generate"),
    ("POST", "/v1/chat/completions/"),
    ("POST", "/nothing/here"),
    ("POST", "/api/show"),
    ("GET", "/api/tags"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/b"),
    ("HEAD", "/"),
    ("HEAD", "/api/tags"),
    ("GET", "/api/version"),
]


@pytest.mark.parametrize(("method", "path"), NOT_GATED)
async def test_a_path_or_method_that_serves_no_model_needs_none(stage, method, path):
    await stage.served("a")
    await same_as_direct(stage, method, path, json={"model": "b", "prompt": "x"})
    assert stage.loads == ["a"]


@pytest.mark.parametrize("path", ["/api/generate", "/api/%67enerate", "/api%2Fgenerate", "/api/generate?x=1"])
async def test_every_spelling_of_a_gated_path_takes_a_lease(stage, path):
    await stage.served("a")
    assert (await stage.post(path, generate("b", stream=False))).status == 200
    assert stage.unloads() == 1
    assert stage.evictions_by_ollama == []
    assert stage.overlaps == []


async def test_an_unload_request_of_a_client_unloads_and_the_next_request_loads_again(stage):
    await stage.served("a")
    assert (await stage.post("/api/generate", {"model": "a", "keep_alive": 0})).json["done_reason"] == "unload"
    await eventually(lambda: not stage.resident)
    await stage.served("a")
    assert stage.loads == ["a", "a"]


async def test_a_deleted_model_evicts_nobody(stage):
    await stage.served("b")
    await stage.served("a")
    removed = await stage.request("DELETE", "/api/delete", json={"model": "b"})
    assert removed.status == 200
    assert (await stage.ask("b")).status == 404
    assert stage.loads == ["b", "a"]


async def test_a_model_deleted_past_us_evicts_nobody_once_its_entry_is_old(stage):
    await stage.served("b")
    await stage.served("a")
    await stage.request("DELETE", "/api/delete", json={"model": "b"}, direct=True)
    stage.service._gate._catalog.library_changed(None)  # what a second's age does
    assert (await stage.ask("b")).status == 404
    assert stage.loads == ["b", "a"]


async def test_a_new_model_is_known_at_once(stage):
    assert (await stage.ask("new")).status == 404
    created = await stage.post("/api/create", {"model": "new", "from": "a", "stream": False})
    assert created.status == 200
    await stage.served("new")
    assert stage.loads == ["new"]


async def test_a_new_model_made_past_us_is_known_at_once(stage):
    assert (await stage.ask("new")).status == 404
    await stage.post("/api/copy", {"source": "a", "destination": "new"}, direct=True)
    await stage.served("new")


async def test_a_client_that_left_while_queued_causes_no_swap():
    async with staged() as stage:
        async with stage.streaming("a"):
            leaver = stage.begin("b")
            await stage.wait_for_line(1)
            leaver.cancel()
            await stage.wait_for_line(0)
        await stage.served("a")
        assert stage.loads == ["a"]
        assert stage.unloads() == 0
