"""What a request wants of Ollama: a model, an unload, something in the cloud, or nothing that Ollama would grant.

Owns the judgement of a gated request from its fields. Must not know which models exist (the catalog does), and must not
guess: a request is refused for certain only where Ollama's decoder and handlers leave no doubt, in the releases that we
know of; in doubt it takes a lease. Facts: server/routes.go, api/types.go, the middleware of the OpenAI and Anthropic
surfaces; recorded in tests/transcripts (errors_native, errors_v1, keep_alive_table, preload_unload, cloud_disabled).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final

from ollama_swap_proxy.core import durations, endpoints, names
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.json_fields import Fields, clean
from ollama_swap_proxy.core.skeleton import Keep, Rules

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
"""The options whose change makes Ollama reload a model (api/types.go:588)."""

_RUNNER_OPTIONS = frozenset(RUNNER_OPTIONS)
_NUMBER_OPTIONS = (
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread"),
    *("num_keep", "seed", "num_predict", "top_k", "top_p", "temperature", "repeat_last_n"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty"),
)
_BOOLEAN_OPTIONS = ("use_mmap",)
"""Options whose type Ollama checks, in all releases alike (an option that a release does not know is ignored)."""

_SAME_AS_ABSENT_WHEN_NULL = frozenset({"num_ctx", "num_gpu", "main_gpu", "use_mmap", "num_thread"})
"""A null leaves an option at its default. Of the others Ollama also asks whether they are there: they then load anew
(server/routes.go:138, 162). It asks so of num_ctx, too, but only where memory ran out is the outcome another."""

_NATIVE_COMPLETING = frozenset({endpoints.GENERATE, endpoints.CHAT})
_WITH_SUFFIX = frozenset({endpoints.GENERATE, endpoints.V1_COMPLETIONS})
_WITH_TOOLS = frozenset({endpoints.CHAT, endpoints.V1_CHAT})
_WITH_MESSAGES = frozenset({endpoints.V1_CHAT, endpoints.V1_MESSAGES})
_WITH_INPUT = frozenset({endpoints.EMBED, endpoints.V1_EMBEDDINGS})
_NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
_NO_NEEDS: frozenset[str] = frozenset()
_STRING, _BOOLEAN, _NUMBER, _ARRAY, _OBJECT = (str,), (bool,), (int, float), (list,), (tuple,)
_WrongTypes = Mapping[type, frozenset[str]]
"""By the type of a value, the names that it is wrong for (null for none): no way to ask costs a request less."""


def _wrong_types(right: Mapping[str, tuple[type, ...]]) -> _WrongTypes:
    wrong: dict[type, frozenset[str]] = {type(None): frozenset()}
    for each in (*_STRING, *_BOOLEAN, *_NUMBER, *_ARRAY, *_OBJECT):
        wrong[each] = frozenset(name for name, types in right.items() if each not in types)
    return wrong


_WRONG_OPTIONS = _wrong_types({**dict.fromkeys(_NUMBER_OPTIONS, _NUMBER), **dict.fromkeys(_BOOLEAN_OPTIONS, _BOOLEAN)})
_NATIVE_TYPES: Mapping[str, tuple[type, ...]] = {"model": _STRING, "options": _OBJECT}
_V1_TYPES: Mapping[str, tuple[type, ...]] = {"model": _STRING, "stream": _BOOLEAN}
_PROMPT_TYPES = dict.fromkeys(("prompt", "suffix", "system", "template"), _STRING)
_TYPES: Mapping[Endpoint, Mapping[str, tuple[type, ...]]] = {
    endpoints.GENERATE: {**_NATIVE_TYPES, **_PROMPT_TYPES, "stream": _BOOLEAN, "raw": _BOOLEAN, "images": _ARRAY},
    endpoints.CHAT: {**_NATIVE_TYPES, "messages": _ARRAY, "tools": _ARRAY, "stream": _BOOLEAN},
    endpoints.EMBED: _NATIVE_TYPES,
    endpoints.EMBEDDINGS: {**_NATIVE_TYPES, "prompt": _STRING},
    endpoints.V1_CHAT: {**_V1_TYPES, "messages": _ARRAY, "tools": _ARRAY, "max_tokens": _NUMBER},
    endpoints.V1_COMPLETIONS: {**_V1_TYPES, "max_tokens": _NUMBER},
    endpoints.V1_EMBEDDINGS: {"model": _STRING},
    endpoints.V1_RESPONSES: _V1_TYPES,
    endpoints.V1_IMAGES: {"model": _STRING},
    endpoints.V1_IMAGE_EDITS: {"model": _STRING},
    endpoints.V1_MESSAGES: {**_V1_TYPES, "messages": _ARRAY, "max_tokens": _NUMBER},
}
"""Fields whose Go type has been the same for as long as they exist; the others are left to Ollama."""

_WRONG_FIELDS: Mapping[Endpoint, _WrongTypes] = {endpoint: _wrong_types(right) for endpoint, right in _TYPES.items()}

_NEEDS: Mapping[Endpoint, frozenset[str]] = {
    **dict.fromkeys(endpoints.GATED, frozenset({"completion"})),
    **dict.fromkeys((endpoints.EMBED, endpoints.EMBEDDINGS, endpoints.V1_EMBEDDINGS), _NO_NEEDS),
    **dict.fromkeys((endpoints.V1_IMAGES, endpoints.V1_IMAGE_EDITS), frozenset({"image"})),
}
_NEEDING_MORE = frozenset({"suffix", "tools", "think"})
"""The fields by which a request may need more: few have any."""

RULES: Rules = {
    **dict.fromkeys(("model", "keep_alive", "stream", "shift", "think", "max_tokens", "raw"), Keep.VALUE),
    **dict.fromkeys(("prompt", "suffix", "system", "template", "messages", "input", "tools", "images"), Keep.SHAPE),
    "options": dict.fromkeys([*_NUMBER_OPTIONS, *_BOOLEAN_OPTIONS, *RUNNER_OPTIONS], Keep.VALUE),
}
"""What a `skeleton.Skeleton` must keep so that `judge` says the same of it as of the whole body."""


class Kind(Enum):
    """What to do with a request on a gated route."""

    LEASE = "lease"
    UNLOAD = "unload"
    """Asks Ollama to unload the model: passed on at once, and the view is outdated."""
    CLOUD = "cloud"
    """Goes to ollama.com: passed on at once."""
    SURE_REFUSAL = "sure_refusal"
    """Ollama answers with an error without loading anything: passed on at once, so that it does."""


_LEASE: Final = Kind.LEASE
"""What nearly every request is: an enum's member costs much more to look up than a name."""


