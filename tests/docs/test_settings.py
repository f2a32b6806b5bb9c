"""Settings as documented: config.example.toml and docs/config.md say what config.py says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ollama_swap_proxy.config import ENV_PREFIX, ConfigError, Settings, env_name, load, load_settings
from ollama_swap_proxy.settings import toml
from ollama_swap_proxy.settings.tables import TABLES

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
KEYS = list(Settings.model_fields)
PLAIN = [key for key in KEYS if key not in TABLES]
IN_TABLES = [
    (table, field.alias or name, field.description)
    for table, model in TABLES.items()
    for name, field in model.model_fields.items()
]


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def _section(key: str) -> str:
    section = re.search(rf"^### {key}$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/config.md has no section {key}"
    return section[1]


def test_the_example_has_every_key_with_its_true_default() -> None:
    assert set(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == {*PLAIN, "classes"}
    loaded = load({}, {}, EXAMPLE)
    assert loaded.settings == load_settings({}, {})
    assert {key for key, origin in loaded.origins.items() if origin != f"file {EXAMPLE}"} == {"rules", "models"}


def test_what_the_example_has_commented_out_is_valid_too(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        re.sub(r"^#(?=[\w\[])", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8"
    )
    settings = load_settings({}, {}, path)
    assert len(settings.rules) > 2
    assert settings.models


def test_the_tables_on_the_page_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    found = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path.write_text("\n".join(found), encoding="utf-8")
    settings = load_settings({}, {}, path)
    assert len(settings.rules) > 2
    assert len(settings.classes) > 3


@pytest.mark.parametrize(("table", "key", "description"), IN_TABLES)
def test_each_key_of_a_table_is_explained_in_the_words_of_the_code(table: str, key: str, description: str) -> None:
    assert f"- `{key}`: {_words(description)}\n" in _section(table)
    example = EXAMPLE.read_text(encoding="utf-8").partition("# --- Tables ---")[2]
    assert f" {key}: {_words(description)}" in _words(example.replace("\n# ", " ").replace("\n#", " "))


@pytest.mark.parametrize("table", TABLES)
def test_each_table_is_explained_in_the_words_of_the_code(table: str) -> None:
    description = _words(Settings.model_fields[table].description)
    assert description in _words(_section(table))
    assert description in _words(EXAMPLE.read_text(encoding="utf-8").replace("\n# ", " "))


@pytest.mark.parametrize(("table", "key", "description"), IN_TABLES)
def test_each_number_of_a_table_says_what_0_means(table: str, key: str, description: str) -> None:
    field = TABLES[table].model_fields.get(key)
    if field is not None and any(getattr(rule, "ge", None) == 0 for rule in field.metadata):
        assert re.search(r"\b0(: | to )", _words(description))


@pytest.mark.parametrize("key", PLAIN)
def test_the_example_explains_each_key_in_the_words_of_the_code(key: str) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    comment = text.partition(f"\n{key} = ")[0].rpartition("\n\n")[2]
    assert _words(comment.replace("# ", " ")) == _words(Settings.model_fields[key].description)


@pytest.mark.parametrize("key", PLAIN)
def test_the_page_describes_each_setting_in_the_words_of_the_code(key: str) -> None:
    field = Settings.model_fields[key]
    expected = f"Default `{toml.value_text(field.default)}` · environment `{env_name(key)}` {field.description}"
    assert _words(_section(key)) == _words(expected)


def test_the_page_describes_nothing_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == set(KEYS)


@pytest.mark.parametrize("key", PLAIN)
def test_each_setting_says_its_unit_and_what_0_means(key: str) -> None:
    field = Settings.model_fields[key]
    assert field.description
    is_number = isinstance(field.default, float | int) and not isinstance(field.default, bool)
    if is_number and not key.endswith(("_s", "_bytes")):
        assert key in {"parallel", "line_limit", "keep_alive"}, "a number says its unit in its name"
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


def test_a_class_of_ones_own_needs_a_rank_as_the_page_says(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[classes.night]\nmax_wait_s = 900\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[classes.night\] rank \(file .*\): must be given"):
        load_settings({}, {}, path)
    assert "A class of your own must have one" in _section("classes")
    ranks = {name: table.rank for name, table in Settings().classes.items()}
    assert f"interactive has {ranks['interactive']}, normal {ranks['normal']}, batch {ranks['batch']}." in PAGE
