"""Requests and answers cross byte for byte: heads, framings, versions, methods."""

from __future__ import annotations

import asyncio

import pytest

from tests.upstream.scripted import OK, Side, gated, relaying

GET = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"


def answering(*answers: bytes, heads: list[bytes] | None = None):
    """Make a script that gives these answers, one a request without body, and keeps the heads."""

    async def script(side: Side) -> None:
        for answer in answers:
            head = await side.head()
            if not head:
                return
            if heads is not None:
                heads.append(head)
            await side.send_all(answer)
        await side.rest()

    return script


async def test_answer_reaches_the_client_byte_for_byte():
    answer = (
        b"HTTP/1.1 200 Quite All Right\r\nx-LOWER: a\r\nX-Dup: 1\r\nx-dup:2\r\nX-Odd: caf\xe9 \t\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\nabc"
    )
    async with relaying(answering(answer)) as rig:
        assert await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n") == answer
        assert rig.records[0].status == 200
        assert rig.records[0].response_bytes == 3


async def test_request_head_reaches_upstream_byte_for_byte_but_for_the_host():
    heads: list[bytes] = []
    async with relaying(answering(OK, heads=heads)) as rig:
        await rig.ask(
            b"GET /a%2Fb/../c//d?ts=1&x={}|%zz? HTTP/1.1\r\nx-first: 1\r\nhost: me:1\r\nX-Dup: a\r\nx-dup: b\r\n"
            b"User-Agent: odd caf\xe9\r\naccept-ENCODING: zstd\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n"
        )
        assert heads[0] == (
            b"GET /a%2Fb/../c//d?ts=1&x={}|%zz? HTTP/1.1\r\nx-first: 1\r\nhost: " + rig.authority + b"\r\nX-Dup: a\r\n"
            b"x-dup: b\r\nUser-Agent: odd caf\xe9\r\naccept-ENCODING: zstd\r\nX-Forwarded-For: 9.9.9.9\r\n"
            b"Connection: close\r\n\r\n"
        )


