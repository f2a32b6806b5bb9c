"""Bodies that take their time: Expect, early answers, uploads, slow readers."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from tests.upstream.scripted import OK, Side, eventually, passthrough, relaying, whole

CLOSE_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
POST_40_GB = b"POST /api/blobs/x HTTP/1.1\r\nHost: me\r\nContent-Length: 40000000000\r\n\r\n"
WAITING_POST = b"POST /b HTTP/1.1\r\nHost: me\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


class Pieces:
    """A body kept outside memory."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    @property
    def size(self) -> int:
        return sum(map(len, self._pieces))

    async def chunks(self, size: int):
        for piece in self._pieces:
            assert len(piece) <= size
            await asyncio.sleep(0)
            yield piece


async def test_permission_to_send_comes_from_upstream():
    async def script(side: Side) -> None:
        assert b"Expect: 100-continue" in await side.head()
        await side.send_all(GO_ON + b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        assert await side.exactly(4) == b"body"
        await side.send_all(OK)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(WAITING_POST)
        assert await client.head() == GO_ON
        assert await client.head() == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        client.send(b"body")
        assert await client.exactly(len(OK)) == OK
        assert rig.records[0].request_bytes == 4


async def test_interim_and_final_answer_in_one_segment_both_pass():
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(GO_ON + OK)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(GO_ON + OK)) == GO_ON + OK


async def test_final_answer_instead_of_permission_ends_the_connection_at_once():
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(CLOSE_OK)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(WAITING_POST)
        start = asyncio.get_running_loop().time()
        assert await client.rest() == CLOSE_OK
        assert asyncio.get_running_loop().time() - start < 0.3


async def test_expect_is_dropped_once_the_body_was_read_and_we_gave_the_permission():
    async def handler(rig, request, record):
        request.let_client_send()
        return await rig.relay.forward(request, await whole(request), record=record)

    heads = []

    async def script(side: Side) -> None:
        heads.append(await side.head())
        await side.exactly(4)
        await side.send_all(OK)
        await side.rest()

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(WAITING_POST)
        assert await client.head() == GO_ON
        client.send(b"body")
        assert await client.exactly(len(OK)) == OK
    assert b"xpect" not in heads[0]


async def test_early_answer_reaches_the_client_during_the_upload():
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(CLOSE_OK)
        await asyncio.sleep(0.05)
        side.abort()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(POST_40_GB + b"x" * 4000)
        assert await client.exactly(len(CLOSE_OK)) == CLOSE_OK
        assert await client.rest() == b""  # our FIN follows the answer
        client.close()
        await eventually(lambda: not rig.server.connections)


async def test_client_that_reads_only_behind_its_upload_gets_the_early_answer():
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(CLOSE_OK)
        await asyncio.sleep(0.05)
        side.abort()

    async with relaying(script) as rig:
        client = await rig.client()
        upload = 3_000_000
        client.send(b"POST /b HTTP/1.1\r\nHost: me\r\nContent-Length: %d\r\n\r\n" % upload)
        await client.send_all(b"x" * upload)
        assert await client.rest() == CLOSE_OK


async def test_early_answer_that_keeps_the_connection_waits_for_the_rest_of_the_body():
    async def script(side: Side) -> None:
        while await side.head():
            await side.send_all(OK)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"POST /b HTTP/1.1\r\nHost: me\r\nContent-Length: 10\r\n\r\n01234")
        assert await client.exactly(len(OK)) == OK
        client.send(b"56789GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(OK)) == OK
        assert rig.upstream.connections == 2  # half a request was sent on the first


async def test_upload_streams_with_flat_memory():
    total, piece = 64 * 2**20, b"x" * 2**16

    async def script(side: Side) -> None:
        await side.head()
        left = total
        while left:
            left -= len(await side.reader.read(2**18))
        await side.send_all(OK)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        gc.collect()
        tracemalloc.start()
        try:
            client.send(b"POST /b HTTP/1.1\r\nHost: me\r\nContent-Length: %d\r\n\r\n" % total)
            for _ in range(total // len(piece)):
                await client.send_all(piece)
            assert await client.exactly(len(OK)) == OK
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * 2**20
        assert rig.records[0].request_bytes == total


async def test_upload_is_held_when_upstream_does_not_read():
    go_on = asyncio.Event()
    total = 32 * 2**20

    async def script(side: Side) -> None:
        await side.head()
        side.writer.transport.pause_reading()
        await go_on.wait()
        side.writer.transport.resume_reading()
        await side.exactly(total - (2**21))
        await side.exactly(2**21)
        await side.send_all(OK)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"POST /b HTTP/1.1\r\nHost: me\r\nContent-Length: %d\r\n\r\n" % total + b"x" * total)
        await eventually(lambda: bool(rig.records) and rig.records[0].request_bytes > 0)
        before = -1
        while before != rig.records[0].request_bytes:
            before = rig.records[0].request_bytes
            await asyncio.sleep(0.05)
        assert before < 24 * 2**20  # socket buffers, two of them, and a little of ours
        go_on.set()
        assert await client.exactly(len(OK)) == OK


async def test_slow_reader_holds_upstream_and_gets_everything():
    total = 24 * 2**20
    sent = 0

    async def script(side: Side) -> None:
        nonlocal sent
        await side.head()
        side.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        side.writer.transport.set_write_buffer_limits(high=0)
        while sent < total:
            side.send(b"x" * 2**16)
            await side.writer.drain()
            sent += 2**16
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client(receive_buffer=4096)
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        await eventually(lambda: sent > 0)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert before < total * 0.75  # nearly all of it in kernel buffers
        await client.head()
        left = total
        while left:
            left -= len(await client.reader.read(2**20))
        await eventually(lambda: rig.records[0].response_bytes == total)


@pytest.mark.parametrize(
    ("framing", "sent", "expected"),
    [
        (b"Content-Length: 5", b"abcde", b"abcde"),
        (b"Transfer-Encoding: chunked", b"5\r\nabcde\r\n0\r\n\r\n", b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"),
    ],
)
async def test_a_body_kept_in_pieces_is_sent_in_order(framing, sent, expected):
    async def handler(rig, request, record):
        await whole(request)
        return await rig.relay.forward(request, Pieces(b"ab", b"cde"), record=record)

    async def script(side: Side) -> None:
        await side.head()
        assert await side.exactly(len(expected)) == expected
        await side.send_all(OK)
        await side.rest()

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(b"POST /b HTTP/1.1\r\nHost: me\r\n" + framing + b"\r\n\r\n" + sent)
        assert await client.exactly(len(OK)) == OK
        assert rig.records[0].request_bytes == 5


async def test_the_gate_hears_of_the_answers_head():
    heard = []

    async def handler(rig, request, record):
        return await rig.relay.forward(request, None, record=record, on_response_head=heard.append)

    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n")
        await eventually(lambda: heard == [404])
        assert not rig.records[0].response_bytes
        await side.send_all(b"12345")
        await side.rest()

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        await client.until(b"12345")
        record = rig.records[0]
        assert record.first_byte_at is not None
        assert record.last_byte_at > record.first_byte_at


async def test_each_streamed_piece_passes_at_once():
    go = asyncio.Event()

    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await go.wait()
            go.clear()
            await side.send_all(b"3\r\nabc\r\n")
        await side.send_all(b"0\r\n\r\n")
        await side.rest()

    async with relaying(script, passthrough) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        await client.head()
        for _ in range(3):
            go.set()
            assert await client.exactly(8) == b"3\r\nabc\r\n"
        assert await client.exactly(5) == b"0\r\n\r\n"
