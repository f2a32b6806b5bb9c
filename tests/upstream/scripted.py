"""A raw upstream that does what a test's script says, a raw client, and the relay between them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from yarl import URL

from ollama_swap_proxy.listener.answers import Answer, OwnAnswer
from ollama_swap_proxy.listener.request import ClientRequest
from ollama_swap_proxy.listener.server import ProxyServer
from ollama_swap_proxy.upstream.exchange import Exchange
from ollama_swap_proxy.upstream.relay import Relay

SOON_S = 5.0
"""Nothing in these tests takes this long unless it hangs."""

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Side:
    """One end of a raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """Read up to a blank line and give it all; an empty result is EOF."""
        try:
            return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SOON_S)
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), SOON_S)

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), SOON_S)

    async def rest(self) -> bytes:
        """Read until the other end closes; a reset counts as an end."""
        got = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(2**18), SOON_S):
                got += data
        return got

    async def ended(self) -> float:
        """Wait until the other end has closed or reset; give the seconds it took."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        await self.rest()
        return loop.time() - start

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def send_all(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), SOON_S)

    def finish(self) -> None:
        """Send FIN and go on reading."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        """Close with a reset, as a killed process with unread data does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


Script = Callable[[Side], Awaitable[None]]


class ScriptedUpstream:
    """Runs the script once for each connection; keeps what failed in it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        # A plain connection callback: the scripts' tasks are ours to await.
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**22)
        self.port = self._server.sockets[0].getsockname()[1]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._run(Side(reader, writer)))
        self._tasks.add(task)

    async def _run(self, side: Side) -> None:
        try:
            await self._script(side)
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - shown by the rig, in the test
            self.failures.append(error)
        finally:
            side.writer.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass
class Rig:
    """A client's view of the relay, and the records of what passed."""

    upstream: ScriptedUpstream
    server: ProxyServer
    relay: Relay
    port: int
    records: list[Exchange] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    clients: list[Side] = field(default_factory=list)

    @property
    def authority(self) -> bytes:
        return b"127.0.0.1:%d" % self.upstream.port

    async def client(self, receive_buffer: int | None = None) -> Side:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except BaseException:
            sock.close()
            raise
        side = Side(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**22))
        self.clients.append(side)
        return side

    async def ask(self, request: bytes) -> bytes:
        """Send on a connection of its own and give all that comes until the other end closes."""
        client = await self.client()
        client.send(request)
        return await client.rest()


Handler = Callable[[Rig, ClientRequest, Exchange], Awaitable[Answer]]


async def passthrough(rig: Rig, request: ClientRequest, record: Exchange) -> Answer:
    return await rig.relay.forward(request, None, record=record)


async def whole(request: ClientRequest) -> bytes:
    """Read a request's body to its end."""
    body = b""
    while data := await request.content.readany():
        body += data
    return body


async def gated(rig: Rig, request: ClientRequest, record: Exchange) -> Answer:
    """Read the body first, as the app does with inference requests."""
    return await rig.relay.forward(request, await whole(request), record=record, unbuffered=True)


@contextlib.asynccontextmanager
async def relaying(script: Script, handler: Handler = passthrough) -> AsyncIterator[Rig]:
    """Run the scripted upstream and the relay before it; show a script's failure at the end."""
    upstream = ScriptedUpstream(script)
    await upstream.start()
    relay = Relay(URL(f"http://127.0.0.1:{upstream.port}"), connect_timeout_s=5)

    async def handle(request: ClientRequest) -> Answer:
        record = Exchange()
        rig.records.append(record)
        try:
            return await handler(rig, request, record)
        except BaseException as error:
            rig.errors.append(error)
            if error.__class__.__name__ == "ProxyError":
                return OwnAnswer.of_error(error)
            raise

    server = ProxyServer(handle)
    ((_, port),) = await server.listen("127.0.0.1", 0)
    rig = Rig(upstream, server, relay, port)
    try:
        yield rig
    finally:
        for client in rig.clients:
            client.writer.transport.abort()
        await server.stop(0.0)
        await relay.close()
        await upstream.stop()
    if upstream.failures:
        raise upstream.failures[0]


async def eventually(condition: Callable[[], bool], limit_s: float = SOON_S) -> float:
    """Wait until it is true; give the seconds it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() - start < limit_s, "it never came true"
        await asyncio.sleep(0.001)
    return loop.time() - start
