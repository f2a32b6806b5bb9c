"""Rows of the README's list of exceptions that show only with the whole proxy: which bodies are read before they go."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from ollama_swap_proxy.app import LIBRARY_BODY_LIMIT_BYTES
from ollama_swap_proxy.config import load_settings
from ollama_swap_proxy.serving import Service
from tests.upstream.scripted import ScriptedUpstream, Side

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BODY = b'{"model": "x"}'
OURS_100 = b"HTTP/1.1 100 Continue\r\n\r\n"
ITS_100 = b"HTTP/1.1 100 Its Own\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"
CONTROL = {b"/api/ps": b'{"models":[]}', b"/api/tags": b'{"models":[]}', b"/api/version": b'{"version":"0.33.0"}'}


async def _exchange(path: str, *headers: str, expect: bool = True) -> tuple[bytes, bytes]:
    """Send a POST whose body waits for a 100; return the head that upstream got, and all that the client got."""
    got: list[bytes] = []

    async def script(side: Side) -> None:
        while head := await side.head():
            if path.encode() not in head:
                text = CONTROL.get(head.split()[1])  # /api/show is not among them: no such model
                status, text = (b"404 Not Found", b"{}") if text is None else (b"200 OK", text)
                await side.send_all(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(text), text))
                continue
            got.append(head)
            if b"Expect" in head:
                await side.send_all(ITS_100)
            await side.exactly(len(BODY))
            await side.send_all(STREAM)
            return

    upstream = ScriptedUpstream(script)
    await upstream.start()
    free = "127.0.0.1:0"
    settings = load_settings({"listen": free, "admin": free, "upstream": f"http://127.0.0.1:{upstream.port}"}, {})
    try:
        async with Service(settings) as service:
            client = Side(*await asyncio.open_connection("127.0.0.1", service.listen.port))
            lines = ["Host:localhost", f"Content-Length: {len(BODY)}", *headers]
            lines += ["Expect: 100-continue"] if expect else []
            client.send("\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode())
            first = await client.head() if expect else b""
            client.send(BODY)
            answer = first + await client.rest()
            client.close()
    finally:
        await upstream.stop()
    assert not upstream.failures
    return got[0], answer


@pytest.mark.parametrize("path", ["/api/generate", "/v1/messages", "/api/pull", "/api/create", "/api/copy"])
async def test_where_the_body_is_read_first_the_permission_is_ours_and_streams_are_not_held_back(path: str) -> None:
    head, answer = await _exchange(path)
    assert b"Expect" not in head
    assert answer.startswith(OURS_100 + b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nX-Accel-Buffering: no\r\n" in answer


@pytest.mark.parametrize("path", ["/api/push", "/api/blobs/sha256:00", "/api/show"])
async def test_elsewhere_the_permission_is_upstreams_and_nothing_is_added(path: str) -> None:
    head, answer = await _exchange(path)
    assert b"\r\nExpect: 100-continue\r\n" in head
    assert answer == ITS_100 + STREAM


async def test_a_header_has_one_blank_in_front_of_its_value() -> None:
    head, _ = await _exchange("/api/push", "X-Tight:a", "X-Wide:   b  ", expect=False)
    assert b"\r\nX-Tight: a\r\nX-Wide: b\r\n" in head


def test_the_readme_says_so() -> None:
    row = re.search(r"^\| bodies that are read before they are sent \| (.*) \|$", README, re.MULTILINE)
    assert row
    assert set(re.findall(r"`/api/(\w+)`", row[1])) == {"pull", "create", "copy", "delete"}
    assert f"{LIBRARY_BODY_LIMIT_BYTES // 1024} KiB" in row[1]
