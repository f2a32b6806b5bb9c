"""Compares an answer with a recorded one: text by text, line by line, JSON token by token.

What may differ is listed in `VARIES`, each path with the check that it must still pass; nothing else may, down to the
order of keys, the spelling of numbers and the blanks between them.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.simulator.transcripts import Answer, Exchange, date_of, normalised

DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"-?[0-9.eE+-]+")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LITERAL = re.compile(r"true|false|null")


@dataclass(frozen=True)
class Node:
    """One JSON value with its exact text."""

    raw: str
    members: tuple[tuple[str, Node], ...] = ()
    items: tuple[Node, ...] = ()


def parse(text: str, at: int = 0) -> tuple[Node, int]:
    """Read the JSON value at ``at`` as Go writes it, without any blank; ValueError for anything else."""
    if text.startswith('"', at):
        return _scalar(_STRING, text, at)
    if not text.startswith(("{", "["), at):
        return _scalar(_LITERAL if text[at : at + 1] in {"t", "f", "n"} else _NUMBER, text, at)
    start, is_object = at, text[at] == "{"
    end = "}" if is_object else "]"
    members: list[tuple[str, Node]] = []
    at += 1
    while not text.startswith(end, at):
        if members:
            at = _skip(",", text, at)
        key = ""
        if is_object:
            name, at = _scalar(_STRING, text, at)
            key, at = name.raw, _skip(":", text, at)
        value, at = parse(text, at)
        members.append((key, value))
    raw = text[start : at + 1]
    if is_object:
        return Node(raw, members=tuple(members)), at + 1
    return Node(raw, items=tuple(value for _, value in members)), at + 1


def _scalar(pattern: re.Pattern[str], text: str, at: int) -> tuple[Node, int]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError(f"no JSON at {at}: {text[at : at + 40]!r}")
    return Node(found[0]), found.end()


def _skip(char: str, text: str, at: int) -> int:
    if not text.startswith(char, at):
        raise ValueError(f"no {char!r} at {at}: {text[at : at + 40]!r}")
    return at + 1


@dataclass
class Memory:
    """What was seen in the place of what, so that the same stays the same: an answer's ids, a group's digests."""

    pairs: dict[str, str] = field(default_factory=dict)

    def agrees(self, expected: str, actual: str) -> bool:
        """Whether ``actual`` stands for ``expected`` and for nothing else."""
        known = self.pairs.setdefault(expected, actual)
        return known == actual and list(self.pairs.values()).count(actual) == 1


@dataclass
class Context:
    """What a check may know. ``expected_at`` and ``actual_at`` are the Date headers."""

    digests: Memory = field(default_factory=Memory)
    vectors: Memory = field(default_factory=Memory)
    ids: Memory = field(default_factory=Memory)
    expected_at: datetime | None = None
    actual_at: datetime | None = None
    loose: frozenset[str] = frozenset()
    """Paths whose strings are this recording's own: any string will do."""


Check = Callable[[str, str, Context], bool]


