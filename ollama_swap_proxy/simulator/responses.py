"""OpenAI's /v1/responses of the simulated Ollama.

Owns the translation in both directions, as pure functions (see `generation`). Must not know HTTP, time or the engine.
Facts: recorded answers (tests/transcripts: openai, tools, errors_v1, faults). A whole
response has the keys of a Go struct in its order, a streamed one those of a Go map in the alphabet's.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    Surface,
    Token,
    ToolCall,
    Vectors,
)

_RESPONSES = gojson.Struct(
    "ResponsesRequest",
    {
        "model": "string",
        "background": "bool",
        "conversation": "any",
        "include": "[]string",
        "input": "any",
        "instructions": "string",
        "max_output_tokens": "int",
        "reasoning": "openai.ResponsesReasoning",
        "temperature": "float64",
        "text": "openai.ResponsesText",
        "top_p": "float64",
        "truncation": "string",
        "tools": "[]openai.ResponsesTool",
        "stream": "bool",
    },
    package="openai",
)
_OPTIONS = {"max_output_tokens": "num_predict", "temperature": "temperature", "top_p": "top_p"}
_OTHER_ITEMS = {"reasoning", "web_search_call"}
_IDS_BELOW = 999_999


def parse_responses(body: bytes) -> Completion:
    """Read a /v1/responses request; without input it only loads."""
    request = gojson.decode(body, _RESPONSES)
    messages: list[dict[str, Any]] = []
    images = 0
    if request.get("instructions"):
        messages.append({"role": "system", "content": request["instructions"]})
    given = request.get("input", "")
    if isinstance(given, str):
        messages += [{"role": "user", "content": given}] if given else []
    elif isinstance(given, list):
        for index, item in enumerate(given):
            message, pictures = _item(index, item)
            messages += message
            images += pictures
    else:
        raise wire.refuse("input must be a string or array")
    format_ = (request.get("text") or {}).get("format") or {}
    return Completion(
        route="chat",
        model=request.get("model", ""),
        stream=request.get("stream", False),
        messages=messages,
        options={_OPTIONS[name]: request[name] for name in _OPTIONS if name in request},
        format=format_.get("schema") if format_.get("type") == "json_schema" else None,
        tools=[tool for declared in request.get("tools", ()) for tool in _tools(declared)],
        think=wire.thinking((request.get("reasoning") or {}).get("effort", "")),
        images=images,
        loads_only=not messages,
        source=request,
    )


def _item(index: int, item: Any) -> tuple[list[dict[str, Any]], int]:
    """The messages that one item of the input stands for, and how many images it has."""
    fields = item if isinstance(item, dict) else {}
    kind = fields.get("type") or ("message" if fields.get("role") else "")
    if kind == "message":
        text, images = _content(f"input[{index}]: content", fields.get("content", ""))
        return [{"role": fields.get("role", ""), "content": text}], images
    if kind == "function_call_output":
        text, images = _content(f"input[{index}]: output", fields.get("output", ""))
        return [{"role": "tool", "content": text}], images
    if kind == "function_call":
        return [{"role": "assistant", "content": ""}], 0
    if kind in _OTHER_ITEMS:
        return [], 0
    problem = f'unknown input item type: "{kind}"' if kind else "input item missing required 'type' field"
    raise wire.refuse(f"input[{index}]: {problem}")


def _content(where: str, content: Any) -> tuple[str, int]:
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        raise wire.refuse(f"{where} must be a string or array")
    text = ""
    images = 0
    for index, part in enumerate(content):
        match part:
            case {"type": "input_text" | "output_text"}:
                text += part.get("text", "")
            case {"type": "input_image"}:
                if part.get("image_url"):
                    wire.read_image(part["image_url"])
                    images += 1
            case {"type": "input_file"}:
                raise wire.refuse("file inputs are not currently supported")
            case _:
                kind = part.get("type", "") if isinstance(part, dict) else ""
                raise wire.refuse(f"{where}[{index}]: unknown content type: {kind}")
    return text, images


def _tools(declared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The functions of one declaration: itself, or the members of a namespace under their full names."""
    if declared.get("type") != "namespace":
        function = {
            "name": declared.get("name", ""),
            "description": declared.get("description") or "",
            "parameters": declared.get("parameters") or {},
        }
        return [{"type": declared.get("type", ""), "function": function}]
    prefix = f"{declared['name']}." if declared.get("name") else ""
    members = [tool for member in declared.get("tools", ()) for tool in _tools(member)]
    for tool in members:
        tool["function"]["name"] = prefix + tool["function"]["name"].removeprefix(prefix)
    return members


def _echo(request: Completion, ident: str, created: int, **changes: object) -> dict[str, Any]:
    """A response object: what the request asked for, and ``changes``; in the order of a whole response."""
    source = request.source
    format_ = (source.get("text") or {}).get("format") or {"type": "text"}
    response = {
        "id": ident,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "incomplete_details": None,
        "model": request.model,
        "previous_response_id": None,
        "instructions": source.get("instructions") or None,
        "output": [],
        "error": None,
        "tools": [_declaration(tool) for tool in source.get("tools", ())],
        "tool_choice": "auto",
        "truncation": source.get("truncation", "disabled"),
        "parallel_tool_calls": True,
        "text": {"format": {name: format_[name] for name in ("type", "name", "schema", "strict") if name in format_}},
        "top_p": _number(source.get("top_p", 1)),
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "temperature": _number(source.get("temperature", 1)),
        "reasoning": _reasoning(source.get("reasoning") or {}),
        "usage": None,
        "max_output_tokens": source.get("max_output_tokens"),
        "max_tool_calls": None,
        "store": False,
        "background": source.get("background", False),
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }
    return {**response, **changes}


