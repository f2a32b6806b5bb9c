"""What stands in the tables of the TOML file: classes, the rules that choose among them, and single models.

Owns their keys, and the classes that there are without any setting. Must not apply a rule (`callers` does). Tables have
no variables in the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ollama_swap_proxy.settings.values import (
    ClassName,
    ClientNetworks,
    ConditionName,
    CountOrZero,
    Globs,
    Groups,
    HeaderGlobs,
    KeepAlive,
    KeyHashes,
    ModelGlobs,
    PathGlobs,
    Rank,
    Seconds,
    SecondsOrZero,
    model_name,
)


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
    )


class ClassTable(_Table):
    """``[classes.NAME]``."""

    rank: Rank
    """0 to 1000; the higher goes first. Classes of one rank are served in order of arrival. A class of your own must
    have one; interactive has 20, normal 10, batch 0."""

    max_wait_s: SecondsOrZero = 0
    """What a wait of this class should not exceed: from there on a request goes before all that are less late, whatever
    their rank, and long turns of others end early for it. 0: as max_wait_s above. Below give_up_after_s."""


class RuleTable(_Table):
    """``[[rules]]``: a class, and the conditions that must all hold. Of a condition's values any will do."""

    klass: Annotated[ClassName, Field(alias="class")]
    """The class of the requests for which every condition below holds. At least one condition must be given; a list
    of values holds when one of them does. In globs * stands for any characters, ? for one, [ab] for one of these; case
    does not matter."""

    model: ModelGlobs | None = None
    """Glob on the model's name as Ollama lists it, with its tag: "qwen3" means "qwen3:latest", "qwen3:*" all sizes."""

    path: PathGlobs | None = None
    """Glob on the gated route, as in "/v1/embeddings" or "/api/embed*"."""

    key_sha256: KeyHashes | None = None
    """The SHA-256 of the API key, in hex digits (printf %s KEY | sha256sum): of the bearer token in Authorization, else
    of all of Authorization, else of X-Api-Key."""

    header: dict[ConditionName, HeaderGlobs] | None = None
    """Globs on headers, as in {X-Job = "*"}; all that are given must match. The header named by user_header counts only
    when a trusted proxy sent it; any other can be sent by everybody."""

    client: ClientNetworks | None = None
    """The client's address, or a network, as in "192.168.1.0/24"."""

    user_agent: Globs | None = None
    """Glob on User-Agent, as in "ollama-python/*"."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> RuleTable:
        if all(getattr(self, name) is None for name in type(self).model_fields if name != "klass") or self.header == {}:
            raise ValueError("has no condition; the class of all that no rule names is default_class")
        return self


class ModelTable(_Table):
    """``[models."NAME"]``."""

    klass: Annotated[ClassName | None, Field(alias="class")] = None
    """The class of requests for this model for which no rule holds. Without it, default_class."""

    pinned: bool = False
    """true: never a victim for another model ("hot"). It can leave the card all the same: for a request for it with
    other options, during a trial, and where only another load order fits; then it is loaded again at once. A
    request for a model that cannot be beside the pinned ones is refused at once, with the sizes."""

    priority: Rank = 0
    """When somebody must go, the model with the lowest priority leaves first, whatever its reload costs. 0 to 1000;
    the default is 0."""

    groups: Groups = ()
    """Names of groups: models that share one may be resident together, whatever residency says. Their first load in
    each order is a trial, whose failure is only logged."""

    min_num_ctx: CountOrZero = 0
    """Requests of Ollama's own routes (/api/...) that ask for a smaller num_ctx than this, or for none where the model
    has no such PARAMETER of at least so much, are sent with this one: the only case in which a body is changed. So
    clients with different ones share one runner instead of making Ollama load the model for each in turn. Name what the
    largest of them need, and no less than Ollama's own default on this card, which it would lower. It holds under this
    name of the model only. /v1 cannot name a num_ctx: where clients use both, give the model itself PARAMETER num_ctx,
    too. 0: every body stays as it was sent."""

    ttl_s: SecondsOrZero | None = None
    """As ttl_s above, for this model. 0: never. A pinned model has none. Of several names of one model the longest
    counts, here and below."""

    keep_alive: KeepAlive | None = None
    """As keep_alive above, for this model. 0: what clients send counts."""

    drain_timeout_s: SecondsOrZero | None = None
    """As drain_timeout_s above, for requests that run on this model. 0: for ever."""

    unload_timeout_s: Seconds | None = None
    """As unload_timeout_s above, for this model."""

    load_timeout_s: Seconds | None = None
    """As load_timeout_s above, for this model."""

    first_byte_timeout_s: SecondsOrZero | None = None
    """As first_byte_timeout_s above, for this model. 0: for ever."""

    idle_stream_timeout_s: SecondsOrZero | None = None
    """As idle_stream_timeout_s above, for this model. 0: for ever."""


BUILT_IN_CLASSES: Mapping[str, Mapping[str, float]] = {
    "interactive": {"rank": 20, "max_wait_s": 60},
    "normal": {"rank": 10, "max_wait_s": 0},
    "batch": {"rank": 0, "max_wait_s": 1800},
}
"""60 s: a person waits before a screen, and many clients give up then. 1800 s: nobody waits, but half of
give_up_after_s is left for being served. Ranks in steps of ten leave room between them."""


def _with_built_ins(value: object) -> object:
    """Lay what is given over the built-in classes, key by key."""
    if not isinstance(value, dict):
        return value
    given = {name: table.model_dump() if isinstance(table, ClassTable) else table for name, table in value.items()}
    merged: dict[Any, Any] = {name: dict(keys) for name, keys in BUILT_IN_CLASSES.items()}
    for name, table in given.items():
        merged[name] = {**merged.get(name, {}), **table} if isinstance(table, dict) else table
    return merged


def _by_canonical_name(value: object) -> object:
    if not isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    spelled: dict[str, object] = {}
    for name, table in value.items():
        canonical = model_name(name)
        first = spelled.setdefault(canonical, name)
        if first != name:
            raise ValueError(
                f"the tables {first!r} and {name!r} are of one model, {canonical!r} (without a tag a name means "
                ":latest, and case does not matter); write one table for both"
            )
        found[canonical] = table
    return found


Classes = Annotated[dict[ClassName, ClassTable], BeforeValidator(_with_built_ins), Field(validate_default=True)]
Rules = tuple[RuleTable, ...]
Models = Annotated[dict[str, ModelTable], BeforeValidator(_by_canonical_name)]

TABLES: Mapping[str, type[BaseModel]] = {"classes": ClassTable, "rules": RuleTable, "models": ModelTable}
"""The options that are tables, and what each table of them holds."""
