"""An upstream that costs next to nothing: Ollama's recorded answers for one warm model, from a raw protocol.

It is no simulator: it always answers at once, that `small` is resident, and one token.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

TRANSCRIPTS = Path(__file__).parent.parent / "tests" / "transcripts"
MODEL = "small"


def exchanges(group: str) -> dict[str, Any]:
    return {entry["name"]: entry for entry in json.loads((TRANSCRIPTS / f"{group}.json").read_text())}


def answer(body: bytes, kind: str = "application/json; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nDate: Mon, 23 Nov 2026 20:37:01 GMT\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def text_of(entry: dict[str, Any]) -> str:
    response = entry["response"]
    return cast("str", response["body"]) if "body" in response else "".join(c["text"] for c in response["chunks"])


def stream(*lines: str) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Mon, 23 Nov 2026 20:37:01 GMT\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in (line.encode() for line in lines))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def answers() -> dict[bytes, bytes]:
    ps = json.loads(text_of(exchanges("ps")["two loaded, one forever"]))
    ps["models"] = [entry for entry in ps["models"] if entry["name"] == f"{MODEL}:latest"]
    shown = exchanges("tags_show")
    tokens = [chunk["text"] for chunk in exchanges("generate_chat")["generate stream"]["response"]["chunks"]]
    return {
        b"/api/version": answer(b'{"version":"0.33.0"}'),
        b"/api/ps": answer(json.dumps(ps).encode()),
        b"/api/tags": answer(text_of(shown["tags"]).encode()),
        b"/api/show": answer(text_of(shown["show"]).encode()),
        b"/api/generate": stream(tokens[0], tokens[-1]),
    }


class Recorded(asyncio.Protocol):
    """Answers each request by its path; requests come whole, in one or two segments."""

    def __init__(self, by_path: dict[bytes, bytes]) -> None:
        self._by_path = by_path
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            at = head.lower().find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + size:
                return
            self._data = self._data[end + 4 + size :]
            path = head.split(b" ", 2)[1].split(b"?")[0]
            self._transport.write(self._by_path.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))


async def serve(port: int) -> None:
    by_path = answers()
    await asyncio.get_running_loop().create_server(lambda: Recorded(by_path), "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
