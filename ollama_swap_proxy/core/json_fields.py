"""The top-level fields of a JSON body, read by the rules of Go's encoding/json.

Owns what a key is, which duplicate wins and what is no JSON at all. Must not know any route or field: `requests` does.
Facts: encoding/json (Go 1.26: decode.go, fold.go, scanner.go); recorded in tests/transcripts/json_keys.json.

Values: objects come as tuples of (key, value) pairs in the order sent, arrays as lists, the rest as in Python's json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

_BLANKS = " \t\n\r"
_NONE: Mapping[str, Sequence[object]] = MappingProxyType({})


class BadJSON(ValueError):  # noqa: N818 -- a finding about a body, no failure of ours
    """Go's decoder refuses this body, for certain; the text says why."""


class TooDeep(Exception):  # noqa: N818
    """The body is nested deeper than this reader goes (Go allows 10000 levels); `skeleton` can still read it."""


@dataclass(slots=True)
class Fields:
    """The members of the top-level object, by key, folded as Go folds it. Not to be changed (frozen costs too much).

    ``last`` is the value given last for each key; ``several`` holds, for the keys that were given more than once, all
    values in the order sent.
    """

    last: Mapping[str, object] = field(default_factory=dict)
    several: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def every(self, name: str) -> Sequence[object]:
        """Return all values given for a field, nulls too: Go checks the type of each, also of the overruled ones."""
        if name in self.several:
            return self.several[name]
        return (self.last[name],) if name in self.last else ()

    def plain(self, name: str) -> object:
        """Return the value of a field of a plain Go type: the last that is not null, or None."""
        if name not in self.several:
            return self.last.get(name)
        return next((value for value in reversed(self.several[name]) if value is not None), None)

    def nullable(self, name: str) -> object:
        """Return the value of a field that Go holds by pointer, slice or any: the last given, or None."""
        return self.last.get(name)

    def merged(self, name: str) -> dict[str, object]:
        """Return the value of a field that Go holds as a map: several objects add up, a null empties it."""
        if name not in self.several:
            only = self.last.get(name)
            return dict(only) if isinstance(only, tuple) else {}
        found: dict[str, object] = {}
        for value in self.several[name]:
            if isinstance(value, tuple):
                found.update(value)
            else:
                found = {}
        return found


def read(body: bytes) -> Fields:
    """Read the first JSON value of a body. A top-level null is an object without members, as it is for Go.

    Raises:
        BadJSON: Go's decoder refuses it: no JSON, cut off, or no object.
        TooDeep: it is nested too deeply for this reader.
    """
    text = body.decode("utf-8", "replace")
    start = 0
    if text[:1] != "{":
        start = len(text) - len(text.lstrip(_BLANKS))
        if start == len(text):
            raise BadJSON("EOF")  # Go's own word for a body without any value
    try:
        members = _DECODER.raw_decode(text, start)[0]
    except RecursionError:
        raise TooDeep from None
    except ValueError as problem:
        members = _with_long_numbers(text, start, problem)
    if not isinstance(members, tuple):
        if members is not None:
            raise BadJSON(f"no object but {type(members).__name__}")
        members = ()
    last = dict(members)
    together = "".join(last)
    if len(last) == len(members) and together.isascii() and together == together.lower():
        return Fields(last, _NONE)  # nearly always: no key twice, and all surely in the form that `fold` gives them
    values: dict[str, list[object]] = {}
    for key, item in members:
        values.setdefault(fold(key), []).append(item)
    last = {key: items[-1] for key, items in values.items()}
    return Fields(last, {key: items for key, items in values.items() if len(items) > 1})


def fold(key: str) -> str:
    """Return a key as Go compares it, in lower case. From outside ASCII only U+212A (k) and U+017F (s) match it."""
    return key.replace("\u212a", "k").replace("\u017f", "s").lower()


def clean(text: str) -> str:
    """Return a string as Go would hold it: a lone surrogate is U+FFFD there (and could not be encoded here)."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _with_long_numbers(text: str, start: int, problem: ValueError) -> object:
    """Read again what Python refuses and Go does not: integers of more than 4300 digits, which it reads when needed."""
    if isinstance(problem, json.JSONDecodeError):
        raise BadJSON(str(problem)) from None
    try:
        return _DECODER_OF_LONG_NUMBERS.raw_decode(text, start)[0]
    except json.JSONDecodeError as worse:
        raise BadJSON(str(worse)) from None
    except RecursionError:
        raise TooDeep from None


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(name, "", 0)


_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse_constant)
_DECODER_OF_LONG_NUMBERS = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse_constant, parse_int=float)
