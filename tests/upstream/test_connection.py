"""Where an answer ends and whether its connection stays, however the bytes are cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import pytest

from ollama_swap_proxy.upstream.connection import HEAD_LIMIT_BYTES, UpstreamConnection
from ollama_swap_proxy.upstream.heads import AnswerHead

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"


def answer(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return b"%b\r\n%b\r\n%b" % (first, b"".join(line + b"\r\n" for line in lines), body)


CHUNKED = answer(b"Transfer-Encoding: chunked", body=b"2;x\r\nok\r\n0\r\nA: b\r\n\r\n")


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        self.is_closed = False

    def write(self, data: object) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.is_closed = True


class Sink:
    """Notes in words what it hears, and keeps all bytes."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.raw = b""

    def interim_came(self, raw: bytes) -> None:
        self.heard.append(raw[9:12].decode())
        self.raw += raw

    def head_came(self, head: AnswerHead, raw: bytes) -> None:
        self.heard.append(f"{head.status}{' streamed' if head.is_streamed else ''}")
        self.raw += raw

    def body_came(self, raw: bytes) -> None:
        self.raw += raw

    def ended(self, body_bytes: int, *, persistent: bool) -> None:
        self.heard.append(f"{body_bytes} bytes, {'stays' if persistent else 'closes'}")

    def broke(self, reason: str) -> None:
        self.heard.append(reason.partition(" (")[0])


async def heard(pieces: Iterable[bytes], *, has_body: bool = True, warm: bool = False) -> tuple[str, bytes]:
    """Say what a sink hears of an answer behind which upstream sends FIN, and give the bytes it got."""
    connection, transport = UpstreamConnection(asyncio.get_running_loop(), lambda _: None), Transport()
    connection.connection_made(transport)
    if warm:
        connection.ask(b"", Sink(), has_body=True)
        connection.data_received(CHUNKED)
    sink = Sink()
    connection.ask(b"", sink, has_body=has_body)
    for piece in pieces:
        if not transport.is_closed:
            connection.data_received(piece)
    if not transport.is_closed:
        connection.eof_received()
    return ", ".join(sink.heard), sink.raw


MID, NONE, NO_HTTP, UNASKED = (
    "it closed the connection in mid-answer",
    "it closed the connection without an answer",
    "it sent what is no HTTP answer",
    "it sent an answer that nobody asked for",
)

WHOLE = {
    "200, 2 bytes, stays": [
        OK,
        OK.replace(b"\r\n", b"\n"),
        answer(b"content-length : 2 ", body=b"ok"),
        answer(b"Connection: keep-alive", b"Content-Length: 2", first=b"HTTP/1.0 200 OK", body=b"ok"),
        answer(b"Server: a", b"Server: b", b"A: b\r\n c", b"Content-Length: 2", first=b"HTTP/1.1 200", body=b"ok"),
        answer(b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: 2", body=b"ok"),
        answer(*[b"A: b"] * 11_000, b"Content-Length: 2", body=b"ok"),
    ],
    "200 streamed, 2 bytes, stays": [
        CHUNKED,
        answer(b"Transfer-Encoding: gzip, Chunked ", body=b"2 \r\nok\r\n0\r\n\r\n"),
    ],
    "200, 2 bytes, closes": [
        answer(b"Connection: close", b"Content-Length: 2", body=b"ok"),
        answer(b"Content-Length: 2", first=b"HTTP/1.0 200 OK", body=b"ok"),
    ],
    "200 streamed, 2 bytes, closes": [
        answer(body=b"ok"),
        answer(b"Transfer-Encoding: gzip", body=b"ok"),
        answer(b"Connection: close", b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
    ],
    "200 streamed, 0 bytes, closes": [answer()],
    "204, 0 bytes, stays": [answer(first=b"HTTP/1.1 204 No Content")],
    "304, 0 bytes, stays": [answer(b"Content-Length: 5", first=b"HTTP/1.1 304 Not Modified")],
    "100, 200, 2 bytes, stays": [CONTINUE + OK, CONTINUE.replace(b"\r\n", b"\n") + OK],
    "100, 103, 200 streamed, 2 bytes, stays": [CONTINUE + HINTS + CHUNKED],
}

BROKEN = {
    NONE: [b"", b"HTTP/1.1 200 OK\r\nContent-Le"],
    f"200, {MID}": [OK[:-1]],
    f"200 streamed, {MID}": [CHUNKED[:-1], CHUNKED[:-7]],
    f"100, {NONE}": [CONTINUE],
    NO_HTTP: [
        *(
            b"<html>\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            answer(first=b"HTTP/1.1 2x0 OK"),
            answer(b"A: \0"),
            answer(b"x y"),
        ),
        *(
            answer(b"Content-Length: a"),
            answer(b"Content-Length: 2", b"Content-Length: 3"),
            answer(first=b"HTTP/3.0 200"),
        ),
    ],
    UNASKED: [answer(b"Upgrade: x", b"Connection: upgrade", first=b"HTTP/1.1 101 S", body=b"x")],
}


@pytest.mark.parametrize(("wire", "expected"), [(wire, said) for said, wires in WHOLE.items() for wire in wires])
async def test_an_answer_ends_where_it_says_however_it_is_cut(wire: bytes, expected: str) -> None:
    assert await heard([wire]) == await heard([wire], warm=True) == (expected, wire)
    if len(wire) < 1000:
        assert await heard(wire[at : at + 1] for at in range(len(wire))) == (expected, wire)
        for cut in range(1, len(wire)):
            assert await heard([wire[:cut], wire[cut:]]) == (expected, wire)


@pytest.mark.parametrize(("wire", "expected"), [(wire, said) for said, wires in BROKEN.items() for wire in wires])
async def test_what_is_no_whole_answer_breaks(wire: bytes, expected: str) -> None:
    assert (await heard([wire]))[0] == expected
    assert (await heard(wire[at : at + 1] for at in range(len(wire))))[0] == expected


@pytest.mark.parametrize("first", [OK, CHUNKED, answer(first=b"HTTP/1.1 204 N")])
async def test_a_connection_with_anything_behind_an_answer_does_not_stay(first: bytes) -> None:
    assert (await heard([first + OK[:9]]))[0].endswith(" bytes, closes")
    assert (await heard([first + OK]))[0] == UNASKED
    assert (await heard([first + b"x"]))[0] == NO_HTTP
    assert (await heard([first + b"\r\n"]))[0].endswith(" bytes, stays")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (answer(b"Content-Length: 2"), "200, 0 bytes, stays"),
        (answer(b"Transfer-Encoding: chunked"), "200 streamed, 0 bytes, stays"),
        (answer(), "200 streamed, 0 bytes, stays"),
        (answer(b"Connection: x, Close"), "200 streamed, 0 bytes, closes"),
        (answer(b"Content-Length: 2", first=b"HTTP/1.0 200 OK"), "200, 0 bytes, closes"),
        (answer(b"Connection: keep-alive", first=b"HTTP/1.0 200 OK"), "200 streamed, 0 bytes, stays"),
        (answer(first=b"HTTP/1.1 204 N"), "204, 0 bytes, stays"),
    ],
)
async def test_an_answer_to_head_ends_with_its_head(head: bytes, expected: str) -> None:
    for pieces in ([head], [head[:20], head[20:]], [head[:-1], head[-1:]]):
        assert await heard(pieces, has_body=False) == (expected, head)


