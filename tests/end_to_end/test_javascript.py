"""The ollama client for JavaScript through the proxy; needs Node.js and `make node`."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.stage import eventually, within

SCRIPT = Path(__file__).with_name("javascript.mjs")
LIBRARY = Path(__file__).parents[1] / "node" / "node_modules" / "ollama"


async def run(url: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *("node", str(SCRIPT), url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await within(30, process.communicate())
    assert process.returncode == 0, err.decode()
    got: dict[str, Any] = json.loads(out)
    return got


@pytest.mark.skipif(shutil.which("node") is None or not LIBRARY.is_dir(), reason="no Node.js with the client here")
async def test_javascript_gets_what_ollama_itself_gives(stage):
    through = await run(str(stage.service.url).rstrip("/"))
    assert through["streamed"][-1]["done"] is True
    assert through["aborted"] == "AbortError"
    await eventually(lambda: not stage.snapshot.leases)
    assert stage.overlaps == []
    assert stage.evictions_by_ollama == []
    assert through == await run(stage.ollama.url)
