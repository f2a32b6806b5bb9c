"""Anthropic's surface of the simulated Ollama: /v1/messages.

Owns the translation in both directions, as pure functions (see `generation`). Must not know HTTP, time or the engine.
Facts: anthropic/anthropic.go:38; recorded answers (tests/transcripts: anthropic, tools, errors_v1, faults).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_swap_proxy.simulator import gojson
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
    Vectors,
)

_MESSAGES = gojson.Struct(
    "MessagesRequest",
    {
        "model": "string",
        "max_tokens": "int",
        "messages": "[]anthropic.MessageParam",
        "system": "any",
        "stream": "bool",
        "temperature": "float64",
        "top_p": "float64",
        "top_k": "int",
        "stop_sequences": "[]string",
        "tools": "[]anthropic.Tool",
        "tool_choice": "anthropic.ToolChoice",
        "thinking": "anthropic.ThinkingConfig",
        "metadata": "anthropic.Metadata",
        "output_config": "anthropic.OutputConfig",
    },
    package="anthropic",
)
_OPTIONS = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_sequences": "stop",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_CHARS_PER_TOKEN = 4  # Ollama's own estimate, for message_start: the true count is not known before the end.


def error(failure: SimError, scribe: Scribe) -> bytes:
    """Anthropic's error object; a refusal while reading has no newline behind it, the others have."""
    kind = _ERROR_TYPES.get(failure.status, "api_error")
    body = gojson.encode(
        {
            "type": "error",
            "error": {"type": kind, "message": failure.message},
            "request_id": f"req_{scribe.hex(24)}",
        }
    )
    return body if failure.early else body + b"\n"


def parse_messages(body: bytes) -> Completion:
    """Read a /v1/messages request. ``think`` is left out: these routes relax it to what the model can."""
    request = gojson.decode(body, _MESSAGES)
    if not request.get("model"):
        raise _refuse("model is required")
    if request.get("max_tokens", 0) <= 0:
        raise _refuse("max_tokens is required and must be positive")
    if not request.get("messages"):
        raise _refuse("messages is required")
    system = _text(request.get("system"))
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    images = 0
    for message in request["messages"]:
        if not isinstance(message, dict):
            raise _refuse("json: cannot unmarshal into Go struct field MessagesRequest.messages")
        blocks = message.get("content")
        images += sum(_check(block) for block in blocks) if isinstance(blocks, list) else 0
        messages.append({"role": str(message.get("role", "")).lower(), "content": _text(blocks)})
    return Completion(
        route="chat",
        model=request["model"],
        stream=request.get("stream", False),
        messages=messages,
        options={_OPTIONS[name]: request[name] for name in _OPTIONS if name in request},
        tools=[_tool(tool) for tool in request.get("tools", ())],
        images=images,
        source=request,
    )


def _refuse(message: str) -> SimError:
    return SimError(400, message, early=True)


def _text(content: Any) -> str:
    """The text of a message or a system prompt, given as a string or as blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    texts = (block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _check(block: Any) -> int:
    """1 for an image, 0 for any other good block."""
    match block:
        case {"type": "image", "source": {"type": "base64", "data": str(data)}}:
            try:
                base64.b64decode(data, validate=True)
            except ValueError as problem:
                raise _refuse(f"invalid base64 image data: {problem}") from None
            return 1
        case {"type": "image", "source": {"type": kind}}:
            raise _refuse(f"invalid image source type: {kind}. Only base64 images are supported.")
        case {"type": "image"}:
            raise _refuse("invalid image source")
        case {"type": "tool_use"} if not block.get("id"):
            raise _refuse("tool_use block missing required 'id' field")
        case {"type": "tool_use"} if not block.get("name"):
            raise _refuse("tool_use block missing required 'name' field")
    return 0


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool.get("name", ""),
        "description": tool.get("description", ""),
        "parameters": tool.get("input_schema", {}),
    }
    return {"type": "function", "function": function}


def _estimate(request: Mapping[str, Any]) -> int:
    """Prompt tokens as Ollama guesses them from the request's text."""
    length = len(_text(request.get("system")))
    length += sum(len(message.get("role", "")) + len(_text(message.get("content"))) for message in request["messages"])
    for tool in request.get("tools", ()):
        schema = gojson.encode(tool["input_schema"]) if "input_schema" in tool else b""
        length += len(tool.get("name", "")) + len(tool.get("description", "")) + len(schema)
    return max(1, length // _CHARS_PER_TOKEN)


def answer_messages(request: Completion, reply: Reply, scribe: Scribe) -> bytes:
    """The body of a whole message."""
    content: list[dict[str, Any]] = [{"type": "text", "text": reply.text}] if reply.text else []
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in reply.tool_calls
    ]
    message = {
        "id": f"msg_{scribe.hex(24)}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content or None,
        **_stop_reason(reply.done, reply.tool_calls),
        "usage": _usage(reply.done.prompt_tokens, reply.done.tokens),
    }
    return gojson.encode(message) + b"\n"


