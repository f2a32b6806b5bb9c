"""A multipart form read as it comes in: the model and the file of a transcription, by the rules of Go's mime/multipart.

Owns the grammar of forms and of headers with parameters. Must not judge (`requests` does) and must not guess: where Go
might see another model than we do, or one where we see none, the form is unreadable.
Facts: Go 1.26, mime/multipart (multipart.go, formdata.go), mime/mediatype.go, net/textproto/reader.go.
"""

from __future__ import annotations

import quopri
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

LINE_LIMIT_BYTES = 4096
"""Go gives up at longer lines outside of parts."""

HEAD_LIMIT_BYTES = 16 * 1024
MODEL_LIMIT_BYTES = 8192
PARTS_LIMIT = 1000
"""Go takes no more, unless it is told to."""

STEPS_A_PAUSE = 50
"""About half a millisecond of Python."""

_BLANKS = b" \t"
_WORD = r'[^\x00-\x20\x7f-\U0010ffff()<>@,;:\\"/\[\]?=]+'
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_WORD})[ \t]*=[ \t]*(?:({_WORD})|"((?:[^"\\\r\n]|\\.)*+)")')
_ESCAPED = re.compile(r'\\([()<>@,;:\\"/\[\]?=])')
_EXTENDED = re.compile(r"(?:utf-8|us-ascii)'[^']*'((?:[^%]|%[0-9A-Fa-f]{2})*+)", re.IGNORECASE)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")


class BadForm(Exception):  # noqa: N818 -- a finding about a body, no failure of ours
    """Go refuses this form, for certain."""


class UnreadableForm(Exception):  # noqa: N818
    """What Go makes of this form is more than we know."""


@dataclass(frozen=True, slots=True)
class Form:
    """The first value called ``model``, empty for none, and whether the first file called ``file`` has any bytes."""

    model: str
    has_audio: bool


_Step = Generator[bool, None, None]
"""A part of the reader: yields True to pause, False to ask for more data."""


