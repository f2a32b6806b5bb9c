"""The recipes: each file is valid, nothing about it is doubtful, and it does what its heading says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ollama_swap_proxy.callers import Caller, Callers
from ollama_swap_proxy.checks.alone import doubts_alone
from ollama_swap_proxy.config import Settings, load_settings
from ollama_swap_proxy.listener.request import HTTP_11, RequestHead

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
OPEN_WEBUI = "172.18.0.5"


def _settings(name: str, tmp_path: Path) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(RECIPES[name], encoding="utf-8")
    return load_settings({}, {}, path)


def test_every_recipe_has_a_file() -> None:
    assert list(RECIPES) == re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


def _head(headers: dict[str, str]) -> RequestHead:
    names, values = [name.encode() for name in headers], [value.encode() for value in headers.values()]
    return RequestHead("POST", "/", HTTP_11, names, values)


@pytest.mark.parametrize("name", RECIPES)
def test_each_is_valid_and_without_doubt(name: str, tmp_path: Path) -> None:
    assert doubts_alone(_settings(name, tmp_path)) == []


@pytest.mark.parametrize(
    ("peer", "headers", "path", "expected"),
    [
        (OPEN_WEBUI, {"X-OpenWebUI-User-Id": "u1"}, "/api/chat", ("interactive", "user:u1")),
        (OPEN_WEBUI, {"X-OpenWebUI-User-Id": "u1"}, "/api/embed", ("interactive", "user:u1")),
        ("172.18.0.9", {"X-OpenWebUI-User-Id": "u1"}, "/api/chat", ("normal", "172.18.0.9")),
        ("172.18.0.9", {"User-Agent": "ollama-python/0.6.1 (x86_64 linux)"}, "/api/chat", ("batch", "172.18.0.9")),
        ("172.18.0.9", {"User-Agent": "OpenAI/Python 2.1.0"}, "/v1/embeddings", ("batch", "172.18.0.9")),
        ("172.18.0.9", {"Authorization": "Bearer password"}, "/api/chat", ("batch", "key:5e884898da28")),
        ("172.18.0.9", {}, "/api/chat", ("normal", "172.18.0.9")),
    ],
)
def test_open_webui_goes_before_batch_scripts(
    peer: str, headers: dict[str, str], path: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    callers = Callers(_settings("Open WebUI before batch scripts", tmp_path))
    caller: Caller = callers.identify(_head(headers), peer, path, "qwen3:8b")
    assert (caller.klass.name, caller.client) == expected
    ranks = {name: each.rank for name, each in callers._classes.items()}
    assert ranks["interactive"] > ranks["normal"] > ranks["batch"]


def test_the_example_on_the_settings_page_does_not_make_a_persons_embeddings_wait(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    path = tmp_path / "config.toml"
    proxies = f'trusted_proxies = ["{OPEN_WEBUI}"]\nuser_header = "X-OpenWebUI-User-Id"\n'
    tables = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path.write_text(proxies + "\n".join(tables), encoding="utf-8")
    callers = Callers(load_settings({}, {}, path))
    for user, klass in (({"X-OpenWebUI-User-Id": "u1"}, "interactive"), ({}, "batch")):
        assert callers.identify(_head(user), OPEN_WEBUI, "/api/embed", "bge-m3:latest").klass.name == klass
