"""OpenAI's /v1/chat/completions of the simulated Ollama.

Owns the translation in both directions, as pure functions (see `generation`). Must not know HTTP, time or the engine.
Facts: recorded answers (tests/transcripts: openai, tools, errors_v1, faults).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_swap_proxy.simulator import gojson
from ollama_swap_proxy.simulator import openai_wire as wire
from ollama_swap_proxy.simulator.generation import (
    Completion,
    Done,
    Encoder,
    Failure,
    Piece,
    Reply,
    Scribe,
    Token,
    ToolCall,
    Vectors,
)

_CHAT = gojson.Struct(
    "ChatCompletionRequest",
    {
        "model": "string",
        "messages": "[]openai.Message",
        "stream": "bool",
        "stream_options": "openai.StreamOptions",
        "max_tokens": "int",
        "seed": "int",
        "stop": "any",
        "temperature": "float64",
        "frequency_penalty": "float64",
        "presence_penalty": "float64",
        "top_p": "float64",
        "response_format": "openai.ResponseFormat",
        "tools": "[]api.Tool",
        "reasoning": "openai.Reasoning",
        "reasoning_effort": "string",
    },
    package="openai",
)


def parse_chat(body: bytes) -> Completion:
    """Read a /v1/chat/completions request."""
    request = gojson.decode(body, _CHAT)
    if not request.get("messages"):
        raise wire.refuse("[] is too short - 'messages'")
    messages: list[dict[str, Any]] = []
    images = 0
    for message in request["messages"]:
        if not isinstance(message, dict):
            raise wire.refuse("json: cannot unmarshal into Go struct field ChatCompletionRequest.messages")
        texts, pictures = _content(message)
        images += pictures
        messages += [{"role": message.get("role", ""), "content": text} for text in texts]
    reasoning = request.get("reasoning")
    effort = reasoning.get("effort", "") if reasoning is not None else request.get("reasoning_effort", "")
    return Completion(
        route="chat",
        model=request.get("model", ""),
        stream=request.get("stream", False),
        messages=messages,
        options=wire.options(request),
        format=_format(request.get("response_format")),
        tools=request.get("tools", ()),
        think=wire.thinking(effort),
        images=images,
        source=request,
    )


def _content(message: Any) -> tuple[list[str], int]:
    """The texts of one message, and how many images it has."""
    content = message.get("content")
    if isinstance(content, str):
        return [content], 0
    if isinstance(content, list):
        texts: list[str] = []
        images = 0
        for part in content:
            match part:
                case {"type": "text", "text": str(text)}:
                    texts.append(text)
                case {"type": "image_url", "image_url": {"url": url} | url}:
                    wire.read_image(url)
                    images += 1
                case {"type": "input_audio", "input_audio": {"data": str()}}:
                    images += 1
                case _:
                    raise wire.refuse("invalid message format")
        return texts, images
    if message.get("tool_calls") is None:
        names = {type(None): "<nil>", bool: "bool", int: "float64", float: "float64"}
        raise wire.refuse(f"invalid message content type: {names.get(type(content), 'map[string]interface {}')}")
    return [""], 0


def _format(wanted: Mapping[str, Any] | None) -> object:
    kind = str((wanted or {}).get("type", "")).strip().lower()
    if wanted and kind == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema")
    return "json" if kind == "json_object" else None


def answer_chat(request: Completion, reply: Reply, scribe: Scribe) -> bytes:
    """The body of a whole chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool_calls:
        message["tool_calls"] = wire.tool_calls(reply.tool_calls)
    return wire.line(
        {
            "id": f"chatcmpl-{scribe.number(999)}",
            "object": "chat.completion",
            "created": scribe.unix_s(),
            "model": request.model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"index": 0, "message": message, "finish_reason": _reason(reply.done, reply.tool_calls)}],
            "usage": wire.usage(reply.done),
        }
    )


def encode_chat(request: Completion, scribe: Scribe) -> Encoder:
    """The chunks of a streamed chat completion, all with the time of the first."""
    ident = f"chatcmpl-{scribe.number(999)}"
    created = scribe.unix_s()
    with_usage = wire.wants_usage(request)
    calls: list[ToolCall] = []
    started = False

    def chunk(choices: list[dict[str, Any]], model: str, **more: object) -> bytes:
        return wire.event(
            {
                "id": ident,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
                "system_fingerprint": "fp_ollama",
                "choices": choices,
                **more,
            }
        )

    def delta(content: str, model: str = request.model) -> bytes:
        nonlocal started
        role = {} if started else {"role": "assistant"}
        tools = {"tool_calls": wire.tool_calls(calls)} if calls else {}
        started = True
        return chunk([{"index": 0, "delta": {**role, "content": content, **tools}, "finish_reason": None}], model)

    def encode(piece: Piece) -> list[bytes]:
        match piece:
            case Token():
                return [delta(piece.text)]
            case ToolCall():
                calls.append(piece)
                return []
            case Done():
                body = b"" if started and not calls else delta("")
                finish = piece.reason if piece.reason != "stop" or not calls else "tool_calls"
                body += chunk([{"index": 0, "delta": {}, "finish_reason": finish}], request.model)
                if with_usage:
                    body += chunk([], request.model, usage=wire.usage(piece))
                return [body + b"data: [DONE]\n\n"]
            case Failure():
                return [delta("", model="")]
            case Vectors():
                return []

    return encode


def _reason(done: Done, calls: Sequence[ToolCall]) -> str | None:
    return "tool_calls" if done.reason == "stop" and calls else done.reason or None
