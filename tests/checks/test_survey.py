"""What is asked of Ollama and read of the state file to judge the settings, by `check` and at the start of `serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ollama_swap_proxy.checks import survey
from ollama_swap_proxy.cli import main
from ollama_swap_proxy.config import env_name
from ollama_swap_proxy.core.proofs import Outcome
from ollama_swap_proxy.core.tickets import Variant
from ollama_swap_proxy.simulator import SimModel
from tests.end_to_end.conftest import lines, stage
from tests.end_to_end.stage import Stage, eventually, staged

SETTINGS = """
state_file = "{state}"
vram_budget_bytes = "4000 MiB"
[models.a]
pinned = true
[models.missing]
"""


__all__ = ["lines", "stage"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(SETTINGS.format(state=tmp_path / "state.json"), encoding="utf-8")
    return path


async def _check(path: Path, upstream: str) -> Result:
    runner = CliRunner(env={env_name("state_file"): None})
    return await asyncio.to_thread(runner.invoke, main, ["check", "--config", str(path), "--upstream", upstream])


def _doubts(lines: list[dict[str, Any]]) -> list[str]:
    return [f"{line['setting']}: {line['reason']}" for line in lines if line["event"] == "setting_doubtful"]


async def test_check_asks_ollama_what_it_has_and_loads_nothing(stage: Stage, path: Path) -> None:
    result = await _check(path, stage.ollama.url)
    assert result.exit_code == 0, result.output
    assert 'ollama-swap-proxy: warning: [models."missing:latest"]: Ollama has no model missing' in result.stderr
    assert (
        '[models."a:latest"] pinned: a:latest (4500 MiB) is larger than vram_budget_bytes (4000 MiB)' in result.stderr
    )
    assert f"at {stage.ollama.url} was asked: it has 5 models." in result.stderr
    assert "warning" not in result.stdout
    assert stage.loads == []


async def test_check_says_that_it_could_not_ask(path: Path, unused_tcp_port: int) -> None:
    result = await _check(path, f"http://127.0.0.1:{unused_tcp_port}")
    assert result.exit_code == 0
    assert "What depends on Ollama's models was not checked: unreachable" in result.stderr
    assert "warning" not in result.stderr


@pytest.mark.parametrize("upstream", [f"http://{'a' * 64}.invalid:1", "http://a..b:1"])
async def test_check_complains_of_an_upstream_that_no_host_can_be_called(path: Path, upstream: str) -> None:
    result = await _check(path, upstream)
    assert isinstance(result.exception, SystemExit), result.exception
    assert "upstream" in result.stderr
    assert "a host's name has 1 to 63 characters between dots" in result.stderr


async def test_check_goes_by_what_an_earlier_run_measured(path: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    simulated = {"port": unused_tcp_port}
    async with staged(
        [SimModel("a", 6500, weights="w")], simulated=simulated, state_file=str(tmp_path / "state.json")
    ) as stage:
        await stage.served("a")
    async with staged([SimModel("a", 4500, weights="w")], simulated=simulated) as stage:
        result = await _check(path, stage.ollama.url)
    assert "a:latest (6500 MiB) is larger than vram_budget_bytes (4000 MiB)" in result.stderr


async def test_serve_tells_its_doubts_once_when_ollama_can_be_asked(
    lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "ASKED_AGAIN_AFTER_S", 0.01)
    models = {"missing:latest": {"groups": ["x"]}}
    async with staged(away=True, models=models) as stage:
        await asyncio.sleep(0.05)
        assert [each.partition(":latest")[0] for each in _doubts(lines)] == ['[models."missing']
        assert "no other model is in the group" in _doubts(lines)[0]
        stage.ollama.faults.refuse_connections = False
        await eventually(lambda: len(_doubts(lines)) == 2)
        await stage.served("a")
    assert "Ollama has no model missing" in _doubts(lines)[1]
    assert len(_doubts(lines)) == 2


async def test_what_another_version_of_ollama_showed_of_models_together_counts_no_more(stage: Stage) -> None:
    assert stage.service._app is not None
    catalog = stage.service._app._catalog
    for version, left in (("0.1", 0), ("0.2", 1)):
        learned = survey.recalled(stage.service.settings, None)
        learned.proofs.found(None, "0.2")
        learned.proofs.note((Variant("a"), Variant("b")), "a", Outcome.FAILED, trial=True)
        known = await survey.survey(stage.service.settings, catalog, learned, version)
        assert len(known.learned.proofs.failed) == left


async def test_a_state_file_that_cannot_be_read_is_a_doubt(path: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    (tmp_path / "state.json").write_text("{", encoding="utf-8")
    result = await _check(path, f"http://127.0.0.1:{unused_tcp_port}")
    assert result.exit_code == 0
    assert f"warning: state_file: {tmp_path}/state.json could not be read" in result.stderr
