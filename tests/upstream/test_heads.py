"""Each row of the table of request headers, and the two lines that may be added to an answer."""

from __future__ import annotations

import time

import pytest

from ollama_swap_proxy.listener.request import HTTP_11, RequestHead
from ollama_swap_proxy.upstream.heads import (
    CLOSING,
    NOT_BUFFERED,
    REQUEST_RULES,
    end_of_head,
    request_head,
    split_connection,
    start_line,
    with_length,
    with_lines,
)

UPSTREAM = b"ollama:11434"


def cross(*headers: tuple[bytes, bytes], body_was_read: bool = False) -> list[bytes]:
    """Give the header lines that reach upstream."""
    message = RequestHead("GET", "/", HTTP_11, [name for name, _ in headers], [value for _, value in headers])
    head = request_head(message, authority=UPSTREAM, body_was_read=body_was_read)
    assert head.startswith(b"GET / HTTP/1.1\r\n")
    assert head.endswith(b"\r\n\r\n")
    return head.split(b"\r\n")[1:-2]


ROWS = {
    b"host": [((b"HOST", b"me:1"), b"HOST: ollama:11434")],
    b"connection": [
        ((b"Connection", b"close"), b"Connection: close"),
        ((b"connection", b"Keep-Alive"), b"connection: Keep-Alive"),
        ((b"Connection", b"Upgrade, HTTP2-Settings"), None),
        ((b"Connection", b"keep-alive, Upgrade"), b"Connection: keep-alive"),
        ((b"Connection", b""), None),
    ],
    b"keep-alive": [((b"Keep-Alive", b"timeout=5"), None)],
    b"proxy-connection": [((b"Proxy-Connection", b"keep-alive"), None)],
    b"proxy-authorization": [((b"Proxy-Authorization", b"Basic eA=="), None)],
    b"te": [((b"TE", b"trailers"), None)],
    b"trailer": [((b"Trailer", b"X-Sum"), None)],
    b"upgrade": [((b"Upgrade", b"h2c"), None), ((b"upgrade", b"websocket"), None)],
    b"http2-settings": [((b"HTTP2-Settings", b"AAMAAABkAAQ"), None)],
    b"expect": [((b"Expect", b"100-continue"), b"Expect: 100-continue")],
    b"origin": [
        ((b"Origin", b"http://other"), b"Origin: http://other"),
        ((b"Origin", b"null"), b"Origin: null"),
    ],
    b"transfer-encoding": [((b"transfer-encoding", b"chunked"), b"transfer-encoding: chunked")],
    b"content-length": [((b"Content-Length", b"5"), b"Content-Length: 5")],
}


def test_every_row_of_the_table_is_tested_and_has_a_reason():
    assert {rule.name for rule in REQUEST_RULES} == set(ROWS)
    assert all(rule.reason for rule in REQUEST_RULES)
    assert len({rule.name for rule in REQUEST_RULES}) == len(REQUEST_RULES)


@pytest.mark.parametrize(("header", "expected"), [case for cases in ROWS.values() for case in cases])
def test_header_meets_its_fate(header, expected):
    assert cross(header, (b"X-After", b"1")) == [*([expected] if expected else []), b"X-After: 1"]


@pytest.mark.parametrize(
    "name",
    [b"X-Forwarded-For", b"Forwarded", b"Via", b"Authorization", b"Cookie", b"Accept-Encoding", b"Content-Encoding"],
)
def test_all_other_headers_pass(name):
    assert cross((name, b"v")) == [name + b": v"]


def test_nothing_is_added():
    assert cross() == []


def test_order_case_duplicates_and_odd_bytes_are_kept():
    headers = [(b"x-b", b"1"), (b"X-A", b"caf\xe9"), (b"X-B", b""), (b"x-b", b"1")]
    assert cross(*headers) == [b"x-b: 1", b"X-A: caf\xe9", b"X-B: ", b"x-b: 1"]


def test_expect_is_dropped_when_the_body_was_read():
    assert cross((b"Expect", b"100-continue"), body_was_read=True) == []


