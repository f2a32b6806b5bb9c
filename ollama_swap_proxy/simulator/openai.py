"""OpenAI's surfaces of the simulated Ollama: completions, embeddings, models, transcriptions, and the table of all.

Owns the translation in both directions, as pure functions (see `generation`). Must not know HTTP, time or the engine.
Facts: recorded answers (tests/transcripts: openai, embeddings, errors_v1, faults).
"""

from __future__ import annotations

import base64
import re
import struct
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
    SimError,
    Surface,
    Token,
    ToolCall,
    Vectors,
    collect,
)
from ollama_swap_proxy.simulator.openai_chat import answer_chat, encode_chat, parse_chat

_COMPLETION = gojson.Struct(
    "CompletionRequest",
    {
        "model": "string",
        "prompt": "string",
        "frequency_penalty": "float32",
        "max_tokens": "int",
        "presence_penalty": "float32",
        "seed": "int",
        "stop": "any",
        "stream": "bool",
        "stream_options": "openai.StreamOptions",
        "temperature": "float32",
        "top_p": "float32",
        "suffix": "string",
    },
    package="openai",
)
_EMBED = gojson.Struct(
    "EmbedRequest",
    {"input": "any", "model": "string", "dimensions": "int", "encoding_format": "string"},
    package="openai",
)


def parse_completion(body: bytes) -> Completion:
    """Read a /v1/completions request; an empty prompt only loads."""
    request = gojson.decode(body, _COMPLETION)
    prompt = request.get("prompt", "")
    return Completion(
        route="generate",
        model=request.get("model", ""),
        stream=request.get("stream", False),
        prompt=prompt,
        suffix=request.get("suffix", ""),
        options=wire.options(request),
        loads_only=not prompt,
        source=request,
    )


def parse_embedding(body: bytes) -> Completion:
    """Read a /v1/embeddings request; an empty string is embedded, an empty list is refused."""
    request = gojson.decode(body, _EMBED)
    encoding = request.get("encoding_format", "")
    if encoding.lower() not in {"", "float", "base64"}:
        raise wire.refuse(f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64'].")
    wanted = request.get("input")
    if wanted is None or wanted == []:
        raise wire.refuse("invalid input")
    inputs = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise SimError(400, "invalid input type")
    return Completion(route="embed", model=request.get("model", ""), stream=False, inputs=inputs, source=request)


def answer_completion(request: Completion, reply: Reply, scribe: Scribe) -> bytes:
    """The body of a whole text completion."""
    return wire.line(
        {
            "id": f"cmpl-{scribe.number(999)}",
            "object": "text_completion",
            "created": scribe.unix_s(),
            "model": request.model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"text": reply.text, "index": 0, "finish_reason": reply.done.reason or None}],
            "usage": wire.usage(reply.done),
        }
    )


def encode_completion(request: Completion, scribe: Scribe) -> Encoder:
    """The chunks of a streamed text completion."""
    ident = f"cmpl-{scribe.number(999)}"
    with_usage = wire.wants_usage(request)

    def chunk(choices: list[dict[str, Any]], usage: Mapping[str, int], model: str = request.model) -> bytes:
        event = {
            "id": ident,
            "object": "text_completion",
            "created": scribe.unix_s(),
            "choices": choices,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }
        return wire.event({**event, "usage": usage} if with_usage else event)

    def encode(piece: Piece) -> list[bytes]:
        nothing = wire.usage(Done(""))
        match piece:
            case Token():
                return [chunk([{"text": piece.text, "index": 0, "finish_reason": None}], nothing)]
            case Done():
                body = chunk([{"text": "", "index": 0, "finish_reason": piece.reason or None}], nothing)
                if with_usage:
                    body += chunk([], wire.usage(piece))
                return [body + b"data: [DONE]\n\n"]
            case Failure():
                return [chunk([{"text": "", "index": 0, "finish_reason": None}], nothing, model="")]
            case ToolCall() | Vectors():
                return []

    return encode