def _declaration(tool: Mapping[str, Any]) -> dict[str, Any]:
    names = ("type", "name", "description", "strict")
    return {**{name: tool.get(name) for name in names}, "parameters": _sorted(tool.get("parameters"))}


def _reasoning(wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    return {name: wanted[name] for name in ("effort", "summary") if wanted.get(name)} or None


def _usage(done: Done) -> dict[str, Any]:
    return {
        "input_tokens": done.prompt_tokens,
        "output_tokens": done.tokens,
        "total_tokens": done.prompt_tokens + done.tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(ident: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": ident, "type": "message", "status": status, "role": "assistant", "content": content}


def _call(ident: str, status: str, call: ToolCall, arguments: str) -> dict[str, Any]:
    return {
        "id": ident,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
    }


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _sorted(value: Any) -> Any:
    """A value with its keys as a Go map writes them. A schema was never decoded: it stays as it came."""
    if isinstance(value, dict):
        return {key: value[key] if key == "schema" else _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def answer_responses(request: Completion, reply: Reply, scribe: Scribe) -> bytes:
    """The body of a whole response: its tool calls, or else its text."""
    ident = f"resp_{scribe.number(_IDS_BELOW)}"
    message = f"msg_{scribe.number(_IDS_BELOW)}"
    output = [
        _call(f"fc_{ident}_{index}", "completed", call, gojson.encode(call.arguments).decode())
        for index, call in enumerate(reply.tool_calls)
    ] or [_message(message, "completed", [_part(reply.text)])]
    now = scribe.unix_s()
    end = {"completed_at": now, "status": "completed", "output": output, "usage": _usage(reply.done)}
    return wire.line(_echo(request, ident, now, **end))


class _Stream:
    """The events of one streamed response."""

    def __init__(self, request: Completion, scribe: Scribe) -> None:
        self._request = request
        self._scribe = scribe
        self._id = f"resp_{scribe.number(_IDS_BELOW)}"
        self._item = f"msg_{scribe.number(_IDS_BELOW)}"
        self._sequence = 0
        self._text: list[str] = []
        self._calls: list[ToolCall] = []

    def encode(self, piece: Piece) -> list[bytes]:
        match piece:
            case Token():
                return [*self._open(), *(self._write(piece.text) if piece.text else [])]
            case ToolCall():
                self._calls.append(piece)
                return []
            case Done():
                return [*self._open(), *self._finish(piece)]
            case Failure() | Vectors():
                return []

    def _event(self, kind: str, **data: object) -> bytes:
        numbered = {**data, "type": kind, "sequence_number": self._sequence}
        self._sequence += 1
        return f"event: {kind}\ndata: ".encode() + gojson.encode(_sorted(numbered)) + b"\n\n"

    def _place(self, index: int = 0) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": index, "content_index": 0}

    def _open(self) -> list[bytes]:
        if self._sequence:
            return []
        response = _echo(self._request, self._id, self._scribe.unix_s())
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def _write(self, text: str) -> list[bytes]:
        events = []
        if not self._text:
            item = _message(self._item, "in_progress", [])
            events = [
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place(), part=_part("")),
            ]
        self._text.append(text)
        return [*events, self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])]

    def _finish(self, done: Done) -> list[bytes]:
        text = "".join(self._text)
        message = _message(self._item, "completed", [_part(text)])
        events, output = self._call_events()
        if text and not output:
            events = [
                self._event("response.output_text.done", **self._place(), text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=message),
            ]
        now = self._scribe.unix_s()
        output += [message] if text else []
        end = {"completed_at": now, "status": "completed", "output": output, "usage": _usage(done)}
        response = _echo(self._request, self._id, now, **end)
        return [*events, self._event("response.completed", response=response)]

    def _call_events(self) -> tuple[list[bytes], list[dict[str, Any]]]:
        """The events of the tool calls, and the items that they end as."""
        events: list[bytes] = []
        items: list[dict[str, Any]] = []
        for index, call in enumerate(self._calls):
            ident = f"fc_{self._scribe.number(_IDS_BELOW)}_{index}"
            place = {"item_id": ident, "output_index": index}
            arguments = gojson.encode(call.arguments).decode()
            item = _call(ident, "completed", call, arguments)
            items.append(item)
            added = _call(ident, "in_progress", call, "")
            events += [
                self._event("response.output_item.added", output_index=index, item=added),
                self._event("response.function_call_arguments.delta", **place, delta=arguments),
                self._event("response.function_call_arguments.done", **place, arguments=arguments),
                self._event("response.output_item.done", output_index=index, item=item),
            ]
        return events, items


def encode_responses(request: Completion, scribe: Scribe) -> Encoder:
    """The events of a streamed response."""
    return _Stream(request, scribe).encode


SURFACES: Mapping[str, Surface] = {
    "/v1/responses": Surface(
        parse_responses,
        answer_responses,
        encode_responses,
        wire.error,
        stream_headers=(("Cache-Control", "no-cache"), ("Connection", "keep-alive")),
    )
}
