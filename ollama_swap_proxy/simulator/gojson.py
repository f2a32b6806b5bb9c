"""JSON as Go's encoding/json reads and writes it: which keys match, who wins, which words an error has.

Owns both directions for the whole simulator. Must not know any route. Facts: the recorded errors and keys
(tests/transcripts: errors_native, errors_v1, json_keys).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ollama_swap_proxy.simulator.generation import SimError

_BLANKS = " \t\r\n"
_LITERALS = ("true", "false", "null")
_STRING_OR_SMALL = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9.]+e-0[56]')


class _Pairs(list[tuple[str, Any]]):
    """An object as read: all its pairs in order, duplicates included."""


_DECODER = json.JSONDecoder(strict=True, object_pairs_hook=_Pairs)


@dataclass(frozen=True, slots=True)
class Struct:
    """A Go struct to decode into: ``name`` as errors spell it, JSON field name -> Go type.

    Types: string, bool, int, float64, ``[]...`` (array), ``map[...`` or a struct's name with a dot (object), any.
    """

    name: str
    fields: Mapping[str, str]
    package: str = "api"


def decode(body: bytes, struct: Struct, *, empty: str = "EOF") -> dict[str, Any]:
    """Read one value into ``struct``: canonical field name -> plain value; absent and null fields are left out.

    Unknown keys and whatever follows the first value are ignored. ``empty`` is the message for a body without a value.

    Raises:
        SimError: 400, early, with Go's text.
    """
    value = parse(body, empty=empty)
    if value is None:
        return {}
    if not isinstance(value, _Pairs):
        raise _refuse(f"json: cannot unmarshal {_kind(value)} into Go value of type {struct.package}.{struct.name}")
    names = {_fold(name): name for name in struct.fields}
    found: dict[str, Any] = {}
    for key, item in value:
        name = key if key in struct.fields else names.get(_fold(key))
        if name is None or item is None:
            continue
        go_type = struct.fields[name]
        if not _fits(item, go_type):
            shown = f"number {json.dumps(item)}" if go_type == "int" and isinstance(item, float) else _kind(item)
            raise _refuse(f"json: cannot unmarshal {shown} into Go struct field {struct.name}.{name} of type {go_type}")
        found[name] = plain(item)
    return found


def parse(body: bytes, *, empty: str = "EOF") -> Any:
    """Read the first JSON value of a body; objects come as lists of pairs (see `plain`)."""
    text = body.decode("utf-8", "replace")
    start = len(text) - len(text.lstrip(_BLANKS))
    if start == len(text):
        raise _refuse(empty)
    try:
        return _DECODER.raw_decode(text, start)[0]
    except (json.JSONDecodeError, RecursionError):
        raise _refuse(complaint(body)) from None


def plain(value: Any) -> Any:
    """A decoded value as dicts and lists; of equal keys the last wins."""
    if isinstance(value, _Pairs):
        return {key: plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def encode(value: object) -> bytes:
    """Write a value as Go does: compact, UTF-8, with <, >, & and the two line separators escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for plain_text, escaped in _ESCAPES:
        if plain_text in text:
            text = text.replace(plain_text, escaped)
    if "e-0" in text:
        text = _STRING_OR_SMALL.sub(_without_exponent, text)
    return text.encode("utf-8", "replace")


def _without_exponent(found: re.Match[str]) -> str:
    """Python turns to exponents below 1e-4, Go below 1e-6."""
    return found[0] if found[0].startswith('"') else f"{Decimal(found[0]):f}"


def complaint(body: bytes) -> str:
    """What Go says about this body, which is no JSON. Good for the usual mistakes, not a second parser."""
    text = body.decode("latin-1")
    stripped = text.rstrip(_BLANKS)
    try:
        _DECODER.raw_decode(body.decode("utf-8", "replace").lstrip(_BLANKS))
    except json.JSONDecodeError as problem:
        offset = len(text) - len(text.lstrip(_BLANKS)) + len(problem.doc[: problem.pos].encode())
        while offset < len(text) and text[offset] in _BLANKS:
            offset += 1
        return _describe(problem.msg, text, offset, cut=offset >= len(stripped))
    except RecursionError:
        return "exceeded max depth"
    return "unexpected EOF"


def _describe(message: str, text: str, offset: int, *, cut: bool) -> str:
    if cut or message.startswith("Unterminated string") or any(w.startswith(text[offset:]) for w in _LITERALS):
        return "unexpected EOF"
    char = _quote(text[offset])
    wanted = {
        "Expecting property name": "looking for beginning of object key string",
        "Expecting ':'": "after object key",
        "Expecting ','": "after object key:value pair" if _in_object(text, offset) else "after array element",
        "Invalid control": "in string literal",
    }
    for start, where in wanted.items():
        if message.startswith(start):
            return f"invalid character {char} {where}"
    for word in _LITERALS:
        if text[offset] == word[0]:
            at = next(i for i in range(len(word)) if text[offset + i] != word[i])
            return f"invalid character {_quote(text[offset + at])} in literal {word} (expecting '{word[at]}')"
    return f"invalid character {char} looking for beginning of value"


def _in_object(text: str, offset: int) -> bool:
    depth = 0
    for char in reversed(text[:offset]):
        if char in "}]":
            depth += 1
        elif char in "{[":
            if depth == 0:
                return char == "{"
            depth -= 1
    return False


def _quote(char: str) -> str:
    if char == "'":
        return r"'\''"
    if char == '"':
        return "'\"'"
    shown = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "\b": "\\b", "\f": "\\f"}.get(char)
    if shown is None:
        shown = char if char.isprintable() else f"\\x{ord(char):02x}" if ord(char) < 0x80 else f"\\u{ord(char):04x}"
    return f"'{shown}'"


def _fold(key: str) -> str:
    return key.replace("\u212a", "k").replace("\u017f", "s").lower()


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "object" if isinstance(value, _Pairs) else "array"


def _fits(value: object, go_type: str) -> bool:
    kind = _kind(value)
    if go_type == "any":
        return True
    if go_type.startswith("[]"):
        return kind == "array"
    if go_type == "int":
        return kind == "number" and isinstance(value, int)
    if go_type.startswith("float"):
        return kind == "number"
    if go_type in {"string", "bool"}:
        return kind == go_type
    return kind == "object"


def _refuse(message: str) -> SimError:
    return SimError(400, message, early=True)


_ESCAPES = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
