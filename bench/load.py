"""A closed-loop load on raw sockets: each connection sends its next request when the answer to the last one has ended.

Prints one JSON object: requests a second, p50 and p99 in microseconds, and how many answers were no 200.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import cast

GET = b"GET /api/version HTTP/1.1\r\nHost: %b\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
POST = (
    b"POST /api/generate HTTP/1.1\r\nHost: %b\r\nUser-Agent: bench\r\nAccept: */*\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
BODY = b'{"model": "small", "prompt": "why is the sky blue?", "options": {"num_predict": 1}}'


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._loop = loop
        self._data = b""
        self._sent_at = 0.0
        self.times: list[float] = []
        self.not_ok = 0
        self.answers = 0
        self.stopped = False
        self.measuring = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent_at = self._loop.time()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the time when an answer has ended, and send the next request."""
        self._data = data = self._data + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        at = data.find(b"Content-Length: ", 0, end)
        if at >= 0:
            if len(data) < end + 4 + int(data[at + 16 : data.index(b"\r", at)]):
                return
        elif not data.endswith(b"0\r\n\r\n"):
            return
        self._data = b""
        self.answers += 1
        if self.measuring:
            self.times.append(self._loop.time() - self._sent_at)
            self.not_ok += not data.startswith(b"HTTP/1.1 200")
        if not self.stopped:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's shape
        """Count a connection that was not to end yet."""
        if not self.stopped:
            self.not_ok += 1


async def run(port: int, kind: str, connections: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    host = b"127.0.0.1:%d" % port
    request = GET % host if kind == "GET" else POST % (host, len(BODY), BODY)
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(request, loop), "127.0.0.1", port)
        clients.append(client)
    await asyncio.sleep(seconds * 0.2)
    for client in clients:
        client.measuring = True
    start = loop.time()
    await asyncio.sleep(seconds)
    for client in clients:
        client.measuring, client.stopped = False, True
    took = loop.time() - start
    times = sorted(time for client in clients for time in client.times) or [0.0]
    return {
        "per_s": len(times) / took,
        "p50_us": times[len(times) // 2] * 1e6,
        "p99_us": times[int(len(times) * 0.99)] * 1e6,
        "answers": sum(client.answers for client in clients),
        "not_ok": sum(client.not_ok for client in clients),
    }


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("port", type=int)
    arguments.add_argument("kind", choices=["GET", "POST"])
    arguments.add_argument("connections", type=int)
    arguments.add_argument("seconds", type=float)
    given = arguments.parse_args()
    result = asyncio.run(run(given.port, given.kind, given.connections, given.seconds))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
