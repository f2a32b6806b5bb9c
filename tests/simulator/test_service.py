"""The simulated Ollama as a whole: what ships with it, its command line, its store, paths that were never recorded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys

import aiohttp
import pytest

from ollama_swap_proxy.simulator import DEFAULT_MODELS, SimGPU, SimModel, SimulatedOllama
from ollama_swap_proxy.simulator.__main__ import parse_model
from tests.simulator.client import Client, until

ALPHA = SimModel("alpha", 100, load_s=0, token_ms=0.2)


def form(**fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields.items():
        data.add_field(name, value)
    data.add_field("file", b"RIFF", filename="speech.wav", content_type="audio/wav")
    return data


async def test_the_models_that_ship_say_that_they_are_simulated():
    async with SimulatedOllama(time_scale=0.002) as ollama, Client(ollama) as client:
        for model in DEFAULT_MODELS:
            if model.embed:
                _, body = await client.post("/api/embed", model=model.name, input="x")
                assert len(body["embeddings"][0]) == model.embedding_length
            else:
                _, body = await client.post("/api/generate", model=model.name, prompt="hi", stream=False)
                assert body["response"].startswith(f"This is a simulated answer from {model.name.split(':')[0]}")
                assert body["done_reason"] == "stop"
        assert ollama.ledger.spills() == []


def test_the_models_that_ship_fit_the_card_one_at_a_time_with_the_embedder():
    generating = sorted(model.size_mib for model in DEFAULT_MODELS if not model.embed)
    embedder = next(model.size_mib for model in DEFAULT_MODELS if model.embed)
    card = SimGPU().total_mib
    assert generating[-1] + embedder < 0.8 * card
    assert generating[0] + generating[1] > card


async def test_a_canned_answer_is_cut_at_num_predict():
    model = SimModel("talker", 100, load_s=0, token_ms=0, reply="one two three four")
    async with SimulatedOllama([model]) as ollama, Client(ollama) as client:
        _, body = await client.generate("talker", 2)
        assert (body["response"], body["done_reason"]) == ("one two", "length")
        _, body = await client.generate("talker", 20)
        assert (body["response"], body["done_reason"]) == ("one two three four", "stop")


async def test_a_transcription_takes_its_model_from_the_form_and_rather_from_the_query():
    async with SimulatedOllama([ALPHA]) as ollama, aiohttp.ClientSession() as session:
        url = f"{ollama.url}/v1/audio/transcriptions"
        async with session.post(url, data=form(model="alpha")) as response:
            assert response.status == 200
            assert json.loads(await response.text())["text"].startswith("alpha.0")
        async with session.post(f"{url}?model=nosuch", data=form(model="alpha")) as response:
            assert response.status == 404
            assert (await response.json())["error"]["type"] == "not_found_error"
        async with session.post(url, data=form(model="alpha", response_format="text")) as response:
            assert (await response.text()).startswith("alpha.0")
        async with session.post(url, data=b"no form") as response:
            assert response.status == 400


async def test_with_the_cloud_on_a_cloud_name_needs_a_sign_in():
    async with SimulatedOllama([ALPHA], no_cloud=False) as ollama, Client(ollama) as client:
        status, body = await client.post("/api/generate", model="x:cloud", prompt="hi")
        assert status == 401
        assert set(body) == {"error", "signin_url"}
        assert (await client.post("/v1/chat/completions", model="x:cloud", messages=[]))[0] == 401
        assert (await client.get("/api/status"))[1]["cloud"]["disabled"] is False


async def test_a_model_made_from_an_uploaded_blob_can_be_run():
    data = b"GGUF" + bytes(100)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with SimulatedOllama([ALPHA]) as ollama, Client(ollama) as client:
        async with client.session.post(f"{ollama.url}/api/blobs/{digest}", data=data) as response:
            assert response.status == 201
        async with client.session.head(f"{ollama.url}/api/blobs/{digest}") as response:
            assert response.status == 200
        _, body = await client.post("/api/create", model="mine", files={"m.gguf": digest}, stream=False)
        assert body == {"status": "success"}
        assert (await client.generate("mine", 1))[1]["response"] == " mine.0"
        _, shown = await client.post("/api/show", model="mine")
        assert f"FROM /models/blobs/{digest.replace(':', '-')}" in shown["modelfile"]


async def test_a_deleted_model_stays_loaded_and_cannot_be_unloaded_by_name():
    async with SimulatedOllama([ALPHA]) as ollama, Client(ollama) as client:
        await client.load("alpha")
        async with client.session.delete(f"{ollama.url}/api/delete", json={"model": "alpha"}) as response:
            assert response.status == 200
        assert (await client.unload("alpha"))[0] == 404
        assert await client.resident() == ["alpha:latest"]
        assert (await client.get("/api/tags"))[1] == {"models": []}


async def test_pulling_a_model_that_is_here_succeeds_and_another_fails_in_its_stream():
    async with SimulatedOllama([ALPHA]) as ollama, Client(ollama) as client:
        assert (await client.lines("/api/pull", model="alpha"))[-1] == {"status": "success"}
        assert "error" in (await client.lines("/api/pull", model="nosuch"))[-1]


async def test_two_servers_do_not_share_anything():
    async with SimulatedOllama([ALPHA]) as one, SimulatedOllama([ALPHA]) as two, Client(one) as a, Client(two) as b:
        await a.load("alpha")
        assert await b.resident() == []
        assert one.port != two.port


async def test_the_same_seed_gives_the_same_choices():
    async def lags(seed: int) -> list[float]:
        gpu = SimGPU(8000, lag_s=(0.001, 0.02))
        async with SimulatedOllama([ALPHA], gpu, seed=seed, keep_alive_s=0) as ollama, Client(ollama) as client:
            await client.load("alpha")
            await until(lambda: ollama.ledger.count("vram_returned") == 1)
            return [ollama.world.random.random()]

    assert await lags(1) == await lags(1)
    assert await lags(1) != await lags(2)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("a=4500:1.5", SimModel("a", 4500, load_s=1.5)),
        ("x:7b=100:0.1:20", SimModel("x:7b", 100, load_s=0.1, token_ms=20)),
        ("my-embedder=300:0.2", SimModel("my-embedder", 300, load_s=0.2, embed=True)),
    ],
)
def test_a_model_on_the_command_line(text: str, model: SimModel):
    assert parse_model(text) == model


@pytest.mark.parametrize("text", ["a", "a=1", "=1:2", "a=x:1", "a=1:2:3:4"])
def test_a_malformed_model_on_the_command_line_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse_model(text)


async def test_the_command_serves_until_it_is_told_to_stop():
    command = [sys.executable, "-m", "ollama_swap_proxy.simulator", "--port", "0", "--models", "a=100:0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().split()[-1]
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/tags") as response:
        assert [model["name"] for model in (await response.json())["models"]] == ["a:latest"]
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
