"""Bodies are kept whole wherever they lie, and what they ask for is found without holding the event loop."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ollama_swap_proxy import bodies
from ollama_swap_proxy.bodies import SYNCHRONOUS_LIMIT_BYTES, Body, read_intent
from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.requests import Intent, Kind
from ollama_swap_proxy.errors import ProxyError

MIB = 1 << 20
CHAT_BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}


async def stored(data: bytes, *, memory: int = 8 * MIB, piece: int = 65536) -> Body:
    body = Body(memory)
    for start in range(0, len(data), piece):
        await body.append(data[start : start + piece])
    return body


async def intent(endpoint: Endpoint, data: bytes, headers: dict[str, str] | None = None, **kwargs: Any) -> Intent:
    body = await stored(data, **kwargs)
    try:
        return await read_intent(endpoint, endpoint.path, headers or {}, body)
    finally:
        body.close()


async def collect(body: Body, size: int) -> list[bytes]:
    return [chunk async for chunk in body.chunks(size)]


@pytest.mark.parametrize("memory", [0, 1, 1000, 100_000, 8 * MIB])
@pytest.mark.parametrize("piece", [700, 65536])
async def test_a_body_comes_back_as_it_was_stored_and_again(memory, piece):
    data = os.urandom(300_001)
    body = await stored(data, memory=memory, piece=piece)
    assert body.size == len(data)
    assert body.in_memory is (memory >= len(data))
    for size in (1 << 18, 4096):
        chunks = await collect(body, size)
        assert b"".join(chunks) == data
        assert max(map(len, chunks)) <= size
    body.close()


async def test_a_body_in_memory_is_had_as_bytes_and_one_in_a_file_is_not():
    assert (await stored(b"abc")).as_bytes() == b"abc"
    body = await stored(b"abc", memory=2)
    with pytest.raises(ValueError, match="file"):
        body.as_bytes()
    body.close()


async def test_an_empty_body_has_no_chunks():
    body = Body(10)
    assert await collect(body, 10) == []
    assert body.as_bytes() == b""
    body.close()
    body.close()


async def test_a_body_beyond_the_limit_is_answered_with_413():
    body = Body(10, limit_bytes=20)
    await body.append(b"x" * 20)
    with pytest.raises(ProxyError) as caught:
        await body.append(b"x")
    assert (caught.value.code, caught.value.status) == ("body_too_large", 413)
    body.close()


async def test_a_disk_that_does_not_take_a_body_is_answered_as_an_error_of_ours(tmp_path: Path):
    body = Body(0, directory=str(tmp_path / "missing"))
    with pytest.raises(ProxyError) as caught:
        await body.append(b"x")
    assert (caught.value.code, caught.value.status) == ("body_not_stored", 503)
    assert str(tmp_path) not in caught.value.message
    body.close()


async def test_what_is_stored_on_disk_is_not_held_in_memory_too_and_leaves_no_name_behind(tmp_path: Path):
    tracemalloc.start()
    body = Body(MIB, directory=str(tmp_path))
    piece = bytes(65536)
    for _ in range(320):
        await body.append(piece)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert body.size == 20 * MIB
    assert held < 3 * MIB
    assert peak < 6 * MIB
    body.close()
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_a_body_closed_during_a_write_is_still_cleaned_up():
    body = Body(0)
    writing = asyncio.create_task(body.append(b"x" * MIB), name="append")
    await asyncio.sleep(0)
    writing.cancel()
    body.close()
    with pytest.raises(asyncio.CancelledError):
        await writing
    with pytest.raises(ValueError, match="closed"):
        body._read(0, 1)


async def test_a_small_body_is_read_without_giving_up_control():
    body = await stored(json.dumps(CHAT_BODY).encode())
    reading = read_intent(endpoints.CHAT, "/api/chat", {}, body)
    with pytest.raises(StopIteration) as caught:
        reading.send(None)
    assert caught.value.value.name == "small:latest"


@pytest.mark.parametrize("memory", [1000, 128 * MIB])
async def test_the_model_behind_megabytes_of_images_is_found(memory):
    message = {"role": "user", "content": "hi", "images": ["A" * (4 * MIB)] * 2}
    data = json.dumps({"messages": [message], "options": {"num_ctx": 512}, "model": "Small"}).encode()
    found = await intent(endpoints.CHAT, data, memory=memory)
    assert (found.kind, found.name, found.options) == (Kind.LEASE, "small:latest", {"num_ctx": 512})


async def test_a_big_body_that_is_cut_is_a_sure_refusal():
    data = b'{"model":"small","prompt":"' + b"A" * 100_000
    assert (await intent(endpoints.GENERATE, data)).kind is Kind.SURE_REFUSAL


async def test_a_model_that_cannot_be_read_for_certain_is_refused_not_guessed():
    data = b'{"prompt":"x","model":"' + b" " * 20_000 + b'small"}'
    with pytest.raises(ProxyError) as caught:
        await intent(endpoints.GENERATE, data)
    assert (caught.value.code, caught.value.status) == ("model_unreadable", 400)


async def test_a_deeply_nested_body_is_read_all_the_same():
    data = b'{"messages":[' + b"[" * 5000 + b"]" * 5000 + b'],"model":"small"}'
    assert len(data) < SYNCHRONOUS_LIMIT_BYTES
    found = await intent(endpoints.CHAT, data)
    assert (found.kind, found.name) == (Kind.LEASE, "small:latest")


@pytest.mark.parametrize("filling", [b"A" * MIB, b'"},{"' * 60_000, b"\\n" * 500_000])
async def test_other_tasks_get_their_turn_while_a_big_body_is_read(filling):
    """One turn a slice at least; how long a slice may take is counted in steps by the skeleton's own tests."""
    data = b'{"messages":[{"a":"' + filling + b'"}],"model":"small"}'
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    body = await stored(data)
    task = asyncio.create_task(other(), name="other")
    await read_intent(endpoints.CHAT, "/api/chat", {}, body)
    task.cancel()
    assert turns >= len(data) // bodies.SLICE_BYTES


