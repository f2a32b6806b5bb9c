"""The README's table of requests that never reach Ollama, held against the listener."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ollama_swap_proxy.errors import MARK
from ollama_swap_proxy.listener.screening import HEAD_LIMIT_LINES
from tests.upstream.scripted import OK, Side, relaying

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TABLE = README.partition("| what | we answer | Go and Ollama |")[2].partition("\n\n")[0]
HOST = b"Host: me\r\n"
LENGTH = b"Content-Length: 3\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n0\r\n"

REFUSED = {
    "a malformed head or body": b"GET / HTTP/1.1\r\n" + HOST + b"bad header: x\r\n\r\n",
    "no `Host` with HTTP/1.1": b"GET / HTTP/1.1\r\n\r\n",
    "another `Transfer-Encoding` than chunked": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "`Content-Length` beside `Transfer-Encoding: chunked`": b"POST / HTTP/1.1\r\n" + HOST + LENGTH + CHUNKED,
    "a trailer `Content-Length` behind chunks": b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + LENGTH + b"\r\n",
    "`Transfer-Encoding` with HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a head of more than 1 MiB": b"GET / HTTP/1.1\r\n" + HOST + (b"A: " + b"x" * 100_000 + b"\r\n") * 11 + b"\r\n",
    "a head of more than 10,000 lines": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * HEAD_LIMIT_LINES + b"\r\n",
    "HTTP/2 and later": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/1.2 and further minor versions": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "`CONNECT`": b"CONNECT me:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method that the parser does not know (`FOO`)": b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n",
}


def _rows() -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+) \| (\d\d\d)[^|]* \|", TABLE, re.MULTILINE))


def test_the_readme_lists_every_refusal_that_is_tried_here_and_no_other() -> None:
    assert set(_rows()) == set(REFUSED)
    assert f"{HEAD_LIMIT_LINES:,} lines" in TABLE


@pytest.mark.parametrize("what", REFUSED)
async def test_a_refusal_has_the_status_that_the_readme_tells_and_no_mark(what: str) -> None:
    async def answer_all(side: Side) -> None:
        while await side.head():
            await side.send_all(OK)

    async with relaying(answer_all) as rig:
        client = await rig.client()
        client.send(REFUSED[what])
        answer = (await client.rest()).decode()
    status_line, _, rest = answer.partition("\r\n")
    assert status_line.startswith(f"HTTP/1.1 {_rows()[what]} ")
    assert "Connection: close" in rest
    assert MARK not in rest