@dataclass(slots=True)
class Intent:
    """What a request on a gated route asks for. Not to be changed (to make a frozen one costs four times as much).

    ``model`` is as sent, ``name`` canonical (for CLOUD without the suffix; empty where there is none). ``reason`` says
    why it is a sure refusal. ``keep_alive_s`` is None where none was given, `math.inf` for forever. ``options`` are the
    runner options that the request carries, and ``shift``. ``needs`` are capabilities without which Ollama refuses it.
    """

    kind: Kind
    model: str = ""
    name: str = ""
    reason: str = ""
    keep_alive_s: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    needs: frozenset[str] = _NO_NEEDS


def surely_refused_by(intent: Intent, capabilities: Collection[str] | None) -> bool:
    """Say whether Ollama is certain to refuse this of a model with these capabilities (None: not known).

    Of a model that makes images nothing is certain: up to 0.32.5 /api/generate serves it without any other capability.
    """
    return capabilities is not None and "image" not in capabilities and not intent.needs.issubset(capabilities)


def refusal(reason: str, model: str = "") -> Intent:
    """Return the intent of a request that Ollama is certain to refuse."""
    return Intent(Kind.SURE_REFUSAL, model=model, reason=reason)


def judge_form(model: str, *, has_audio: bool = True) -> Intent:
    """Judge a transcription by the ``model`` of its form or query, empty for none (middleware/openai.go:1277)."""
    parsed = names.parse(model)
    if isinstance(parsed, names.InvalidName):
        return refusal(parsed.reason, model)
    if not has_audio:
        return refusal("file is missing or empty", model)
    if isinstance(parsed, names.CloudName):
        return Intent(Kind.CLOUD, model, parsed.canonical)
    return Intent(Kind.LEASE, model, parsed.canonical)


def judge(endpoint: Endpoint, fields: Fields) -> Intent:
    """Judge a request by the fields of its JSON body. Total: in doubt the answer is a lease."""
    last = fields.last
    given_model = fields.plain("model") if fields.several else last.get("model")
    model = clean(given_model) if isinstance(given_model, str) else ""
    parsed = names.parse(model)
    given = fields.merged("options") if "options" in last and endpoint.is_native else _NO_OPTIONS
    keep_alive_ns: int | None = None
    needs = _NO_NEEDS
    try:
        _check_types(endpoint, fields)
        if "keep_alive" in last and endpoint.is_native:
            keep_alive_ns = _keep_alive_ns(fields)
        if isinstance(parsed, names.InvalidName):
            return refusal(parsed.reason, model)
        if isinstance(parsed, names.CloudName):
            # The cloud check of /v1 is case-sensitive; where it alone sees a cloud name: a lease.
            kind = Kind.CLOUD
        elif keep_alive_ns == 0 and _is_empty(endpoint, fields):
            kind = Kind.UNLOAD
        else:
            kind = _LEASE
            if given:
                _check_options(given)
            if endpoint not in _NATIVE_COMPLETING:
                _check_required(endpoint, fields)
            needs = _NEEDS[endpoint] if _NEEDING_MORE.isdisjoint(last) else _needs(endpoint, fields)
    except (_SurelyRefusedError, durations.BadDurationError) as problem:
        return refusal(str(problem), model)
    return Intent(
        kind,
        model,
        parsed.canonical,
        "",
        None if keep_alive_ns is None else _seconds(keep_alive_ns),
        _options(endpoint, fields, given) if "shift" in last or not _RUNNER_OPTIONS.isdisjoint(given) else _NO_OPTIONS,
        needs,
    )


