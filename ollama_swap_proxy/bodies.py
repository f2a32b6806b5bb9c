"""Request bodies that are kept: in memory up to a limit, then in a temporary file; and what they ask for.

Owns storage, and the reading of a stored body (zstd, multipart, big ones in slices). Must not judge (`core.requests`)
and never changes a byte: what is decoded here is a copy. Nothing here holds the event loop for more than about 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import IO, cast
from urllib.parse import parse_qsl

import zstandard

from ollama_swap_proxy.core import forms, json_fields, names, requests
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.skeleton import VALUE_LIMIT_BYTES, Skeleton, Unreadable
from ollama_swap_proxy.errors import ProxyError

SYNCHRONOUS_LIMIT_BYTES = 16 * 1024
"""Bodies up to this size are read in one go; the worst of them (nothing but tiny keys) takes about 1.5 ms."""

SLICE_BYTES = 64 * 1024
"""How much of a larger body is read before the event loop gets its turn."""

ZSTD_DECODED_LIMIT_BYTES = 20 * 1024 * 1024
ZSTD_WINDOW_LIMIT_BYTES = 8 * 1024 * 1024
"""Ollama's own limits (server/cloud_proxy.go:40, 82)."""

_WRITE_BYTES = 1024 * 1024


class Body:
    """A request body as received. One writer, then any number of readers; `close` it in the end.

    ``memory_limit_bytes``: a larger body goes to a temporary file (in ``directory``, or the system's).
    ``limit_bytes``: the largest body that is taken at all; 0 means no limit.
    """

    def __init__(self, memory_limit_bytes: int, limit_bytes: int = 0, directory: str | None = None) -> None:
        self.size = 0
        self._memory_limit_bytes = memory_limit_bytes
        self._limit_bytes = limit_bytes
        self._directory = directory
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._file_size = 0
        self._file_lock = threading.Lock()
        self._is_closed = False

    @property
    def in_memory(self) -> bool:
        """Whether all of it is in memory."""
        return self._file is None

    async def append(self, chunk: bytes) -> None:
        """Add a chunk, writing to the file in another thread where it must be.

        Raises:
            ProxyError: body_too_large (413), or body_not_stored (503) where the disk does not take it.
        """
        if self._limit_bytes and self.size + len(chunk) > self._limit_bytes:
            raise ProxyError(
                "body_too_large",
                413,
                f"the request body is larger than the {self._limit_bytes} bytes that this proxy is set to keep",
            )
        self.size += len(chunk)
        self._memory += chunk
        if self._file is None:
            if self.size <= self._memory_limit_bytes:
                return
        elif len(self._memory) < min(_WRITE_BYTES, self._memory_limit_bytes):
            return
        pending, self._memory = self._memory, bytearray()
        try:
            await asyncio.to_thread(self._write, pending)
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
            raise ProxyError("body_not_stored", 503, f"the request body could not be stored: {reason}") from problem

    def as_bytes(self) -> bytes:
        """Return a body that is wholly in memory.

        Raises:
            ValueError: it is not.
        """
        if self._file is not None:
            raise ValueError("this body is in a file")
        return bytes(self._memory)

    def piece(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from there, none at the end. Reads the disk unless the body is in memory."""
        if offset < self._file_size:
            return self._read(offset, min(size, self._file_size - offset))
        start = offset - self._file_size
        return bytes(self._memory[start : start + size])

    async def chunks(self, size: int) -> AsyncIterator[bytes]:
        """Yield the whole body in pieces of at most ``size`` bytes, from its beginning."""
        for offset in range(0, self._file_size, size):
            yield await asyncio.to_thread(self._read, offset, min(size, self._file_size - offset))
        for offset in range(0, len(self._memory), size):
            yield bytes(self._memory[offset : offset + size])

    def close(self) -> None:
        """Forget the body; its file vanishes. May be called more than once."""
        self._is_closed = True
        self._memory = bytearray()
        self._file_size = 0
        if self._file is not None:
            threading.Thread(target=self._close_file, name="close body", daemon=True).start()

    def _write(self, data: bytearray) -> None:
        with self._file_lock:
            if self._is_closed:
                return
            if self._file is None:
                # It lives as long as the body does, so no `with` can close it: `close` does.
                self._file = tempfile.TemporaryFile(dir=self._directory, prefix="ollama-swap-proxy-")  # noqa: SIM115
            self._file.seek(self._file_size)
            self._file.write(data)
            self._file.flush()
            self._file_size += len(data)
            if self._is_closed:  # by a loop that did not wait for this thread
                self._file.close()

    def _read(self, offset: int, size: int) -> bytes:
        with self._file_lock:
            if self._file is None or self._is_closed:
                raise ValueError("this body is closed")
            self._file.seek(offset)
            return self._file.read(size)

    def _close_file(self) -> None:
        with self._file_lock:
            if self._file is not None:
                self._file.close()


async def read_intent(
    endpoint: Endpoint, target: bytes | str, headers: Mapping[str, str], body: Body
) -> requests.Intent:
    """Find out what a stored request asks for. ``headers`` must look names up in any case (a multidict does).

    Small bodies are read without giving up control; larger ones pause between slices.

    Raises:
        ProxyError: model_unreadable (400).
    """
    if endpoint.is_form:
        return await _read_form(target, headers.get("Content-Type", ""), body)
    if _is_zstd(endpoint, headers):
        return await _read_zstd(endpoint, body)
    if body.size <= SYNCHRONOUS_LIMIT_BYTES and body.in_memory:
        intent = read_at_once(endpoint, None, body.as_bytes())
        if intent is not None:
            return intent
    return await _read_in_slices(endpoint, body.chunks(SLICE_BYTES))


def read_at_once(endpoint: Endpoint, coding: bytes | None, data: bytes) -> requests.Intent | None:
    """Find out what a request asks for whose whole body is small (`SYNCHRONOUS_LIMIT_BYTES`) and here.

    ``coding`` is its Content-Encoding. None where that takes `read_intent`: a form, a compressed body, one that is
    nested deeply.
    """
    if endpoint.is_form or (coding == b"zstd" and endpoint.takes_zstd):
        return None
    try:
        return requests.judge(endpoint, json_fields.read(data))
    except json_fields.BadJSON as problem:
        return requests.refusal(f"invalid JSON: {problem}")
    except json_fields.TooDeep:
        return None


def _is_zstd(endpoint: Endpoint, headers: Mapping[str, str]) -> bool:
    """Say whether Ollama inflates a body: exactly this spelling, and only on /v1 (transcript encodings)."""
    return endpoint.takes_zstd and headers.get("Content-Encoding") == "zstd"


def library_names(body: bytes) -> set[str | None]:
    """Return the canonical names that a library request speaks of; None among them stands for "any"."""
    try:
        fields = json_fields.read(body)
    except (json_fields.BadJSON, json_fields.TooDeep):
        return {None}
    given = [fields.plain(key) for key in ("model", "name", "destination")]
    return {names.canonical(name) for name in given if isinstance(name, str) and name} or {None}


async def _read_in_slices(endpoint: Endpoint, slices: AsyncIterator[bytes]) -> requests.Intent:
    skeleton = Skeleton(requests.RULES)
    async for data in slices:
        for _ in skeleton.feed(data):
            await asyncio.sleep(0)
        if skeleton.is_finished:
            break
        await asyncio.sleep(0)
    try:
        return requests.judge(endpoint, skeleton.fields())
    except json_fields.BadJSON as problem:
        return requests.refusal(f"invalid JSON: {problem}")
    except Unreadable as problem:
        raise _unreadable(f"{problem} is longer than {VALUE_LIMIT_BYTES} bytes") from None


def _unreadable(reason: str) -> ProxyError:
    """Return the answer to a body that Ollama might serve, but which model by, or how loaded, we cannot tell.

    Passed on it could make Ollama evict a model that is in use.
    """
    return ProxyError("model_unreadable", 400, f"this proxy cannot tell which model to load for this request: {reason}")


async def _read_zstd(endpoint: Endpoint, body: Body) -> requests.Intent:
    try:
        async with contextlib.aclosing(_inflated(body)) as slices:
            return await _read_in_slices(endpoint, slices)
    except zstandard.ZstdError as problem:
        return requests.refusal(f"zstd: {problem}")


async def _inflated(body: Body) -> AsyncGenerator[bytes]:
    """Yield a zstd body decoded, each slice but the last of full size: a bomb costs no more than Ollama would take.

    A large one is inflated in another thread: however little comes out of it, zstd may have to read all of it.
    """
    is_small = body.size <= SYNCHRONOUS_LIMIT_BYTES and body.in_memory
    inflater = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_LIMIT_BYTES)
    reader = inflater.stream_reader(cast("IO[bytes]", _Rewound(body)), read_across_frames=True)
    total = 0
    while data := reader.read(SLICE_BYTES) if is_small else await asyncio.to_thread(reader.read, SLICE_BYTES):
        total += len(data)
        if total > ZSTD_DECODED_LIMIT_BYTES:
            raise zstandard.ZstdError("decoded body too large")
        yield data


class _Rewound:
    """A body as a file to read from, for a thread that may wait for the disk."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._offset = 0

    def read(self, size: int) -> bytes:
        data = self._body.piece(self._offset, size)
        self._offset += len(data)
        return data


async def _read_form(target: bytes | str, content_type: str, body: Body) -> requests.Intent:
    """Find the model of a transcription: ``?model=`` wins over the first field (middleware/openai.go:1285)."""
    query = (target if isinstance(target, str) else target.decode("latin-1")).partition("?")[2]
    in_query = [value for name, value in parse_qsl(query, keep_blank_values=True) if name == "model"][:1]
    kind, parameters = forms.parse_parameters(content_type)
    if kind != "multipart/form-data" or (parameters is not None and "boundary" not in parameters):
        return requests.refusal("no multipart form")
    try:
        form = await _parse_form(parameters, body)
    except forms.BadForm as problem:
        return requests.refusal(f"multipart form: {problem}")
    except forms.UnreadableForm as problem:
        if not in_query:
            raise _unreadable(f"its form has {problem}") from None
        return requests.judge_form(in_query[0])
    return requests.judge_form(*(in_query or [form.model]), has_audio=form.has_audio)


async def _parse_form(parameters: Mapping[str, str] | None, body: Body) -> forms.Form:
    if not parameters or not parameters["boundary"]:
        raise forms.UnreadableForm("an odd Content-Type")
    reader = forms.FormReader(parameters["boundary"])
    async for data in body.chunks(SLICE_BYTES):
        for _ in reader.feed(data):
            await asyncio.sleep(0)
        if reader.is_finished:
            break
        await asyncio.sleep(0)
    return reader.end()
