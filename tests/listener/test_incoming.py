"""The verdict on every odd request, the same however its bytes are cut; what a client can make us keep or work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest

from ollama_swap_proxy.listener.answers import Refusal
from ollama_swap_proxy.listener.content import HIGH_WATER_BYTES, Content, MalformedBody
from ollama_swap_proxy.listener.incoming import PIECE_BYTES, QUEUE_LIMIT, Incoming
from ollama_swap_proxy.listener.request import RequestHead
from ollama_swap_proxy.listener.screening import HEAD_LIMIT_BYTES, HEAD_LIMIT_LINES, ONCE

HOST = b"Host: me\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: me\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
HI = b"2\r\nhi\r\n0\r\n\r\n"


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    return b"%b\r\n%b%b\r\n" % (first, host, b"".join(line + b"\r\n" for line in lines))


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return get(*lines, first=b"POST / HTTP/" + version) + body


def offer(*lines: bytes, body: bytes = b"", protocol: bytes = b"h2c") -> bytes:
    return post(b"Connection: Upgrade", b"Upgrade: " + protocol, *lines, body=body)


def verdict(pieces: Iterable[bytes]) -> str:
    """Say what came of it: method, target and body of each request, or the status of a refusal."""
    incoming, said = Incoming(), []
    for piece in pieces:
        incoming.feed(piece)
    while incoming.queue:
        coming = incoming.take()
        if isinstance(coming, Refusal):
            said.append(coming.raw[9:12].decode())
            continue
        head, content = coming
        body = content.read_nowait().decode() if content._failure is None else "failed"
        said.append(
            " ".join([head.method, head.path, *([body] if body else []), *([] if content.is_eof() else ["..."])])
        )
    return ", ".join(said)


TAKEN = {
    "GET /": [
        get(),
        b"\r\n" + get(),
        b"\n" + get(),
        get(first=b"GET / HTTP/1.0", host=b""),
        get(b"A:", b"B: ", b"C:\t", b"D:d", b"E:  e  ", b"F:\tf\t", b"G: \xe9\x80", b"H: a:b", b"!#$%&'*+-.^_`|~: i"),
        get(b"Accept: a", b"Accept: b", b"cookie: c", b"Cookie: c"),
        get(host=b"hOST: me\r\n"),
        get(host=b"Host:\r\n"),
        get(b"Upgrade: h2c"),
        get(b"Content-Length: 0"),
    ],
    "POST / hi": [
        post(b"Content-Length: 2", body=b"hi"),
        post(b"content-length:02 ", body=b"hi"),
        post(b"Content-Length: 2", body=b"hi", version=b"1.0"),
        post(CHUNKED, body=HI),
        post(b"transfer-encoding: CHUNKED ", body=HI),
        post(CHUNKED, body=b'0002;a="b;c"\r\nhi\r\n000;x\r\nA: b\r\n\r\n'),
        offer(b"Content-Length: 2", body=b"hi"),
    ],
    "GET /, GET /next": [get() + NEXT, get() + b"\r\n\r\n" + NEXT, get(b"Connection: x, keep-alive") + NEXT],
    "POST / hi, GET /next": [
        post(b"Content-Length: 2", body=b"hi") + NEXT,
        post(CHUNKED, body=HI) + NEXT,
        # A trailer is no header of the next request.
        post(CHUNKED, body=b"2\r\nhi\r\n0\r\nHost: a\r\nHost: b\r\nUser-Agent: c\r\n\r\n") + NEXT,
        offer(b"Content-Length: 2", body=b"hi", protocol=b"websocket") + NEXT,
        offer(CHUNKED, body=b"2\r\nhi\r\n0\r\nA: b\r\n\r\n") + NEXT,
        post(b"Upgrade: h2c", b"Content-Length: 2", body=b"hi") + NEXT,
    ],
    "POST /, GET /next": [offer() + NEXT, offer(b"Content-Length: 0") + NEXT],
    # Nothing follows a request behind which the client wants the connection closed.
    "GET /, 400": [get(b"Connection: close") + NEXT, get(first=b"GET / HTTP/1.0") + NEXT, get() + b"bad\r\n\r\n"],
    "POST / hi, 400": [
        post(b"Connection: close", b"Content-Length: 2", body=b"hi") + NEXT,
        offer(b"Connection: close", b"Content-Length: 2", body=b"hi") + NEXT,
        offer(b"Connection: close", CHUNKED, body=HI) + NEXT,
        offer(CHUNKED, body=HI) + get(b"bad header: x"),
    ],
    "POST / hi ...": [post(b"Content-Length: 5", body=b"hi"), offer(b"Content-Length: 5", body=b"hi")],
    "GET /, POST / he ...": [get() + post(b"Content-Length: 5", body=b"he")],
    "": [b"GET / HTTP/1.1\r\nHost: me\r\n", b"GET", b"\r\n\r\n"],
    "OPTIONS *": [get(first=b"OPTIONS * HTTP/1.1")],
    **{
        f"GET {target}": [get(first=b"GET %b HTTP/1.1" % target.encode())]
        for target in ("/%zz/../%2F//", "//evil", '/\\{}|^`"<>', "/a?", "/a#b", "http://me/x?y", "HTTP://u:p@[::1]:80/")
    },
}

REFUSED = {
    400: [
        # the request line
        b"\0\1\2\r\n\r\n",
        b"\x16\x03\x01\x02\0\1\0\1\r\n\r\n",
        *[
            get(first=line)
            for line in (b"", b"FOO / HTTP/1.1", b"get / HTTP/1.1", b"GETT / HTTP/1.1", b"GET /", b" GET / HTTP/1.1")
        ],
        *[
            get(first=b"GET / " + version)
            for version in (b"HTTP/0.9", b"HTTP/1", b"http/1.1", b"HTTPS/1.1", b"HTTP/1.1 ")
        ],
        *[
            get(first=b"GET " + target + b" HTTP/1.1")
            for target in (
                *(
                    b"*",
                    b"x",
                    b"me:80",
                    b"?a",
                    b"/a b",
                    b"/a\tb",
                    b"/\xc3\xa9",
                    b"/\0",
                    b"/\x7f",
                    b"http:/x",
                    b"http:///x",
                ),
                *(b"http://", b"http://?x", b"http://me:99999/", b"http://[zz]/", b"http://[::1", b"http://@/"),
            )
        ],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        # line ends and folds
        get().replace(b"\r\n", b"\n"),
        b"GET / HTTP/1.1\nHost: me\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: me\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: me\rA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: me\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: me\r\n\n",
        get(b"A: b\r\n c"),
        get(b"A:\r\n\tb"),
        get(b" A: b"),
        post(b"Content-Length:\r\n 2", body=b"hi"),
        # headers
        *[
            get(line)
            for line in (
                *(
                    b"bad header: x",
                    b"A : b",
                    b"A\t: b",
                    b": x",
                    b"x",
                    b"A: b\0c",
                    b"A: b\1c",
                    b"A: b\x0b",
                    b"A: b\x7f",
                ),
                *(b"\xe9: a", b"A(: b", b"A@: b", b"A\0: b", b"Sec-WebSocket-Key1: x"),
            )
        ],
        get(host=b""),
        get(host=b"Host : me\r\n"),
        *[get(name + b": 1", name.upper() + b": 1") for name in ONCE - {b"transfer-encoding"}],
        # lengths
        *[
            post(b"Content-Length: " + length, body=b"hi")
            for length in (
                b"+2",
                b"-2",
                b"0x2",
                b"2.0",
                b"2, 2",
                b"2 2",
                b"",
                b"a",
                b"2a",
                b"1_0",
                b"2;",
                b"18446744073709551616",
            )
        ],
        post(b"Content-Length : 2", body=b"hi"),
        post(CHUNKED, body=HI, version=b"1.0"),
        offer(b"Content-Length: x", body=b"hi"),
    ],
    405: [get(first=b"CONNECT other:443 HTTP/1.1")],
    431: [get(*[b"A: b"] * HEAD_LIMIT_LINES)],
    501: [
        post(b"Content-Length: 2", CHUNKED, body=HI),
        post(CHUNKED, b"Content-Length: 2", body=HI),
        offer(b"Content-Length: 2", CHUNKED, body=HI),
        *[
            post(b"Transfer-Encoding: " + coding, body=HI)
            for coding in (
                b"",
                b"gzip",
                b"gzip, chunked",
                b"chunked, chunked",
                b"chunked, gzip",
                b"identity",
                b"xchunked",
                b"chunked\t",
                b",chunked",
            )
        ],
        post(CHUNKED, CHUNKED, body=HI),
        post(b"Transfer-Encoding: gzip", CHUNKED, body=HI),
        offer(b"Transfer-Encoding: gzip", body=HI),
        offer(b"Transfer-Encoding: gzip, chunked", body=HI, protocol=b"websocket"),
    ],
    505: [get(first=b"GET / " + version) for version in (b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3.0")],
}

CHUNKS = [
    *(
        b"g\r\n",
        b"2\nhi\r\n0\r\n\r\n",
        b"2\r\nhi\n0\r\n\r\n",
        b"2\r\nhi0\r\n\r\n",
        b"2\r\nhii\r\n",
        b"2 \r\nhi\r\n",
        b"2\t\r\nhi",
    ),
    *(
        b" 2\r\nhi\r\n",
        b"+2\r\nhi\r\n",
        b"0x2\r\nhi\r\n",
        b"\r\nhi\r\n",
        b"2\r\r\nhi\r\n",
        b"2;a\nhi\r\n",
        b"2;\0\r\nhi\r\n",
    ),
    *(
        b"10000000000000000\r\nhi",
        b"2\r\nhi\r\n0\r\n\n",
        b"2\r\nhi\r\n0\r\nbad header: x\r\n\r\n",
        b"2\r\nhi\r\n0\r\nA: b\r\n c\r\n\r\n",
    ),
]
"""Behind a head that is good."""


def take_request(incoming: Incoming) -> tuple[RequestHead, Content]:
    coming = incoming.take()
    assert not isinstance(coming, Refusal)
    return coming


def cuts(wire: bytes) -> Iterable[list[bytes]]:
    """Give the whole, every way to cut it in two, and its single bytes."""
    yield [wire]
    if len(wire) < 1000:
        yield from ([wire[:cut], wire[cut:]] for cut in range(1, len(wire)))
        yield [wire[at : at + 1] for at in range(len(wire))]


@pytest.mark.parametrize(("wire", "expected"), [(wire, said) for said, wires in TAKEN.items() for wire in wires])
def test_what_is_taken_is_taken_however_it_is_cut(wire: bytes, expected: str) -> None:
    assert {verdict(pieces) for pieces in cuts(wire)} == {expected}


@pytest.mark.parametrize(
    ("wire", "status"),
    [(wire, status) for status, wires in REFUSED.items() for wire in wires],
    ids=lambda v: repr(v)[:40],
)
@pytest.mark.parametrize("before", ["", "GET /next"])
def test_what_is_refused_is_refused_however_it_is_cut_and_what_stood_in_front_is_served(
    wire: bytes, status: int, before: str
) -> None:
    expected = f"{before}, {status}".removeprefix(", ")
    assert {verdict(pieces) for pieces in cuts((NEXT if before else b"") + wire)} == {expected}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("begin", [post, offer])
def test_a_malformed_body_is_refused_or_fails_its_reader(chunks: bytes, begin: Callable[..., bytes]) -> None:
    """The request is refused where it came with its body, else served until its body fails."""
    wire = begin(CHUNKED) + chunks
    assert verdict([wire]) == "400"
    assert {verdict(pieces) for pieces in cuts(wire)} <= {"400", "POST / failed ...", "POST /, 400"}
    assert verdict([begin(CHUNKED), chunks]) == "POST / failed ..."


def test_a_request_line_that_is_none_is_refused_before_the_blank_line() -> None:
    assert verdict([b"GET / HTTP/9.9\r\n"]) == "505"
    assert verdict([b"GE", b"T / HTTP/9.9\r\n"]) == "505"
    assert verdict([b"\0"]) == "400"


def test_header_lines_are_kept_as_they_came_but_for_white_space_around_values() -> None:
    incoming = Incoming()
    incoming.feed(get(b"x-B:  1 ", b"X-b:\t\xe92\t", b"X-A:", first=b'GET /%zz?"# HTTP/1.0'))
    head, _ = take_request(incoming)
    assert (head.names, head.values) == ([b"Host", b"x-B", b"X-b", b"X-A"], [b"me", b"1", b"\xe92", b""])
    assert head.lower_names == [b"host", b"x-b", b"x-b", b"x-a"]
    assert head.headers.getall("X-B") == ["1", "\udce92"]
    assert (head.path, head.version, head.should_close) == ('/%zz?"#', (1, 0), True)


# --- limits ---


def feed_all(incoming: Incoming, data: bytes, size: int) -> float:
    began = time.process_time()
    for at in range(0, len(data), size):
        incoming.feed(data[at : at + size])
    return time.process_time() - began


def in_a_head(name: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: me\r\n" + name


@pytest.mark.parametrize(
    "begun", [b"GET /", in_a_head(b"A: "), in_a_head(b""), post(CHUNKED, body=b"2;"), post(CHUNKED, body=b"0\r\nA: ")]
)
def test_a_line_in_tiny_reads_costs_no_more_than_its_length_and_ends_at_the_limit(begun: bytes) -> None:
    incoming = Incoming()
    incoming.feed(begun)
    assert (
        feed_all(incoming, b"x" * (HEAD_LIMIT_BYTES - 2000), 16) < 2
    )  # a minute when each read was joined to the last
    assert incoming.is_open
    feed_all(incoming, b"x" * 4000, 16)
    assert not incoming.is_open
    coming = incoming.take()
    if isinstance(coming, Refusal):
        assert coming.raw.startswith(b"HTTP/1.1 431 ")
    else:
        assert coming[1]._failure


def test_so_do_lines_without_end() -> None:
    for begun in (in_a_head(b""), post(CHUNKED, body=b"0\r\n")):
        incoming = Incoming()
        incoming.feed(begun)
        feed_all(incoming, b"A: b\r\n" * (HEAD_LIMIT_LINES + 1000), 6000)
        assert not incoming.is_open


def test_a_head_of_1_mib_in_pieces_is_taken_and_a_larger_one_is_not() -> None:
    line = b"A: " + b"x" * 10_000
    for lines, said in ((100, "GET /"), (110, "431")):
        wire = get(*[line] * lines)
        assert verdict([wire]) == verdict([wire[at : at + 1000] for at in range(0, len(wire), 1000)]) == said


class Held:
    """A transport that notes whether it is held."""

    is_held = False

    def pause_reading(self) -> None:
        self.is_held = True

    def resume_reading(self) -> None:
        self.is_held = False


def test_a_client_that_pipelines_is_held_with_one_piece_too_many_at_most() -> None:
    incoming = Incoming()
    incoming.transport = held = Held()  # type: ignore[assignment]
    incoming.feed(NEXT * 8000)
    assert held.is_held
    assert QUEUE_LIMIT <= len(incoming.queue) <= PIECE_BYTES / len(NEXT) + 1
    taken = 0
    while incoming.queue:
        take_request(incoming)
        taken += 1
    assert taken == 8000
    assert not held.is_held


@pytest.mark.parametrize("wire", [post(b"Content-Length: 9999999"), post(CHUNKED)])
def test_a_client_whose_body_is_not_read_is_held(wire: bytes) -> None:
    incoming = Incoming()
    incoming.transport = held = Held()  # type: ignore[assignment]
    incoming.feed(wire)
    _, content = take_request(incoming)
    sent = 0
    while not held.is_held:
        piece = b"1\r\na\r\n" * 100 if CHUNKED in wire else b"x" * 1000
        incoming.feed(piece)
        sent += len(piece)
        assert sent <= HIGH_WATER_BYTES + 2000
    content.read_nowait()
    assert not held.is_held


async def test_a_reader_waits_for_its_body_and_hears_that_it_is_malformed() -> None:
    incoming = Incoming()
    incoming.feed(post(CHUNKED, body=b"2\r\nhi\r\n"))
    _, content = take_request(incoming)
    assert await content.readany() == b"hi"
    incoming.feed(b"zz\r\n")
    with pytest.raises(MalformedBody):
        await content.readany()


@pytest.mark.parametrize(
    "first",
    [b"SOURCE /x ICE/1.0", b"OPTIONS /x RTSP/1.0", b"DESCRIBE /x RTSP/1.0", b"GET  / HTTP/1.1"],
)
def test_a_request_line_of_another_protocol_or_with_odd_blanks_is_refused_as_go_does(first: bytes) -> None:
    """Go (net/http: readRequest): malformed HTTP version; it would go to upstream as HTTP/1.0."""
    wire = get(first=first)
    assert verdict([wire]) == "400"
    for cut in range(1, len(wire)):
        assert verdict([wire[:cut], wire[cut:]]) == "400"
    assert verdict(wire[at : at + 1] for at in range(len(wire))) == "400"
    assert verdict([NEXT + wire]) == "GET /next, 400"


def test_a_length_beside_chunks_is_refused() -> None:
    """Go (net/http: transferReader.parseTransferEncoding) drops the length; README.md tells of the difference."""
    assert verdict([post(b"Content-Length: 3", CHUNKED, body=HI)]) == "501"
