"""The real command in a process of its own: signals, the end of streams, and a client that leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from ollama_swap_proxy.simulator import SimGPU, SimulatedOllama
from tests.end_to_end.stage import MODELS, SCALE, client_session, eventually, generate, within


@dataclass
class Command:
    """A running ``serve``, its log lines as they come, and the simulated Ollama behind it."""

    ollama: SimulatedOllama
    session: aiohttp.ClientSession
    process: asyncio.subprocess.Process
    url: str = ""
    admin_url: str = ""
    lines: list[dict] = field(default_factory=list)
    answers: list[aiohttp.ClientResponse] = field(default_factory=list)

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def said(self, event: str) -> list[dict]:
        return [line for line in self.lines if line["event"] == event]

    async def post(self, model: str, tokens: int = 2) -> aiohttp.ClientResponse:
        """Ask and give the answer as it begins; it is closed at the end at the latest."""
        answer = await self.session.post(f"{self.url}/api/generate", json=generate(model, tokens))
        self.answers.append(answer)
        return answer

    async def waiting(self) -> int:
        async with self.session.get(f"{self.admin_url}/v1/snapshot") as answer:
            return sum(line["waiting"] for line in (await answer.json())["lines"])

    async def wait_for_line(self, length: int) -> None:
        async with asyncio.timeout(5):
            while await self.waiting() != length:  # noqa: ASYNC110 - another process: there is nothing to wait on
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def command(*arguments: str, **settings: str) -> AsyncIterator[Command]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA")}
    environ |= {f"OLLAMA_SWAP_PROXY_{name.upper()}": value for name, value in settings.items()}
    simulated = SimulatedOllama(MODELS, SimGPU(8000, lag_s=0.0), time_scale=SCALE, num_parallel=4)
    async with simulated as ollama, client_session() as session:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ollama_swap_proxy", "serve", "--upstream", ollama.url),
            *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *arguments),
            env=environ,
            stderr=asyncio.subprocess.PIPE,
        )
        running = Command(ollama, session, process)
        reading = asyncio.create_task(running.read_log(), name="log")
        try:
            await eventually(lambda: running.said("started"), 15)
            (started,) = running.said("started")
            running.url, running.admin_url = f"http://{started['listen']}", f"http://{started['admin']}"
            yield running
        finally:
            for answer in running.answers:
                answer.close()
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading


async def test_sigterm_lets_streams_end_and_answers_the_queued():
    async with command() as running:
        stream = await running.post("a", 300)
        assert await stream.content.readline()
        queued = asyncio.create_task(running.post("b"))
        await running.wait_for_line(1)
        running.process.send_signal(signal.SIGTERM)
        answer = await within(5, queued)
        assert (answer.status, answer.headers["X-Ollama-Swap-Proxy-Error"]) == (503, "stopping")
        assert 1 <= int(answer.headers["Retry-After"]) <= 59
        with pytest.raises(aiohttp.ClientConnectorError):
            await running.session.get(f"{running.url}/api/tags")
        assert running.process.returncode is None
        rest = await within(5, stream.content.read())
        assert b'"done":true' in rest.splitlines()[-1]
        assert await within(5, running.process.wait()) == 0
        assert running.ollama.ledger.count("load_start", "b") == 0
        await eventually(lambda: running.said("stopped"))
        assert running.said("stopped")[0]["cut"] == 0


async def test_a_stream_that_outlasts_the_grace_is_cut():
    async with command(shutdown_grace_s="0.2") as running:
        stream = await running.post("a", 30_000)
        assert await stream.content.readline()
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await within(5, stream.content.read())
        assert await within(5, running.process.wait()) == 0
        await eventually(lambda: running.said("stopped"))
        assert running.said("stopped")[0]["cut"] == 1
        (told,) = [line for line in running.said("request") if line["model"] == "a:latest"]
        assert (told["error"], told["status"]) == ("stopping", 200)
        assert told["response_bytes"] > 0
        assert running.lines[-1]["event"] == "stopped"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(second):
    async with command(shutdown_grace_s="60") as running:
        stream = await running.post("a", 30_000)
        assert await stream.content.readline()
        running.process.send_signal(signal.SIGTERM)
        await eventually(lambda: running.said("stopping"))
        assert running.process.returncode is None
        running.process.send_signal(second)
        assert await within(3, running.process.wait()) == 0
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await stream.content.read()


async def test_a_stop_while_a_model_loads_answers_those_who_wait_and_ends():
    async with command() as running:
        running.ollama.faults.hang_load = "a"
        queued = asyncio.create_task(running.post("a"))
        await eventually(lambda: running.ollama.ledger.count("load_start"))
        running.process.send_signal(signal.SIGTERM)
        assert (await within(5, queued)).status == 503
        assert await within(5, running.process.wait()) == 0


async def test_a_client_that_leaves_is_noticed_in_the_production_set_up():
    """Aiohttp cancels handlers only where it is asked to: without it, who left would hold its lease to the end."""
    async with command() as running:
        stream = await running.post("a", 30_000)
        assert await stream.content.readline()
        queued = asyncio.create_task(running.post("b"))
        await running.wait_for_line(1)
        queued.cancel()
        await running.wait_for_line(0)
        stream.close()
        ended = running.ollama.ledger
        assert await eventually(lambda: ended.count("serve_end")) < 0.5
        assert ended.of("serve_end")[0].fields["outcome"] == "aborted"
        assert ended.count("load_start") == 1
        running.process.send_signal(signal.SIGTERM)
        assert await within(5, running.process.wait()) == 0


async def test_idle_connections_do_not_hold_the_stop_up():
    async with command(shutdown_grace_s="30") as running:
        await (await running.post("a")).read()
        _, idle = await asyncio.open_connection(*running.url.removeprefix("http://").split(":"))
        running.process.send_signal(signal.SIGTERM)
        assert await within(3, running.process.wait()) == 0
        idle.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


async def ends(*arguments: str) -> tuple[int, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ollama_swap_proxy", "serve", *arguments),
        env=environ,
        stderr=asyncio.subprocess.PIPE,
    )
    _, text = await within(15, process.communicate())
    assert process.returncode is not None
    return process.returncode, text.decode()


@pytest.mark.parametrize("upstream", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_our_own_listener_is_no_upstream(upstream, which):
    port = free_port()
    if upstream == "[::1]" and not socket.has_ipv6:
        upstream = "127.0.0.1"
    here = "[::1]" if upstream == "[::1]" else "127.0.0.1"
    code, text = await ends(f"--{which}", f"{here}:{port}", "--upstream", f"http://{upstream}:{port}")
    assert code == 2
    assert "is our own listener" in text


async def test_two_taken_ports_are_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        taken = {"listen": one.getsockname()[1], "admin": other.getsockname()[1]}
        given = [word for name, port in taken.items() for word in (f"--{name}", f"127.0.0.1:{port}")]
        code, text = await ends(*given, "--upstream", "http://127.0.0.1:9")
    assert code == 1
    told = [line for line in text.splitlines() if "cannot_listen" in line]
    assert len(told) == 2
    for name, port in taken.items():
        assert any(f"{name} 127.0.0.1:{port}: Address already in use" in line for line in told)


@pytest.mark.parametrize(("setting", "other"), [("listen", "admin"), ("admin", "listen")])
async def test_a_taken_port_is_told_in_one_line_with_its_setting(setting, other):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        upstream = "http://127.0.0.1:9"
        code, text = await ends(f"--{setting}", address, f"--{other}", "127.0.0.1:0", "--upstream", upstream)
    assert code == 1
    (line,) = [line for line in text.splitlines() if "cannot_listen" in line]
    assert f"{setting} {address}: Address already in use; choose another by --{setting} or" in line
    assert f"OLLAMA_SWAP_PROXY_{setting.upper()}" in line
    assert not re.search("Traceback", text)
