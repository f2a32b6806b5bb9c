"""Model names: one canonical spelling, and the suffixes that say where a model lives.

Owns Ollama's name rules (types/model/name.go, internal/modelref/modelref.go; recorded in tests/transcripts/aliases.json
and cloud_disabled.json). Must not know which models exist. Pure and total: any string has an answer.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"
_MISSING = "!MISSING!"
"""What Go puts for a part that a separator promised: no valid part, so the whole name is invalid."""

_GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Go's unicode.IsSpace; Python's own strip() also takes U+001C to U+001F."""

_LONGEST_REMEMBERED = 200
"""Every request names a model, and they are few: the answers for names up to this length are kept."""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name that this server looks up on its own disk.

    ``canonical`` is what names are compared by: lower case, default host and namespace dropped, always with a tag
    (names are case-insensitive: server/routes.go:1222). ``explicitly_local``: it carried the ``:local`` suffix.
    """

    canonical: str
    explicitly_local: bool = False


@dataclass(frozen=True, slots=True)
class CloudName:
    """A name that Ollama sends to ollama.com: it never reaches the scheduler. ``canonical`` is without the suffix."""

    canonical: str


@dataclass(frozen=True, slots=True)
class InvalidName:
    """A name that Ollama refuses; ``reason`` is its own text (``model is required`` also for the empty name)."""

    reason: str


def parse(name: str) -> ModelName | CloudName | InvalidName:
    """Judge what a request gave as its model, as parseAndValidateModelRef does (server/model_resolver.go:36)."""
    return _remembered(name) if len(name) <= _LONGEST_REMEMBERED else _parse(name)


def _parse(name: str) -> ModelName | CloudName | InvalidName:
    stripped = name.strip(_GO_SPACE)
    if not stripped:
        return InvalidName("model is required")
    base, suffix = _cut_suffix(stripped)
    if suffix and _cut_suffix(base)[1]:
        return InvalidName("use either :local or :cloud, not both")
    spelled = _spell(base)
    if spelled is None:
        return InvalidName("invalid model name")
    return CloudName(spelled) if suffix == "cloud" else ModelName(spelled, explicitly_local=suffix == "local")


_remembered = functools.lru_cache(maxsize=1024)(_parse)


def canonical(name: str) -> str:
    """Return the canonical spelling; of an invalid name, the name itself (so that it equals nothing that exists).

    For names that Ollama itself lists, a cloud stub's tag (``:cloud``) is part of the name: no suffix is cut here.
    """
    return _spell(name.strip(_GO_SPACE)) or name


def _cut_suffix(name: str) -> tuple[str, str]:
    """Cut ``:local``, ``:cloud`` or the end of ``:8b-cloud``; the second value is ``local``, ``cloud`` or nothing."""
    before, colon, after = name.rpartition(":")
    if not colon:
        return name, ""
    after = after.strip(_GO_SPACE)
    lowered = after.lower()
    if lowered in {"cloud", "local"}:
        return before, lowered
    if lowered.endswith("-cloud") and "/" not in after:
        return f"{before}:{after[: -len('-cloud')]}", "cloud"
    return name, ""


def _spell(name: str) -> str | None:
    """Return the canonical spelling of ``[scheme://][host/][namespace/]model[:tag]``, or None if a part is invalid."""
    rest, host, namespace, tag = name, "", "", ""
    if rest.rfind(":") > rest.rfind("/"):
        rest, tag = _cut_promised(rest, ":")
    model = rest
    if "/" in rest:
        rest, model = _cut_promised(rest, "/")
        namespace = rest
        if "/" in rest:
            rest, namespace = _cut_promised(rest, "/")
            scheme, separator, after = rest.partition("://")
            host = after if separator else scheme
    host, namespace, tag = host or _DEFAULT_HOST, namespace or _DEFAULT_NAMESPACE, tag or _DEFAULT_TAG
    parts = ((_HOST, host), (_NAMESPACE, namespace), (_MODEL_OR_TAG, model), (_MODEL_OR_TAG, tag))
    if not all(pattern.fullmatch(part) for pattern, part in parts):
        return None
    host, namespace, model, tag = host.lower(), namespace.lower(), model.lower(), tag.lower()
    if host != _DEFAULT_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{model}:{tag}"


def _cut_promised(text: str, separator: str) -> tuple[str, str]:
    before, _, after = text.rpartition(separator)
    return before or _MISSING, after or _MISSING
