"""What the /v1 surfaces of the simulated Ollama do beyond the recordings: how they read requests.

The answers themselves are judged by the contract test (`test_transcripts`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_swap_proxy.simulator import anthropic, openai, responses
from ollama_swap_proxy.simulator.generation import Completion, Done, SimError, Surface, Token, ToolCall

SURFACES: dict[str, Surface] = {**openai.SURFACES, **anthropic.SURFACES, **responses.SURFACES}
HI = [{"role": "user", "content": "hi"}]
IMAGE = "data:image/png;base64,aGk="
CLOCK = {"type": "function", "function": {"name": "clock", "description": "d", "parameters": {"type": "object"}}}


class Still:
    """A scribe whose time and chance stand still."""

    def unix_s(self) -> int:
        return 1_795_466_375

    def iso(self) -> str:
        return "2026-11-23T20:52:13.704884994Z"

    def number(self, below: int) -> int:
        return below - 1

    def hex(self, digits: int) -> str:
        return "a" * digits


def parse(path: str, **fields: Any) -> Completion:
    return SURFACES[path].parse(json.dumps(fields).encode())


def form(*parts: tuple[str, str]) -> bytes:
    fields = [f'--xx\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts]
    return ("".join(fields) + "--xx--\r\n").encode()


EFFORTS = (
    'invalid reasoning value: "some" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none")'
)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "invalid message content type: <nil>"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 1}]}, "invalid message content type: float64"),
    ("/v1/chat/completions", {"messages": [{"content": [{"type": "video"}]}]}, "invalid message format"),
    (
        "/v1/chat/completions",
        {"messages": [{"content": [{"type": "image_url", "image_url": "http://x/y.png"}]}]},
        "image URLs are not currently supported, please use base64 encoded data instead",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:text/plain;base64,aGk="}}]}]},
        "invalid image input",
    ),
    (
        "/v1/chat/completions",
        {"messages": HI, "reasoning_effort": "some"},
        EFFORTS,
    ),
    ("/v1/embeddings", {"model": "e"}, "invalid input"),
    ("/v1/embeddings", {"model": "e", "input": []}, "invalid input"),
    (
        "/v1/embeddings",
        {"input": "x", "encoding_format": "int8"},
        "Invalid value for 'encoding_format' = int8. Supported values: ['float', 'base64'].",
    ),
    ("/v1/messages", {"model": "m", "messages": HI, "max_tokens": 0}, "max_tokens is required and must be positive"),
    ("/v1/messages", {"model": "m", "max_tokens": 1}, "messages is required"),
    (
        "/v1/messages",
        {"model": "m", "max_tokens": 1, "messages": [{"content": [{"type": "image", "source": {"type": "url"}}]}]},
        "invalid image source type: url. Only base64 images are supported.",
    ),
    ("/v1/responses", {"input": [{"type": "sound"}]}, 'input[0]: unknown input item type: "sound"'),
    ("/v1/responses", {"input": [{}]}, "input[0]: input item missing required 'type' field"),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        "file inputs are not currently supported",
    ),
]


@pytest.mark.parametrize(("path", "fields", "message"), REFUSED)
def test_a_wrong_request_is_refused_while_it_is_read(path: str, fields: dict[str, Any], message: str):
    """Before the model is looked up: status 400, without a newline."""
    with pytest.raises(SimError) as caught:
        parse(path, **fields)
    assert (caught.value.status, caught.value.message, caught.value.early) == (400, message, True)


def test_an_embedding_of_something_else_than_text_is_refused_by_the_route_itself():
    """The handler behind the middleware says it, in its way: late."""
    with pytest.raises(SimError) as caught:
        parse("/v1/embeddings", input=[1])
    assert (caught.value.message, caught.value.early) == ("invalid input type", False)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": HI, "max_tokens": 7}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 7}),
        ("/v1/messages", {"messages": HI, "max_tokens": 7}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 7}),
    ],
)
def test_the_limit_of_tokens_is_num_predict(path: str, fields: dict[str, Any]):
    """Each dialect has its own name for it."""
    request = parse(path, model="m", **fields)
    assert request.options["num_predict"] == 7
    assert "num_ctx" not in request.options
    assert request.keep_alive_s is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}]}]},
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 1,
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}
                ],
            },
        ),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": IMAGE}]}]}),
    ],
)
def test_images_are_counted(path: str, fields: dict[str, Any]):
    """A model that cannot see must be able to say so."""
    assert parse(path, model="m", **fields).images == 1


def test_tools_reach_the_engine_in_one_form():
    """As native writes them, whatever the dialect."""
    function = CLOCK["function"]
    flat = {"type": "function", "name": "clock", "description": "d", "parameters": {"type": "object"}}
    schema = {"name": "clock", "description": "d", "input_schema": {"type": "object"}}
    chat = parse("/v1/chat/completions", messages=HI, tools=[CLOCK])
    answer = parse("/v1/responses", input="hi", tools=[flat])
    message = parse("/v1/messages", model="m", max_tokens=1, messages=HI, tools=[schema])
    assert [list(one.tools) for one in (chat, answer, message)] == [[{"type": "function", "function": function}]] * 3


def test_a_namespace_declares_its_members_under_full_names():
    """`/v1/responses` groups tools."""
    member = {"type": "function", "name": "now", "parameters": {}}
    request = parse("/v1/responses", input="hi", tools=[{"type": "namespace", "name": "clock", "tools": [member]}])
    assert [tool["function"]["name"] for tool in request.tools] == ["clock.now"]


def test_what_only_loads_is_marked():
    """An empty prompt and an empty input; chat refuses an empty list."""
    assert parse("/v1/completions", model="m", prompt="").loads_only
    assert parse("/v1/responses", model="m").loads_only
    assert not parse("/v1/embeddings", model="m", input="").loads_only


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_stream_that_has_no_token_still_ends_properly(path: str):
    """One piece is enough."""
    fields: dict[str, Any] = {"model": "m", "messages": HI, "prompt": "x", "input": "x", "max_tokens": 1}
    encode = SURFACES[path].encode(parse(path, **fields), Still())
    text = b"".join(encode(Done("stop", 1, 0))).decode()
    assert text.endswith(("data: [DONE]\n\n", '"type":"response.completed"}\n\n', 'data: {"type":"message_stop"}\n\n'))


def test_text_before_a_tool_call_closes_its_block():
    """Anthropic numbers its blocks."""
    request = parse("/v1/messages", model="m", max_tokens=1, messages=HI)
    encode = anthropic.encode_messages(request, Still())
    chunks = encode(Token(" a")) + encode(ToolCall("call_1", "clock", {"zone": "utc"})) + encode(Done("stop", 1, 1))
    events = [json.loads(chunk.split(b"data: ")[1]) for chunk in chunks]
    shown = [(event["type"], event.get("index")) for event in events]
    assert shown[1:7] == [
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
    ]


def test_usage_in_every_chunk_of_a_completion_stream():
    """Zero until the end, then counted, in a chunk without choices."""
    request = parse("/v1/completions", model="m", prompt="x", stream_options={"include_usage": True})
    encode = openai.encode_completion(request, Still())
    first = json.loads(encode(Token(" a"))[0].removeprefix(b"data: "))
    last = encode(Done("stop", 2, 1))[0].split(b"\n\n")
    assert first["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    counted = json.loads(last[1].removeprefix(b"data: "))
    assert (counted["choices"], counted["usage"]["total_tokens"]) == ([], 3)


def test_a_transcription_is_written_once_at_its_end():
    """As an object, or as text."""
    surface = SURFACES["/v1/audio/transcriptions"]
    for wanted, body in (("json", b'{"text":"a b"}\n'), ("text", b"a b")):
        request = surface.parse(form(("model", "m"), ("response_format", wanted), ("file", "sound")))
        encode = surface.encode(request, Still())
        assert (request.model, request.route) == ("m", "chat")
        assert [*encode(Token(" a")), *encode(Token(" b")), *encode(Done("stop"))] == [body]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form(("file", "sound")), "model is required"),
        (form(("model", "m")), "file is required: http: no such file"),
        (form(("model", "m"), ("file", "")), "audio file is empty"),
        (b"{}", "failed to parse multipart form: multipart: NextPart: EOF"),
    ],
)
def test_a_transcription_needs_its_form(body: bytes, message: str):
    """Refused before anything else."""
    with pytest.raises(SimError) as caught:
        SURFACES["/v1/audio/transcriptions"].parse(body)
    assert caught.value.message == message