class _Stream:
    """The events of one streamed message."""

    def __init__(self, request: Completion, scribe: Scribe) -> None:
        self._request = request
        self._id = f"msg_{scribe.hex(24)}"
        self._calls: list[ToolCall] = []
        self._started = False
        self._writing = False
        self._index = 0

    def encode(self, piece: Piece) -> list[bytes]:
        match piece:
            case Token():
                return [*self._start(0), *(self._write(piece.text) if piece.text else [])]
            case ToolCall():
                self._calls.append(piece)
                return []
            case Done():
                return [*self._start(piece.prompt_tokens), *self._finish(piece)]
            case Failure() | Vectors():
                return []

    def _start(self, prompt_tokens: int) -> list[bytes]:
        if self._started:
            return []
        self._started = True
        message = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": [],
            "usage": _usage(prompt_tokens or _estimate(self._request.source), 0),
        }
        return [_event("message_start", message=message)]

    def _write(self, text: str) -> list[bytes]:
        block = {"type": "text", "text": ""}
        events = [] if self._writing else [_event("content_block_start", index=self._index, content_block=block)]
        self._writing = True
        return [*events, _event("content_block_delta", index=self._index, delta={"type": "text_delta", "text": text})]

    def _finish(self, done: Done) -> list[bytes]:
        events: list[bytes] = []
        if self._writing:
            events.append(_event("content_block_stop", index=self._index))
            self._index += 1
        for offset, call in enumerate(self._calls):
            events += _tool_events(self._index + offset, call)
        usage = _usage(done.prompt_tokens, done.tokens)
        delta = _stop_reason(done, self._calls)
        return [*events, _event("message_delta", delta=delta, usage=usage), _event("message_stop")]


def encode_messages(request: Completion, scribe: Scribe) -> Encoder:
    """The events of a streamed message."""
    return _Stream(request, scribe).encode


def _tool_events(index: int, call: ToolCall) -> list[bytes]:
    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
    delta = {"type": "input_json_delta", "partial_json": gojson.encode(call.arguments).decode()}
    return [
        _event("content_block_start", index=index, content_block=block),
        _event("content_block_delta", index=index, delta=delta),
        _event("content_block_stop", index=index),
    ]


def _stop_reason(done: Done, calls: Sequence[ToolCall]) -> dict[str, str]:
    if calls:
        return {"stop_reason": "tool_use"}
    known = {"stop": "end_turn", "length": "max_tokens"}
    return {"stop_reason": known.get(done.reason, "stop_sequence")} if done.reason else {}


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"input_tokens": prompt_tokens, "output_tokens": tokens}


def _event(kind: str, **data: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + gojson.encode({"type": kind, **data}) + b"\n\n"


SURFACES: Mapping[str, Surface] = {
    "/v1/messages": Surface(
        parse_messages,
        answer_messages,
        encode_messages,
        error,
        stream_headers=(("Cache-Control", "no-cache"), ("Connection", "keep-alive")),
    )
}
