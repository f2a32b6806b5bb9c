"""What is written can be read again, and says where it came from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.config import load
from ollama_swap_proxy.settings import toml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)

FILE = """
trusted_proxies = ["10.0.0.0/8", "::1"]
max_wait_s = 90.5
[classes.vip]
rank = 30
[classes.batch]
max_wait_s = 300
[[rules]]
class = "vip"
model = "qwen3"
header = {X-Job = ["a", "b \\" c"], "x.y" = "*"}
client = "192.0.2.0/24"
[[rules]]
class = "batch"
path = "/api/embed*"
[models."Qwen3:8b"]
class = "batch"
"""


def test_all_settings_are_read_back_as_they_were(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(FILE, encoding="utf-8")
    loaded = load({}, {}, first)
    second.write_text("\n".join(toml.lines(loaded.settings, loaded.origins)), encoding="utf-8")
    assert load({}, {}, second).settings == loaded.settings


@pytest.mark.parametrize(
    ("value", "written"),
    [(120.0, "120"), (0.1, "0.1"), (1234567.5, "1234567.5"), (0.123456789, "0.123456789"), (1e300, "1e+300")],
)
def test_numbers_are_written_exactly(value: float, written: str) -> None:
    assert toml.value_text(value) == written


@given(st.floats(min_value=0, allow_infinity=False))
def test_any_time_is_read_back_as_it_was(value: float) -> None:
    assert float(tomllib.loads(f"value = {toml.value_text(value)}")["value"]) == value


def test_each_table_says_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(FILE, encoding="utf-8")
    loaded = load({}, {}, path)
    heads = dict(line.split("  # ") for line in toml.lines(loaded.settings, loaded.origins) if line.startswith("["))
    assert heads == {
        "[classes.interactive]": "default",
        "[classes.normal]": "default",
        "[classes.batch]": f"file {path}",
        "[classes.vip]": f"file {path}",
        "[[rules]]": f"file {path}",
        '[models."qwen3:8b"]': f"file {path}",
    }


@given(st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3).map(tuple), max_size=3))
def test_any_text_survives_as_key_and_as_value(given_table: dict[str, tuple[str, ...]]) -> None:
    read = tomllib.loads(f"value = {toml.value_text(given_table)}")["value"]
    assert read == {key: list(values) for key, values in given_table.items()}


def test_what_is_true_or_false_is_written_so() -> None:
    assert [toml.value_text(value) for value in (True, False, 1, 0)] == ["true", "false", "1", "0"]
