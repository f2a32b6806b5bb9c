"""A big JSON body reduced, as it comes in, to the little of it that can matter; `json_fields.read` reads the rest.

Owns the reduction and its bounds. Must not judge anything: wrong JSON at a level that is kept stays wrong, so that the
reader refuses it. What is left out is only scanned for where it ends: a mistake in there is not found, and need not be.

Kept are the members of the top-level object that a rule names, and the members of objects for which it says so; of a
field that is given again and again the last values. Nothing is guessed: what was too long to keep is `Unreadable`.

Cost: strings and flat runs are skipped at the speed of `re`; everything else costs a step of some 3 microseconds, and
`Skeleton.feed` pauses after `STEPS_A_PAUSE` of them whatever is sent: dense brackets, tiny keys, escapes. (How large a
slice may be is for the caller to say: `re` takes some 0.5 ms for 64 KiB.)
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from enum import Enum

from ollama_swap_proxy.core import json_fields

VALUE_LIMIT_BYTES = 8192
"""How much of a value is kept that matters: a model name has at most about 700 characters of 6 bytes, and blanks."""

VALUES_KEPT = 8
"""How many values of one field are kept, the last ones; two would do for all but the types of overruled ones."""

STEPS_A_PAUSE = 300
"""About a millisecond of Python."""

_SHAPE_LIMIT_BYTES = 8
_HEAD_BYTES = 16
_KEY_LIMIT_BYTES = 120
"""Longer keys are nobody's: the longest field name has 18 characters, 6 bytes each when written as ``\\uXXXX``."""

_BLANKS = re.compile(rb"[ \t\r\n]*+")
_STRING_RUN = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR_RUN = re.compile(rb'[^ \t\r\n,:"\[\]{}]*+')
_FLAT_RUN = re.compile(rb'[^"\[\]{}]*+')
_QUOTE = ord('"')


class Keep(Enum):
    """How much of a field is kept."""

    VALUE = "value"
    """Scalars and strings whole (one beyond the limit makes the body unreadable); of containers the shape."""
    SHAPE = "shape"
    """The JSON type, and whether a string or container is empty: ``""``, ``"..."``, ``[]``, ``[0]``, ``{}``..."""


Rules = Mapping[str, "Keep | Mapping[str, Keep]"]
"""Top-level field, as `json_fields.fold` spells it -> what is kept; a mapping names members to keep (exact keys)."""

_Step = Generator[bool, None, "bytes | None"]
"""A part of the reader: yields True to pause, False to ask for more data."""

_Kept = bytes | dict[str, "_Kept"] | None
"""A value as JSON text; of an object the members, each with its last value; None: it was too long to keep."""


class Unreadable(Exception):  # noqa: N818 -- a finding about a body, no failure of ours
    """A value that matters is too long to be kept."""


