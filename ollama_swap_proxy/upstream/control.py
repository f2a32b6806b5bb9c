"""The calls that ask Ollama something or tell it to load or unload: one method, one call, one bound.

Owns the wire of control calls and what their failures are called. Must not decide when to call, retry, or remember
anything; a client's own request never passes here (that is the relay's).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import aiohttp
from yarl import URL

from ollama_swap_proxy import __version__
from ollama_swap_proxy.core import names
from ollama_swap_proxy.core.events import LoadFailure, UpstreamIdentified
from ollama_swap_proxy.core.tickets import LoadRecipe
from ollama_swap_proxy.upstream import answers
from ollama_swap_proxy.upstream.answers import PsEntry, ShowAnswer, TagEntry

TAGS_TIMEOUT_S = 5.0
"""Right after its start Ollama first reads all manifests before it answers (server/model_list_cache.go)."""
SHOW_TIMEOUT_S = 10.0
"""The first /api/show of a model reads its metadata from the disk."""
VERSION_TIMEOUT_S = 2.0
KEEP_ALIVE_TIMEOUT_S = 5.0
"""The runner is there, so that the answer takes milliseconds; an eviction waits for it."""
UNLOAD_TIMEOUT_S = 10.0
"""The answer normally takes milliseconds (once 297 ms were seen); for MLX it waits until a load under way has ended."""

T = TypeVar("T")
Kind = Literal["unreachable", "timeout", "broken", "status", "malformed", "cloud"]


@dataclass(eq=False)  # not frozen: Python itself sets __traceback__ on an exception under way
class ControlError(Exception):
    """A control call that told us nothing.

    ``kind``: "unreachable" (no connection could be made), "timeout" (no whole answer in time), "broken" (the connection
    ended in mid-call), "status" (an error answer; ``status`` and Ollama's words in ``text``), "malformed", "cloud" (a
    cloud name, never sent: Ollama would pass the call on to the internet).
    """

    kind: Kind
    text: str
    status: int = 0

    @property
    def is_away(self) -> bool:
        """Whether it looks as if no Ollama were there: no connection, or one that is closed without an answer.

        The latter is what a port forwarder does whose server is down; a GET was tried on a new connection, too.
        """
        return self.kind in {"unreachable", "broken"}

    def __str__(self) -> str:
        return f"{self.kind} {self.status}: {self.text}" if self.status else f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class UnloadAnswer:
    """Ollama's answer to an unload request. 200 confirms nothing; 404: no such name. ``error`` are Ollama's words."""

    status: int
    error: str = ""


def control_session() -> aiohttp.ClientSession:
    """Open a session for control calls: no cookies, no proxies from the environment, no limit that could block us.

    Few calls are under way at once, because each kind has its own single flight; a limit would let a load of minutes
    hold up a report.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": f"ollama-swap-proxy/{__version__}"},
    )


