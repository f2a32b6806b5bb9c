"""What is said of a setting that is no good: where it stands, why, and what was probably meant.

Owns the words, and the checks of one setting against another. Must not read settings from anywhere. One line for each
thing that is wrong; a value that may be a secret is not repeated.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from pydantic_core import ErrorDetails

from ollama_swap_proxy.addresses import is_own_listener, overlap
from ollama_swap_proxy.settings.options import Settings, env_name
from ollama_swap_proxy.settings.tables import TABLES
from ollama_swap_proxy.settings.toml import key_text, value_text
from ollama_swap_proxy.settings.values import CREDENTIALS, shown

_Place = tuple[int | str, ...]


def nearest(key: str, *more: str) -> str:
    """Return the option whose name is most like ``key``; ``more`` names count too."""
    return _nearest(key, [*Settings.model_fields, *more])


def unknown_key(key: str, value: object, origin: str) -> str:
    """Say that there is no such option in the file."""
    if isinstance(value, dict | list) and key not in Settings.model_fields and _is_table(value):
        tables = "[classes.NAME], [[rules]] and [models.NAME]"
        return f"[{key_text(key)}] ({origin}): there is no such table, only {tables}; write other settings without one"
    return f"{key} ({origin}): there is no such setting; nearest valid name: {nearest(key)}"


def describe(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    """Say where a value stands that could not be read, and why."""
    place = detail["loc"]
    if detail["type"] == "extra_forbidden":
        return f"{_label(place, origins)}: {_unknown(place)}"
    error = detail.get("ctx", {}).get("error")
    if error:
        return f"{_label(place, origins)}: {error}"
    if detail["type"] == "missing":
        reason = "must be given"
    elif detail["type"] in {"model_type", "dict_type", "tuple_type"}:
        reason = f"must be {_shape(place)}"
    else:
        reason = f"{detail['msg']}; got {shown(detail['input'])}"
    return f"{_label(place, origins)}: {reason[:1].lower()}{reason[1:]}"


def conflicts(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong between settings that are each fine."""
    for key, listener in (("listen", settings.listen), ("admin", settings.admin)):
        if is_own_listener(settings.upstream, listener):
            yield f"{_label(('upstream',), origins)}: {settings.upstream} is our own listener ({key} = {listener})"
    if overlap(settings.listen, settings.admin):
        yield f"{_label(('admin',), origins)}: {settings.admin} is taken by listen = {settings.listen}"
    for place, name in _classes_named(settings):
        if name not in settings.classes:
            near = _nearest(name, settings.classes)
            yield f"{_label(place, origins)}: there is no class {name!r}; nearest valid name: {near}"
    yield from _header_conflicts(settings, origins)
    for place, max_wait_s in _max_waits_given(settings, origins):
        if max_wait_s >= settings.give_up_after_s:
            reason = f"{value_text(max_wait_s)} must be below give_up_after_s ({value_text(settings.give_up_after_s)})"
            yield f"{_label(place, origins)}: {reason}, where requests are turned away"
    yield from _about_pins(settings, origins)


def _about_pins(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    if settings.preload_pinned and not settings.preloads:
        yield f"{_label(('preload_pinned',), origins)}: no model is pinned; write pinned = true into its [models] table"
    for name, table in settings.models.items():
        place = ("models", name, "ttl_s")
        if table.pinned and table.ttl_s:
            yield f"{_label(place, origins)}: a pinned model stays: take out ttl_s, or pinned"
        elif name == settings.home and table.ttl_s:
            yield f"{_label(place, origins)}: the home model stays: take out ttl_s, or home"


def _header_conflicts(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield headers that cannot be read so: with two meanings, or with a secret, which a user's name in the log is."""
    taken: dict[str, str] = {}
    for key in ("forwarded_header", "user_header", "class_header", "patience_header"):
        name = getattr(settings, key)
        if name.lower() in CREDENTIALS:
            yield f"{_label((key,), origins)}: {name} carries secrets, and what is read here is written to the log"
        other = taken.setdefault(name.lower(), key) if name else key
        if other != key:
            yield f"{_label((key,), origins)}: {name} is {other} already; one header cannot say two things"


def _classes_named(settings: Settings) -> Iterator[tuple[_Place, str]]:
    yield ("default_class",), settings.default_class
    for number, rule in enumerate(settings.rules):
        yield ("rules", number, "class"), rule.klass
    for model, table in settings.models.items():
        if table.klass is not None:
            yield ("models", model, "class"), table.klass


def _max_waits_given(settings: Settings, origins: Mapping[str, str]) -> Iterator[tuple[_Place, float]]:
    """Yield those that somebody wrote: who only shortens give_up_after_s need not repeat all others."""
    if origins["max_wait_s"] != "default":
        yield ("max_wait_s",), settings.max_wait_s
    for name, table in settings.classes.items():
        if f"classes.{name}" in origins:
            yield ("classes", name, "max_wait_s"), table.max_wait_s


def _unknown(place: _Place) -> str:
    key = str(place[-1])
    if len(place) == 1:
        return f"there is no such setting; nearest valid name: {nearest(key)}"
    if key in Settings.model_fields and key not in TABLES:
        return "is no setting of this table; write it above the first [table] of the file"
    table = TABLES[str(place[0])]
    known = [field.alias or name for name, field in table.model_fields.items()]
    return f"there is no such setting; nearest valid name: {_nearest(key, known)}"


def _shape(place: _Place) -> str:
    if place[0] == "rules" and len(place) <= 2:
        return "tables, each under its own [[rules]]"
    if len(place) == 3:
        return 'a table, as in header = {X-Job = "*"}'
    if len(place) == 1:
        return f"tables, as in [{place[0]}.NAME]"
    return "a table"


def _label(place: _Place, origins: Mapping[str, str]) -> str:
    """Name a place as it is written in the file, with where its value came from.

    ``place`` is pydantic's: option, then for tables the name or number of the table, the key, what lies in it.
    """
    key = str(place[0])
    origin = origins.get(f"{key}.{place[1]}" if len(place) > 1 else key, origins[key])
    inner = [str(part) for part in place[2:] if part != "[key]" and not isinstance(part, int)]
    if len(place) > 1:
        table = f"[[rules]] no. {int(place[1]) + 1}" if key == "rules" else f"[{key}.{key_text(str(place[1]))}]"
        return f"{' '.join([table, '.'.join(inner)]).rstrip()} ({origin})"
    if key in TABLES or env_name(key) in origin:
        return f"{key} ({origin})"
    return f"{key} ({origin}; in the environment {env_name(key)})"


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _nearest(key: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=0.0)[0]