class Skeleton:
    """The reducer: feed it the body in slices of any size, then read `fields`."""

    def __init__(self, rules: Rules, placed: Collection[str] = ()) -> None:
        """``placed`` are fields and members that have a rule, of which `places` tells where their values stand.

        The same name where no rule is for it, at the top or within another object, is not told of.
        """
        self._rules = rules
        self._placed = placed
        self._before = 0
        self.places: dict[str, list[tuple[int, int]]] = {}
        """By name, of all values in the order sent: the offsets in the body of their first byte and behind the last."""
        self._kept: dict[str, deque[_Kept]] = {}
        self._data = b""
        self._position = 0
        self._steps = 0
        self._reader = self._document()
        self._head: bytes | None = b""
        self._is_whole = False
        self.is_finished = False
        """Nothing that follows can matter: the object has ended, or it is no JSON."""

    def feed(self, data: bytes) -> Iterator[None]:
        """Take in the next slice; yields between portions of bounded work. The iterator must be run to its end."""
        self._before += self._position
        self._data = self._data[self._position :] + data
        self._position = 0
        while not self.is_finished:
            try:
                pauses = next(self._reader)
            except StopIteration:
                self.is_finished = self._is_whole = True
            except _WrongStructureError:
                self.is_finished = True
            else:
                if not pauses:
                    return
                yield

    def fields(self) -> json_fields.Fields:
        """Read what was kept.

        Raises:
            json_fields.BadJSON: for certain: proven by what was kept, or by a body that ends too early.
            Unreadable: what matters could not be kept.
        """
        if self._head is not None:
            return json_fields.read(self._head or self._data[self._position :])
        if not self._is_whole:
            raise json_fields.BadJSON("wrong structure, or cut off")
        return json_fields.read(_written((name, value) for name, values in self._kept.items() for value in values))

    def _document(self) -> _Step:
        if (yield from self._token()) == b"{":
            self._head = None
            yield from self._object(self._rules, self._keep, is_top=True)
            return None
        while len(self._data) - self._position < _HEAD_BYTES:
            yield False
        self._head = self._data[self._position : self._position + _HEAD_BYTES]
        return None

    def _object(self, rules: Rules, keep: Callable[[str, _Kept], None], *, is_top: bool) -> _Step:
        """Read an object from its bracket to its end and keep the members that have a rule."""
        self._position += 1
        token = yield from self._token()
        while token != b"}":
            if token != b'"':
                raise _WrongStructureError
            self._position += 1
            key = yield from self._string(_KEY_LIMIT_BYTES)
            name = "" if key is None else _name(key, is_top=is_top)
            if (yield from self._token()) != b":":
                raise _WrongStructureError
            self._position += 1
            rule = rules.get(name)
            if rule is not None and name in self._placed:
                yield from self._token()
                start = self._before + self._position
                value = yield from self._value(rule)
                self.places.setdefault(name, []).append((start, self._before + self._position))
            else:
                value = yield from self._value(rule)
            if rule is not None:
                keep(name, value)
            token = yield from self._token()
            if token == b",":
                self._position += 1
                token = yield from self._token()
                if token == b"}":
                    raise _WrongStructureError
            elif token != b"}":
                raise _WrongStructureError
        self._position += 1
        return None

    def _value(self, rule: Keep | Mapping[str, Keep] | None) -> Generator[bool, None, _Kept]:
        token = yield from self._token()
        if token == b"{" and isinstance(rule, Mapping):
            members: dict[str, _Kept] = {}
            yield from self._object(rule, members.__setitem__, is_top=False)
            return members
        if token == b'"':
            self._position += 1
            text = yield from self._string(VALUE_LIMIT_BYTES if rule is Keep.VALUE else _SHAPE_LIMIT_BYTES)
            if text is not None:
                return b'"%b"' % text
            return None if rule is Keep.VALUE else b'"..."'
        if token in {b"[", b"{"}:
            is_empty = yield from self._skip_container()
            return (b"[]" if is_empty else b"[0]") if token == b"[" else b"{}" if is_empty else b'{"":0}'
        text = yield from self._scalar()
        return b"0" if text is None and rule is not Keep.VALUE else text

    def _keep(self, name: str, value: _Kept) -> None:
        """Add a value of a field. Objects add up and nulls are kept once, so that what `Fields` looks for is there."""
        values = self._kept.get(name)
        if values is None:
            self._kept[name] = deque((value,), VALUES_KEPT)
        elif isinstance(value, dict) and isinstance(values[-1], dict):
            values[-1].update(value)
        elif value != b"null" or values[-1] != b"null":
            values.append(value)

    def _token(self) -> Generator[bool, None, bytes]:
        """Return the next byte that is no blank, without consuming it. Every call is a step."""
        self._steps += 1
        if self._steps >= STEPS_A_PAUSE:
            self._steps = 0
            yield True
        while True:
            self._position = _end(_BLANKS, self._data, self._position)
            if self._position < len(self._data):
                return self._data[self._position : self._position + 1]
            yield False

    def _string(self, limit_bytes: int) -> _Step:
        """Consume a string after its opening quote. Returns its text as written, or None beyond the limit."""
        text = b""
        while True:
            start, end = self._position, _end_of_string(self._data, self._position)
            if len(text) <= limit_bytes:
                text += self._data[start : min(end, start + limit_bytes + 1)]
            self._position = end
            if end < len(self._data) and self._data[end] == _QUOTE:
                self._position = end + 1
                return text if len(text) <= limit_bytes else None
            yield False

    def _scalar(self) -> _Step:
        """Consume a number or literal, or what stands in its place. Returns None if it is beyond the limit."""
        text = b""
        while True:
            start, end = self._position, _end(_SCALAR_RUN, self._data, self._position)
            if len(text) <= VALUE_LIMIT_BYTES:
                text += self._data[start : min(end, start + VALUE_LIMIT_BYTES + 1)]
            self._position = end
            if end < len(self._data):
                break
            yield False
        if not text:
            raise _WrongStructureError
        return text if len(text) <= VALUE_LIMIT_BYTES else None

    def _skip_container(self) -> Generator[bool, None, bool]:
        """Consume an array or object from its bracket to its end. Returns whether it is empty."""
        self._position += 1
        is_empty = (yield from self._token()) in {b"]", b"}"}
        depth = 1
        while depth:
            self._position = _end(_FLAT_RUN, self._data, self._position)
            if self._position == len(self._data):
                yield False
                continue
            found = self._data[self._position]
            self._position += 1
            if found == _QUOTE:
                yield from self._string(0)
            else:
                depth += 1 if found in b"[{" else -1
            self._steps += 1
            if self._steps >= STEPS_A_PAUSE:
                self._steps = 0
                yield True
        return is_empty


class _WrongStructureError(Exception):
    """Go's decoder stops here."""


def _written(members: Iterable[tuple[str, _Kept]]) -> bytes:
    """Write members as an object again."""
    texts = []
    for name, value in members:
        if value is None:
            raise Unreadable(name)
        texts.append(b'"%b":%b' % (name.encode(), _written(value.items()) if isinstance(value, dict) else value))
    return b"{%b}" % b",".join(texts)


def _end(pattern: re.Pattern[bytes], data: bytes, start: int) -> int:
    found = pattern.match(data, start)
    return found.end() if found else start


def _end_of_string(data: bytes, start: int) -> int:
    """Return where the closing quote is, or how far the string certainly goes on. Finding a byte beats any pattern."""
    quote = data.find(b'"', start)
    end = quote if quote >= 0 else len(data)
    return end if data.find(b"\\", start, end) < 0 else _end(_STRING_RUN, data, start)


def _name(key: bytes, *, is_top: bool) -> str:
    text = key.decode("utf-8", "replace")
    if "\\" in text:
        try:
            text = json.loads(f'"{text}"')
        except ValueError:
            return ""
    return json_fields.fold(text) if is_top else text
