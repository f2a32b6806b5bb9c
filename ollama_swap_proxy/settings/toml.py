"""Settings written as TOML that can be read again.

Owns the spelling. Must not decide what is written where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.settings.tables import TABLES

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_text(key: str) -> str:
    """Write a key, in quotes where it needs them."""
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def value_text(value: object) -> str:
    """Write one value: a truth, a number, a text, a list, or a table in one line."""
    if isinstance(value, Mapping):
        pairs = [f"{key_text(str(key))} = {value_text(inner)}" for key, inner in value.items()]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, int):
        return str(int(value))
    return _quoted(str(value))


def lines(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield all settings as the lines of a file, each with where it came from: those without a table first, since in
    TOML nothing can follow the tables.
    """
    tables = {key: list(_tables(key, getattr(settings, key))) for key in TABLES}
    empty = {key for key, found in tables.items() if not found}
    plain = [key for key in Settings.model_fields if key not in TABLES or key in empty]
    written = {key: f"{key} = {value_text(getattr(settings, key))}" for key in plain}
    width = max(map(len, written.values()))
    for key, line in written.items():
        yield f"{line:<{width}}  # {origins[key]}"
    for key, found in tables.items():
        for name, head, table in found:
            yield ""
            yield f"{head}  # {origins.get(f'{key}.{name}', origins[key] if key == 'rules' else 'default')}"
            yield from table


def _tables(key: str, value: object) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the name, the head and the lines of each table of an option."""
    if isinstance(value, Mapping):
        for name, table in value.items():
            yield name, f"[{key}.{key_text(name)}]", list(_keys(table))
    elif isinstance(value, tuple):
        for number, table in enumerate(value):
            yield str(number), f"[[{key}]]", list(_keys(table))


def _keys(table: BaseModel) -> Iterator[str]:
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if value is not None:
            yield f"{field.alias or name} = {value_text(value)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
