"""The project's relay without its app: no gate, no log line. Shows what the gate costs."""

from __future__ import annotations

import asyncio
import sys

from yarl import URL

from ollama_swap_proxy.listener.answers import Answer
from ollama_swap_proxy.listener.request import ClientRequest
from ollama_swap_proxy.listener.server import ProxyServer
from ollama_swap_proxy.upstream.exchange import Exchange
from ollama_swap_proxy.upstream.relay import Relay


async def serve(port: int, upstream: str) -> None:
    relay = Relay(URL(upstream), connect_timeout_s=5)

    async def handle(request: ClientRequest) -> Answer:
        return await relay.forward(request, None, record=Exchange())

    await ProxyServer(handle).listen("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