@pytest.mark.parametrize("scheme", [b"http", b"https"])
def test_same_origin_is_dropped_wherever_the_host_stands(scheme):
    origin, host = (b"Origin", scheme + b"://me:1"), (b"Host", b"me:1")
    assert cross(origin, host) == cross(host, origin) == [b"Host: ollama:11434"]


@pytest.mark.parametrize("origin", [b"http://me", b"http://me:10", b"HTTP://me:1", b"http://me:1/", b"ftp://me:1"])
def test_origin_that_only_resembles_the_host_passes(origin):
    assert cross((b"Host", b"me:1"), (b"Origin", origin))[1] == b"Origin: " + origin


def test_headers_named_by_connection_are_dropped_wherever_they_stand():
    headers = [(b"X-Hop", b"1"), (b"Connection", b"x-hop, close"), (b"x-HOP", b"2"), (b"X-Not", b"3")]
    assert cross(*headers) == [b"Connection: close", b"X-Not: 3"]


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding", b"Host", b"Expect"])
def test_connection_cannot_take_away_what_frames_the_request(name):
    lines = cross((b"Connection", name), (name, b"5"))
    assert len(lines) == 1
    assert lines[0].startswith(name)


def test_a_second_connection_line_does_not_hide_what_the_first_one_names() -> None:
    lines = cross((b"Host", b"me"), (b"Connection", b"X-Hop"), (b"X-Hop", b"1"), (b"Connection", b"close"))
    assert lines == [b"Host: ollama:11434", b"Connection: close"]


def test_connection_is_split_into_persistence_and_names():
    assert split_connection(b"Keep-Alive ,X-A,, close,x-a") == (b"close, keep-alive", {b"x-a"})


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Origin", b"x")] * 9_900,
        [*[(b"Connection", b"x%d" % n) for n in range(4_900)], *[(b"Origin", b"x")] * 4_900],
        [(b"Connection", b"a," * 2**19)],
        [(b"Connection", b"%d" % n + b",b" * 100) for n in range(4_900)],
    ],
)
def test_the_heaviest_head_that_is_taken_costs_no_more_than_its_length(headers):
    began = time.process_time()
    cross(*headers, (b"Host", b"me:1"))
    assert time.process_time() - began < 0.5  # seconds when each Origin searched for the Host


def test_start_line_gives_back_the_bytes_that_were_parsed():
    target = b"/caf\xc3\xa9\xff?%zz".decode("utf-8", "surrogateescape")
    assert start_line("GET", target, (1, 0)) == b"GET /caf\xc3\xa9\xff?%zz HTTP/1.0\r\n"


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"H 200\r\nA: b\r\n\r\nbody\n\n", 15),
        (b"H 200\nA: b\n\nbody\r\n\r\n", 12),
        (b"H 200\nA: b\n\r\nbody", 13),
        (b"H 200\r\nA: b\r\n", -1),
    ],
)
def test_end_of_head_is_found_in_every_spelling(data, end):
    assert end_of_head(data) == end


@pytest.mark.parametrize("lines", [NOT_BUFFERED, CLOSING, NOT_BUFFERED + CLOSING])
def test_lines_go_before_the_blank_line_and_nothing_else_changes(lines):
    data = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n1\r\n\r\n\r\n"
    assert with_lines(data, lines, end_of_head(data)) == b"HTTP/1.1 200 OK\r\nA: b\r\n" + lines + b"\r\n1\r\n\r\n\r\n"
    bare = b"HTTP/1.1 200 OK\nA: b\n\nbody"
    assert with_lines(bare, lines, end_of_head(bare)) == b"HTTP/1.1 200 OK\nA: b\n" + lines + b"\nbody"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"POST / HTTP/1.1\r\ncontent-length:  7\r\nA: b\r\n", b"POST / HTTP/1.1\r\ncontent-length:  12\r\nA: b\r\n"),
        (b"POST / HTTP/1.1\r\nX-Content-Length: 7\r\n", b"POST / HTTP/1.1\r\nX-Content-Length: 7\r\n"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: a\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: a\r\n"),
    ],
)
def test_another_length_changes_the_number_of_its_own_line_only(head: bytes, expected: bytes) -> None:
    assert with_length(head + b"\r\n", 12) == expected + b"\r\n"
