"""From a request on an inference path to its answer: checks, runner, pieces, dialect.

Owns the order of the checks (nothing is queued or loaded for a request that is refused before), and what happens when
a client leaves. Must not know Ollama's other paths. Facts: server/routes.go:
403, 478, 504, 3107; recorded in tests/transcripts (preload_unload, errors_native, errors_v1).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import zstandard

from ollama_swap_proxy.simulator import gojson, names, native
from ollama_swap_proxy.simulator.engine import Engine
from ollama_swap_proxy.simulator.generation import (
    Completion,
    Done,
    Failure,
    Piece,
    Reply,
    Scribe,
    SimError,
    Surface,
    collect,
)
from ollama_swap_proxy.simulator.http_head import Headers, Response
from ollama_swap_proxy.simulator.library import Library, Manifest
from ollama_swap_proxy.simulator.machine import Machine
from ollama_swap_proxy.simulator.runner import Runner, Wanted, effective_options
from ollama_swap_proxy.simulator.wire import Request

CLOUD_OFF = "ollama cloud is disabled: remote model is unavailable"
_SIGN_IN = {"signin_url": "https://ollama.com/connect?name=simulated&key=none"}
ZSTD_LIMIT = 20 << 20
_INTEGER_OPTIONS = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict",
        "num_predict", "num_keep", "seed", "top_k", "repeat_last_n",
    }
)  # fmt: skip
_FLOAT_OPTIONS = frozenset(
    {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)


class Inference:
    """Serves every path that may load a model."""

    def __init__(self, machine: Machine, library: Library, scribe: Scribe, *, no_cloud: bool) -> None:
        self._machine = machine
        self._library = library
        self._scribe = scribe
        self._engine = Engine(machine.world)
        self._cloud = SimError(403, CLOUD_OFF) if no_cloud else SimError(401, "unauthorized", extra=_SIGN_IN)

    async def serve(self, request: Request, surface: Surface, cors: Headers) -> None:
        """Answer one request, to its end."""
        arrived = self._machine.world.now
        body = await request.read()
        parsed = None
        try:
            if request.target.startswith("/v1/"):
                body = _undo_zstd(request, body)
                if _is_cloud_v1(body):
                    raise _Native(self._cloud)  # noqa: TRY301 - one way out for all refusals
            parsed = surface.parse(body)
            manifest = self._check(parsed, native_path=not request.target.startswith("/v1/"))
            wanted = self._wanted(parsed, manifest)
            if parsed.loads_only and parsed.keep_alive_s == 0 and parsed.route in {"generate", "chat"}:
                self._machine.unload(wanted)
                await self._whole(request, surface, parsed, [Done("unload")], cors)
                return
            self._check_capability(parsed, manifest)
            runner = self._machine.attach(wanted) or await self._machine.acquire(wanted)
        except _Native as refusal:
            content = [("Content-Type", native.JSON_TYPE), *cors]
            text = native.error(refusal.error, self._scribe)
            await request.connection.answer(Response(refusal.error.status, content, text))
            return
        except SimError as failure:
            await self._error(request, surface, failure, cors, streams=parsed is not None and parsed.stream)
            return
        try:
            await self._answer(request, surface, parsed, runner, arrived, cors)
        finally:
            self._machine.release(runner)

    # ---- before the queue

    def _check(self, parsed: Completion, *, native_path: bool) -> Manifest:
        """Name, cloud, existence: in the order in which each route checks them."""
        base, source = names.source_of(parsed.model)
        if source == "both":
            raise SimError(400, f'use either :local or :cloud, not both: "{parsed.model}"', early=native_path)
        if source == "cloud":
            raise _Native(self._cloud)
        name = base if source == "local" else parsed.model
        if not name.strip() and parsed.route in {"chat", "embeddings"}:
            raise SimError(400, "model is required")
        if name.strip() and not names.parse(name).valid:
            raise SimError(400, "invalid model name")
        manifest = self._library.find(name, fold=parsed.route != "embeddings") if name.strip() else None
        if manifest is None:
            raise SimError(404, _not_found(parsed))
        return manifest

    def _check_capability(self, parsed: Completion, manifest: Manifest) -> None:
        model = manifest.model
        if parsed.route in {"generate", "chat"} and model.embed:
            raise SimError(400, f'"{parsed.model}" does not support {parsed.route}')
        if parsed.tools and not model.tools:
            raise SimError(400, f"{manifest.name.full} does not support tools")
        if parsed.think and not model.thinking:
            raise SimError(400, f'"{parsed.model}" does not support thinking')
        if parsed.suffix:
            raise SimError(400, f'"{parsed.model}" does not support insert')
        if parsed.images and not model.vision:
            raise SimError(400, "this model is missing data required for image input")
        _check_options(parsed)

    def _wanted(self, parsed: Completion, manifest: Manifest) -> Wanted:
        given: dict[str, object] = dict(parsed.options)
        if parsed.shift is not None:
            given["shift"] = parsed.shift
        context = self._machine.world.limits.context_length
        options = effective_options(manifest.model, given, context)
        return Wanted(manifest.name.short, manifest.digest, manifest.model, options, parsed.keep_alive_s)

    # ---- the answer

    async def _answer(  # noqa: PLR0917 - the six are one request
        self, request: Request, surface: Surface, parsed: Completion, runner: Runner, arrived: float, cors: Headers
    ) -> None:
        if parsed.loads_only:
            await self._loaded(request, surface, parsed, cors)
            return
        load_ns = int((self._machine.world.now - arrived) * 1e9)
        async with aclosing(self._engine.run(runner, parsed, arrived, load_ns)) as pieces:
            if parsed.stream:
                await self._stream(request, surface, parsed, pieces, cors)
                return
            collected = [piece async for piece in pieces]
        if collected and isinstance(collected[-1], Failure):
            self._out_of_memory(collected[-1])
        await self._whole(request, surface, parsed, collected, cors)

    async def _loaded(self, request: Request, surface: Surface, parsed: Completion, cors: Headers) -> None:
        """The answer to an empty request; only /v1 streams it."""
        pieces: list[Piece] = [Done("load")]
        if not parsed.stream or surface.json_type == native.JSON_TYPE:
            await self._whole(request, surface, parsed, pieces, cors)
            return

        async def only() -> AsyncIterator[Piece]:
            for piece in pieces:
                yield piece

        await self._stream(request, surface, parsed, only(), cors)

    async def _whole(
        self, request: Request, surface: Surface, parsed: Completion, pieces: list[Any], cors: Headers
    ) -> None:
        try:
            reply: Reply = collect(pieces)
        except SimError as failure:
            await self._error(request, surface, failure, cors)
            return
        body = surface.answer(parsed, reply, self._scribe)
        await request.connection.answer(Response(200, [("Content-Type", surface.json_type), *cors], body))

    async def _stream(
        self,
        request: Request,
        surface: Surface,
        parsed: Completion,
        pieces: AsyncIterator[Piece],
        cors: Headers,
    ) -> None:
        """Send each piece as it comes. No head goes out before the first one is there."""
        encode = None
        async for piece in pieces:
            if isinstance(piece, Failure):
                self._out_of_memory(piece)
                if encode is None:
                    await self._error(request, surface, piece.error, cors, streams=True)
                    return
            if encode is None:
                encode = surface.encode(parsed, self._scribe)
                headers = [*surface.stream_headers, ("Content-Type", surface.stream_type), *cors]
                await request.connection.start_stream(200, headers)
            for data in encode(piece):
                await request.connection.chunk(data)
        if encode is None:
            await request.connection.start_stream(200, [("Content-Type", surface.stream_type), *cors])
        request.connection.end_stream()

    async def _error(
        self, request: Request, surface: Surface, failure: SimError, cors: Headers, *, streams: bool = False
    ) -> None:
        """``streams``: the request wanted a stream, whose headers were set before the error was known."""
        content_type = native.JSON_TYPE if failure.early else surface.json_type
        headers = [*(surface.stream_headers if streams else ()), ("Content-Type", content_type), *cors]
        await request.connection.answer(Response(failure.status, headers, surface.error(failure, self._scribe)))

    def _out_of_memory(self, failure: Failure) -> None:
        """Out of memory in an answer expires every runner (server/sched.go:1632)."""
        if "out of memory" in failure.error.message:
            self._machine.expire_all()


class _Native(Exception):  # noqa: N818 - carries an answer
    """A refusal that has the native form on every path."""

    def __init__(self, error: SimError) -> None:
        super().__init__(error.message)
        self.error = error


def _not_found(parsed: Completion) -> str:
    if parsed.route in {"embed", "embeddings"} and parsed.model.strip():
        return f'model "{parsed.model}" not found, try pulling it first'
    return f"model '{parsed.model}' not found"


def _check_options(parsed: Completion) -> None:
    for name, value in parsed.options.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGER_OPTIONS and value is not None and not is_number:
            raise SimError(500, f'option "{name}" must be of type integer')
        if name in _FLOAT_OPTIONS and value is not None and not is_number:
            raise SimError(500, f'option "{name}" must be of type float32')


def _undo_zstd(request: Request, body: bytes) -> bytes:
    if request.header("content-encoding") != "zstd":
        return body
    try:
        with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body) as reader:
            data = reader.read(ZSTD_LIMIT + 1)
    except zstandard.ZstdError:
        raise _Native(SimError(400, "invalid input: magic number mismatch")) from None
    if len(data) > ZSTD_LIMIT:
        raise _Native(SimError(413, "request body too large"))
    return data


def _is_cloud_v1(body: bytes) -> bool:
    """/v1 looks for cloud names in a stricter way than the rest: by the exact key; anything unreadable passes on."""
    found: Any = None
    with contextlib.suppress(SimError):
        found = gojson.plain(gojson.parse(body))
    model = found.get("model") if isinstance(found, dict) else None
    return isinstance(model, str) and names.source_of(model)[1] == "cloud"
