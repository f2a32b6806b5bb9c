"""Control calls against scripted answers: what each failure is called, and what is sent."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import pytest
from yarl import URL

from ollama_swap_proxy.core.events import UpstreamIdentified
from ollama_swap_proxy.core.tickets import LoadRecipe
from ollama_swap_proxy.upstream.control import Control, ControlError, UnloadAnswer, control_session

UPSTREAM = URL("http://ollama.test:11434")
NOON = datetime.fromisoformat("2026-11-23T12:00:00Z").timestamp()
ALPHA = {
    "name": "alpha:latest",
    "model": "alpha:latest",
    "size": 4718592000,
    "digest": "13298cd78e6eac32119ee31dd39367e2cb7b32804c715a5d758c978f1f632ea9",
    "details": {"families": None},
    "expires_at": "2026-11-23T05:05:00.123456789-07:00",
    "size_vram": 4718592000,
    "context_length": 4096,
}
RECIPE = LoadRecipe("/api/generate", b'{"model":"alpha","options":{"num_ctx":8192}}')


@pytest.fixture
async def control():
    async with control_session() as session:
        yield Control(UPSTREAM, session, connect_timeout_s=5, wall_clock=lambda: NOON)


@pytest.fixture
async def server():
    """A socket that treats each connection as the test says, and counts those that are open."""
    servers = []
    handlers = []

    async def start(handle):
        async def connected(reader, writer):
            handlers.append(asyncio.current_task())
            try:
                await handle(reader, writer)
            finally:
                writer.close()

        started = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(started)
        return URL(f"http://127.0.0.1:{started.sockets[0].getsockname()[1]}")

    yield start
    for each in servers:
        each.close()
    for task in handlers:
        task.cancel()
    await asyncio.gather(*handlers, return_exceptions=True)


def sent_body(mocked, path):
    (call,) = mocked.requests["POST", UPSTREAM / path]
    return json.loads(call.kwargs["data"])


async def test_ps_reads_an_entry_with_nanoseconds_a_zone_and_null_families(control, mocked):
    mocked.get(UPSTREAM / "api/ps", payload={"models": [ALPHA]})
    (entry,) = await control.ps(timeout_s=2)
    assert entry.name == "alpha:latest"
    assert entry.digest == ALPHA["digest"]
    assert (entry.size_bytes, entry.size_vram_bytes) == (4718592000, 4718592000)
    assert entry.expires_in_s == pytest.approx(300.123456, abs=1e-3)


async def test_ps_reads_a_size_of_zero_and_an_expiry_of_forever(control, mocked):
    forever = ALPHA | {"size": 0, "size_vram": 0, "expires_at": "2319-03-05T20:24:21.460232668Z"}
    mocked.get(UPSTREAM / "api/ps", payload={"models": [forever]})
    (entry,) = await control.ps(timeout_s=2)
    assert entry.size_bytes == 0
    assert entry.expires_in_s > 290 * 365 * 86400


@pytest.mark.parametrize("expires_at", ["0001-01-01T00:00:00Z", "soon", "", "99999-01-01T00:00:00Z"])
async def test_an_unreadable_expiry_costs_no_report(control, mocked, expires_at):
    mocked.get(UPSTREAM / "api/ps", payload={"models": [ALPHA | {"expires_at": expires_at}]})
    (entry,) = await control.ps(timeout_s=2)
    assert entry.expires_in_s is None or entry.expires_in_s < 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"models":null}',
        b'{"models":{}}',
        b'{"models":[null]}',
        json.dumps({"models": [{k: v for k, v in ALPHA.items() if k != "name"}]}),
        json.dumps({"models": [{k: v for k, v in ALPHA.items() if k != "digest"}]}),
        json.dumps({"models": [ALPHA, ALPHA | {"digest": ""}]}),
        json.dumps({"models": [ALPHA | {"size": "large"}]}),
        "<html>Bad Gateway</html>",
    ],
)
async def test_a_malformed_ps_is_an_error_and_never_empty(control, mocked, body):
    mocked.get(UPSTREAM / "api/ps", body=body)
    with pytest.raises(ControlError) as caught:
        await control.ps(timeout_s=2)
    assert caught.value.kind == "malformed"


async def test_an_error_status_carries_ollamas_own_words(control, mocked):
    mocked.get(UPSTREAM / "api/ps", status=500, payload={"error": "nil model"})
    with pytest.raises(ControlError) as caught:
        await control.ps(timeout_s=2)
    assert (caught.value.kind, caught.value.status, caught.value.text) == ("status", 500, "nil model")


async def test_a_redirect_is_not_followed(control, mocked):
    mocked.get(UPSTREAM / "api/ps", status=307, headers={"Location": "/elsewhere"})
    mocked.get(UPSTREAM / "elsewhere", payload={"models": []})
    with pytest.raises(ControlError) as caught:
        await control.ps(timeout_s=2)
    assert caught.value.status == 307


async def test_a_blocked_ps_times_out_and_closes_its_connection(server):
    closed = asyncio.Event()

    async def never_answer(reader, writer):
        while await reader.read(1000):
            pass
        closed.set()

    async with control_session() as session:
        with pytest.raises(ControlError) as caught:
            await Control(await server(never_answer), session, connect_timeout_s=5).ps(timeout_s=0.05)
        assert caught.value.kind == "timeout"
        await asyncio.wait_for(closed.wait(), 2)


async def test_an_upstream_that_is_not_there_is_unreachable(unused_tcp_port):
    async with control_session() as session:
        with pytest.raises(ControlError) as caught:
            await Control(URL(f"http://127.0.0.1:{unused_tcp_port}"), session, connect_timeout_s=5).ps(timeout_s=2)
    assert caught.value.kind == "unreachable"
    assert "refused" not in str(caught.value)


async def test_a_connection_that_ends_in_mid_answer_is_broken_not_unreachable(server):
    async def half_an_answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()

    async with control_session() as session:
        with pytest.raises(ControlError) as caught:
            await Control(await server(half_an_answer), session, connect_timeout_s=5).ps(timeout_s=2)
    assert caught.value.kind == "broken"


async def test_a_base_path_of_the_upstream_is_kept(mocked):
    mocked.get("http://ollama.test/behind/api/ps", payload={"models": []})
    async with control_session() as session:
        assert await Control(URL("http://ollama.test/behind"), session, connect_timeout_s=5).ps(timeout_s=2) == []


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("0.32.4", True),
        ("0.33.0-rc2", True),
        ("1.0.0", True),
        ("0.32.3", False),
        ("0.32.4-rc1", False),
        ("0.0.0", False),
        ("x", False),
    ],
)
async def test_the_version_says_whether_ps_may_be_polled_fast(control, mocked, version, safe):
    mocked.get(UPSTREAM / "api/version", payload={"version": version})
    assert await control.identify() == UpstreamIdentified(version, ps_is_safe=safe)


async def test_unload_is_an_empty_generate_with_keep_alive_zero(control, mocked):
    mocked.post(UPSTREAM / "api/generate", payload={"done": True, "done_reason": "unload"})
    assert await control.unload("embedder:latest") == UnloadAnswer(200)
    assert sent_body(mocked, "api/generate") == {"model": "embedder:latest", "keep_alive": 0, "stream": False}


async def test_unload_of_an_unknown_name_tells_ollamas_words(control, mocked):
    mocked.post(UPSTREAM / "api/generate", status=404, payload={"error": "model 'nosuch' not found"})
    assert await control.unload("nosuch") == UnloadAnswer(404, "model 'nosuch' not found")


@pytest.mark.parametrize("name", ["big:cloud", "big:120b-cloud"])
async def test_nothing_is_ever_sent_for_a_cloud_name(control, mocked, name):
    for call in (control.unload, control.show):
        with pytest.raises(ControlError) as caught:
            await call(name)
        assert caught.value.kind == "cloud"
    assert not mocked.requests


async def test_show_reads_weights_adapters_capabilities_and_runner_options(control, mocked):
    weights, adapter, projector = (f"/models/blobs/sha256-{digit * 64}" for digit in "abc")
    modelfile = (
        '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
        f"# FROM alpha:latest\n\nFROM {weights}\nADAPTER {adapter}\nDRAFT /models/blobs/draft\nFROM {projector}\n"
        'TEMPLATE """{{ .Prompt }}\nFROM /models/blobs/sha256-not-this-one\n"""\n'
    )
    parameters = (
        'stop                           "<|start|>"\nnum_ctx                        1.048576e+06\n'
        "use_mmap                       false\ntemperature                    0.1\nnum_gpu                        12"
    )
    answer = {"modelfile": modelfile, "parameters": parameters, "capabilities": ["completion", "vision"]}
    mocked.post(UPSTREAM / "api/show", payload=answer)
    show = await control.show("alpha")
    assert show.weights == weights
    assert show.adapters == (adapter, projector)
    assert show.capabilities == {"completion", "vision"}
    assert show.parameters == {"num_ctx": 1048576, "use_mmap": False, "num_gpu": 12}
    assert isinstance(show.parameters["num_ctx"], int)
    assert not show.remote


async def test_show_of_an_mlx_model_tells_no_weights(control, mocked):
    mocked.post(UPSTREAM / "api/show", payload={"modelfile": "# x\nFROM mlx-thing:4b\nTEMPLATE {{ .Prompt }}\n"})
    assert (await control.show("mlx-thing:4b")).weights == ""


@pytest.mark.parametrize("status", [400, 404])
async def test_show_of_what_cannot_exist_is_none(control, mocked, status):
    mocked.post(UPSTREAM / "api/show", status=status, payload={"error": "model 'x' not found"})
    assert await control.show("x") is None


@pytest.mark.parametrize(
    "answer",
    [
        {"model": "alpha", "response": "", "done": True, "done_reason": "load"},
        {"model": "alpha", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"},
        {"model": "alpha", "embeddings": []},
    ],
)
async def test_a_load_is_done_when_ollama_says_so(control, mocked, answer):
    mocked.post(UPSTREAM / "api/generate", payload=answer)
    assert await control.load(RECIPE, timeout_s=5) is None
    assert sent_body(mocked, "api/generate") == {"model": "alpha", "options": {"num_ctx": 8192}}


async def test_a_failed_load_tells_ollamas_status_and_words(control, mocked):
    mocked.post(UPSTREAM / "api/generate", status=500, payload={"error": "llama-server process has terminated"})
    failure = await control.load(RECIPE, timeout_s=5)
    assert (failure.status, failure.text, failure.transient) == (500, "llama-server process has terminated", False)


async def test_a_full_queue_is_no_failed_load(control, mocked):
    mocked.post(UPSTREAM / "api/generate", status=503, payload={"error": "server busy, please try again."})
    failure = await control.load(RECIPE, timeout_s=5)
    assert (failure.status, failure.transient) == (503, True)


async def test_an_answer_that_does_not_say_loaded_is_a_failed_load(control, mocked):
    mocked.post(UPSTREAM / "api/generate", payload={"done": True, "done_reason": "unload"})
    mocked.post(UPSTREAM / "api/generate", body=b"not json")
    for _ in range(2):
        failure = await control.load(RECIPE, timeout_s=5)
        assert (failure.status, failure.transient) == (502, False)


async def test_a_load_whose_connection_breaks_or_cannot_be_made_is_transient(server, unused_tcp_port):
    async def hang_up(reader, writer):
        await reader.readuntil(b"\r\n\r\n")

    async with control_session() as session:
        for upstream in (await server(hang_up), URL(f"http://127.0.0.1:{unused_tcp_port}")):
            failure = await Control(upstream, session, connect_timeout_s=5).load(RECIPE, timeout_s=5)
            assert (failure.status, failure.transient) == (502, True)


async def test_a_load_that_takes_too_long_is_named_so(server):
    async def never_answer(reader, writer):
        await reader.read(-1)

    async with control_session() as session:
        failure = await Control(await server(never_answer), session, connect_timeout_s=5).load(RECIPE, timeout_s=0.05)
    assert (failure.status, failure.transient) == (504, False)
    assert "0.05 s" in failure.text
