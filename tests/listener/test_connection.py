"""What one connection bears: clients that pipeline and do not read, late bodies, cuts at the wrong moment."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import pytest

from ollama_swap_proxy.errors import Dialect, ProxyError
from ollama_swap_proxy.listener.answers import OwnAnswer
from ollama_swap_proxy.listener.connection import ClientConnection
from ollama_swap_proxy.listener.request import ClientRequest
from tests.upstream.scripted import OK, Rig, Side, eventually, gated, relaying, whole

GET = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"
ERROR = ProxyError("line_full", 503, "the line is full", retry_after_s=3)
BODY = b"x" * 900_000
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


async def error_answer(rig, request, record) -> OwnAnswer:
    return OwnAnswer.of_error(ERROR, Dialect.NATIVE)


async def silent(side: Side) -> None:
    await side.head()


async def early(side: Side) -> None:
    await side.head()
    await side.send_all(OK)
    await side.rest()


async def big(side: Side) -> None:
    while await side.head():
        await side.send_all(BIG)


async def test_pipelined_requests_that_wait_for_nothing_let_the_loop_turn() -> None:
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with relaying(silent, error_answer) as rig:
        client = await rig.client()
        others = asyncio.create_task(turning())
        client.send(GET * 200)
        answered = b""
        while answered.count(b"HTTP/1.1 503") < 200:
            answered += await client.reader.read(2**18)
        others.cancel()
    assert turns >= 200


async def test_a_client_that_never_reads_fills_no_memory() -> None:
    async with relaying(silent, error_answer) as rig:
        client = await rig.client(receive_buffer=4096)
        client.writer.transport.pause_reading()
        most = 0
        for _ in range(60):
            client.send(GET * 2000)
            for _ in range(40):
                await asyncio.sleep(0)
            waiting = [c.transport.get_write_buffer_size() for c in rig.server.connections if c.transport is not None]
            most = max([most, *waiting])
            if client.writer.transport.get_write_buffer_size() > 2_000_000:
                break
        assert most < 4_000_000


async def test_a_malformed_rest_of_a_late_body_is_no_failure_of_ours() -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with relaying(early) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert await client.exactly(len(OK)) == OK
        client.send(b"zz\r\n\r\n")
        await client.rest()
        gc.collect()
    assert not said


async def test_a_client_lost_while_its_unfinished_body_is_ended_leaves_no_upstream_connection(monkeypatch) -> None:
    from ollama_swap_proxy.upstream import relay

    async with relaying(early) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 100\r\n\r\nabc")
        await eventually(lambda: bool(rig.server.connections))
        (connection,) = rig.server.connections
        task, end = connection._task, relay._Crossing.end

        def cancelled_at_the_end(crossing: relay._Crossing) -> asyncio.Task[None] | None:
            unfinished = end(crossing)
            task.get_loop().call_soon(task.cancel)
            return unfinished

        monkeypatch.setattr(relay._Crossing, "end", cancelled_at_the_end)
        await eventually(task.done)
        await eventually(lambda: not rig.relay._pool._all)


async def _with_an_answer_unread(rig: Rig, more: bytes) -> None:
    client = await rig.client(receive_buffer=4096)
    await eventually(lambda: bool(rig.server.connections))
    for connection in rig.server.connections:
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.transport.pause_reading()
    client.send(b"GET / HTTP/1.1\r\nHost: me\r\n%b\r\n" % more)
    await eventually(lambda: bool(rig.records) and rig.records[0].response_bytes > 0)
    await asyncio.sleep(0.01)
    assert rig.server.connections


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
async def test_a_second_signal_cuts_an_answer_that_is_complete_and_unread(more: bytes) -> None:
    async with relaying(big) as rig:
        await _with_an_answer_unread(rig, more)
        stopping = asyncio.create_task(rig.server.stop(30.0))
        await asyncio.sleep(0.03)
        rig.server.abort()
        assert await asyncio.wait_for(stopping, 2.0) == 1
        assert not rig.server.connections


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
async def test_so_does_the_end_of_the_grace(more: bytes) -> None:
    async with relaying(big) as rig:
        await _with_an_answer_unread(rig, more)
        assert await asyncio.wait_for(rig.server.stop(0.05), 2.0) == 1
        assert not rig.server.connections


async def test_a_connection_that_is_gone_leaves_nothing_to_the_garbage_collector() -> None:
    def left() -> int:
        return sum(isinstance(thing, ClientConnection) for thing in gc.get_objects())

    async with relaying(silent, error_answer) as rig:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                client = await rig.client()
                client.send(GET)
                await client.until(b"the line is full")
                client.close()
            await eventually(lambda: left() == 0)
        finally:
            gc.enable()


async def test_a_half_closed_client_with_a_malformed_body_is_told() -> None:
    async with relaying(silent, gated) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await eventually(lambda: bool(rig.records))
        client.send(b"zz\r\n")
        client.finish()
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("size", [0, 300_000])
async def test_pipelined_bodies_are_served_whole_and_in_order(size: int) -> None:
    """Some thirty small ones fill the queue, a large one what a body may have unread: both hold the client."""
    got: list[int] = []

    async def slow(rig: Rig, request: ClientRequest, record: Any) -> OwnAnswer:
        await asyncio.sleep(0)
        got.append(len(await whole(request)))
        return OwnAnswer(200, [], b"x")

    async with relaying(silent, slow) as rig:
        client = await rig.client()
        sizes = [size + number for number in range(100 if size == 0 else 5)]
        for each in sizes:
            client.send(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: %d\r\n\r\n" % each + b"b" * each)
        client.finish()
        answers = await client.rest()
        assert got == sizes
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == len(sizes)


@pytest.mark.parametrize("whole", [1, 3])
@pytest.mark.parametrize(
    "part",
    [
        b"Content-Length: 5\r\n\r\nhel",
        b"Content-Length: 5\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Content-Le",
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_fin_within_a_later_request_leaves_the_earlier_ones_their_answers(
    whole: int, part: bytes, at_once: bool
) -> None:
    go_on, served = asyncio.Event(), 0

    async def waiting(rig: Rig, request: ClientRequest, record: Any) -> OwnAnswer:
        nonlocal served
        served += 1
        await go_on.wait()
        return OwnAnswer(200, [], b"done")

    async with relaying(silent, waiting) as rig:
        client = await rig.client()
        client.send(GET * whole)
        if not at_once:
            await eventually(lambda: served == 1)
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\n" + part)
        client.finish()
        await eventually(lambda: [c.saw_eof for c in rig.server.connections] == [True])
        await asyncio.sleep(0.01)
        go_on.set()
        answers = await client.rest()
        assert (answers.count(b"HTTP/1.1 200 OK\r\n"), answers.count(b"HTTP/1.1")) == (whole, whole)
        assert answers.endswith(b"\r\n\r\ndone")
        assert served == whole
        await eventually(lambda: not rig.server.connections)


async def test_a_fin_within_a_later_body_does_not_cut_an_answer_that_is_relayed() -> None:
    go_on = asyncio.Event()

    async def in_two(side: Side) -> None:
        await side.head()
        await side.send_all(OK[:-1])
        await go_on.wait()
        await side.send_all(OK[-1:])

    async with relaying(in_two) as rig:
        client = await rig.client()
        client.send(GET + b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 5\r\n\r\nhel")
        assert await client.exactly(len(OK) - 1) == OK[:-1]
        client.finish()
        await eventually(lambda: [c.saw_eof for c in rig.server.connections] == [True])
        go_on.set()
        assert await client.rest() == OK[-1:]
        assert len(rig.records) == 1


async def test_a_fin_within_the_body_of_the_request_that_is_served_ends_it() -> None:
    async with relaying(silent, gated) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 5\r\n\r\nhel")
        await eventually(lambda: bool(rig.records))
        client.finish()
        assert await client.rest() == b""
        await eventually(lambda: [type(error) for error in rig.errors] == [asyncio.CancelledError])


@pytest.mark.parametrize("part", [b"", b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 5\r\n\r\nhel"])
async def test_a_fin_while_an_answer_is_still_unread_ends_the_connection_behind_it(part: bytes) -> None:
    async def large(rig: Rig, request: ClientRequest, record: Any) -> OwnAnswer:
        return OwnAnswer(200, [], BODY * 8)

    async with relaying(silent, large) as rig:
        client = await rig.client(receive_buffer=4096)
        client.writer.transport.pause_reading()
        client.send(GET)
        await eventually(lambda: [c._drained is not None for c in rig.server.connections] == [True])
        client.send(part)
        client.finish()
        await eventually(lambda: [c.saw_eof for c in rig.server.connections] == [True])
        client.writer.transport.resume_reading()
        assert (await client.rest()).endswith(BODY)
        await eventually(lambda: not rig.server.connections)