async def test_bytes_behind_an_answer_to_head_do_not_reach_the_client() -> None:
    for head, body in ((OK[:-2], b"ok"), (answer(), b"ok"), (CHUNKED[:47], CHUNKED[47:])):
        said, raw = await heard([head + body], has_body=False)
        assert said.endswith(" 0 bytes, closes")
        assert raw == head


@pytest.mark.parametrize("head", [answer(b"Content-Length: 0"), answer(b"Transfer-Encoding: chunked")])
async def test_bytes_behind_an_answer_to_head_that_fit_no_body_do_not_break_it(head: bytes) -> None:
    said, raw = await heard([head + b"zz"], has_body=False)
    assert said.endswith(" 0 bytes, closes")
    assert raw == head


async def test_the_beginning_of_another_answer_is_not_passed_on_however_the_first_one_is_cut() -> None:
    lines = answer(b"Transfer-Encoding: chunked", body=b"4\r\n\n\n\r\n\r\n0\r\nA: b\r\n\r\n")
    for whole in (OK, CHUNKED, lines, answer(first=b"HTTP/1.1 204 No Content")):
        for cut in range(len(whole)):
            said, raw = await heard(filter(None, [whole[:cut], whole[cut:] + b"HTTP/1.1 200 OK\r\nA: "]))
            assert said.endswith(" bytes, closes")
            assert raw == whole


async def test_blank_lines_in_front_of_an_answer_are_not_taken_for_its_head() -> None:
    for blank in (b"\r\n", b"\r\n\r\n", b"\n\n"):
        for pieces in ([blank + OK], [blank, OK], [blank + OK[:9], OK[9:]]):
            assert await heard(pieces) == ("200, 2 bytes, stays", OK)


async def test_a_head_without_end_is_given_up() -> None:
    line = b"A: " + b"x" * 100_000 + b"\r\n"
    pieces = [b"HTTP/1.1 200 OK\r\n", *[line] * (HEAD_LIMIT_BYTES // len(line) + 1)]
    assert (await heard(pieces))[0] == "its answer's head is too large"


async def test_a_head_in_tiny_reads_costs_no_more_than_its_length() -> None:
    took = []
    for size in (50_000, 400_000):
        wire = answer(b"A: " + b"x" * size, b"Content-Length: 0")
        began = time.process_time()
        await heard(wire[at : at + 1] for at in range(len(wire)))
        took.append(time.process_time() - began)
    assert took[1] < 20 * took[0], took  # eight times the length


async def test_the_parser_behind_a_head_without_a_body_is_not_used_for_the_next_answer() -> None:
    connection = UpstreamConnection(asyncio.get_running_loop(), lambda _: None)
    connection.connection_made(Transport())
    for has_body in (False, True, False, False, True):
        sink = Sink()
        connection.ask(b"", sink, has_body=has_body)
        connection.data_received(OK if has_body else OK[:-2])
        assert sink.heard[-1] == f"{2 if has_body else 0} bytes, stays"
