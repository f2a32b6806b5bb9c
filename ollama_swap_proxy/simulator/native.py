"""Ollama's own dialect: the four inference paths under /api.

Owns the translation between their JSON and the shared words. Must not know HTTP or the machine.
Key order: as recorded (tests/transcripts: generate_chat, embeddings, tools, preload_unload).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from ollama_swap_proxy.simulator.duration import keep_alive_s
from ollama_swap_proxy.simulator.generation import (
    Completion,
    Done,
    Encoder,
    Failure,
    Piece,
    Reply,
    Scribe,
    SimError,
    Surface,
    Token,
    ToolCall,
)
from ollama_swap_proxy.simulator.gojson import Struct, decode, encode

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"
EMPTY_BODY = "missing request body"

_OPTIONS = "map[string]interface {}"
_GENERATE = Struct(
    "GenerateRequest",
    {
        "model": "string",
        "prompt": "string",
        "suffix": "string",
        "system": "string",
        "template": "string",
        "context": "[]int",
        "stream": "bool",
        "raw": "bool",
        "format": "any",
        "keep_alive": "any",
        "images": "[]api.ImageData",
        "options": _OPTIONS,
        "think": "any",
        "truncate": "bool",
        "shift": "bool",
    },
)
_CHAT = Struct(
    "ChatRequest",
    {
        "model": "string",
        "messages": "[]api.Message",
        "stream": "bool",
        "format": "any",
        "keep_alive": "any",
        "tools": "[]api.Tool",
        "options": _OPTIONS,
        "think": "any",
        "truncate": "bool",
        "shift": "bool",
    },
)
_EMBED = Struct(
    "EmbedRequest",
    {
        "model": "string",
        "input": "any",
        "keep_alive": "any",
        "truncate": "bool",
        "dimensions": "int",
        "options": _OPTIONS,
    },
)
_EMBEDDINGS = Struct(
    "EmbeddingRequest", {"model": "string", "prompt": "string", "keep_alive": "any", "options": _OPTIONS}
)


def parse_generate(body: bytes) -> Completion:
    """Read /api/generate.

    Raises:
        SimError: Go's complaint about the JSON or the keep_alive.
    """
    found = decode(body, _GENERATE, empty=EMPTY_BODY)
    prompt = found.get("prompt", "")
    return Completion(
        "generate",
        found.get("model", ""),
        found.get("stream", True),
        prompt=prompt,
        options=found.get("options", {}),
        keep_alive_s=keep_alive_s(found.get("keep_alive")),
        format=found.get("format"),
        think=found.get("think"),
        images=len(found.get("images", ())),
        suffix=found.get("suffix", ""),
        raw=found.get("raw", False),
        shift=found.get("shift"),
        loads_only=not prompt,
        source=found,
    )


def parse_chat(body: bytes) -> Completion:
    """Read /api/chat.

    Raises:
        SimError: Go's complaint about the JSON or the keep_alive.
    """
    found = decode(body, _CHAT, empty=EMPTY_BODY)
    messages = [m for m in found.get("messages", ()) if isinstance(m, dict)]
    return Completion(
        "chat",
        found.get("model", ""),
        found.get("stream", True),
        messages=messages,
        options=found.get("options", {}),
        keep_alive_s=keep_alive_s(found.get("keep_alive")),
        format=found.get("format"),
        tools=[t for t in found.get("tools", ()) if isinstance(t, dict)],
        think=found.get("think"),
        images=sum(len(m.get("images") or ()) for m in messages),
        shift=found.get("shift"),
        loads_only=not messages,
        source=found,
    )


def parse_embed(body: bytes) -> Completion:
    """Read /api/embed; ``input`` may be one text, a list, or nothing.

    Raises:
        SimError: Go's complaint about the JSON or the keep_alive, or an input of another type.
    """
    found = decode(body, _EMBED, empty=EMPTY_BODY)
    alive = keep_alive_s(found.get("keep_alive"))
    given = found.get("input")
    texts: list[object] = given if isinstance(given, list) else [given] if given else []
    if not all(isinstance(text, str) for text in texts):
        raise SimError(400, "invalid input type", early=True)
    inputs = [str(text) for text in texts]
    return Completion(
        "embed",
        found.get("model", ""),
        stream=False,
        inputs=inputs,
        options=found.get("options", {}),
        keep_alive_s=alive,
        loads_only=not inputs,
        source=found,
    )


def parse_embeddings(body: bytes) -> Completion:
    """Read /api/embeddings, the old form.

    Raises:
        SimError: Go's complaint about the JSON or the keep_alive.
    """
    found = decode(body, _EMBEDDINGS, empty=EMPTY_BODY)
    alive = keep_alive_s(found.get("keep_alive"))
    prompt = found.get("prompt", "")
    return Completion(
        "embeddings",
        found.get("model", ""),
        stream=False,
        inputs=[prompt] if prompt else [],
        options=found.get("options", {}),
        keep_alive_s=alive,
        loads_only=not prompt,
        source=found,
    )


def answer(request: Completion, reply: Reply, scribe: Scribe) -> bytes:
    """The one object of /api/generate or /api/chat that is not streamed, or that only loads or unloads."""
    calls = [_call(call) for call in reply.tool_calls]
    return encode(_with_context(_object(request, reply.text, calls, scribe, reply.done), request, reply.text))


def answer_embed(request: Completion, reply: Reply, _scribe: Scribe) -> bytes:
    """The object of /api/embed."""
    body: dict[str, Any] = {"model": request.model, "embeddings": [list(v) for v in reply.vectors]}
    done = reply.done
    if not request.loads_only:
        counts = {"total_duration": done.total_ns, "load_duration": done.load_ns}
        body |= _present(counts | {"prompt_eval_count": done.prompt_tokens})
    return encode(body)


def answer_embeddings(_request: Completion, reply: Reply, _scribe: Scribe) -> bytes:
    """The object of /api/embeddings."""
    return encode({"embedding": [_widened(n) for n in reply.vectors[0]] if reply.vectors else []})


def encoder(request: Completion, scribe: Scribe) -> Encoder:
    """NDJSON: one line for each token, the tool calls with the last one."""
    calls: list[Mapping[str, Any]] = []
    text: list[str] = []

    def lines(piece: Piece) -> list[bytes]:
        match piece:
            case Token():
                text.append(piece.text)
                return [encode(_object(request, piece.text, [], scribe, None)) + b"\n"]
            case ToolCall():
                calls.append(_call(piece))
            case Done():
                last = _object(request, "", calls, scribe, piece)
                return [encode(_with_context(last, request, "".join(text))) + b"\n"]
            case Failure():
                return [error(piece.error, scribe) + b"\n"]
            case _:
                pass
        return []

    return lines


def error(failure: SimError, _scribe: Scribe) -> bytes:
    """The native form of an error."""
    return encode({"error": failure.message, **failure.extra})


def _object(
    request: Completion,
    text: str,
    calls: list[Mapping[str, Any]],
    scribe: Scribe,
    done: Done | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": request.model, "created_at": scribe.iso()}
    if request.route == "chat":
        body["message"] = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    else:
        body["response"] = text
    body["done"] = done is not None and done.reason != ""
    if done is None or not done.reason:
        return body
    body["done_reason"] = done.reason
    if request.route == "generate" and not request.loads_only and not request.raw:
        body["context"] = []
    return body | _present(
        {
            "total_duration": done.total_ns,
            "load_duration": done.load_ns,
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": done.prompt_ns,
            "eval_count": done.tokens,
            "eval_duration": done.eval_ns,
        }
    )


def _with_context(body: dict[str, Any], request: Completion, said: str) -> dict[str, Any]:
    """The conversation as token numbers, where it has a place: here three bytes each, and how many of them count."""
    if "context" in body:
        raw = (request.prompt + said).encode()
        numbers = (raw[i : i + 3] for i in range(0, len(raw), 3))
        body["context"] = [len(three) << 24 | int.from_bytes(three, "big") for three in numbers]
    return body


def _call(call: ToolCall) -> Mapping[str, Any]:
    function = {"index": call.index, "name": call.name, "arguments": dict(call.arguments)}
    return {"id": call.id, "function": function}


def _widened(number: float) -> float:
    """A float32 as the float64 that Ollama makes of it here."""
    widened: float = struct.unpack("f", struct.pack("f", number))[0]
    return widened


def _present(fields: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in fields.items() if value}


def _surface(parse: Any, answer_with: Any) -> Surface:
    return Surface(parse, answer_with, encoder, error, json_type=JSON_TYPE, stream_type=NDJSON_TYPE)


SURFACES: Mapping[str, Surface] = {
    "/api/generate": _surface(parse_generate, answer),
    "/api/chat": _surface(parse_chat, answer),
    "/api/embed": _surface(parse_embed, answer_embed),
    "/api/embeddings": _surface(parse_embeddings, answer_embeddings),
}
