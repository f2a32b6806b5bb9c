"""The simulated model store: which names exist, what they are made of, which blobs are there.

Owns manifests and blobs. Must not know runners: deleting or re-creating a name leaves whatever is loaded alone, as in
Ollama. Facts: server/sched.go:110 (the key), types/model/name.go; tests/transcripts (aliases, deleted_while_loaded).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_swap_proxy.simulator import gojson, names
from ollama_swap_proxy.simulator.models import SimModel


@dataclass(frozen=True, slots=True)
class Manifest:
    """One name in the store. ``modified_s`` in unix seconds; ``digest`` is that of the manifest, shared by copies."""

    name: names.Name
    model: SimModel
    digest: str
    modified_s: float

    @property
    def capabilities(self) -> list[str]:
        """What the model can do: what /api/show lists, and what is checked of a request (server/images.go:112)."""
        return self._able(tools=self.model.tools)

    @property
    def listed_capabilities(self) -> list[str]:
        """As /api/tags lists them, which goes by Ollama's own template alone (server/model_list_cache.go:369).

        A model whose chat template is the engine's own can call tools without saying so there (recorded: toolman).
        """
        return self._able(tools=self.model.tools and ".Tools" in self.model.template)

    def _able(self, *, tools: bool) -> list[str]:
        model = self.model
        if model.embed:
            return ["embedding"]
        flags = {"vision": model.vision, "tools": tools, "thinking": model.thinking}
        return ["completion", *(name for name, on in flags.items() if on)]


class Library:
    """All manifests by folded name, and all blobs by digest."""

    def __init__(self, models: Iterable[SimModel], now_s: float) -> None:
        self._by_name: dict[str, Manifest] = {}
        self.blobs: dict[str, bytes] = {}
        self._serial = itertools.count(1)
        for model in models:
            self.add(model, now_s)

    def __iter__(self) -> Iterator[Manifest]:
        """Newest first."""
        return iter(sorted(self._by_name.values(), key=lambda m: -m.modified_s))

    def add(self, model: SimModel, now_s: float, name: names.Name | None = None) -> Manifest:
        """Put a model under its own name or another, whatever had that name before."""
        name = self.spelled(name or names.parse(model.name))
        # Later additions sort as newer ones even within one tick of the clock.
        manifest = Manifest(name, model, manifest_digest(model), now_s + next(self._serial) * 1e-3)
        self._by_name[name.folded] = manifest
        return manifest

    def find(self, text: str, *, fold: bool = True) -> Manifest | None:
        """The manifest that a request's name means. ``fold`` False: only in the spelling on disk."""
        name = names.parse(text)
        manifest = self._by_name.get(name.folded)
        return manifest if manifest is None or fold or manifest.name == name else None

    def spelled(self, name: names.Name) -> names.Name:
        """The name in the spelling of the manifest that is already there."""
        found = self._by_name.get(name.folded)
        return found.name if found else name

    def copy(self, source: Manifest, destination: names.Name, now_s: float) -> None:
        """An alias: same digest, same weights."""
        name = self.spelled(destination)
        self._by_name[name.folded] = replace(source, name=name, modified_s=now_s)

    def delete(self, manifest: Manifest) -> None:
        """Take the name away; whatever is loaded under it stays loaded."""
        self._by_name.pop(manifest.name.folded, None)

    def derive(self, base: Manifest, name: names.Name, changes: Mapping[str, Any], now_s: float) -> Manifest:
        """A model made FROM another one: its own digest, the same weights."""
        model = base.model
        derived = replace(
            model,
            parent=base.name.short,
            system=str(changes.get("system") or model.system),
            template=str(changes.get("template") or model.template),
            parameters={**model.parameters, **(changes.get("parameters") or {})},
        )
        return self.add(derived, now_s, name)


def manifest_digest(model: SimModel) -> str:
    """64 hex digits that depend on all that makes up the model."""
    parts = [model.weights_digest, model.system, model.template, model.license, dict(model.parameters)]
    return hashlib.sha256(gojson.encode(parts)).hexdigest()
