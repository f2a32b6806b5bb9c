"""The listener for clients: refusals in Go's words, answers of our own, limits, and the graceful stop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import pytest
import structlog

from ollama_swap_proxy.errors import Dialect, ProxyError
from ollama_swap_proxy.listener.answers import OwnAnswer
from ollama_swap_proxy.listener.request import ClientRequest
from tests.upstream.scripted import OK, Side, eventually, gated, passthrough, relaying, whole

GET = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"
GO_HEADERS = b"\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
ERROR = ProxyError("line_full", 503, "the line is full", retry_after_s=3)
POST_HI = b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 2\r\n\r\nhi"

POST_CHUNKED = b"POST / HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


def refusal(line: bytes, body: bytes | None = None) -> bytes:
    return b"HTTP/1.1 " + line + GO_HEADERS + (line if body is None else body)


UNSUPPORTED = refusal(b"505 HTTP Version Not Supported: unsupported protocol version")


async def answer_all(side: Side) -> None:
    while await side.head():
        await side.send_all(OK)


async def error_answer(rig, request: ClientRequest, record) -> OwnAnswer:
    return OwnAnswer.of_error(ERROR, Dialect.NATIVE)


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"\x00\x01\x02\r\n\r\n", refusal(b"400 Bad Request")),
        (b"GET / HTTP/1.1\r\nHost: me\r\nbad header: x\r\n\r\n", refusal(b"400 Bad Request")),
        (b"GET / HTTP/1.1\r\nHost: me\r\nA: b\x00c\r\n\r\n", refusal(b"400 Bad Request")),
        (b"GET /a b HTTP/1.1\r\nHost: me\r\n\r\n", refusal(b"400 Bad Request")),
        (b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: -1\r\n\r\n", refusal(b"400 Bad Request")),
        (b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: +3\r\n\r\n", refusal(b"400 Bad Request")),
        (b"GET / HTTP/1.1\r\n\r\n", refusal(b"400 Bad Request: missing required Host header")),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", refusal(b"400 Bad Request")),
        (b"GET /\r\n\r\n", refusal(b"400 Bad Request")),
        (b"POST / HTTP/1.1\r\nHost: me\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", refusal(b"400 Bad Request")),
        (b"GET / HTTP/2.0\r\nHost: me\r\n\r\n", UNSUPPORTED),
        (b"GET / HTTP/3.0\r\nHost: me\r\n\r\n", UNSUPPORTED),
        (
            b"POST / HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: gzip\r\n\r\n",
            refusal(b"501 Not Implemented", b"Unsupported transfer encoding"),
        ),
        *[
            (
                b"POST / HTTP/1.1\r\nHost: me\r\n" + codings + b"\r\n\r\n0\r\n\r\n",
                refusal(b"501 Not Implemented", b"Unsupported transfer encoding"),
            )
            for codings in (
                b"Transfer-Encoding: gzip, chunked",
                b"Transfer-Encoding: chunked, chunked",
                b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
                b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: gzip",
                b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: ",
            )
        ],
        (
            b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            refusal(b"400 Bad Request"),
        ),
        (
            b"GET / HTTP/1.1\r\nHost: me\r\nA: " + b"x" * 1_100_000 + b"\r\n\r\n",
            refusal(b"431 Request Header Fields Too Large"),
        ),
        (
            b"GET / HTTP/1.1\r\nHost: me\r\n" + (b"A: " + b"x" * 100_000 + b"\r\n") * 11 + b"\r\n",
            refusal(b"431 Request Header Fields Too Large"),
        ),
        (
            b"GET / HTTP/1.1\r\nHost: me\r\n" + b"A: b\r\n" * 10_001 + b"\r\n",
            refusal(b"431 Request Header Fields Too Large"),
        ),
        (b"GET /" + b"x" * 1_100_000, refusal(b"431 Request Header Fields Too Large")),
    ],
)
async def test_malformed_requests_are_refused_as_go_does(request_bytes, expected):
    async with relaying(answer_all) as rig:
        client = await rig.client()
        client.send(request_bytes)
        answer = await client.rest()
        assert answer == expected
        assert not rig.upstream.connections


async def test_a_head_that_never_ends_is_refused_at_one_megabyte():
    async with relaying(answer_all) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n")
        sent = 0
        while not client.reader.at_eof() and sent < 3_000_000:
            client.send(b"A: " + b"x" * 50_000 + b"\r\n")
            sent += 50_000
            await asyncio.sleep(0)
        assert await client.rest() == refusal(b"431 Request Header Fields Too Large")


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("good", "count"), [(GET, 1), (POST_HI, 1), (POST_HI * 40, 40), (POST_CHUNKED * 2, 2)])
async def test_malformed_request_behind_good_ones_waits_for_its_turn(good, count, at_once):
    async def handler(rig, request: ClientRequest, record) -> OwnAnswer:
        await whole(request)
        return OwnAnswer(200, [], b"done")

    async with relaying(answer_all, handler) as rig:
        client = await rig.client()
        if not at_once:
            client.send(good)
            await eventually(lambda: bool(rig.records))
            good = b""
        client.send(good + b"GET / HTTP/1.1\r\nbad header: x\r\n\r\n" + GET)
        answers = await client.rest()
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == count
        assert answers.endswith(b"\r\n\r\ndone" + refusal(b"400 Bad Request"))


@pytest.mark.parametrize("handler", [passthrough, gated])
async def test_malformed_body_is_refused_and_upstream_is_left(handler):
    async def script(side: Side) -> None:
        if await side.head():
            await side.rest()

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.sleep(0.01)
        client.send(b"zz\r\n")
        assert await client.rest() == refusal(b"400 Bad Request")


async def test_error_of_ours_keeps_the_connection():
    async with relaying(answer_all, error_answer) as rig:
        client = await rig.client()
        for _ in range(2):
            client.send(GET)
            head = await client.head()
            assert re.fullmatch(
                rb"HTTP/1\.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n"
                rb"X-Ollama-Swap-Proxy-Error: line_full\r\nRetry-After: 3\r\n"
                rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\nContent-Length: 29\r\n\r\n",
                head,
            )
            assert await client.exactly(29) == b'{"error": "the line is full"}'


@pytest.mark.parametrize(
    ("first_line", "version", "connection"),
    [
        (b"GET / HTTP/1.1\r\nConnection: close", b"1", b"Connection: close"),
        (b"GET / HTTP/1.0", b"0", None),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", b"0", b"Connection: keep-alive"),
    ],
)
async def test_error_of_ours_says_how_the_connection_goes_on(first_line, version, connection):
    async with relaying(answer_all, error_answer) as rig:
        client = await rig.client()
        client.send(first_line + b"\r\nHost: me\r\n\r\n")
        head = await client.head()
        assert head.startswith(b"HTTP/1." + version + b" 503 ")
        if connection is None:
            assert b"Connection" not in head
        else:
            assert b"\r\n" + connection + b"\r\n" in head
        if connection != b"Connection: keep-alive":
            assert (await client.rest()).startswith(b'{"error"')


async def test_error_of_ours_has_no_body_for_head():
    async with relaying(answer_all, error_answer) as rig:
        answer = await rig.ask(b"HEAD / HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length: " in answer


async def test_error_of_ours_during_an_upload_reaches_the_client():
    async with relaying(answer_all, error_answer) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 3000000\r\n\r\n")
        await client.send_all(b"x" * 2_000_000)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(
    ("head", "waits"),
    [
        (b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 2\r\n\r\n", False),
        (b"POST / HTTP/1.0\r\nHost: me\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", False),
    ],
)
async def test_we_give_permission_to_send_only_where_it_is_waited_for(head, waits):
    async def handler(rig, request, record):
        request.let_client_send()
        await whole(request)
        return OwnAnswer(200, [], b"done")

    async with relaying(answer_all, handler) as rig:
        client = await rig.client()
        client.send(head)
        if waits:
            assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hi")
        assert re.match(rb"HTTP/1.\d 200 OK\r\n", await client.head())


async def test_failed_handler_is_logged_and_answered_with_a_code():
    async def handler(rig, request, record):
        raise LookupError("a defect")

    with structlog.testing.capture_logs() as logs:
        async with relaying(answer_all, handler) as rig:
            client = await rig.client()
            client.send(b"GET /x?secret=1 HTTP/1.1\r\nHost: me\r\n\r\n")
            head = await client.head()
    assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"X-Ollama-Swap-Proxy-Error: internal_error\r\n" in head
    (line,) = logs
    assert line["event"] == "handler_failed"
    assert line["path"] == "/x"
    assert "secret" not in str(line)


async def test_handler_that_fails_behind_an_answer_answers_no_second_time():
    async def handler(rig, request, record):
        request.client.answer_begun = True
        request.client.transport.write(b"HTTP/1.1 200 OK\r\n")
        raise LookupError("a defect")

    async with relaying(answer_all, handler) as rig:
        assert await rig.ask(GET) == b"HTTP/1.1 200 OK\r\n"


# --- the stop ---


def streaming(go_on: asyncio.Event) -> Callable[[Side], AsyncIterator[None]]:
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await go_on.wait()
        await side.send_all(b"0\r\n\r\n")
        await side.rest()

    return script


async def test_stop_ends_idle_connections_at_once_and_lets_streams_end():
    go_on, drained = asyncio.Event(), []
    async with relaying(streaming(go_on)) as rig:
        idle, partial, streams = [await rig.client() for _ in range(3)]
        partial.send(b"GET / HT")
        streams.send(GET)
        await streams.until(b"1\r\na\r\n")
        await eventually(lambda: len(rig.server.connections) == 3)
        stopping = asyncio.create_task(rig.server.stop(5.0, lambda: drained.append(True)))
        assert await idle.rest() == b""
        assert drained == [True]
        with pytest.raises(ConnectionError):
            await rig.client()
        partial.close()
        assert not stopping.done()
        go_on.set()
        assert await streams.rest() == b"0\r\n\r\n"
        assert await asyncio.wait_for(stopping, 1.0) == 0


async def test_half_a_head_holds_a_stop_up_for_a_short_grace_only(monkeypatch):
    monkeypatch.setattr("ollama_swap_proxy.listener.server.HEAD_GRACE_S", 0.02)
    go_on = asyncio.Event()
    async with relaying(streaming(go_on)) as rig:
        partial, streams = await rig.client(), await rig.client()
        partial.send(b"GET / HT")
        streams.send(GET)
        await streams.until(b"1\r\na\r\n")
        streams.send(b"GET / HT")
        await eventually(lambda: [c._incoming.partial_bytes for c in rig.server.connections] == [8, 8])
        stopping = asyncio.create_task(rig.server.stop(30.0))
        assert await partial.ended() < 1.0
        await asyncio.sleep(0.05)
        assert not stopping.done()
        go_on.set()
        assert await streams.rest() == b"0\r\n\r\n"
        assert await asyncio.wait_for(stopping, 1.0) == 0


async def test_a_head_that_is_completed_within_its_grace_is_served():
    async with relaying(answer_all) as rig:
        client = await rig.client()
        client.send(GET[:8])
        await eventually(lambda: [c._incoming.partial_bytes for c in rig.server.connections] == [8])
        stopping = asyncio.create_task(rig.server.stop(30.0))
        await asyncio.sleep(0.05)
        client.send(GET[8:])
        assert await client.rest() == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await stopping == 0


async def test_stop_lets_uploads_end():
    async def script(side: Side) -> None:
        await side.head()
        await side.exactly(1000)
        await side.send_all(OK)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
        await eventually(lambda: bool(rig.records) and rig.records[0].request_bytes == 500)
        stopping = asyncio.create_task(rig.server.stop(5.0))
        await asyncio.sleep(0.05)
        client.send(b"x" * 500)
        answer = await client.rest()
        assert answer == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await stopping == 0


async def test_stop_answers_what_was_pipelined():
    go_on = asyncio.Event()

    async def script(side: Side) -> None:
        while await side.head():
            await go_on.wait()
            await side.send_all(OK)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET * 3)
        await eventually(lambda: bool(rig.records))
        stopping = asyncio.create_task(rig.server.stop(5.0))
        await asyncio.sleep(0.01)
        go_on.set()
        assert await client.rest() == OK * 2 + OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await stopping == 0


async def test_queued_requests_are_answered_on_drain():
    drain = asyncio.Event()

    async def handler(rig, request, record):
        request.client.begin_waiting()
        await drain.wait()
        return OwnAnswer.of_error(ERROR)

    async with relaying(answer_all, handler) as rig:
        client = await rig.client()
        client.send(POST_HI)
        await eventually(lambda: bool(rig.records))
        assert await rig.server.stop(5.0, drain.set) == 0
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nConnection: close\r\n" in answer


async def test_stop_cuts_what_does_not_end_in_time():
    async with relaying(streaming(asyncio.Event())) as rig:
        client = await rig.client()
        client.send(GET)
        await client.until(b"1\r\na\r\n")
        assert await rig.server.stop(0.05) == 1
        assert await client.rest() == b""
        assert not rig.server.connections


async def test_second_signal_ends_the_stop_at_once():
    async with relaying(streaming(asyncio.Event())) as rig:
        client = await rig.client()
        client.send(GET)
        await client.until(b"1\r\na\r\n")
        stopping = asyncio.create_task(rig.server.stop(60.0))
        await asyncio.sleep(0.01)
        assert rig.server.abort() == 1
        assert await asyncio.wait_for(stopping, 1.0) == 1
        assert await client.rest() == b""


@pytest.mark.parametrize("status", [204, 304])
async def test_answer_of_ours_that_can_have_no_body_has_none(status):
    async def handler(rig, request, record):
        return OwnAnswer(status, [], b"no")

    async with relaying(answer_all, handler) as rig:
        answer = await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length" not in answer


async def test_a_connection_without_a_request_since_the_last_look_is_closed_and_a_used_one_is_not():
    async with relaying(answer_all) as rig:
        client = await rig.client()
        client.send(GET)
        assert b"HTTP/1.1 200" in await client.head()
        (connection,) = rig.server.connections
        connection._close_if_idle(0)
        client.send(GET)
        assert b"HTTP/1.1 200" in await client.head()
        await eventually(connection.is_idle)
        connection._close_if_idle(2)
        assert await client.rest() == b"ok"


async def test_a_connection_is_looked_at_from_its_beginning(monkeypatch):
    monkeypatch.setattr("ollama_swap_proxy.listener.connection.IDLE_LIMIT_S", 0.01)
    async with relaying(answer_all) as rig:
        silent = await rig.client()
        assert await silent.rest() == b""
