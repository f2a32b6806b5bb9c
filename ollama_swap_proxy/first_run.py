"""`ollama-swap-proxy run`: the proxy in front of your Ollama, or of a simulated one where none answers.

Owns the fall-back and what is printed for a person who tries us. Must not be used by `serve`, which never falls back.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.settings.values import NO_STATE_FILE

ANSWER_WITHIN_S = 3.0
"""An Ollama that is there answers /api/version in 1 ms; this allows for a name that is looked up."""

MODELS_ASKED = 5
"""So many models are asked for their capabilities before the curl line does without one."""


async def run(settings: Settings, say: Callable[[str], None]) -> int:
    """Serve until a signal ends it; return the exit code. ``say`` prints a line."""
    from ollama_swap_proxy.serving import serve  # noqa: PLC0415  # the command line must start fast

    async with _upstream(settings, say) as upstream:
        model = await find_model(upstream)

        what = "your Ollama" if upstream == settings.upstream else "the simulated Ollama"

        def announce(listen: Address, admin: Address) -> None:
            for line in announcement(listen, admin, f"{what} ({upstream})", model):
                say(line)

        if upstream != settings.upstream:
            # What is learned of simulated models is worth nothing for a real card.
            settings = settings.model_copy(update={"upstream": upstream, "state_file": NO_STATE_FILE})
        return await serve(settings, ready=announce)


@asynccontextmanager
async def _upstream(settings: Settings, say: Callable[[str], None]) -> AsyncIterator[URL]:
    if await answers(settings.upstream):
        yield settings.upstream
        return
    from ollama_swap_proxy.simulator import SimulatedOllama  # noqa: PLC0415  # not needed in front of a real one

    simulated = SimulatedOllama(port=0)
    await simulated.start()
    try:
        say(f"No Ollama answers at {settings.upstream}: a simulated one takes its place (its models are named sim-*).")
        yield URL(simulated.url)
    finally:
        await simulated.stop()


async def answers(upstream: URL) -> bool:
    """Say whether something at ``upstream`` answers as Ollama does."""
    try:
        async with _session() as session, session.get(upstream / "api/version") as response:
            return response.status == 200 and "version" in await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError, TypeError):
        return False


async def find_model(upstream: URL) -> str | None:
    """Return the smallest local model that can complete a prompt, or None."""
    try:
        async with _session() as session:
            async with session.get(upstream / "api/tags") as response:
                listed = (await response.json(content_type=None)).get("models") or []
            local = [entry for entry in listed if not entry.get("remote_host")]
            for entry in sorted(local, key=lambda entry: entry.get("size", 0))[:MODELS_ASKED]:
                async with session.post(upstream / "api/show", json={"model": entry["name"]}) as response:
                    shown = await response.json(content_type=None)
                if "completion" in shown.get("capabilities", ()):
                    return str(entry["name"])
    except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return None


def announcement(listen: Address, admin: Address, upstream: str, model: str | None) -> list[str]:
    """Return what a person needs to try us: addresses for clients, and a curl line that works."""
    base = f"http://{listen.to_connect_to}"
    lines = [
        "",
        f"In front of {upstream}. Point your clients at {base}:",
        f"  ollama CLI and libraries   OLLAMA_HOST={base}",
        f"  OpenAI clients             base_url {base}/v1",
        f"  Anthropic clients          ANTHROPIC_BASE_URL={base}",
        f"  Open WebUI                 OLLAMA_BASE_URL={base}",
    ]
    if model is None:
        lines.append(f"No model is there yet. Get one: OLLAMA_HOST={base} ollama pull llama3.2:1b")
    else:
        body = json.dumps({"model": model, "prompt": "Why is the sky blue?", "stream": False}, ensure_ascii=False)
        lines += ["Try it:", f"  curl {base}/api/generate -d {shlex.quote(body)}"]
    return [*lines, f"What goes on inside: curl http://{admin.to_connect_to}/v1/snapshot", "Stop with Ctrl-C.", ""]


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S))
