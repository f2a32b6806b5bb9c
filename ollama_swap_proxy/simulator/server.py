"""The simulated server's front: routes, methods, redirects, CORS, the Host check, and the faults on the wire.

Owns which handler a request gets and in what order it is looked at. Must not know what a model is. Facts:
server/routes.go:1803-1926 and the recorded answers (tests/transcripts: routing, cors_host, root_version).
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ollama_swap_proxy.simulator import native, openai
from ollama_swap_proxy.simulator.generation import SimError, Surface
from ollama_swap_proxy.simulator.gojson import encode
from ollama_swap_proxy.simulator.http_head import Headers, Response
from ollama_swap_proxy.simulator.inference import Inference
from ollama_swap_proxy.simulator.machine import Machine
from ollama_swap_proxy.simulator.models import Faults
from ollama_swap_proxy.simulator.store_api import Store
from ollama_swap_proxy.simulator.wire import Request

JSON = ("Content-Type", native.JSON_TYPE)
PLAIN = ("Content-Type", "text/plain")
METHODS = ("HEAD", "GET", "POST", "DELETE")
"""In gin's order, which is that of the Allow header."""
_ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
_LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:[^/]*)?")
_APP_SCHEMES = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")

Answer = Response | Coroutine[Any, Any, None]
Route = Callable[[Request, Headers], Answer]


