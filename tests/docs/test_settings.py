"""Settings as documented: config.example.toml and docs/config.md say what config.py says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ollama_swap_proxy.cli import _as_toml
from ollama_swap_proxy.config import ENV_PREFIX, Settings, env_name, load, load_settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
KEYS = list(Settings.model_fields)


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def test_the_example_has_every_key_with_its_true_default() -> None:
    assert set(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == set(KEYS)
    loaded = load({}, {}, EXAMPLE)
    assert loaded.settings == load_settings({}, {})
    assert set(loaded.origins.values()) == {f"file {EXAMPLE}"}


@pytest.mark.parametrize("key", KEYS)
def test_the_example_explains_each_key_in_the_words_of_the_code(key: str) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    comment = text.partition(f"\n{key} = ")[0].rpartition("\n\n")[2]
    assert _words(comment.replace("# ", " ")) == _words(Settings.model_fields[key].description)


@pytest.mark.parametrize("key", KEYS)
def test_the_page_describes_each_setting_in_the_words_of_the_code(key: str) -> None:
    field = Settings.model_fields[key]
    section = re.search(rf"^### {key}$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/config.md has no section {key}"
    expected = f"Default `{_as_toml(field.default)}` · environment `{env_name(key)}` {field.description}"
    assert _words(section[1]) == _words(expected)


def test_the_page_describes_nothing_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_each_setting_says_its_unit_and_what_0_means(key: str) -> None:
    field = Settings.model_fields[key]
    assert field.description
    if isinstance(field.default, float | int) and not key.endswith(("_s", "_bytes")):
        assert key in {"parallel", "line_limit"}, "a number says its unit in its name"
    if any(getattr(rule, "ge", None) == 0 for rule in field.metadata):
        assert re.search(r"\b0: ", _words(field.description)), "0 is allowed, so say what it means"


def test_no_setting_has_the_shape_of_what_kubernetes_injects() -> None:
    for key in KEYS:
        assert not re.search(r"(^|_)(service_host|service_port|port)", key)


def test_variables_named_in_any_page_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "Dockerfile", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").iterdir()]
    known = {env_name(key) for key in KEYS} | {f"{ENV_PREFIX}CONFIG", f"{ENV_PREFIX}SERVICE_HOST"}
    for page in pages:
        named = set(re.findall(rf"{ENV_PREFIX}[A-Z0-9_]+", page.read_text(encoding="utf-8")))
        assert named <= known, f"{page.name}: {named - known}"
