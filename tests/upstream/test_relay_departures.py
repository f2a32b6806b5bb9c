"""Either side goes away, at each stop: the other hears of it at once, and nobody is answered twice."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from ollama_swap_proxy.errors import ProxyError
from ollama_swap_proxy.listener.request import ClientRequest
from ollama_swap_proxy.upstream.relay import Relay
from tests.upstream.scripted import OK, Side, eventually, gated, passthrough, relaying, whole

GET = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: me\r\nContent-Length: 2\r\n\r\nhi"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
PROMPT_S = 0.15
"""A departure passes within milliseconds; this leaves room for a busy machine."""


def leave_by(how: str, client: Side) -> None:
    if how == "close":
        client.close()
    else:
        client.abort()


@pytest.mark.parametrize("handler", [passthrough, gated])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("request_bytes", [GET, POST])
@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200", STREAM])
async def test_client_leaves_while_it_is_served(handler, how, request_bytes, begun):
    asked, took = asyncio.Event(), []

    async def script(side: Side) -> None:
        await side.head()
        if request_bytes == POST:
            await side.exactly(2)
        await side.send_all(begun)
        asked.set()
        took.append(await side.ended())

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(request_bytes)
        await asked.wait()
        if begun == STREAM:
            await client.until(b"1\r\na\r\n")
        leave_by(how, client)
        await eventually(lambda: bool(took))
        assert took[0] < PROMPT_S
        assert rig.records[0].response_bytes == (1 if begun == STREAM else 0)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_client_leaves_in_mid_upload(how):
    asked, took = asyncio.Event(), []

    async def script(side: Side) -> None:
        await side.head()
        await side.exactly(5)
        asked.set()
        took.append(await side.ended())

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"POST /p HTTP/1.1\r\nHost: me\r\nContent-Length: 1000\r\n\r\nhello")
        await asked.wait()
        leave_by(how, client)
        await eventually(lambda: bool(took))
        assert took[0] < PROMPT_S
        await eventually(lambda: isinstance(rig.errors[0], asyncio.CancelledError))


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_client_leaves_while_it_waits_for_its_lease(how):
    waits, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(rig, request: ClientRequest, record):
        await whole(request)
        request.client.begin_waiting()
        waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def script(side: Side) -> None:
        pytest.fail("nothing may reach upstream")

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(POST)
        await waits.wait()
        if how == "half-close":
            client.finish()
        else:
            leave_by(how, client)
        await asyncio.wait_for(cancelled.wait(), PROMPT_S)
        await eventually(lambda: not rig.server.connections)


async def test_client_that_left_before_it_waited_is_cancelled_too():
    came, go_on, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(rig, request: ClientRequest, record):
        came.set()
        await go_on.wait()
        request.client.begin_waiting()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def script(side: Side) -> None:
        pytest.fail("nothing may reach upstream")

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(POST)
        await came.wait()
        client.finish()
        await eventually(lambda: any(connection.saw_eof for connection in rig.server.connections))
        go_on.set()
        await asyncio.wait_for(cancelled.wait(), PROMPT_S)


async def test_client_leaves_while_upstream_is_being_reached():
    cancelled = asyncio.Event()

    async def handler(rig, request, record):
        async def never():
            await asyncio.Event().wait()

        rig.relay._pool.connect = never
        try:
            return await rig.relay.forward(request, None, record=record)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def script(side: Side) -> None:
        pytest.fail("nothing may reach upstream")

    async with relaying(script, handler) as rig:
        client = await rig.client()
        client.send(GET)
        await eventually(lambda: bool(rig.records))
        client.abort()
        await asyncio.wait_for(cancelled.wait(), PROMPT_S)


@pytest.mark.parametrize("pipelined", [1, 3])
async def test_half_closed_client_gets_all_its_answers(pipelined):
    """As `printf ... | nc -N` does: request and FIN arrive together."""

    async def script(side: Side) -> None:
        while await side.head():
            await asyncio.sleep(0.01)
            await side.send_all(OK)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET * pipelined)
        client.finish()
        assert await client.rest() == OK * pipelined
        await eventually(lambda: not rig.server.connections)


async def test_upstream_sees_the_half_close_and_may_still_answer():
    async def script(side: Side) -> None:
        await side.head()
        assert await side.rest() == b""
        await side.send_all(OK)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET)
        await eventually(lambda: bool(rig.records))
        client.finish()
        assert await client.rest() == OK


async def test_idle_client_that_closes_leaves_no_socket_behind():
    async def script(side: Side) -> None:
        while await side.head():
            await side.send_all(OK)

    async with relaying(script) as rig:
        for before_first_byte in (True, False):
            client = await rig.client()
            if not before_first_byte:
                client.send(GET)
                await client.exactly(len(OK))
            await eventually(lambda: bool(rig.server.connections))
            client.finish()
            assert await client.rest() == b""
            await eventually(lambda: not rig.server.connections)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 2"])
async def test_upstream_dies_before_it_answers(how, before):
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(before)
        leave_by(how, side)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(POST)
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"X-Ollama-Swap-Proxy-Error: upstream_down\r\n" in head
        (error,) = rig.errors
        assert isinstance(error, ProxyError)
        assert str(rig.upstream.port) in error.message
        assert rig.upstream.connections == 1


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("begun", [STREAM, STREAM + b"5\r\nab", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
async def test_upstream_dies_in_mid_answer(how, begun):
    """The client gets what came, then EOF without the end that it was promised."""
    received = asyncio.Event()

    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(begun)
        await received.wait()
        leave_by(how, side)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET + GET)
        assert await client.exactly(len(begun)) == begun
        received.set()
        assert await client.rest() == b""
        assert rig.records[0].cut
        assert len(rig.records) == 1


async def test_upstream_dies_in_mid_upload():
    async def script(side: Side) -> None:
        await side.head()
        await side.exactly(5)
        side.abort()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"POST /p HTTP/1.1\r\nHost: me\r\nContent-Length: 1000\r\n\r\nhello")
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Connection: close\r\n" in answer


async def test_upstream_is_not_there():
    async def script(side: Side) -> None:
        pytest.fail("unreachable")

    async with relaying(script) as rig:
        await rig.upstream.stop()
        answer = await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Retry-After: 5\r\n" in answer
        assert b"http://127.0.0.1:%d" % rig.upstream.port in answer
        assert b"nothing listens there" in answer
        assert b"refused" not in answer.lower()


async def test_upstream_that_does_not_accept_is_given_up_in_time(monkeypatch):
    async def handler(rig, request, record):
        relay = Relay(URL("http://me.invalid:1"), connect_timeout_s=0.02)

        async def never(*args, **keywords):
            await asyncio.Event().wait()

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
        return await relay.forward(request, None, record=record)

    async with relaying(passthrough, handler) as rig:
        answer = await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
        assert b"no connection within 0.02 s" in answer


async def test_dead_idle_connection_is_not_used_again():
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(OK)

    async with relaying(script) as rig:
        for _ in range(3):
            client = await rig.client()
            client.send(GET.replace(b"GET", b"POST"))
            assert await client.exactly(len(OK)) == OK
        assert rig.upstream.connections == 3


def dying_once(seen: list[bytes]):
    """Answer the first request of the first connection, then die on its second, as a server with a short idle time."""

    async def script(side: Side) -> None:
        seen.append(await side.head())
        await side.send_all(OK)
        if len(seen) == 1:
            seen.append(await side.head())
            return
        await side.rest()

    return script


@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
async def test_safe_request_is_repeated_when_a_reused_connection_dies(method):
    seen: list[bytes] = []
    async with relaying(dying_once(seen)) as rig:
        client = await rig.client()
        for _ in range(2):
            client.send(GET.replace(b"GET", method))
            assert await client.exactly(len(OK)) == OK
        assert len(seen) == 3


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"PUT"])
async def test_request_with_an_effect_is_never_repeated(method):
    seen: list[bytes] = []
    async with relaying(dying_once(seen)) as rig:
        client = await rig.client()
        client.send(GET.replace(b"GET", method))
        assert await client.exactly(len(OK)) == OK
        client.send(GET.replace(b"GET", method))
        assert (await client.head()).startswith(b"HTTP/1.1 502")
        assert len(seen) == 2


async def test_fresh_connection_that_dies_is_not_tried_again():
    async def script(side: Side) -> None:
        await side.head()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 502")
        assert rig.upstream.connections == 1


@pytest.mark.parametrize(
    "noise", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"]
)
async def test_upstream_that_speaks_something_else_is_a_bad_gateway(noise):
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(noise)
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 502")


async def test_bytes_behind_an_answer_reach_nobody():
    async def script(side: Side) -> None:
        await side.head()
        await side.send_all(OK)
        await asyncio.sleep(0.02)
        await side.send_all(OK.replace(b"ok", b"no"))
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET)
        assert await client.exactly(len(OK)) == OK
        await asyncio.sleep(0.04)
        other = await rig.client()
        other.send(GET)
        assert await other.exactly(len(OK)) == OK
        assert rig.upstream.connections == 2