class Front:
    """Called with each request; a light one is answered at once, the others by a coroutine."""

    def __init__(
        self,
        machine: Machine,
        store: Store,
        inference: Inference,
        faults: Faults,
        surfaces: Mapping[str, Surface],
        *,
        version: str,
        no_cloud: bool,
        loopback: bool,
    ) -> None:
        self._machine = machine
        self._store = store
        self._faults = faults
        self._random: Random = machine.world.random
        self._loopback = loopback
        self._hostname = socket.gethostname().lower()
        self._routes = self._table(inference, surfaces, version, no_cloud=no_cloud)

    def __call__(self, request: Request) -> Answer:
        """Answer a request, or start to."""
        if self._faults.drop_connections:
            request.connection.abort()
            return _nothing()
        path = request.path
        if request.target[:1] == "/" and ("//" in path or "/." in path):
            moved = _cleaned(request, path)
            if moved is not None:
                return moved
        route, allowed = self._find(request.method, path)
        base: list[tuple[str, str]] = []
        if route is None:
            if not allowed:
                moved = self._slashed(request, path)
                if moved is not None:
                    return moved
            else:
                base = [("Allow", ", ".join(allowed))]
        refusal, cors = self._gates(request)
        if refusal is not None:
            return Response(refusal.status, [*refusal.headers, *base], refusal.body)
        if route is not None:
            return route(request, cors)
        status, text = (405, b"405 method not allowed") if allowed else (404, b"404 page not found")
        return Response(status, [PLAIN, *cors, *base], text)

    # ---- what stands before a route

    def _find(self, method: str, path: str) -> tuple[Route | None, list[str]]:
        methods = self._routes.get(path)
        if methods is None:
            head, _, tail = path.rpartition("/")
            methods = self._routes.get(f"{head}/:") if tail else None
        if methods is None:
            return None, []
        route = methods.get(method)
        return route, [] if route else [m for m in METHODS if m in methods]

    def _slashed(self, request: Request, path: str) -> Response | None:
        """Gin's redirect to the path with or without the slash at its end."""
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if path == "/" or self._find(request.method, other)[0] is None:
            return None
        return _redirect(301 if request.method == "GET" else 307, other + request.query, request.method)

    def _gates(self, request: Request) -> tuple[Response | None, list[tuple[str, str]]]:
        """CORS, then the Host check: a refusal, or the headers that CORS adds."""
        origin, host = request.header("origin"), request.header("host")
        cors: list[tuple[str, str]] = []
        if origin and origin not in {f"http://{host}", f"https://{host}"}:
            if not (_LOCAL_ORIGIN.fullmatch(origin) or origin.startswith(_APP_SCHEMES)):
                return Response(403), []
            if request.method == "OPTIONS":
                return Response(204, _preflight(origin)), []
            cors = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
        if not self._loopback:
            return None, cors
        passed = _host_passes(host, self._hostname)
        if passed is None:
            return Response(403, cors), []
        if passed == "name" and request.method == "OPTIONS":
            return Response(204, cors), []
        return None, cors

    # ---- routes

    def _table(
        self, inference: Inference, surfaces: Mapping[str, Surface], version: str, *, no_cloud: bool
    ) -> dict[str, dict[str, Route]]:
        store = self._store
        version_body = encode({"version": version})
        source = "env" if no_cloud else "none"
        status_body = encode({"cloud": {"disabled": no_cloud, "source": source}})

        def fixed(body: bytes, kind: tuple[str, str] = JSON) -> Route:
            return lambda _request, cors: Response(200, [kind, *cors], body)

        root = fixed(b"Ollama is running", ("Content-Type", "text/plain; charset=utf-8"))
        get_version = fixed(version_body)

        def tags(_request: Request, cors: Headers) -> Response:
            return Response(200, [JSON, *cors], store.tags())

        def no_search(_request: Request, cors: Headers) -> Response:
            text = "ollama cloud is disabled: web search is unavailable"
            return Response(403, [JSON, *cors], encode({"error": text}))

        table: dict[str, dict[str, Route]] = {
            "/": {"GET": root, "HEAD": root},
            "/api/version": {"GET": get_version, "HEAD": get_version},
            "/api/status": {"GET": fixed(status_body)},
            "/api/tags": {"GET": tags, "HEAD": tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": _posted(store.show)},
            "/api/copy": {"POST": _posted(store.copy)},
            "/api/delete": {"DELETE": _posted(store.delete)},
            "/api/create": {"POST": _progress(store.create)},
            "/api/pull": {"POST": _progress(store.pull)},
            "/api/push": {"POST": _progress(store.push)},
            "/api/blobs/:": {"HEAD": self._blob_head, "POST": self._blob_post},
            "/api/experimental/web_search": {"POST": no_search},
            "/api/experimental/web_fetch": {"POST": no_search},
            "/v1/models": {"GET": self._v1_models},
            "/v1/models/:": {"GET": self._v1_model},
        }
        for path, surface in surfaces.items():
            table[path] = {"POST": _inferring(inference, surface)}
        return table

    def _ps(self, request: Request, cors: Headers) -> Answer:
        faults = self._faults
        blocked = faults.ps_block_s > 0 and self._random.random() < faults.ps_block_probability
        if blocked or self._machine.locked:
            return self._ps_later(request, cors, faults.ps_block_s if blocked else 0.0)
        return self._ps_now(cors)

    def _ps_now(self, cors: Headers) -> Response:
        faults = self._faults
        if faults.ps_status:
            return Response(faults.ps_status, [JSON, *cors], encode({"error": "simulated failure of /api/ps"}))
        body = self._store.ps(self._machine.listed())
        return Response(200, [JSON, *cors], body[: len(body) // 2] if faults.ps_malformed else body)

    async def _ps_later(self, request: Request, cors: Headers, seconds: float) -> None:
        if seconds:
            await self._machine.world.clock.sleep(seconds)
        await self._machine.unlocked()
        await request.connection.answer(self._ps_now(cors))

    def _blob_head(self, request: Request, cors: Headers) -> Response:
        digest = request.path.rpartition("/")[2]
        try:
            found = self._store.has_blob(digest)
        except SimError as failure:
            return _failed(failure, cors)
        if found:
            return Response(200, cors)
        return Response(404, [JSON, *cors], encode({"error": f'blob "{digest}" not found'}))

    async def _blob_post(self, request: Request, cors: Headers) -> None:
        digest = request.path.rpartition("/")[2]
        try:
            if self._store.has_blob(digest):
                await request.connection.answer(Response(200, cors))
                return
            self._store.store_blob(digest, await request.read())
        except SimError as failure:
            await request.connection.answer(_failed(failure, cors))
            return
        await request.connection.answer(Response(201, cors))

    def _v1_models(self, _request: Request, cors: Headers) -> Response:
        listed = [(m.name.short, int(m.modified_s)) for m in self._store.library]
        return Response(200, [("Content-Type", "application/json"), *cors], openai.list_models(listed))

    def _v1_model(self, request: Request, cors: Headers) -> Response:
        text = request.path.removeprefix("/v1/models/")
        headers = [("Content-Type", "application/json"), *cors]
        try:
            manifest = self._store.named(text)
        except SimError as failure:
            kind = "not_found_error" if failure.status == 404 else "invalid_request_error"
            fields = {"message": failure.message, "type": kind, "param": None, "code": None}
            return Response(failure.status, headers, encode({"error": fields}) + b"\n")
        return Response(200, headers, openai.show_model(text, int(manifest.modified_s)))


def _inferring(inference: Inference, surface: Surface) -> Route:
    """``?model=`` wins over the field of a form, and means nothing on the other paths (middleware/openai.go:1285)."""

    def serve(request: Request, cors: Headers) -> Coroutine[Any, Any, None]:
        chosen = surface
        if request.query and surface.parse is openai.parse_transcription:
            named = parse_qs(request.query[1:]).get("model")
            if named:
                chosen = replace(surface, parse=lambda body: openai.parse_transcription(body, named[0]))
        return inference.serve(request, chosen, cors)

    return serve


def _posted(action: Callable[[bytes], bytes | None]) -> Route:
    """A route that reads a body and answers with JSON or with nothing."""

    async def serve(request: Request, cors: Headers) -> None:
        try:
            body = action(await request.read())
        except SimError as failure:
            await request.connection.answer(_failed(failure, cors))
            return
        await request.connection.answer(Response(200, cors if body is None else [JSON, *cors], body))

    return serve


def _progress(action: Callable[[bytes], tuple[bool, list[Mapping[str, Any]]]]) -> Route:
    """A route that reports its progress: as a stream of lines, or the last word only."""

    async def serve(request: Request, cors: Headers) -> None:
        try:
            stream, lines = action(await request.read())
        except SimError as failure:
            await request.connection.answer(_failed(failure, cors))
            return
        last = lines[-1]
        body = encode({"error": last["error"]}) if "error" in last else encode(last)
        kind = ("Content-Type", "application/json")
        if not stream:
            status = last.get("status", 500) if "error" in last else 200
            await request.connection.answer(Response(status, [kind, *cors], body))
            return
        if len(lines) == 1 and "error" in last:
            await request.connection.start_stream(last["status"], [kind, *cors])
            await request.connection.chunk(body)
            request.connection.end_stream()
            return
        await request.connection.start_stream(200, [("Content-Type", native.NDJSON_TYPE), *cors])
        for line in lines:
            await request.connection.chunk(encode(line) + b"\n")
        request.connection.end_stream()

    return serve


def _failed(failure: SimError, cors: Headers) -> Response:
    return Response(failure.status, [JSON, *cors], encode({"error": failure.message, **failure.extra}))


async def _nothing() -> None:
    """The connection is cut already."""


def _cleaned(request: Request, path: str) -> Response | None:
    """net/http's own redirect of paths with ``//`` or dots in them: 307 whatever the method."""
    clean = posixpath.normpath(path)
    clean = "/" + clean.lstrip("/") + ("/" if path.endswith("/") and clean not in {"/", "//"} else "")
    return None if clean == path else _redirect(307, clean + request.query, request.method)


def _redirect(status: int, location: str, method: str) -> Response:
    headers = [("Location", location)]
    if method not in {"GET", "HEAD"}:
        return Response(status, headers)
    word = {301: "Moved Permanently", 307: "Temporary Redirect"}[status]
    body = f'<a href="{location}">{word}</a>.\n\n' if method == "GET" else ""
    return Response(status, [*headers, ("Content-Type", "text/html; charset=utf-8")], body.encode())


def _preflight(origin: str) -> Headers:
    return [
        ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
        ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Max-Age", "43200"),
        ("Vary", "Origin"),
        ("Vary", "Access-Control-Request-Method"),
        ("Vary", "Access-Control-Request-Headers"),
    ]


def _host_passes(host: str, hostname: str) -> str | None:
    """Whether a Host may speak to a server on loopback: "name", "ip" or None (server/routes.go:1803)."""
    name = (urlsplit(f"//{host}").hostname or "") if host else ""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        known = name in {"", "localhost", hostname} or name.endswith((".localhost", ".local", ".internal"))
        return "name" if known else None
    shared = address in ipaddress.ip_network("100.64.0.0/10") if address.version == 4 else False
    return "ip" if (address.is_loopback or address.is_private or address.is_unspecified) and not shared else None
