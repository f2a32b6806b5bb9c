"""What OpenAI's surfaces share: errors, usage, events, options, images.

Owns these words only: `openai_chat`, `openai` and `responses` put them together. Must not know HTTP or the engine.
Facts: openai/openai.go:225; recorded errors (tests/transcripts: errors_v1, faults).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_swap_proxy.simulator import gojson
from ollama_swap_proxy.simulator.generation import Completion, Done, Scribe, SimError, ToolCall

_SAMPLING = ("seed", "temperature", "frequency_penalty", "presence_penalty", "top_p")
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_EFFORTS: Mapping[str, object] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "ultra": "max",
    "max": "max",
}
_IMAGE_URL = re.compile(r"data:(image/(jpeg|jpg|png|webp))?;base64,(?P<data>.*)", re.DOTALL)


def refuse(message: str) -> SimError:
    """What these routes say while they read a request: 400, before any model is looked up."""
    return SimError(400, message, early=True)


def error(failure: SimError, _scribe: Scribe) -> bytes:
    """OpenAI's error object; a refusal while reading has no newline behind it, the others have."""
    kind = _ERROR_TYPES.get(failure.status, "api_error")
    body = gojson.encode({"error": {"message": failure.message, "type": kind, "param": None, "code": None}})
    return body if failure.early else body + b"\n"


def thinking(effort: str) -> object:
    """Ollama's ``think`` for OpenAI's reasoning effort, None for the model's default.

    Raises:
        SimError: no such effort.
    """
    if not effort:
        return None
    if effort not in _EFFORTS:
        raise refuse(
            f'invalid reasoning value: "{effort}" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", '
            '"max", or "none")'
        )
    return _EFFORTS[effort]


def read_image(url: object) -> bytes:
    """The bytes of an image given as a data URL.

    Raises:
        SimError: anything else.
    """
    if not isinstance(url, str):
        raise refuse("invalid message format")
    if url.startswith(("http://", "https://")):
        raise refuse("image URLs are not currently supported, please use base64 encoded data instead")
    found = _IMAGE_URL.fullmatch(url)
    if found is None:
        raise refuse("invalid image input")
    try:
        return base64.b64decode(found["data"], validate=True)
    except ValueError:
        raise refuse("invalid image input") from None


def options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's options for what the request names; what is absent is left out."""
    options = {name: request[name] for name in _SAMPLING if name in request}
    match request.get("stop"):
        case str(stop):
            options["stop"] = [stop]
        case [*stops]:
            options["stop"] = [stop for stop in stops if isinstance(stop, str)]
    if "max_tokens" in request:
        options["num_predict"] = request["max_tokens"]
    return options


def tool_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Tool calls as OpenAI writes them: the arguments are JSON in a string."""
    return [
        {
            "id": call.id,
            "index": call.index,
            "type": "function",
            "function": {"name": call.name, "arguments": gojson.encode(call.arguments).decode()},
        }
        for call in calls
    ]


def usage(done: Done) -> dict[str, int]:
    """The count of tokens."""
    total = done.prompt_tokens + done.tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "total_tokens": total}


def wants_usage(request: Completion) -> bool:
    """Whether a stream shall end with its usage."""
    return bool(request.source.get("stream_options", {}).get("include_usage"))


def line(value: object) -> bytes:
    """A body: JSON and a newline."""
    return gojson.encode(value) + b"\n"


def event(value: object) -> bytes:
    """One event without a name."""
    return b"data: " + gojson.encode(value) + b"\n\n"
