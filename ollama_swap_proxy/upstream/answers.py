"""What Ollama's control answers mean: bytes in, plain values out.

Owns the shapes of /api/ps, /api/tags, /api/show, /api/version and of error bodies. Must not send anything, read a clock
or guess: an answer that lacks what we build on is malformed, never "empty".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
"""The options a runner is started with; another value means a reload (api/types.go:588)."""

_BLOB = re.compile(r"sha256[-:][0-9a-f]{64}$")
_VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(.*)$")
_FIRST_SAFE_PS = (0, 32, 4)
_LONGEST_ERROR_TEXT = 500


@dataclass(frozen=True, slots=True)
class PsEntry:
    """One line of /api/ps. ``name`` as listed; ``size_bytes`` may be 0 on a pure CPU load.

    ``expires_in_s`` is relative to the moment of parsing, None where it cannot be read; it is advice only.
    """

    name: str
    digest: str
    size_bytes: int = 0
    size_vram_bytes: int = 0
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class TagEntry:
    """One line of /api/tags. ``name`` is spelled as on disk; ``remote`` marks a stub that runs elsewhere.

    ``size_bytes`` is that of its files.
    """

    name: str
    digest: str
    remote: bool = False
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ShowAnswer:
    """What /api/show tells of a model.

    ``weights`` is the path of the weights blob, "" where there is none (MLX, stubs). ``adapters`` are the adapter and
    projector blobs: names with the same weights and other adapters make Ollama reload. ``capabilities`` is empty
    where an old Ollama does not tell. ``parameters`` holds the model's own `RUNNER_OPTIONS` only.
    """

    weights: str
    adapters: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    parameters: Mapping[str, object] = field(default_factory=dict)
    remote: bool = False


class MalformedAnswerError(Exception):
    """An answer that is not JSON or lacks what we build on."""


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _PsModel(_Wire):
    name: str = Field(min_length=1)
    digest: str = Field(min_length=1)
    size: int = 0
    size_vram: int = 0
    expires_at: str | None = None


class _Ps(_Wire):
    models: list[_PsModel]


class _TagsModel(_Wire):
    name: str = Field(min_length=1)
    digest: str = ""
    size: int = 0
    remote_host: str | None = None
    remote_model: str | None = None


class _Tags(_Wire):
    models: list[_TagsModel] | None


class _Show(_Wire):
    modelfile: str = ""
    parameters: str | None = None
    capabilities: list[str] | None = None
    remote_host: str | None = None
    remote_model: str | None = None


class _Version(_Wire):
    version: str


class _LoadAnswer(_Wire):
    done_reason: str | None = None
    embeddings: list[object] | None = None
    embedding: list[object] | None = None


_M = TypeVar("_M", bound=BaseModel)


def _read(shape: type[_M], body: bytes) -> _M:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MalformedAnswerError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def ps_entries(body: bytes, wall_s: float) -> list[PsEntry]:
    """Read /api/ps (server/routes.go:2271). ``wall_s`` is the time of day, to make ``expires_at`` relative."""
    return [
        PsEntry(
            name=model.name,
            digest=model.digest,
            size_bytes=model.size,
            size_vram_bytes=model.size_vram,
            expires_in_s=_seconds_until(model.expires_at, wall_s),
        )
        for model in _read(_Ps, body).models
    ]


def _seconds_until(timestamp: str | None, wall_s: float) -> float | None:
    """RFC3339 with nanoseconds in the server's own zone; a keep_alive of "forever" lies in the year 2319."""
    if not timestamp:
        return None
    try:
        return datetime.fromisoformat(timestamp).timestamp() - wall_s
    except (ValueError, OverflowError):
        return None


def tag_entries(body: bytes) -> list[TagEntry]:
    """Read /api/tags; stubs of remote models carry remote_host and remote_model (api/types.go:822)."""
    return [
        TagEntry(
            name=model.name,
            digest=model.digest,
            remote=bool(model.remote_host or model.remote_model),
            size_bytes=model.size,
        )
        for model in _read(_Tags, body).models or []
    ]


def show_answer(body: bytes) -> ShowAnswer:
    """Read /api/show (server/routes.go:1395)."""
    show = _read(_Show, body)
    weights, adapters = _blobs(show.modelfile)
    return ShowAnswer(
        weights=weights,
        adapters=adapters,
        capabilities=frozenset(show.capabilities or ()),
        parameters=_runner_options(show.parameters or ""),
        remote=bool(show.remote_host or show.remote_model),
    )


def _blobs(modelfile: str) -> tuple[str, tuple[str, ...]]:
    """Find the weights blob and the adapter and projector blobs in the head of a modelfile.

    Order of the lines: FROM weights, ADAPTER ..., DRAFT ..., FROM projector ..., then TEMPLATE and SYSTEM, which may
    hold anything (server/images.go:586). For MLX the first FROM is the short name (server/routes.go:1523).
    """
    weights: str | None = None
    adapters = []
    for line in modelfile.splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#") or word == "DRAFT":
            continue
        if word not in {"FROM", "ADAPTER"}:
            break
        blob = rest.strip().strip('"')
        if weights is None:
            weights = blob if _BLOB.search(blob) else ""
        else:
            adapters.append(blob)
    return weights or "", tuple(adapters)


def _runner_options(parameters: str) -> dict[str, object]:
    """Read lines such as `num_ctx    4096`, which come in random order and print numbers as Go's %#v."""
    options: dict[str, object] = {}
    for line in parameters.splitlines():
        name, _, text = line.strip().partition(" ")
        if name in RUNNER_OPTIONS:
            try:
                value = json.loads(text)
            except ValueError:
                continue
            whole = isinstance(value, float) and value.is_integer()
            options[name] = int(value) if whole else value
    return options


def version(body: bytes) -> str:
    """Read /api/version; a development build says "0.0.0"."""
    return _read(_Version, body).version


def ps_is_safe(text: str) -> bool:
    """Say whether this version's /api/ps takes locks (v0.32.4, PR #17376): before, polling could kill the server."""
    match = _VERSION.match(text)
    if match is None:
        return False
    number = (int(match[1]), int(match[2]), int(match[3]))
    return number > _FIRST_SAFE_PS or (number == _FIRST_SAFE_PS and not match[4].startswith("-"))


def loaded(body: bytes) -> bool:
    """Say whether the answer to an empty request means "loaded" (server/routes.go:478, 862, 1079)."""
    answer = _read(_LoadAnswer, body)
    return answer.done_reason == "load" or answer.embeddings is not None or answer.embedding is not None


def error_text(body: bytes) -> str:
    """Return Ollama's own words from a failed answer: its "error" field, else the body itself, shortened."""
    try:
        shape = json.loads(body)
    except (ValueError, RecursionError):
        shape = None
    if isinstance(shape, dict) and isinstance(shape.get("error"), str):
        return str(shape["error"])
    return body.decode(errors="replace").strip()[:_LONGEST_ERROR_TEXT]
