"""Variants: how the runner options of a request are spelled, and by which empty request they are loaded.

Owns the spelling and the recipe. Must not fetch a model's own parameters or capabilities (the catalog does).
Facts: server/sched.go:1381 (what makes a runner reload), server/routes.go:478, 862 (empty requests that load).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.requests import RUNNER_OPTIONS
from ollama_swap_proxy.core.tickets import LoadRecipe

_SPELLED = (*RUNNER_OPTIONS, "shift")
_HUGE = 2**63
_LOADED_BY_THEMSELVES = frozenset({endpoints.V1_TRANSCRIPTIONS, endpoints.V1_IMAGES, endpoints.V1_IMAGE_EDITS})


def variant_options(
    model_parameters: Mapping[str, object], request_options: Mapping[str, object], adapters: Sequence[str] = ()
) -> str:
    """Return the canonical spelling of the effective runner options, like ``num_ctx=8192,shift=false``; empty for none.

    The model's own parameters are overlaid by the request's. An absent option is a value of its own: Ollama reloads for
    explicit-then-absent (transcript num_ctx_reload). Only the defaults that it compares as plain numbers are the same
    as absent: a negative num_gpu, num_thread 0. Values may be JSON values or text as /api/show prints it.
    ``adapters`` are the model's adapter and projector blobs: not in the key, but other ones force a reload, too.
    """
    effective = {**model_parameters, **request_options}
    spelled = ((name, _spell(effective[name])) for name in _SPELLED if name in effective)
    options = [f"{name}={value}" for name, value in spelled if not _is_default(name, value)]
    if adapters:
        options.append(f"adapters={'+'.join(adapter[-12:] for adapter in adapters)}")
    return ",".join(options)


def changes(has: str, wanted: str) -> tuple[str, ...]:
    """Return what differs between two spellings, as in ``num_ctx 4096 -> 8192``; an absent option is ``default``."""
    before, after = (dict(each.partition("=")[::2] for each in text.split(",") if each) for text in (has, wanted))
    return tuple(
        f"{name} {before.get(name, 'default')} -> {after.get(name, 'default')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    )


def load_recipe(
    endpoint: Endpoint,
    name: str,
    options: Mapping[str, object],
    capabilities: Collection[str] | None,
) -> LoadRecipe | None:
    """Return the empty request that makes Ollama load what this request needs, or None: let the request load it itself.

    ``options`` are those that the request gave (`requests.Intent.options`); the model's own apply by themselves.
    ``capabilities`` None: not known. The request carries no keep_alive, which would be sticky on the runner.
    """
    if endpoint in _LOADED_BY_THEMSELVES or not all(_is_sendable(value) for value in options.values()):
        return None
    body: dict[str, object] = {"model": name}
    runner_options = {key: value for key, value in options.items() if key != "shift"}
    if runner_options:
        body["options"] = runner_options
    embeds = endpoint in {endpoints.EMBED, endpoints.EMBEDDINGS, endpoints.V1_EMBEDDINGS}
    if embeds or (capabilities is not None and "completion" not in capabilities and "embedding" in capabilities):
        return LoadRecipe("/api/embed", _encode({**body, "input": []}))
    if capabilities is not None and ("completion" not in capabilities or "image" in capabilities):
        return None
    if "shift" in options:
        body["shift"] = options["shift"]
    return LoadRecipe("/api/generate", _encode({**body, "stream": False}))


def _spell(value: object) -> str:
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        # Ollama reads numbers as float64 and cuts the fraction off.
        try:
            return str(int(float(value)))
        except (OverflowError, ValueError):
            return "huge"
    return "other"


def _is_default(name: str, spelled: str) -> bool:
    """Say whether this means the same as no such option, in every release (api/types.go:1117, server/sched.go:1408)."""
    return (name == "num_gpu" and spelled.startswith("-")) or (name == "num_thread" and spelled == "0")


def _from_text(text: str) -> object:
    lowered = text.strip().lower()
    if lowered in {"true", "false"}:
        return lowered == "true"
    try:
        return float(lowered)
    except ValueError:
        return text


def _is_sendable(value: object) -> bool:
    return value is None or (isinstance(value, bool | int | float) and abs(value) < _HUGE)


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body).encode()