class FormReader:
    """Feed it the body in slices of any size, then `end` it."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"--" + boundary.encode("utf-8", "surrogateescape")
        self._newline = b"\r\n"
        self._data = b""
        self._position = 0
        self._steps = 0
        self._has_ended = False
        self._model: bytes | None = None
        self._audio_bytes: int | None = None
        self._reader = self._form()
        self.is_finished = False
        """Nothing that follows can matter."""

    def feed(self, data: bytes) -> Iterator[None]:
        """Take in the next slice; yields between portions of bounded work. The iterator must be run to its end.

        Raises:
            BadForm, UnreadableForm: as soon as it is known.
        """
        self._data = self._data[self._position :] + data
        self._position = 0
        while not self.is_finished:
            try:
                pauses = next(self._reader)
            except StopIteration:
                self.is_finished = True
            else:
                if not pauses:
                    return
                yield

    def end(self) -> Form:
        """Return what was found in the whole body.

        Raises:
            BadForm, UnreadableForm: also because the body ends too early.
        """
        self._has_ended = True
        for _ in self.feed(b""):
            pass
        return Form((self._model or b"").decode("utf-8", "replace"), bool(self._audio_bytes))

    def _form(self) -> _Step:
        parts = 0
        expects_part = False
        while True:
            line = yield from self._line(LINE_LIMIT_BYTES)
            if line.startswith(self._delimiter):
                rest = line[len(self._delimiter) :]
                if rest.startswith(b"--") and rest[2:].lstrip(_BLANKS) in {b"", self._newline}:
                    return
                if not parts and rest.lstrip(_BLANKS) == b"\n":
                    self._newline = b"\n"
                if rest.lstrip(_BLANKS) == self._newline:
                    parts += 1
                    if parts > PARTS_LIMIT:
                        raise UnreadableForm(f"more than {PARTS_LIMIT} parts")
                    yield from self._part()
                    expects_part = False
                    continue
            if not line.endswith(b"\n"):
                raise BadForm("cut off")
            if parts and (expects_part or line != self._newline):
                raise UnreadableForm("something between its parts")
            expects_part = bool(parts)

    def _part(self) -> _Step:
        headers = yield from self._head()
        name, is_file = _described(headers.get(b"content-disposition"))
        is_model = name == "model" and not is_file and self._model is None
        size, value = yield from self._content(MODEL_LIMIT_BYTES + 1 if is_model else 0)
        if is_model:
            if size > MODEL_LIMIT_BYTES:
                raise UnreadableForm(f"model is longer than {MODEL_LIMIT_BYTES} bytes")
            is_quoted = headers.get(b"content-transfer-encoding", b"").lower() == b"quoted-printable"
            self._model = quopri.decodestring(value) if is_quoted else value
        elif name == "file" and is_file and self._audio_bytes is None:
            self._audio_bytes = size

    def _head(self) -> Generator[bool, None, Mapping[bytes, bytes]]:
        """Consume the headers of a part and the empty line behind them. The first of a name counts."""
        lines: list[bytes] = []
        left = HEAD_LIMIT_BYTES
        while (line := (yield from self._line(left))) not in {b"\n", b"\r\n"}:
            if not line.endswith(b"\n"):
                raise UnreadableForm("no end")  # Go takes what is cut off here, and only here, for complete
            left -= len(line)
            text = line.removesuffix(b"\n").removesuffix(b"\r").strip(_BLANKS)
            if line[:1] in _BLANKS and lines:
                lines[-1] += b" " + text
            else:
                lines.append(text)
        headers: dict[bytes, bytes] = {}
        for text in lines:
            found = _HEADER.fullmatch(text)
            if found is None:
                raise UnreadableForm("a malformed header in a part")
            headers.setdefault(found[1].lower(), found[2].strip(_BLANKS))
        return headers

    def _content(self, kept_bytes: int) -> Generator[bool, None, tuple[int, bytes]]:
        """Consume a part up to the line break before the next boundary. Returns its size and its beginning."""
        while len(self._data) - self._position < len(self._delimiter) + 2 and not self._has_ended:
            yield False
        if self._data.startswith(self._delimiter, self._position) and self._ends_part(self._delimiter):
            return 0, b""
        boundary = self._newline + self._delimiter
        size, kept = 0, b""
        while True:
            found = self._data.find(boundary, self._position)
            is_whole = found >= 0 and (self._has_ended or len(self._data) >= found + len(boundary) + 2)
            end = found if found >= 0 else max(self._position, len(self._data) - len(boundary) + 1)
            size += end - self._position
            kept += self._data[self._position : min(end, self._position + kept_bytes - len(kept))]
            self._position = end
            if is_whole and self._ends_part(boundary):
                return size, kept
            if is_whole:  # the boundary only looks like one: its first byte is content, and no other one begins in it
                size += 1
                kept += self._data[end : end + 1] if len(kept) < kept_bytes else b""
                self._position += 1
                yield from self._step()
            elif self._has_ended:
                raise BadForm("cut off")
            else:
                yield False

    def _ends_part(self, boundary: bytes) -> bool:
        """Say whether what looks like a boundary, here, is one. What follows must be there, as far as there is any."""
        after = self._position + len(boundary)
        following = self._data[after : after + 2]
        return following[:1] in {b" ", b"\t", b"\r", b"\n"} or following == b"--"

    def _line(self, limit_bytes: int) -> Generator[bool, None, bytes]:
        """Consume a line with its line feed; at the end of the body, what is left."""
        yield from self._step()
        while (end := self._data.find(b"\n", self._position) + 1) == 0 and not self._has_ended:
            if len(self._data) - self._position > limit_bytes:
                break
            yield False
        line = self._data[self._position : end or len(self._data)]
        if len(line) > limit_bytes:
            raise UnreadableForm(f"a line or head of more than {limit_bytes} bytes")
        self._position += len(line)
        return line

    def _step(self) -> _Step:
        self._steps += 1
        if self._steps >= STEPS_A_PAUSE:
            self._steps = 0
            yield True


def parse_parameters(text: str) -> tuple[str, Mapping[str, str] | None]:
    """Split a header like ``form-data; name="x"`` into its kind, in lower case, and its parameters.

    They are None where we cannot tell what Go makes of them.
    """
    before, _, _ = text.partition(";")
    kind = before.strip().lower()
    found: dict[str, str] = {}
    extended: dict[str, str] = {}
    position = len(before)
    text = text.rstrip().removesuffix(";").rstrip()
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            return kind, None
        position = parameter.end()
        name, token, quoted = parameter[1].lower(), parameter[2], parameter[3]
        value = token if token is not None else _ESCAPED.sub(r"\1", quoted)
        into = found
        if "*" in name:
            coded = _EXTENDED.fullmatch(value)
            if coded is None or name.index("*") != len(name) - 1:
                return kind, None
            into, name, value = extended, name[:-1], unquote(coded[1])
        if name in into:
            return kind, None
        into[name] = value
    return kind, {**found, **extended}


def _described(disposition: bytes | None) -> tuple[str, bool]:
    """Return the name of a part, empty for none, and whether it is a file."""
    kind, parameters = parse_parameters((disposition or b"").decode("latin-1"))
    if parameters is None:
        raise UnreadableForm("an odd Content-Disposition")
    if kind != "form-data":
        return "", False
    return parameters.get("name", ""), bool(parameters.get("filename"))