class Control:
    """Ollama's control API. Every method raises `ControlError`, unless it says otherwise.

    ``connect_timeout_s`` is how long a connection may take: an Ollama that is there accepts at once, however busy it
    is. ``wall_clock`` is the time of day in seconds, against which ``expires_at`` is read.
    """

    def __init__(
        self,
        upstream: URL,
        session: aiohttp.ClientSession,
        *,
        connect_timeout_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._upstream = upstream
        self._connect_timeout_s = connect_timeout_s
        self._session = session
        self._wall_clock = wall_clock

    async def ps(self, timeout_s: float) -> list[PsEntry]:
        """GET /api/ps: what is resident. Behind an MLX load or a hung runner it blocks for up to minutes."""
        body = await self._answer("GET", "/api/ps", timeout_s)
        return _read(lambda text: answers.ps_entries(text, self._wall_clock()), body)

    async def tags(self, timeout_s: float = TAGS_TIMEOUT_S) -> list[TagEntry]:
        """GET /api/tags: what exists."""
        body = await self._answer("GET", "/api/tags", timeout_s)
        return _read(answers.tag_entries, body)

    async def version(self, timeout_s: float = VERSION_TIMEOUT_S) -> str:
        """GET /api/version."""
        body = await self._answer("GET", "/api/version", timeout_s)
        return _read(answers.version, body)

    async def identify(self) -> UpstreamIdentified:
        """Ask for the version and say how its /api/ps may be polled."""
        version = await self.version()
        return UpstreamIdentified(version, answers.ps_is_safe(version))

    async def show(self, name: str, timeout_s: float = SHOW_TIMEOUT_S) -> ShowAnswer | None:
        """POST /api/show; None when Ollama has no such model (404) or such a name cannot exist (400).

        Never for a cloud name: Ollama would ask ollama.com.
        """
        _stay_local(name)
        status, body = await self._call("POST", "/api/show", timeout_s, _json({"model": name}))
        if status in {400, 404}:
            return None
        if status != 200:
            raise ControlError("status", answers.error_text(body), status)
        return _read(answers.show_answer, body)

    async def unload(self, name: str, timeout_s: float = UNLOAD_TIMEOUT_S) -> UnloadAnswer:
        """Ask to unload the runner of this name: POST /api/generate without a prompt, whatever its capabilities.

        No capability is checked before it, while /api/embed with keep_alive 0 would load (server/routes.go:403). The
        answer comes before anything is unloaded. Never for a cloud name: it would go to the internet.
        """
        _stay_local(name)
        payload = _json({"model": name, "keep_alive": 0, "stream": False})
        status, body = await self._call("POST", "/api/generate", timeout_s, payload)
        return UnloadAnswer(status, "" if status == 200 else answers.error_text(body))

    async def load(self, recipe: LoadRecipe, timeout_s: float) -> LoadFailure | None:
        """Send an empty request and wait until Ollama says that the model is loaded: then None. Raises nothing.

        A full queue and an upstream that went away are transient; a load longer than ``timeout_s`` is a 504.
        """
        try:
            status, body = await self._call("POST", recipe.path, timeout_s, recipe.body)
            if status != 200:
                return LoadFailure(status, answers.error_text(body), transient=status == 503)
            if _read(answers.loaded, body):
                return None
        except ControlError as error:
            if error.kind == "timeout":
                return LoadFailure(504, f"Ollama did not finish loading within {timeout_s:g} s")
            return LoadFailure(502, error.text, transient=error.is_away)
        return LoadFailure(502, "Ollama answered an empty request, but not that the model is loaded")

    async def keep_alive(self, recipe: LoadRecipe, keep_alive: float) -> None:
        """Set the keep_alive of a runner, in seconds (negative: for ever), by the empty request that would load it."""
        payload = _json({**json.loads(recipe.body), "keep_alive": keep_alive})
        status, body = await self._call("POST", recipe.path, KEEP_ALIVE_TIMEOUT_S, payload)
        if status != 200:
            raise ControlError("status", answers.error_text(body), status)

    async def _answer(self, method: str, path: str, timeout_s: float) -> bytes:
        status, body = await self._call(method, path, timeout_s)
        if status != 200:
            raise ControlError("status", answers.error_text(body), status)
        return body

    async def _call(self, method: str, path: str, timeout_s: float, payload: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body. ``timeout_s`` bounds the whole call; when it is over the connection is closed."""
        where = f"{method} {path}"
        headers = {} if payload is None else {"Content-Type": "application/json"}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=min(self._connect_timeout_s, 0.75 * timeout_s))
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    method,
                    self._upstream.joinpath(path.lstrip("/")),
                    data=payload,
                    headers=headers,
                    timeout=limits,
                    allow_redirects=False,
                ) as response,
            ):
                return response.status, await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Not the library's own words: they may say "refused", at which the Ollama CLI starts a server of its own.
            raise ControlError("unreachable", f"nothing answers at {self._upstream}") from error
        except TimeoutError as error:
            raise ControlError("timeout", f"{where} was not answered within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise ControlError("broken", f"{where}: the connection to Ollama broke off") from error


def _read(parse: Callable[[bytes], T], body: bytes) -> T:
    try:
        return parse(body)
    except answers.MalformedAnswerError as error:
        raise ControlError("malformed", str(error)) from error


def _json(shape: dict[str, object]) -> bytes:
    return json.dumps(shape).encode()


def _stay_local(name: str) -> None:
    if isinstance(names.parse(name), names.CloudName):
        raise ControlError("cloud", f"{name} is a cloud name")