def _like(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda _expected, actual, _context: compiled.fullmatch(actual) is not None


def _same_thing(pattern: str) -> Check:
    """Like the pattern, and the same id wherever the recording has the same."""
    compiled = re.compile(pattern)
    return lambda expected, actual, context: (
        compiled.fullmatch(actual) is not None and context.ids.agrees(expected, actual)
    )


def _moment(raw: str) -> datetime:
    text = json.loads(raw)
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def _expires(expected: str, actual: str, context: Context) -> bool:
    """RFC3339 with an offset, and as far from now as in the recording, within two seconds."""
    if re.fullmatch(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"', actual) is None:
        return False
    if context.expected_at is None or context.actual_at is None:
        return True
    wanted = _moment(expected) - context.expected_at
    found = _moment(actual) - context.actual_at
    return abs(wanted - found) <= timedelta(seconds=2) + abs(wanted) / 1000


def _vector(kind: str) -> Check:
    """As many numbers, spelled as Go spells that type, of length one; the same for the same input."""

    def check(expected: str, actual: str, context: Context) -> bool:
        numbers = parse(actual)[0].items
        values = [float(item.raw) for item in numbers]
        spelled = all(_spelling(float(item.raw), kind) == item.raw for item in numbers)
        alike = len(values) == len(parse(expected)[0].items) and abs(sum(v * v for v in values) - 1) < 0.001
        return spelled and alike and context.vectors.agrees(expected, actual)

    return check


def _spelling(value: float, kind: str) -> str:
    if kind == "float64":
        return repr(value)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if struct.pack("f", float(text)) == struct.pack("f", value):
            return repr(float(text))
    return repr(value)


def _vectors(expected: str, actual: str, context: Context) -> bool:
    wanted, found = parse(expected)[0].items, parse(actual)[0].items
    one = _vector("float32")
    return len(wanted) == len(found) and all(one(e.raw, a.raw, context) for e, a in zip(wanted, found, strict=True))


def _vector_or_packed(expected: str, actual: str, context: Context) -> bool:
    if not expected.startswith('"'):
        return _vector("float32")(expected, actual, context)
    sizes = [len(base64.b64decode(json.loads(raw), validate=True)) for raw in (expected, actual)]
    return sizes[0] == sizes[1]


def _size(expected: str, actual: str, _context: Context) -> bool:
    """Exact where the whole model is on one side; a spilled one's within 1 % (the recorder's engine splits by layers).

    The recorder's weights were stand-ins of 3 kB: /api/tags shows the size of such a file, and any size will do there.
    """
    wanted, found = int(expected), int(actual)
    if 0 < wanted < 10_000:
        return found > 0
    return found == wanted if wanted % 2**20 == 0 else abs(found - wanted) <= wanted / 100


_UTC = _like(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"')
_UNIX = _like(r"1[0-9]{9}")
_POSITIVE = _like(r"[1-9][0-9]*")
_CHAT_ID = _same_thing(r'"chatcmpl-\d{1,3}"')
_CALL_ID = _like(r'"(chatcmpl-\d+-\d+|call_[0-9a-z]{8,})"')
_RESPONSE_ID = _same_thing(r'"resp_\d{1,6}"')
_ITEM_ID = _same_thing(r'"(msg_\d{1,6}|fc_(resp_)?\d{1,6}_\d+)"')

VARIES: dict[str, Check] = {
    # native
    "$.created_at": lambda e, a, c: (_UNIX if e.isdigit() else _UTC)(e, a, c),
    "$.total_duration": _POSITIVE,
    "$.load_duration": _POSITIVE,
    "$.prompt_eval_duration": _POSITIVE,
    "$.eval_duration": _POSITIVE,
    "$.context": _like(r"\[\d+(,\d+)*\]"),  # token numbers of the recorder's engine
    "$.message.tool_calls[].id": _CALL_ID,
    "$.embeddings": _vectors,
    "$.embedding": lambda e, a, c: a == e if e == "[]" else _vector("float64")(e, a, c),
    "$.models[].size": _size,
    "$.models[].size_vram": _size,
    "$.models[].expires_at": _expires,
    # A stand-in without an Ollama template: /api/tags did not see that it can call tools.
    "$.models[].capabilities": lambda e, a, _c: set(json.loads(e)) <= set(json.loads(a)) <= {*json.loads(e), "tools"},
    # The recorder's stand-in weights had no file type: F32 to /api/tags, unknown to /api/ps.
    "$.models[].details.quantization_level": _like(r'"\w+"'),
    "$.models[].modified_at": _like(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"'),
    "$.modified_at": _like(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"'),
    # OpenAI
    "$.id": lambda e, a, c: next(check for start, check in _IDS.items() if e.startswith(start))(e, a, c),
    "$.created": _UNIX,
    "$.data[].created": _UNIX,
    "$.data[].embedding": _vector_or_packed,
    "$.choices[].message.tool_calls[].id": _CALL_ID,
    "$.choices[].delta.tool_calls[].id": _CALL_ID,
    "$.completed_at": _UNIX,
    "$.output[].id": _ITEM_ID,
    "$.output[].call_id": _CALL_ID,
    "$.response.id": _RESPONSE_ID,
    "$.response.created_at": _UNIX,
    "$.response.completed_at": lambda e, a, c: a == e if e == "null" else _UNIX(e, a, c),
    "$.response.output[].id": _ITEM_ID,
    "$.response.output[].call_id": _CALL_ID,
    "$.item.id": _ITEM_ID,
    "$.item.call_id": _CALL_ID,
    "$.item_id": _ITEM_ID,
    # Anthropic
    "$.request_id": _like(r'"req_[0-9a-f]{24}"'),
    "$.message.id": _same_thing(r'"msg_[0-9a-f]{24}"'),
    "$.content[].id": _CALL_ID,
    "$.content_block.id": _CALL_ID,
}
"""Path -> check of (recorded text, text, context)."""
UNORDERED = {"$.models": ("modified_at", "expires_at"), "$.data": ("owned_by",)}
"""Lists whose items, if they have such a member, come in any order within one second of it."""
_IDS = {
    '"chatcmpl-': _CHAT_ID,
    '"cmpl-': _same_thing(r'"cmpl-\d{1,3}"'),
    '"resp_': _RESPONSE_ID,
    '"msg_': _same_thing(r'"msg_[0-9a-f]{24}"'),
    '"': lambda e, a, _c: e == a,  # the name of a model
}


def compare(expected: str, actual: str, context: Context) -> Iterator[str]:
    """What differs between two bodies or chunks, as readable lines."""
    wanted, found = expected.splitlines(keepends=True), actual.splitlines(keepends=True)
    if len(wanted) != len(found):
        yield f"{len(found)} lines instead of {len(wanted)}: {actual[:300]!r} instead of {expected[:300]!r}"
        return
    for one, other in zip(wanted, found, strict=True):
        yield from _compare_line(one, other, context)


def _compare_line(expected: str, actual: str, context: Context) -> Iterator[str]:
    head = re.match(r"(data: )?(?=\{|\[(?!DONE\]))", expected)
    if head is None:
        if not _alike(expected, actual, context):
            yield f"{actual!r} instead of {expected!r}"
        return
    if not actual.startswith(head[0] + expected[head.end()]):
        yield f"{actual[:200]!r} instead of {expected[:200]!r}"
        return
    try:
        wanted, wanted_end = parse(expected, head.end())
        found, found_end = parse(actual, head.end())
    except ValueError as problem:
        yield f"{problem} in {actual[:200]!r}"
        return
    yield from _compare_node(wanted, found, "$", context)
    if expected[wanted_end:] != actual[found_end:]:
        yield f"{actual[found_end:]!r} behind the value instead of {expected[wanted_end:]!r}"


def _compare_node(wanted: Node, found: Node, path: str, context: Context) -> Iterator[str]:
    if path in VARIES:
        if not VARIES[path](wanted.raw, found.raw, context):
            yield f"{path}: {found.raw[:120]} will not do for {wanted.raw[:120]}"
    elif path in context.loose:
        if _kind(found) != _kind(wanted):
            yield f"{path}: {found.raw[:120]} is of another type than {wanted.raw[:120]}"
    elif wanted.members or found.members:
        yield from _compare_objects(wanted, found, path, context)
    elif wanted.items or found.items:
        yield from _compare_lists(wanted, found, path, context)
    elif not _alike(wanted.raw, found.raw, context):
        yield f"{path}: {found.raw[:2000]} instead of {wanted.raw[:2000]}"


def _compare_objects(wanted: Node, found: Node, path: str, context: Context) -> Iterator[str]:
    keys, others = [key for key, _ in wanted.members], [key for key, _ in found.members]
    if keys != others:
        yield f"{path}: keys {others} instead of {keys}"
    members = dict(found.members)
    for key, node in wanted.members:
        if key in members:
            yield from _compare_node(node, members[key], f"{path}.{json.loads(key)}", context)


def _compare_lists(wanted: Node, found: Node, path: str, context: Context) -> Iterator[str]:
    if len(wanted.items) != len(found.items):
        yield f"{path}: {len(found.items)} items instead of {len(wanted.items)}: {found.raw[:300]}"
    if path == "$.models" and _out_of_order(found):
        yield f"{path}: not in the order of expires_at: {found.raw}"
    for one, other in zip(_ordered(wanted, path), _ordered(found, path), strict=False):
        yield from _compare_node(one, other, f"{path}[]", context)


def _kind(node: Node) -> str:
    return "number" if node.raw[0] in "-0123456789" else node.raw[0]


def _ordered(node: Node, path: str) -> list[Node]:
    marks = {f'"{mark}"' for mark in UNORDERED.get(path, ())}
    if not all(marks & dict(item.members).keys() for item in node.items):
        return list(node.items)
    return sorted(node.items, key=_identity)


def _identity(item: Node) -> list[str]:
    """What tells one model in a list from the others: two may have one name, but not one size."""
    members = dict(item.members)
    return [members[name].raw.rjust(20) for name in ('"name"', '"id"', '"size_vram"') if name in members]


def _out_of_order(node: Node) -> bool:
    """Whether the list of /api/ps is not sorted by whole seconds of expiry, the last first."""
    moments = [dict(item.members).get('"expires_at"') for item in node.items]
    seconds = [int(_moment(moment.raw).timestamp()) for moment in moments if moment is not None]
    return seconds != sorted(seconds, reverse=True)


def _alike(expected: str, actual: str, context: Context) -> bool:
    """The same text, but for digests, which must stand for each other throughout the group."""
    digests, others = DIGEST.findall(expected), DIGEST.findall(actual)
    same = DIGEST.sub("#", expected) == DIGEST.sub("#", actual) and len(digests) == len(others)
    return same and all(context.digests.agrees(e, a) for e, a in zip(digests, others, strict=True))


def differences(exchange: Exchange, answer: Answer, group: Context, port: int) -> Iterator[str]:
    """What differs between a recorded answer and this one."""
    recorded = exchange.response
    context = replace(
        group,
        ids=Memory(),
        expected_at=date_of(recorded.get("headers") or []),
        actual_at=answer.at,
    )
    if exchange.request.get("path", "").startswith("/api/blobs/"):
        for digest in DIGEST.findall(exchange.request["path"]):
            context.digests.pairs.setdefault(digest, digest)
    if recorded.get("status_line", "") != answer.status_line:
        yield f"{answer.status_line!r} instead of {recorded.get('status_line')!r}: {answer.body or answer.chunks}"
        return
    if recorded.get("interim") != answer.interim:
        yield f"interim {answer.interim!r} instead of {recorded.get('interim')!r}"
    yield from _compare_headers(recorded, answer, port)
    left = exchange.leaves_after_ms is not None
    if not left and recorded.get("end") != answer.end:
        yield f"end {answer.end!r} instead of {recorded.get('end')!r}"
    yield from compare(recorded.get("body", ""), normalised(answer.body, port), context)
    expected = [chunk["text"] for chunk in recorded.get("chunks", ())]
    actual = [normalised(chunk, port) for chunk in answer.chunks or ()]
    if left:
        common = min(len(expected), len(actual))
        if expected and not common:
            yield "no chunk before the client left"
        expected, actual = expected[:common], actual[:common]
    if len(expected) != len(actual):
        yield f"{len(actual)} chunks instead of {len(expected)}: {actual}"
    for one, other in zip(expected, actual, strict=False):
        yield from compare(one, other, context)


def _compare_headers(recorded: dict[str, object], answer: Answer, port: int) -> Iterator[str]:
    """Names, case and order; values, but for Date and for the length of a body that is compared by itself."""
    expected = [tuple(pair) for pair in recorded.get("headers") or ()]  # type: ignore[attr-defined]
    actual = [(name, normalised(value, port)) for name, value in answer.headers]
    if [name for name, _ in expected] != [name for name, _ in actual]:
        yield f"headers {actual} instead of {expected}"
        return
    for (name, value), (_, other) in zip(expected, actual, strict=True):
        if name == "Date":
            if date_of([[name, other]]) is None or not other.endswith(" GMT"):
                yield f"no date: {other}"
        elif value != other and not (name == "Content-Length" and recorded.get("body")):
            yield f"{name}: {other} instead of {value}"
