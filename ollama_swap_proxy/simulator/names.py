"""Model names by Ollama's rules: parts, defaults, validity, cloud suffixes.

Owns names as the simulated server understands them. Written apart from the proxy's own reading of names on purpose:
one is tested against the other. Must not know which models exist. Facts: types/model/name.go:146,
internal/modelref/modelref.go:99; recorded in tests/transcripts (cloud_disabled, errors_native).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
Source = Literal["local", "cloud", "both", "unset"]


@dataclass(frozen=True, slots=True)
class Name:
    """A name with all its parts."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def valid(self) -> bool:
        """Whether Ollama takes it for a model's name."""
        return bool(
            _HOST.fullmatch(self.host)
            and _NAMESPACE.fullmatch(self.namespace)
            and _PART.fullmatch(self.model)
            and _PART.fullmatch(self.tag)
        )

    @property
    def short(self) -> str:
        """Shortest form, always with a tag: what tags and ps show."""
        name = f"{self.model}:{self.tag}"
        if self.host != HOST:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace == NAMESPACE else f"{self.namespace}/{name}"

    @property
    def full(self) -> str:
        """With host and namespace."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def folded(self) -> str:
        """What two spellings of one name have in common."""
        return self.full.lower()


def parse(text: str) -> Name:
    """Split a name; missing parts get their defaults. Check `Name.valid` before use."""
    rest = text.strip()
    if "://" in rest:
        rest = rest.split("://", 1)[1]
    head, _, tail = rest.rpartition("/")
    model, colon, tag = tail.rpartition(":")
    if not colon:
        model, tag = tail, TAG
    parts = head.split("/") if head else []
    namespace = parts[-1] if parts else NAMESPACE
    host = "/".join(parts[:-1]) if len(parts) > 1 else HOST
    return Name(host, namespace, model, tag)


def source_of(text: str) -> tuple[str, Source]:
    """The name without its source suffix, and where it points: ``x:cloud``, ``x:8b-cloud``, ``x:local``."""
    base, colon, suffix = text.rpartition(":")
    if not colon:
        return text, "unset"
    word = suffix.strip().lower()
    if word in {"cloud", "local"}:
        inner = base.rpartition(":")[2].strip().lower() if ":" in base else ""
        if inner in {"cloud", "local"} or inner.endswith("-cloud"):
            return base, "both"
        return base, "cloud" if word == "cloud" else "local"
    if word.endswith("-cloud") and "/" not in suffix:
        return text[: len(text) - len("-cloud")], "cloud"
    return text, "unset"