def compressed(data: bytes, **kwargs: Any) -> bytes:
    return zstandard.ZstdCompressor(**kwargs).compress(data)


ZSTD = {"Content-Encoding": "zstd"}
V1_ZSTD = [endpoint for endpoint in endpoints.GATED if endpoint.takes_zstd]


@pytest.mark.parametrize("endpoint", V1_ZSTD, ids=lambda endpoint: endpoint.path)
async def test_zstd_is_read_where_ollama_reads_it(endpoint):
    body = {**CHAT_BODY, "prompt": "x", "input": "x", "max_tokens": 1}
    found = await intent(endpoint, compressed(json.dumps(body).encode()), ZSTD)
    assert (found.kind, found.name) == (Kind.LEASE, "small:latest")


@pytest.mark.parametrize("encoding", ["ZSTD", "zstd, gzip", "gzip", ""])
async def test_no_other_encoding_is_undone(encoding):
    data = compressed(json.dumps(CHAT_BODY).encode())
    headers = {"Content-Encoding": encoding}
    assert (await intent(endpoints.V1_CHAT, data, headers)).kind is Kind.SURE_REFUSAL
    assert (await intent(endpoints.CHAT, data, ZSTD)).kind is Kind.SURE_REFUSAL


async def test_a_plain_body_that_claims_to_be_zstd_is_a_sure_refusal():
    assert (await intent(endpoints.V1_CHAT, json.dumps(CHAT_BODY).encode(), ZSTD)).kind is Kind.SURE_REFUSAL
    assert (await intent(endpoints.V1_CHAT, b"", ZSTD)).kind is Kind.SURE_REFUSAL


@pytest.mark.parametrize("memory", [100, 8 * MIB])
async def test_a_large_zstd_body_is_read_in_frames_and_slices(memory):
    data = json.dumps({**CHAT_BODY, "pad": os.urandom(MIB).hex(), "model": "late"}).encode()
    halves = compressed(data[:MIB]) + compressed(data[MIB:])
    assert (await intent(endpoints.V1_CHAT, halves, ZSTD, memory=memory)).name == "late:latest"


async def test_a_bomb_costs_no_more_than_ollama_would_take():
    data = b'{"model":"small","messages":["' + b"A" * (50 * MIB) + b'"]}'
    bomb = compressed(data)
    del data
    tracemalloc.start()
    found = await intent(endpoints.V1_CHAT, bomb, ZSTD)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.kind is Kind.SURE_REFUSAL
    assert peak < 30 * MIB


@pytest.mark.parametrize("memory", [MIB, 64 * MIB])
async def test_only_the_decoded_size_of_zstd_is_limited(memory):
    size = bodies.ZSTD_DECODED_LIMIT_BYTES + 1
    skippable = struct.pack("<II", 0x184D2A50, size) + bytes(size)
    data = skippable + compressed(json.dumps(CHAT_BODY).encode())
    assert (await intent(endpoints.V1_CHAT, data, ZSTD, memory=memory)).name == "small:latest"


