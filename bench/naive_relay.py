"""The usual forty lines: aiohttp's Application and ClientSession on their defaults. What we are measured against."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

UPSTREAM: web.AppKey[str] = web.AppKey("upstream", str)
SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "host"}


async def session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession() as app[SESSION]:
        yield


async def relay(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    body = await request.read()
    url = request.app[UPSTREAM] + request.path_qs
    async with request.app[SESSION].request(request.method, url, headers=headers, data=body) as upstream:
        kept = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP}
        answer = web.StreamResponse(status=upstream.status, headers=kept)
        await answer.prepare(request)
        async for data in upstream.content.iter_any():
            await answer.write(data)
        await answer.write_eof()
        return answer


def main() -> None:
    app = web.Application()
    app[UPSTREAM] = sys.argv[2]
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), loop=asyncio.new_event_loop(), print=None)


if __name__ == "__main__":
    main()