class _SurelyRefusedError(Exception):
    """Says why Ollama is certain to refuse the request."""


def _check_types(endpoint: Endpoint, fields: Fields) -> None:
    """Find a field for which Go's decoder reports a type error; it looks at overruled duplicates too, not at null."""
    wrong = _WRONG_FIELDS[endpoint]
    for name, value in fields.last.items():
        if name in wrong[type(value)]:
            raise _SurelyRefusedError(f"{name} is of the wrong type")
    if not fields.several:
        return
    for name, values in fields.several.items():
        if any(name in wrong[type(value)] for value in values):
            raise _SurelyRefusedError(f"{name} is of the wrong type")


def _check_options(given: Mapping[str, object]) -> None:
    """Find an option for which Ollama answers ``option "x" must be of type y`` (api/types.go:991)."""
    for name, value in given.items():
        if name in _WRONG_OPTIONS[type(value)]:
            raise _SurelyRefusedError(f"option {name} must be a {'number' if name in _NUMBER_OPTIONS else 'boolean'}")


def _check_required(endpoint: Endpoint, fields: Fields) -> None:
    """Find what the surfaces insist on before they ask the scheduler (the middleware of OpenAI and Anthropic)."""
    if endpoint in _WITH_MESSAGES and not fields.nullable("messages"):
        raise _SurelyRefusedError("messages is missing or empty")
    if endpoint is endpoints.V1_MESSAGES:
        max_tokens = fields.plain("max_tokens")
        if max_tokens is None or (isinstance(max_tokens, int | float) and max_tokens <= 0):
            raise _SurelyRefusedError("max_tokens is missing or not positive")
    if endpoint in _WITH_INPUT:
        given = fields.nullable("input")
        if endpoint is endpoints.V1_EMBEDDINGS and (given is None or given == []):
            raise _SurelyRefusedError("input is missing or empty")
        if isinstance(given, int | float | tuple):
            raise _SurelyRefusedError("input is of the wrong type")


def _is_empty(endpoint: Endpoint, fields: Fields) -> bool:
    """Say whether there is nothing to generate: such a request preloads or unloads (server/routes.go:478).

    Images do not count as a prompt. An embedding has no such form: with keep_alive 0 it loads.
    """
    if endpoint is endpoints.GENERATE:
        return not fields.plain("prompt")
    return endpoint is endpoints.CHAT and not fields.nullable("messages")


def _needs(endpoint: Endpoint, fields: Fields) -> frozenset[str]:
    """Return the capabilities that Ollama checks before it schedules. Embedding checks none: completers embed too."""
    last = fields.last
    needs = _NEEDS[endpoint]
    if "suffix" in last and endpoint in _WITH_SUFFIX and fields.plain("suffix"):
        needs |= {"insert"}
    if "tools" in last and endpoint in _WITH_TOOLS and last["tools"]:
        needs |= {"tools"}
    if "think" in last and endpoint in _NATIVE_COMPLETING and last["think"] in (True, "high", "medium", "low"):
        needs |= {"thinking"}
    return needs


def _options(endpoint: Endpoint, fields: Fields, given: Mapping[str, object]) -> Mapping[str, object]:
    """Return the runner options of the request that have an effect; only native routes can set any."""
    options: dict[str, object] = {}
    if not _RUNNER_OPTIONS.isdisjoint(given):
        for name in RUNNER_OPTIONS:
            if name in given and not (given[name] is None and name in _SAME_AS_ABSENT_WHEN_NULL):
                options[name] = given[name]
    if "shift" in fields.last and endpoint in _NATIVE_COMPLETING:
        shift = fields.nullable("shift")
        if isinstance(shift, bool):
            options["shift"] = shift
    return options


def _keep_alive_ns(fields: Fields) -> int | None:
    """Return the last keep_alive, None where it is absent or null; a bad one counts even if it is overruled."""
    nanoseconds: int | None = None
    for value in fields.every("keep_alive"):
        nanoseconds = None if value is None else durations.parse_keep_alive_ns(value)
    return nanoseconds


def _seconds(nanoseconds: int) -> float:
    return float("inf") if nanoseconds == durations.FOREVER_NS else max(nanoseconds, 0) / 1e9
