"""The only place where settings are read: from the command line, the environment, one TOML file, and defaults.

Owns these sources and their order; `settings` has the options. Must not act on a setting. `OLLAMA_HOST` is never read:
where clients share its environment it points at us.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ollama_swap_proxy.core import names
from ollama_swap_proxy.settings.complaints import conflicts, describe, nearest, unknown_key
from ollama_swap_proxy.settings.options import ENV_PREFIX, Settings, env_name
from ollama_swap_proxy.settings.tables import TABLES
from ollama_swap_proxy.settings.values import AUTO_STATE_FILE, NO_STATE_FILE

__all__ = ["CONFIG_VARIABLE", "ENV_PREFIX", "ConfigError", "Loaded", "Settings", "env_name", "load", "load_settings"]

CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
"""Names the TOML file, where no ``--config`` does."""

_STATE_FOLDER, _STATE_FILE = "ollama-swap-proxy", "state.json"
_STATE_PLACES = ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME")

_KUBERNETES = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""What Kubernetes puts into every container for a service called ollama-swap-proxy or ollama-swap-proxy-SOMETHING."""

_KUBERNETES_PORT = re.compile(r"(?:\w+_)?PORT")
_KUBERNETES_PORT_VALUE = re.compile(r"(?:tcp|udp|sctp)://\S+")
"""``_PORT`` is Kubernetes' own only with such a value: a person who writes a bare number there means a setting."""


class ConfigError(Exception):
    """The settings are no good; ``messages`` has one line for each thing that is wrong."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = list(messages)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each of them the source that won.

    ``origins``: option to text. The tables of a file have entries of their own, as ``classes.batch``.
    """

    settings: Settings
    origins: Mapping[str, str]


def load_settings(
    overrides: Mapping[str, object], environ: Mapping[str, str] | None = None, path: Path | None = None
) -> Settings:
    """Read the settings; see `load`."""
    return load(overrides, environ, path).settings


def load(overrides: Mapping[str, object], environ: Mapping[str, str] | None = None, path: Path | None = None) -> Loaded:
    """Read and check the settings, and say where each came from.

    ``overrides`` come from the command line and win (None: not given). ``environ`` is the process's own environment
    unless given; a variable that is empty counts as not set. ``path`` is the TOML file; without it
    OLLAMA_SWAP_PROXY_CONFIG names one, or there is none.

    Raises:
        ConfigError: with everything that is wrong, not only the first.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(CONFIG_VARIABLE)
    path = path or (Path(named) if named else None)
    messages: list[str] = []
    file = f"file {_spelled(path)}" if path else ""
    in_file = _read_file(path, messages) if path else {}
    in_environment = _read_environment(environ, messages)
    on_command_line = {key: value for key, value in overrides.items() if value is not None}
    origins = dict.fromkeys(Settings.model_fields, "default")
    origins |= dict.fromkeys(in_file, file)
    origins |= dict.fromkeys(_table_names(in_file), file)
    origins |= {key: f"environment {env_name(key)}" for key in in_environment}
    origins |= dict.fromkeys(on_command_line, "command line")
    for values in (in_environment, on_command_line):
        messages += _drop_what_is_not_utf8(values, origins)
    try:
        settings = Settings.model_validate({**in_file, **in_environment, **on_command_line})
        if settings.state_file == AUTO_STATE_FILE:
            found = {"state_file": _state_file(environ)}
            messages += _drop_what_is_not_utf8(found, {"state_file": f"auto, from {', '.join(_STATE_PLACES)}"})
            settings = settings.model_copy(update=found)
    except ValidationError as error:
        messages += [describe(detail, origins) for detail in error.errors(include_url=False)]
        raise ConfigError(messages) from None
    messages += conflicts(settings, origins)
    if messages:
        raise ConfigError(messages)
    return Loaded(settings, origins)


def _drop_what_is_not_utf8(values: MutableMapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Drop texts with bytes that are no characters: those can neither be printed nor sent. Say which, and no more,
    for an upstream may have a password in it.
    """
    messages = []
    for key, value in list(values.items()):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            messages.append(f"{key} ({origins[key]}): must be UTF-8, and no. {error.start + 1} is no character of it")
            del values[key]
    return messages


def _spelled(path: Path) -> str:
    """Write a path where only one line of printable text can stand."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _state_file(environ: Mapping[str, str]) -> str:
    """Return where the state file belongs in this environment, or that there is no place for it.

    A user without a home of its own (a container's, a service's) often has ``/`` or a folder that does not exist.
    """
    given, state_home, home = (environ.get(name, "") for name in _STATE_PLACES)
    if given:
        return str(Path(given.partition(":")[0]) / _STATE_FILE)  # systemd separates several by colons
    if Path(state_home).is_absolute():  # others are to be ignored (XDG Base Directory Specification)
        return str(Path(state_home) / _STATE_FOLDER / _STATE_FILE)
    if Path(home).is_absolute() and Path(home) != Path("/") and Path(home).is_dir():
        return str(Path(home) / ".local" / "state" / _STATE_FOLDER / _STATE_FILE)
    return NO_STATE_FILE


def _read_file(path: Path, messages: list[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        messages.append(f"{_spelled(path)}: cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        messages.append(f"{_spelled(path)}: is not valid TOML: {error}")
        return {}
    except RecursionError:
        messages.append(f"{_spelled(path)}: cannot be read: lists or tables lie too deep in each other")
        return {}
    except ValueError:  # the reader does not say where
        messages.append(f"{_spelled(path)}: cannot be read: a number has too many digits")
        return {}
    unknown = sorted(values.keys() - Settings.model_fields.keys())
    messages += [unknown_key(key, values[key], f"file {_spelled(path)}") for key in unknown]
    return {key: value for key, value in values.items() if key in Settings.model_fields}


def _table_names(in_file: Mapping[str, Any]) -> list[str]:
    """Return the tables of a file that have a name, as ``classes.batch`` and ``models.`` with the canonical name."""
    found = []
    for key in TABLES:
        tables = in_file.get(key)
        if isinstance(tables, dict):
            found += [f"{key}.{name}" for name in tables]
            if key == "models":
                found += [f"{key}.{names.canonical(name)}" for name in tables]
    return found


def _read_environment(environ: Mapping[str, str], messages: list[str]) -> dict[str, str]:
    values = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_VARIABLE:
            continue
        rest, value = name.removeprefix(ENV_PREFIX), environ[name]
        key = rest.lower()
        if key in TABLES:
            messages.append(f"{name} (environment): {key} are tables, which only a file can have ({CONFIG_VARIABLE})")
        elif key in Settings.model_fields and env_name(key) == name:
            if value:
                values[key] = value
        elif not _is_from_kubernetes(rest, value):
            near = CONFIG_VARIABLE if nearest(key, "config") == "config" else env_name(nearest(key))
            messages.append(f"{name} (environment): there is no such setting; nearest valid name: {near}")
    return values


def _is_from_kubernetes(rest: str, value: str) -> bool:
    if _KUBERNETES.fullmatch(rest):
        return True
    return _KUBERNETES_PORT.fullmatch(rest) is not None and _KUBERNETES_PORT_VALUE.fullmatch(value) is not None
