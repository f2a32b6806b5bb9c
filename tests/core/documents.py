"""Random JSON bodies as hostile clients would write them: duplicates, odd case, escapes, blanks, mistakes."""

from __future__ import annotations

import itertools
import json

from hypothesis import strategies as st

FIELDS = (
    *("model", "prompt", "keep_alive", "options", "messages", "stream", "input", "tools", "shift", "think", "suffix"),
    *("max_tokens", "system", "raw", "images", "unknown", ""),
)
BLANKS = st.sampled_from(["", "", "", " ", "\n", "\t\r\n  "])


@st.composite
def key_texts(draw: st.DrawFn, names: tuple[str, ...] = FIELDS) -> str:
    """A key as it stands in JSON: escaped in places, in any case, with the two letters that Go folds."""
    text = ""
    for letter in draw(st.sampled_from(names)):
        style = draw(st.integers(0, 12))
        shown = letter.upper() if style == 0 else letter
        if style == 1:
            shown = {"k": "\u212a", "s": "\u017f"}.get(letter, letter)
        text += f"\\u{ord(shown):04x}" if style == 2 else shown
    return f'"{text}"'


def string_texts() -> st.SearchStrategy[str]:
    """A string as it stands in JSON, sometimes with an escape that is none."""
    pieces = st.sampled_from(
        [
            "small",
            "x:cloud",
            "5m",
            "0",
            " ",
            "\\n",
            '\\"',
            "\\\\",
            "\\u0041",
            "\\ud83d\\ude00",
            "\\ud800",
            "é",
            "]",
            "}",
            ",",
        ]
    )
    return st.lists(pieces, max_size=6).map(lambda parts: '"' + "".join(parts) + '"')


SCALARS = st.sampled_from(
    ["0", "-0", "1", "0.5", "-1", "1e3", "1E+2", "4096", "1e999", "true", "false", "null", '"small"', '""', '"5m"']
)


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(values, max_size=3))
    return "[" + draw(BLANKS) + ",".join(draw(BLANKS) + item + draw(BLANKS) for item in items) + "]"


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str], names: tuple[str, ...] = FIELDS) -> str:
    members = draw(st.lists(st.tuples(key_texts(names), values), max_size=5))
    inside = ",".join(
        draw(BLANKS) + key + draw(BLANKS) + ":" + draw(BLANKS) + item + draw(BLANKS) for key, item in members
    )
    return "{" + (inside or draw(BLANKS)) + "}"


OPTION_NAMES = ("num_ctx", "num_gpu", "use_mmap", "temperature", "NUM_CTX", "stop", "unknown")
VALUES = st.recursive(
    SCALARS | string_texts(),
    lambda inner: arrays(inner) | objects(inner) | objects(inner, OPTION_NAMES),
    max_leaves=6,
)


def texts() -> st.SearchStrategy[str]:
    """A body that is JSON (as far as the escapes in it are)."""
    tails = st.sampled_from(["", "", " ", "x", "{}", "]", '"'])
    return st.builds(lambda before, body, tail: before + body + tail, BLANKS, objects(VALUES) | VALUES, tails)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A body as bytes, sometimes damaged: cut, a byte replaced by one that hurts, a BOM, bytes that are no UTF-8."""
    data = bytearray(draw(texts()).encode())
    for _ in range(draw(st.integers(0, 3)) // 2):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 1))] = draw(
            st.sampled_from(
                [b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\x00", b"\xff", b"\xc3", b"0", b"x"]
            )
        )
    if draw(st.integers(0, 12)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """A body in pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    bounds = [0, *places, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def dumped(value: object) -> bytes:
    """A plain value as a client library writes it."""
    return json.dumps(value).encode()