@pytest.mark.parametrize(
    "target", [b"/a?", b"/a#frag", b"http://me/api/tags?x=1", b"/\\x", b"/api/%67enerate", b"//api/tags"]
)
async def test_request_target_is_sent_as_it_came(target):
    heads: list[bytes] = []
    async with relaying(answering(OK, heads=heads)) as rig:
        await rig.ask(b"GET " + target + b" HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
    assert heads[0].startswith(b"GET " + target + b" HTTP/1.1\r\n")


async def test_options_of_the_server_as_a_whole_passes():
    heads: list[bytes] = []
    async with relaying(answering(OK, heads=heads)) as rig:
        answer = await rig.ask(b"OPTIONS * HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
    assert heads[0].startswith(b"OPTIONS * HTTP/1.1\r\n")
    assert answer == OK


async def test_connections_are_kept_on_both_sides():
    async with relaying(answering(OK, OK, OK)) as rig:
        client = await rig.client()
        for _ in range(3):
            client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
            assert await client.exactly(len(OK)) == OK
        assert rig.upstream.connections == 1
        assert [record.upstream_reused for record in rig.records] == [False, True, True]


async def test_pipelined_requests_are_answered_in_their_order():
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(5)]
    async with relaying(answering(*answers)) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n" * 5)
        assert await client.exactly(sum(map(len, answers))) == b"".join(answers)


async def test_a_hundred_pipelined_requests_are_all_answered():
    async with relaying(answering(*[OK] * 100)) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n" * 100)
        assert await client.exactly(100 * len(OK)) == OK * 100


async def test_close_of_upstream_is_mirrored():
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with relaying(answering(answer)) as rig:
        assert await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n") == answer
        await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert rig.upstream.connections == 2


async def test_head_answer_keeps_its_length_and_the_connection():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"
    async with relaying(answering(answer, answer, OK)) as rig:
        client = await rig.client()
        client.send(b"HEAD / HTTP/1.1\r\nHost: me\r\n\r\n" * 2 + b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(2 * len(answer) + len(OK)) == answer * 2 + OK
        assert rig.upstream.connections == 1


async def test_head_answer_without_a_length_keeps_the_connection():
    answer = b"HTTP/1.1 200 OK\r\nDate: x\r\n\r\n"
    async with relaying(answering(answer, OK)) as rig:
        client = await rig.client()
        client.send(b"HEAD / HTTP/1.1\r\nHost: me\r\n\r\nGET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(answer) + len(OK)) == answer + OK
        assert rig.upstream.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body_end_at_their_head(status):
    answer = b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n"
    async with relaying(answering(answer, OK)) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n" * 2)
        assert await client.exactly(len(answer) + len(OK)) == answer + OK


async def test_chunks_extensions_and_trailers_of_an_answer_pass_unchanged():
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        b"3;ext=1\r\nabc\r\n1\r\nd\r\n0\r\nX-Sum: 4\r\n\r\n"
    )
    async with relaying(answering(answer, OK)) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n" * 2)
        assert await client.exactly(len(answer) + len(OK)) == answer + OK
        assert rig.records[0].response_bytes == 4
        assert rig.records[0].streamed


async def test_an_answer_that_comes_byte_by_byte_is_the_same():
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    async def script(side: Side) -> None:
        await side.head()
        for offset in range(len(answer)):
            await side.send_all(answer[offset : offset + 1])
        await side.rest()

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(answer)) == answer


async def test_body_until_eof_ends_with_the_connection():
    async def script(side: Side) -> None:
        await side.head()
        side.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
        side.send(b" more")
        side.close()

    async with relaying(script) as rig:
        assert await rig.ask(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n") == b"HTTP/1.1 200 OK\r\n\r\nsome more"
        assert not rig.records[0].cut
        assert rig.records[0].response_bytes == 9


async def test_http_1_0_is_forwarded_as_such_without_a_host():
    heads: list[bytes] = []
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with relaying(answering(answer, heads=heads)) as rig:
        assert await rig.ask(b"GET /x HTTP/1.0\r\nAccept: */*\r\n\r\n") == answer
    assert heads == [b"GET /x HTTP/1.0\r\nAccept: */*\r\n\r\n"]


async def test_http_1_0_keeps_the_clients_connection_when_both_sides_say_so_but_upstreams_serves_nobody_else():
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
    async with relaying(answering(answer, answer)) as rig:
        client = await rig.client()
        for _ in range(2):
            client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert await client.exactly(len(answer)) == answer
        assert rig.upstream.connections == 2


@pytest.mark.parametrize("surplus", [b"H", b"HTTP/1.1 400 Bad Request\r\nConn", b"HTTP/1.1 200 OK\r\nA: \x00"])
@pytest.mark.parametrize("later", [False, True])
async def test_upstream_connection_with_bytes_behind_an_answer_serves_nobody_else(surplus, later):
    async def script(side: Side) -> None:
        while await side.head():
            await side.send_all(OK if later else OK + surplus)
            if later:
                await asyncio.sleep(0.01)
                side.send(surplus)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET)
        assert await client.exactly(len(OK)) == OK
        await asyncio.sleep(0.03)
        other = await rig.client()
        other.send(GET)
        assert await other.exactly(len(OK)) == OK
        assert rig.upstream.connections == 2


@pytest.mark.parametrize("surplus", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: "])
async def test_bytes_in_the_read_of_an_answer_but_behind_it_do_not_reach_the_client(surplus):
    async def script(side: Side) -> None:
        while await side.head():
            await side.send_all(OK + surplus)

    async with relaying(script) as rig:
        client = await rig.client()
        client.send(GET)
        assert await client.exactly(len(OK)) == OK
        client.finish()
        assert await client.rest() == b""


@pytest.mark.parametrize("handler", [None, gated])
async def test_sized_body_is_sent_as_it_came(handler):
    body = bytes(range(256)) * 5
    seen = []

    async def script(side: Side) -> None:
        while head := await side.head():
            seen.append(head + await side.exactly(len(body)))
            await side.send_all(OK)

    async with relaying(script, *([handler] if handler else [])) as rig:
        client = await rig.client()
        for _ in range(2):
            client.send(
                b"POST /p HTTP/1.1\r\nHost: me\r\nContent-Length: 1280\r\nContent-Encoding: gzip\r\n\r\n" + body
            )
            assert await client.exactly(len(OK)) == OK
        expected = b"POST /p HTTP/1.1\r\nHost: %b\r\nContent-Length: 1280\r\nContent-Encoding: gzip\r\n\r\n"
        assert seen == [expected % rig.authority + body] * 2
        assert [record.request_bytes for record in rig.records] == [1280, 1280]


@pytest.mark.parametrize("handler", [None, gated])
async def test_chunked_body_is_framed_again_and_its_trailers_are_dropped(handler):
    seen = []

    async def script(side: Side) -> None:
        while head := await side.head():
            seen.append((head, await side.until(b"0\r\n\r\n")))
            await side.send_all(OK)

    async with relaying(script, *([handler] if handler else [])) as rig:
        client = await rig.client()
        client.send(
            b"POST /p HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        assert await client.exactly(len(OK)) == OK
        head, body = seen[0]
        assert head == b"POST /p HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % rig.authority
        assert body == b"5\r\nabcde\r\n0\r\n\r\n"
        assert rig.records[0].request_bytes == 5


async def test_post_without_a_body_gets_no_length_from_us():
    heads: list[bytes] = []
    async with relaying(answering(OK, heads=heads)) as rig:
        await rig.ask(b"POST /x HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
    assert b"ength" not in heads[0]


async def test_heads_of_nine_hundred_kilobytes_pass_both_ways():
    big = b"v" * 900_000
    heads: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\nX-Big: " + big + b"\r\nContent-Length: 0\r\n\r\n"
    async with relaying(answering(answer, answer, heads=heads)) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\nX-Big: " + big + b"\r\n\r\n")
        assert await client.exactly(len(answer)) == answer
        client.send(b"GET /" + big + b" HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(answer)) == answer
    assert b"X-Big: " + big + b"\r\n" in heads[0]
    assert heads[1].startswith(b"GET /" + big + b" ")


async def test_five_thousand_headers_pass():
    many = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(5000))
    heads: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\n" + many + b"Content-Length: 0\r\n\r\n"
    async with relaying(answering(answer, heads=heads)) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n" + many + b"\r\n")
        assert await client.exactly(len(answer)) == answer
    assert many in heads[0]


async def test_streamed_answers_of_gated_routes_tell_front_proxies_not_to_buffer():
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    marked = answer.replace(b"chunked\r\n", b"chunked\r\nX-Accel-Buffering: no\r\n", 1)
    async with relaying(answering(answer, OK), gated) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n" * 2)
        assert await client.exactly(len(marked) + len(OK)) == marked + OK


async def test_an_answer_that_says_itself_how_to_buffer_is_left_alone():
    answer = b"HTTP/1.1 200 OK\r\nx-accel-buffering: yes\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with relaying(answering(answer), gated) as rig:
        client = await rig.client()
        client.send(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.exactly(len(answer)) == answer
