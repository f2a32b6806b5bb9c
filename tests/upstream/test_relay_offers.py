"""Offers of other protocols are declined: the request goes on as a plain one."""

from __future__ import annotations

import asyncio

import pytest

from tests.upstream.scripted import OK, Side, gated, passthrough, relaying

WEBSOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: me\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
H2C = (
    b"POST /api/generate HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\nHost: me\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    b"Upgrade: h2c\r\nUser-Agent: Java-http-client/17\r\n\r\n"
)


def answering_all(seen: list[bytes]):
    async def script(side: Side) -> None:
        while head := await side.head():
            size = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
            seen.append(head + await side.exactly(size))
            await side.send_all(OK)

    return script


async def test_websocket_offer_becomes_a_plain_request():
    seen: list[bytes] = []
    async with relaying(answering_all(seen)) as rig:
        client = await rig.client()
        client.send(WEBSOCKET)
        assert await client.exactly(len(OK)) == OK
        assert seen[0] == (
            b"GET /ws HTTP/1.1\r\nHost: " + rig.authority + b"\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )


@pytest.mark.parametrize("split", [False, True])
async def test_requests_behind_a_websocket_offer_are_answered(split):
    seen: list[bytes] = []
    async with relaying(answering_all(seen)) as rig:
        client = await rig.client()
        client.send(WEBSOCKET if split else WEBSOCKET + b"GET /next HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(OK)) == OK
        if split:
            client.send(b"GET /next HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(OK)) == OK
        assert seen[1].startswith(b"GET /next HTTP/1.1\r\n")


@pytest.mark.parametrize("handler", [passthrough, gated])
@pytest.mark.parametrize("size", [0, 20, 3000, 200_000])
@pytest.mark.parametrize("segments", [1, 2])
async def test_h2c_offer_becomes_a_plain_request_with_its_whole_body(handler, size, segments):
    seen: list[bytes] = []
    body = b"b" * size
    async with relaying(answering_all(seen), handler) as rig:
        client = await rig.client()
        for _ in range(2):
            if segments == 1:
                client.send(H2C % size + body)
            else:
                await client.send_all(H2C % size)
                client.send(body)
            assert await client.exactly(len(OK)) == OK
        expected = (
            b"POST /api/generate HTTP/1.1\r\nContent-Length: %d\r\nHost: %b\r\nUser-Agent: Java-http-client/17\r\n\r\n"
        )
        assert seen == [expected % (size, rig.authority) + body] * 2


NEXT = b"GET /next HTTP/1.1\r\nHost: me\r\n\r\n"
H2C_CHUNKED = H2C.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n"


def chunked(seen: list[bytes]):
    async def script(side: Side) -> None:
        while head := await side.head():
            seen.append(head + (await side.until(b"0\r\n\r\n") if b"chunked" in head else b""))
            await side.send_all(OK)

    return script


@pytest.mark.parametrize("size", [0, 20, 3000])
@pytest.mark.parametrize("cut", [-1, 3, -70, -37])
async def test_request_behind_an_h2c_offer_is_answered(size, cut):
    seen: list[bytes] = []
    async with relaying(answering_all(seen)) as rig:
        client = await rig.client()
        wire = H2C % size + b"b" * size + NEXT
        if cut == 3:
            cut = len(H2C % size) + size // 2
        client.send(wire[:cut])
        await asyncio.sleep(0.02)
        client.send(wire[cut:])
        assert await client.exactly(2 * len(OK)) == 2 * OK
        assert [head.split(b" ", 2)[1] for head in seen] == [b"/api/generate", b"/next"]


async def test_request_behind_an_offer_with_chunks_is_answered():
    for wire in (H2C_CHUNKED + b"0\r\n\r\n" + NEXT, H2C_CHUNKED + b"0\r\nA: b\r\n\r\n" + NEXT):
        for cut in range(len(wire) - len(NEXT) - 5, len(wire) - 1, 3):
            seen: list[bytes] = []
            async with relaying(chunked(seen)) as rig:
                client = await rig.client()
                client.send(wire[:cut])
                await asyncio.sleep(0.002)
                client.send(wire[cut:])
                assert await client.exactly(2 * len(OK)) == 2 * OK
                assert [head.split(b" ", 2)[1] for head in seen] == [b"/api/generate", b"/next"]


async def test_chunks_behind_an_offer_leave_the_connection_open():
    seen: list[bytes] = []
    async with relaying(chunked(seen)) as rig:
        client = await rig.client()
        for pieces in ([H2C_CHUNKED + b"0\r\n\r\n"], [H2C_CHUNKED, b"0\r\n\r\n"], [H2C_CHUNKED, b"0\r\n", b"\r\n"]):
            for piece in pieces:
                client.send(piece)
                await asyncio.sleep(0.01)
            assert await client.exactly(len(OK)) == OK
        assert len(seen) == 3


@pytest.mark.parametrize("offer", [WEBSOCKET, H2C % 0])
async def test_any_number_of_offers_is_answered(offer):
    seen: list[bytes] = []
    async with relaying(answering_all(seen)) as rig:
        client = await rig.client()
        client.send(offer * 100 + b"GET /end HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
        assert await client.rest() == OK * 101
        assert len(seen) == 101


async def test_request_behind_a_websocket_offer_is_looked_at_like_any_other():
    seen: list[bytes] = []
    async with relaying(answering_all(seen)) as rig:
        answer = await rig.ask(WEBSOCKET + b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert answer.startswith(OK + b"HTTP/1.1 400 Bad Request\r\n")
        assert len(seen) == 1


async def test_connect_is_answered_by_us():
    seen: list[bytes] = []
    async with relaying(answering_all(seen)) as rig:
        answer = await rig.ask(b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert answer.endswith(b"\r\n\r\n405 method not allowed")
    assert not seen
