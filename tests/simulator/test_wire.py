"""The simulated server on plain sockets: framing, pipelining, early answers, clients that leave, and no HTTP at all."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import pytest

from ollama_swap_proxy.simulator import SimGPU, SimModel, SimulatedOllama
from tests.simulator.client import until

VERSION = b'{"version":"0.33.0"}'
HOST = b"Host: localhost\r\n"


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    models = [SimModel("alpha", 4500, load_s=0, token_ms=0.5)]
    async with SimulatedOllama(models, SimGPU(8000, lag_s=0)) as running:
        yield running


async def exchange(ollama: SimulatedOllama, *parts: bytes, until_close: bool = True) -> bytes:
    """Send the parts, each in a segment of its own, and read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.002)
        async with asyncio.timeout(5):
            return await (reader.read() if until_close else reader.readuntil(b"\r\n\r\n"))
    finally:
        writer.transport.abort()


def get(path: bytes, *, close: bool = True) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + (b"Connection: close\r\n" if close else b"") + b"\r\n"


def post(path: bytes, body: bytes, headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + length + headers + b"\r\n" + body


async def test_pipelined_requests_are_answered_in_order(ollama: SimulatedOllama):
    body = json.dumps({"model": "alpha", "prompt": "x", "stream": False, "options": {"num_predict": 2}}).encode()
    slow = post(b"/api/generate", body).replace(b"Connection: close\r\n", b"")
    answer = await exchange(ollama, get(b"/", close=False) + slow + get(b"/api/version"))
    first, second, third = answer.index(b"Ollama is running"), answer.index(b"alpha.1"), answer.index(VERSION)
    assert first < second < third


async def test_a_request_in_many_segments_is_one_request(ollama: SimulatedOllama):
    request = get(b"/api/version")
    assert VERSION in await exchange(ollama, *(request[i : i + 7] for i in range(0, len(request), 7)))


async def test_a_chunked_body_is_read_whatever_its_borders(ollama: SimulatedOllama):
    body = b'{"model":"alpha"}'
    head = b"POST /api/show HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b"%x;ext=1\r\n%b\r\n" % (len(p), p) for p in (body[:3], body[3:4], body[4:])]
    answer = await exchange(ollama, head, *chunks, b"0\r\nTrailer: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"modelfile" in answer


async def test_http_1_0_gets_its_version_and_a_closed_connection(ollama: SimulatedOllama):
    answer = await exchange(ollama, b"GET /api/version HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Connection" not in answer


async def test_a_stream_to_http_1_0_is_not_chunked(ollama: SimulatedOllama):
    body = b'{"model":"alpha","prompt":"x","options":{"num_predict":2}}'
    head = b"POST /api/generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await exchange(ollama, head + body)
    assert b"chunked" not in answer
    lines = answer.split(b"\r\n\r\n", 1)[1].splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False, False, True]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request: missing required Host header"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", b"400 Bad Request"),
        (b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", b"400 Bad Request"),
        (b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400 Bad Request"),
        (b"GET /" + b"x" * (1100 << 10) + b" HTTP/1.1\r\n", b"431 Request Header Fields Too Large"),
    ],
)
async def test_what_is_no_request_is_refused_as_go_does(ollama: SimulatedOllama, raw: bytes, says: bytes):
    answer = await exchange(ollama, raw)
    assert answer.startswith(b"HTTP/1.1 " + says[:3])
    assert answer.endswith(says)
    assert b"Connection: close\r\n" in answer


async def test_a_megabyte_of_header_passes(ollama: SimulatedOllama):
    head = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Big: " + b"x" * (1000 << 10)
    assert VERSION in await exchange(ollama, head + b"\r\n\r\n")


async def test_a_large_body_nobody_wants_is_answered_at_once_and_closed(ollama: SimulatedOllama):
    head = b"POST /nosuch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n"
    answer = await exchange(ollama, head, until_close=False)
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"Connection: close\r\n" in answer


async def test_a_large_upload_is_stored_and_answered(ollama: SimulatedOllama):
    data = bytes(5 << 20)
    digest = hashlib.sha256(data).hexdigest()
    answer = await exchange(ollama, post(b"/api/blobs/sha256:" + digest.encode(), data))
    assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
    assert digest in ollama.library.blobs


async def test_a_client_that_half_closes_ends_its_generation(ollama: SimulatedOllama):
    body = b'{"model":"alpha","prompt":"x","options":{"num_predict":100000}}'
    reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port)
    writer.write(post(b"/api/generate", body))
    await reader.readline()
    writer.write_eof()
    await until(lambda: list(ollama.ledger.served()) == [("alpha:latest", "aborted")])
    writer.transport.abort()


async def test_a_client_that_leaves_before_its_body_is_there_leaves_nothing_behind(ollama: SimulatedOllama):
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    for _ in range(3):
        _reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port)
        writer.write(head)
        writer.transport.abort()
    await until(lambda: not ollama._connections)
    assert VERSION in await exchange(ollama, get(b"/api/version"))


async def test_a_reader_that_stops_stops_the_engine_and_not_the_server(ollama: SimulatedOllama):
    body = b'{"model":"alpha","prompt":"x","options":{"num_predict":40000}}'
    reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port, limit=1024)
    writer.write(post(b"/api/generate", body))
    await reader.readline()
    assert VERSION in await exchange(ollama, get(b"/api/version"))
    writer.transport.abort()
    await until(lambda: ollama.ledger.count("serve_end") == 1)
