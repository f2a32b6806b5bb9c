"""What would happen now, asked of a running proxy over its second listener and by the command."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ollama_swap_proxy.cli import main
from tests.end_to_end.stage import Stage, staged


async def asked(stage: Stage, model: str) -> tuple[int, Any]:
    """Ask, and see that no model is loaded or unloaded and nothing else changes by it."""
    before = stage.loads, stage.unloads(), stage.resident, stage.snapshot.swaps_begun
    async with stage.session.get(stage.service.admin_url / "v1/explain", params={"model": model}) as response:
        told = await response.json()
    assert (stage.loads, stage.unloads(), stage.resident, stage.snapshot.swaps_begun) == before
    return response.status, told


async def command(stage: Stage, *arguments: str) -> Result:
    admin = f"127.0.0.1:{stage.service.admin_url.port}"
    return await asyncio.to_thread(CliRunner().invoke, main, ["explain", *arguments, "--admin", admin])


async def test_the_one_that_is_there_is_served_and_for_another_it_would_go(stage: Stage) -> None:
    await stage.served("a")
    status, told = await asked(stage, "A")
    assert (status, told["model"], told["prospect"], told["expected_wait_s"]) == (200, "a:latest", "granted", 0.0)
    status, told = await asked(stage, "b:latest")
    assert status == 200
    assert told["prospect"] in {"swap", "waits_for_turn"}
    assert [victim["name"] for victim in told["victims"]] == ["a:latest"]
    assert "residency is exclusive" in told["victims"][0]["because"]
    assert told["expected_wait_s"] is not None


async def test_an_embedder_that_was_never_asked_for_is_known_to_be_one() -> None:
    async with staged(companions="embedders") as stage:
        await stage.served("a")
        _, told = await asked(stage, "embedder")
    assert "embedder:latest (size unknown)" in told["stays_because"]
    assert (told["victims"], told["stays"], told["trial"]) == ([], ["a:latest"], True)


@pytest.mark.parametrize(
    ("model", "word"),
    [("nobody", "Ollama has no model nobody"), ("gpt-oss:120b-cloud", "runs elsewhere"), ("a b", "names no model")],
)
async def test_what_needs_no_lease_is_not_found(stage: Stage, model: str, word: str) -> None:
    status, told = await asked(stage, model)
    assert status == 404
    assert word in told["error"]


async def test_the_command_says_it_in_words_or_as_json(stage: Stage) -> None:
    await stage.served("a")
    result = await command(stage, "a")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("A request for a:latest would be served at once: ")
    result = await command(stage, "b", "--json")
    assert json.loads(result.stdout)["model"] == "b:latest"
    assert result.exit_code == 0


async def test_the_command_ends_with_1_where_there_is_nothing_to_say(stage: Stage) -> None:
    result = await command(stage, "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no model nobody" in result.stderr


async def test_a_request_is_explained_with_the_context_that_all_of_them_get():
    async with staged(models={"a:latest": {"min_num_ctx": 16384}}) as stage:
        await stage.served("a")
        _, told = await asked(stage, "a")
    assert (told["options"], told["prospect"]) == ("num_ctx=16384", "granted")
