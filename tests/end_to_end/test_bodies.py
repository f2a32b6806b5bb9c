"""Request bodies: kept or streamed, large or odd, they reach Ollama byte for byte and cost neither memory nor time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import zstandard

from tests.end_to_end.receiving import receiving
from tests.end_to_end.stage import A, eventually, generate, staged, within

MIB = 1 << 20
LONGEST_STALL_S = 0.025
"""The promise is 2 ms. This is processor time of a thread in which client and upstream run too, on a busy machine."""


class Pieces:
    """A body that is made while it is sent, and its hash."""

    def __init__(self, head: bytes, filler: bytes, size: int, tail: bytes) -> None:
        self._parts = (head, filler, tail)
        self._count = max(0, size - len(head) - len(tail)) // len(filler)
        self.size = len(head) + self._count * len(filler) + len(tail)
        self.hashed = hashlib.sha256()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        head, filler, tail = self._parts
        for piece in (head, *([filler] * self._count), tail):
            self.hashed.update(piece)
            yield piece


def image_request(size: int = 50 * MIB, model: str = "a") -> Pieces:
    """A generate request whose image makes it large; the model comes behind it, where it is found last."""
    return Pieces(b'{"images":["', b"QUJD" * 16384, size, b'"],"prompt":"x","model":"%b"}' % model.encode())


def files_in(directory: Path) -> list[str]:
    """Open files of ours in this directory: temporary ones have no name there, only a descriptor."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(descriptor.readlink()))
    return [name for name in found if name.startswith(str(directory))]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def resident_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The longest time for which the loop ran without coming round, in processor time of its thread."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.most_bytes = 0

    async def look(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest_s = max(self.longest_s, now - last)
            last = now

    async def weigh(self) -> None:
        while True:
            self.most_bytes = max(self.most_bytes, resident_bytes())
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watching(what: str) -> AsyncIterator[Watch]:
    watch = Watch()
    gc.collect()
    task = asyncio.create_task(getattr(watch, what)(), name=what)
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_50_mb_of_images_reach_ollama_unchanged_by_way_of_a_file(kept):
    body = image_request()
    async with receiving() as scene:
        headers = {"Content-Length": str(body.size), "Content-Type": "application/json"}
        async with scene.session.post(scene.service.url / "api/generate", data=body, headers=headers) as answer:
            assert answer.status == 200
        (received,) = scene.receiver.requests
        assert (received.size, received.sha256) == (body.size, body.hashed.hexdigest())
        assert received.headers["Content-Length"] == str(body.size)
        await eventually(lambda: not files_in(kept))


async def test_finding_the_model_in_50_mb_does_not_hold_the_loop(kept):
    body = image_request()
    async with receiving() as scene, watching("look") as watch:
        await scene.session.post(scene.service.url / "api/generate", data=body)
    assert 0 < watch.longest_s < LONGEST_STALL_S


async def test_a_large_body_waits_in_a_file_and_the_file_goes_with_its_request(kept):
    before = resident_bytes()
    body = image_request(model="b")
    async with staged() as stage, stage.streaming("a"):
        waits = asyncio.create_task(stage.session.post(stage.service.url / "api/generate", data=body))
        await stage.wait_for_line(1)
        assert len(files_in(kept)) == 1
        assert list(kept.iterdir()) == []
        assert resident_bytes() - before < 30 * MIB
        waits.cancel()
        await stage.wait_for_line(0)
        await eventually(lambda: not files_in(kept))


async def test_a_small_body_touches_no_disk(kept):
    async with staged() as stage, stage.streaming("a"):
        stage.begin("b", prompt="x" * 100_000)
        await stage.wait_for_line(1)
        assert files_in(kept) == []


async def test_a_200_mb_upload_streams_with_flat_memory(kept):
    body = Pieces(b"", b"\0" * 65536, 200 * MIB, b"end")
    async with receiving() as scene:
        before = resident_bytes()
        async with watching("weigh") as watch:
            path = scene.service.url / "api/blobs" / f"sha256:{'a' * 64}"
            headers = {"Content-Length": str(body.size)}
            async with scene.session.post(path, data=body, headers=headers) as answer:
                assert answer.status == 200
        (received,) = scene.receiver.requests
        assert (received.size, received.sha256) == (body.size, body.hashed.hexdigest())
        assert watch.most_bytes - before < 40 * MIB
        assert files_in(kept) == []


async def test_an_early_answer_to_an_upload_reaches_the_client_while_it_still_sends(stage):
    """Ollama answers at once for a blob that it has, and does not read the body."""
    content = b"weights"
    path = f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
    assert (await stage.post(path, content)).status == 201
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.service.listen.port)
    writer.write(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400000000\r\n\r\n" % path.encode())
    sending = asyncio.create_task(send_without_end(writer))
    head = await within(5, reader.readuntil(b"\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 200 ")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    writer.transport.abort()


async def send_without_end(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"\0" * 65536)
            await writer.drain()


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 7):
        yield body[start : start + 7]


LARGE = {
    "/api/generate": {"model": "a", "prompt": "x" * 2000},
    "/api/embed": {"model": "a", "input": "x" * 2000},
    "/v1/chat/completions": {"model": "a", "messages": [{"role": "user", "content": "x" * 2000}]},
    "/v1/messages": {"model": "a", "max_tokens": 2, "messages": [{"role": "user", "content": "x" * 2000}]},
}


@pytest.mark.parametrize("framing", ["sized", "chunked"])
@pytest.mark.parametrize("path", LARGE)
async def test_a_body_beyond_the_limit_is_refused_in_the_callers_dialect(path, framing):
    async with staged(body_limit_bytes=1000) as stage:
        body = json.dumps(LARGE[path]).encode()
        answer = await stage.request("POST", path, data=body if framing == "sized" else in_pieces(body))
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert "1000 bytes" in message_of(path, answer.json)
        assert stage.loads == []
        await stage.served("a")


def message_of(path: str, shape: dict) -> str:
    if path == "/v1/messages":
        assert (shape["type"], shape["error"]["type"]) == ("error", "request_too_large")
    error = shape["error"]
    return error["message"] if path.startswith("/v1/") else error


async def test_the_limit_holds_for_no_upload():
    async with staged(body_limit_bytes=1000) as stage:
        content = b"x" * 5000
        answer = await stage.post(f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}", content)
        assert answer.status == 201


FRAMINGS = [("sized", 300), ("chunked", 300), ("sized", 9 * MIB), ("chunked", 9 * MIB)]


@pytest.mark.parametrize(("framing", "size"), FRAMINGS)
async def test_a_kept_body_goes_on_as_it_was_framed(kept, framing, size):
    body = image_request(size)
    headers = {"Content-Length": str(body.size)} if framing == "sized" else {}
    async with receiving() as scene:
        await scene.session.post(scene.service.url / "api/generate", data=body, headers=headers)
        (received,) = scene.receiver.requests
    assert received.sha256 == body.hashed.hexdigest()
    assert received.headers.get("Transfer-Encoding") == (None if framing == "sized" else "chunked")
    assert received.headers.get("Content-Length") == headers.get("Content-Length")


@pytest.mark.parametrize(
    "odd",
    [
        b'\xef\xbb\xbf{"model":"a","prompt":"x"}',
        b'{"MODEL":"b","prompt":"x","model":"a","options":{"num_predict":1}}',
        b'  {"model" : "a" , "prompt":"\\ud83d\\ude00 \xff", "x":[[[]]]}\r\n\r\n',
        b'{"model":"a","prompt":"x"} and more',
    ],
)
async def test_odd_bytes_are_passed_on_as_they_are(odd):
    async with receiving() as scene:
        await scene.session.post(scene.service.url / "api/generate", data=odd)
        (received,) = scene.receiver.requests
    assert received.sha256 == hashlib.sha256(odd).hexdigest()


async def test_the_model_is_found_as_ollama_finds_it(stage):
    """Case-insensitive, the last duplicate wins."""
    answer = await stage.post("/api/generate", b'{"Model":"a","prompt":"x","stream":false,"MODEL":"b"}')
    assert answer.json["model"] == "b"
    assert stage.loads == ["b"]


async def test_any_content_type_will_do(stage):
    body = json.dumps(generate("a", stream=False)).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        answer = await stage.request("POST", "/api/generate", data=body, headers={"Content-Type": kind})
        assert answer.status == 200
    assert stage.loads == ["a"]


CHAT = json.dumps({"model": "b", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}).encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_zstd_body_on_v1_is_read_and_passed_on_as_it_is(stage, path):
    packed = zstandard.compress(CHAT)
    answer = await stage.post(path, packed, headers={"Content-Encoding": "zstd"})
    assert answer.status == 200
    assert stage.loads == ["b"]
    async with receiving() as scene:
        await scene.session.post(scene.service.url / path[1:], data=packed, headers={"Content-Encoding": "zstd"})
        (received,) = scene.receiver.requests
    assert received.sha256 == hashlib.sha256(packed).hexdigest()
    assert received.headers["Content-Encoding"] == "zstd"


async def test_a_zstd_body_elsewhere_or_broken_is_answered_by_ollama_and_evicts_nobody(stage):
    await stage.served("a")
    packed = zstandard.compress(CHAT)
    for path, body in (("/api/chat", packed), ("/v1/chat/completions", b"no zstd"), ("/v1/messages", packed[:-9])):
        ours = await stage.post(path, body, headers={"Content-Encoding": "zstd"})
        direct = await stage.post(path, body, headers={"Content-Encoding": "zstd"}, direct=True)
        assert (ours.status, ours.code) == (direct.status, None)
        assert ours.status >= 400
    assert stage.loads == ["a"]


def form(model: str | None, size: int = 3000) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("file", b"\0RIFF" * (size // 5), filename="a.wav", content_type="audio/wav")
    if model is not None:
        data.add_field("model", model)
    return data


FLOOD = b",".join([b'"system":"","template":""'] * 4000)
REST = b'"stream":false,"options":{"num_predict":2},"prompt":"x"'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a",' + FLOOD + b"," + REST + b',"model":"b"}',
        b'{"system":"' + b"x" * 20_000 + b'",' + REST + b',"model":"' + b" " * 3000 + b'b"}',
    ],
    ids=["flood of fields", "blanks around the name"],
)
async def test_an_odd_json_body_takes_a_lease_on_the_model_that_ollama_loads(stage, body):
    await stage.served("a")
    async with stage.streaming("a", tokens=20):
        answer = await stage.post("/api/generate", body)
    assert answer.status == 200
    assert stage.loads == ["a", "b"]
    assert stage.evictions_by_ollama == []


@pytest.mark.parametrize("where", ["form", "query", "both"])
async def test_the_model_of_a_transcription_is_found_in_the_form_or_the_query(stage, where):
    await stage.served("a")
    path = "/v1/audio/transcriptions" + ("" if where == "form" else "?model=b")
    data = form({"form": "b", "query": None, "both": "a"}[where])
    answer = await stage.request("POST", path, data=data)
    assert answer.status == 200
    assert answer.json["text"].startswith("b.0 ")
    assert stage.loads == ["a", "b"]
    assert stage.overlaps == []
    assert stage.evictions_by_ollama == []


async def test_a_large_recording_reaches_ollama_unchanged(kept):
    """The model comes behind the recording."""
    part = b'--limit\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n'
    head = part % (b"file", b'; filename="a.wav"')
    body = Pieces(head, b"\0RIFF-li" * 4096, 20 * MIB, b"\r\n" + part % (b"model", b"") + b"a\r\n--limit--\r\n")
    kind = {"Content-Type": "multipart/form-data; boundary=limit"}
    async with receiving() as scene:
        await scene.session.post(scene.service.url / "v1/audio/transcriptions", data=body, headers=kind)
        (received,) = scene.receiver.requests
    assert received.sha256 == body.hashed.hexdigest()


async def test_a_client_that_waits_for_100_continue_gets_it_before_its_lease():
    async with staged((A,)) as stage:
        stage.ollama.faults.hang_load = "a"
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.service.listen.port)
        body = json.dumps(generate("a", stream=False)).encode()
        head = f"Host: localhost\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        writer.write(b"POST /api/generate HTTP/1.1\r\n" + head.encode())
        assert await within(2, reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        await stage.wait_for_line(1)
        stage.ollama.faults.hang_load = ""
        assert (await within(5, reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200 OK")
        writer.close()


def pieces_of_a_stream() -> Iterator[bytes]:
    """The same request in ever other cuts."""
    body = json.dumps(generate("b", stream=False)).encode()
    raw = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for step in (1, 3, 17, len(raw)):
        yield from (raw[start : start + step] for start in range(0, len(raw), step))


async def test_requests_that_come_in_crumbs_and_pipelined_are_all_answered(stage):
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.service.listen.port)
    for piece in pieces_of_a_stream():
        writer.write(piece)
        await asyncio.sleep(0)
    for _ in range(4):
        head = await within(5, reader.readuntil(b"\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 200 OK")
        size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(int(size.partition(b":")[2]))
    assert stage.loads == ["b"]
    writer.close()