async def test_a_window_larger_than_ollama_allows_is_a_sure_refusal():
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(json.dumps(CHAT_BODY).encode()) + compressor.flush()
    assert (await intent(endpoints.V1_CHAT, data, ZSTD)).kind is Kind.SURE_REFUSAL


def form(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--B\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + b"--B--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=B"}
FILE = ('Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav', os.urandom(200_000))
MODEL = ('Content-Disposition: form-data; name="model"', b"Whisper")


async def form_intent(
    data: bytes, target: str = "/v1/audio/transcriptions", headers: dict[str, str] | None = None
) -> Intent:
    return await read_intent(
        endpoints.V1_TRANSCRIPTIONS, target, FORM if headers is None else headers, await stored(data)
    )


@pytest.mark.parametrize("parts", [[MODEL, FILE], [FILE, MODEL], [MODEL, FILE, (MODEL[0], b"other")]])
async def test_the_model_of_a_transcription_is_the_first_field_of_that_name(parts):
    found = await form_intent(form(*parts))
    assert (found.kind, found.model, found.name) == (Kind.LEASE, "Whisper", "whisper:latest")


async def test_the_query_wins_over_the_form():
    data = form(MODEL, FILE)
    assert (await form_intent(data, "/v1/audio/transcriptions?x=1&model=a%2Fb&model=c")).name == "a/b:latest"
    assert (await form_intent(data, "/v1/audio/transcriptions?model=")).kind is Kind.SURE_REFUSAL
    assert (await form_intent(data, "/v1/audio/transcriptions?Model=c")).name == "whisper:latest"


async def test_a_file_called_model_or_a_field_in_other_case_is_no_model():
    as_file = ('Content-Disposition: form-data; name="model"; filename="x"', b"a")
    other_case = ('Content-Disposition: form-data; name="Model"', b"b")
    assert (await form_intent(form(as_file, other_case, MODEL, FILE))).name == "whisper:latest"
    assert (await form_intent(form(as_file, other_case, FILE))).kind is Kind.SURE_REFUSAL


async def test_a_quoted_printable_field_is_decoded_as_go_does():
    part = (MODEL[0] + "\r\nContent-Transfer-Encoding: quoted-printable", b"whis=\r\nper=3Aq8")
    assert (await form_intent(form(part, FILE))).name == "whisper:q8"


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "application/x-www-form-urlencoded"]
)
async def test_what_is_no_multipart_form_is_a_sure_refusal(content_type):
    found = await form_intent(b"model=x", headers={"Content-Type": content_type})
    assert found.kind is Kind.SURE_REFUSAL


async def test_without_a_recording_a_transcription_is_a_sure_refusal_whatever_names_the_model():
    for data in (form(MODEL), form(MODEL, (FILE[0], b"")), b"hello"):
        for target in ("/v1/audio/transcriptions", "/v1/audio/transcriptions?model=b"):
            assert (await form_intent(data, target)).kind is Kind.SURE_REFUSAL


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (form(("X: y\r\nContent-Disposition: form-data; name*0=mo; name*1=del", b"a"), FILE), FORM["Content-Type"]),
        (form(MODEL, FILE), "multipart/form-data; boundary=B; boundary=C"),
        (form(MODEL, FILE), 'multipart/form-data; boundary=""'),
    ],
)
async def test_a_form_that_cannot_be_read_for_certain_is_refused_unless_the_query_names_the_model(data, content_type):
    headers = {"Content-Type": content_type}
    with pytest.raises(ProxyError) as caught:
        await form_intent(data, headers=headers)
    assert (caught.value.code, caught.value.status) == ("model_unreadable", 400)
    found = await form_intent(data, "/v1/audio/transcriptions?model=b", headers)
    assert (found.kind, found.name) == (Kind.LEASE, "b:latest")


async def test_a_boundary_in_another_coding_or_of_any_length_is_read():
    data = form(MODEL, FILE)
    for boundary in ("boundary*=UTF-8''B", "BOUNDARY = B;"):
        found = await form_intent(data, headers={"Content-Type": f"multipart/form-data; {boundary}"})
        assert found.name == "whisper:latest"
    long = "B" * 300
    headers = {"Content-Type": f"multipart/form-data; boundary={long}"}
    assert (await form_intent(data.replace(b"--B", b"--" + long.encode()), headers=headers)).name == "whisper:latest"
    assert (await form_intent(b"hello", headers=headers)).kind is Kind.SURE_REFUSAL