def answer_embedding(request: Completion, reply: Reply, _scribe: Scribe) -> bytes:
    """The body of a list of embeddings, as numbers or as packed little-endian float32."""
    packed = request.source.get("encoding_format", "").lower() == "base64"
    return wire.line(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": _packed(vector) if packed else list(vector), "index": index}
                for index, vector in enumerate(reply.vectors)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": reply.done.prompt_tokens, "total_tokens": reply.done.prompt_tokens},
        }
    )


def list_models(models: Sequence[tuple[str, int]]) -> bytes:
    """The body of GET /v1/models, in the order given; ``(name, created)`` with ``created`` in unix seconds."""
    return wire.line({"object": "list", "data": [_model(name, created) for name, created in models] or None})


def show_model(name: str, created: int) -> bytes:
    """The body of GET /v1/models/NAME; ``name`` as the client wrote it."""
    return wire.line(_model(name, created))


def _model(name: str, created: int) -> dict[str, Any]:
    parts = name.split("/")
    owner = parts[-2] if len(parts) > 1 else "library"
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def parse_transcription(body: bytes, model: str = "") -> Completion:
    """Read the form of a /v1/audio/transcriptions request; its boundary is taken from the body's first line.

    ``model`` is the one that the query names, if it does: then the form need not (Go's FormValue reads both).
    The whole is a streamed chat whose answer is written once, at the end (middleware/openai.go; not recorded).
    """
    fields = _form(body)
    if model:
        fields["model"] = model.encode()
    if not fields.get("model"):
        raise wire.refuse("model is required")
    if "file" not in fields:
        raise wire.refuse("file is required: http: no such file")
    if not fields["file"]:
        raise wire.refuse("audio file is empty")
    source = {name: value.decode("utf-8", "replace") for name, value in fields.items() if name != "file"}
    question = "What exact words are spoken in this audio?"
    messages = [{"role": "user", "content": question}]
    return Completion(route="chat", model=source["model"], stream=True, messages=messages, source=source)


def _form(body: bytes) -> dict[str, bytes]:
    boundary, found, _ = body.partition(b"\r\n")
    if not found or not boundary.startswith(b"--"):
        raise wire.refuse("failed to parse multipart form: multipart: NextPart: EOF")
    fields: dict[str, bytes] = {}
    for part in (b"\r\n" + body).split(b"\r\n" + boundary)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb';\s*name="([^"]*)"', head)
        if name:
            fields.setdefault(name[1].decode("utf-8", "replace"), value)
    return fields


def answer_transcription(request: Completion, reply: Reply, _scribe: Scribe) -> bytes:
    """The body of a transcription: text alone, or an object with it."""
    text = reply.text.strip()
    return text.encode() if request.source.get("response_format") == "text" else wire.line({"text": text})


def encode_transcription(request: Completion, scribe: Scribe) -> Encoder:
    """Nothing until the end, then the whole body."""
    pieces: list[Piece] = []

    def encode(piece: Piece) -> list[bytes]:
        pieces.append(piece)
        return [answer_transcription(request, collect(pieces), scribe)] if isinstance(piece, Done) else []

    return encode


def _no_stream(_request: Completion, _scribe: Scribe) -> Encoder:
    return lambda _piece: []


SURFACES: Mapping[str, Surface] = {
    "/v1/chat/completions": Surface(parse_chat, answer_chat, encode_chat, wire.error),
    "/v1/completions": Surface(parse_completion, answer_completion, encode_completion, wire.error),
    "/v1/embeddings": Surface(parse_embedding, answer_embedding, _no_stream, wire.error),
    "/v1/audio/transcriptions": Surface(
        parse_transcription,
        answer_transcription,
        encode_transcription,
        wire.error,
        # Sent with the first flush of the chat stream underneath, before anybody knows what the answer will be.
        stream_type="application/x-ndjson",
    ),
}
