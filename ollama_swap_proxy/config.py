"""Every setting: what it does, its unit, its default, and the only place where settings are read.

Owns the options and their sources: command line, environment, one TOML file, defaults, in this order. Must not act on a
setting. `OLLAMA_HOST` is never read: where clients share its environment it points at us. docs/config.md and
config.example.toml repeat what stands here, and tests compare them.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from yarl import URL

from ollama_swap_proxy.addresses import Address, is_own_listener, overlap, parse_address, parse_upstream
from ollama_swap_proxy.core.policy import Policy

ENV_PREFIX = "OLLAMA_SWAP_PROXY_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
"""Names the TOML file, where no ``--config`` does."""

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


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  # pydantic reports ValueError only
    return value


def _read_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    return parse_address(_text(value))


def _read_upstream(value: object) -> URL:
    if isinstance(value, URL):
        return value
    return parse_upstream(_text(value))


def _read_hosts(value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError("must be a list of host names")  # noqa: TRY004  # pydantic reports ValueError only
    hosts = tuple(_text(item).strip().lower().rstrip(".") for item in items)
    for host in hosts:
        if "/" in host or " " in host:
            raise ValueError(f"must be host names without scheme, port or path; got {host!r}")
    return tuple(host for host in hosts if host)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text; got {value!r}")  # noqa: TRY004  # pydantic reports ValueError only
    return value


_NoBool = BeforeValidator(_no_bool)
Listen = Annotated[Address, BeforeValidator(_read_address)]
Upstream = Annotated[URL, BeforeValidator(_read_upstream)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_read_hosts)]
Count = Annotated[int, _NoBool, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, _NoBool, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, _NoBool, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, _NoBool, Field(ge=0)]


class Settings(BaseModel):
    """All settings. Times are in seconds (``_s``), sizes in bytes (``_bytes``; ``"8 MiB"`` is read too)."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    listen: Listen = Address("127.0.0.1", 11435)
    """HOST:PORT that clients talk to; port 0 lets the system choose. Beside Ollama's own port, so that it can be
    tried without moving Ollama."""

    upstream: Upstream = URL("http://127.0.0.1:11434")
    """Your Ollama: http://HOST:PORT, https://HOST:PORT, HOST:PORT or HOST (then port 11434; with http:// and no port
    80, with https:// 443, as Ollama's own clients read it). No path. Must not be one of our own listeners."""

    admin: Listen = Address("127.0.0.1", 11445)
    """HOST:PORT of the operator's listener (/healthz, /readyz, /v1/snapshot). Keep it on loopback: it asks for no
    password."""

    allowed_hosts: Hosts = ()
    """Further Host names accepted while we listen on loopback (in the environment: separated by commas). Loopback
    names, .local, .internal and the like are accepted anyway, as Ollama does; the check keeps web pages from
    reaching you by DNS rebinding. Empty: none."""

    parallel: Count = 4
    """How many requests for one model run side by side; further ones wait. At least OLLAMA_NUM_PARALLEL, and a
    little more keeps Ollama busy."""

    line_limit: Count = 512
    """How many requests may wait in all; one more is answered 503 line_full. The same as Ollama's own
    OLLAMA_MAX_QUEUE."""

    turn_limit_s: SecondsOrZero = 0
    """How long one model is served while others wait. 0: the larger of 10 s and twice what the swap costs, so that
    swapping takes at most a third of a saturated card."""

    max_wait_s: Seconds = 120
    """A turn that lasts longer ends for a request that is about to have waited so long, allowing for the swap that it
    needs; but not before it has lasted the larger of 10 s and twice that swap. Refuses nobody, and does not change
    whose turn is next: models follow each other in order of arrival."""

    give_up_after_s: Seconds = 3600
    """A request that waited so long is answered 503 waited_too_long, even though things move. Longer than any
    client's own patience."""

    stuck_after_s: Seconds = 600
    """Waiting requests are answered 503 when nothing at all moved for so long: no grant, no streamed byte, no step
    of a swap; a drain without a byte for so long is given up. Long, because a slow answer that is not streamed moves
    nothing until its end."""

    load_timeout_s: Seconds = 600
    """How long a model may take to load before those who wait for it are answered 504. Twice Ollama's own
    OLLAMA_LOAD_TIMEOUT (5 min)."""

    unload_timeout_s: Seconds = 60
    """How long a model may take to be gone after we asked Ollama to unload it; then the waiting requests are
    answered 504. Real unloads take 1 to 6 s. A model that others loaded may be busy with requests that we cannot
    see: it gets stuck_after_s where that is longer."""

    cool_down_s: SecondsOrZero = 10
    """After a failed swap the same one is not tried for so long, doubling with each failure. 0: tried again at once."""

    cool_down_max_s: SecondsOrZero = 600
    """Where that doubling ends. 0: never longer than cool_down_s."""

    settle_max_s: SecondsOrZero = 6
    """The longest learned wait between an unload and the next load, for memory that comes back late. 0: never wait.
    Drivers need up to about 5 s; the wait itself is learned and starts at 0."""

    ps_max_age_s: SecondsOrZero = 1
    """How old our last look at /api/ps may be for a request to go straight through. 0: every request asks anew."""

    ps_interval_s: Annotated[float, _NoBool, Field(ge=0.1, allow_inf_nan=False)] = 5
    """How often /api/ps is read when nobody asks, so that models loaded behind our back are noticed. At least 0.1."""

    report_timeout_s: Seconds = 2
    """How long /api/ps may take before what is resident counts as unknown. Ollama answers in 1 ms, but blocks for
    seconds while it ends a runner."""

    connect_timeout_s: Seconds = 5
    """How long connecting to Ollama may take; then the request is answered 502. Once it is sent, nothing of ours
    limits its time; while it waits for its model, give_up_after_s, stuck_after_s, load_timeout_s and
    unload_timeout_s do."""

    body_limit_bytes: Bytes = ByteSize(1024**3)
    """The largest body of a request on a gated route; a larger one is answered 413. 0: no limit. Uploads
    (/api/blobs) have no limit either way. 1 GiB is twenty times the largest image request we heard of."""

    body_memory_bytes: Bytes = ByteSize(8 * 1024**2)
    """How much of such a body is kept in memory while its request waits; the rest goes to a temporary file. 0: all
    of it does, but for bodies of up to 16 KiB that come at once. 8 MiB holds any text."""

    shutdown_grace_s: SecondsOrZero = 30
    """How long running answers may go on after SIGTERM. 0: they are cut at once. A second signal ends at once
    anyway."""

    log_format: Literal["auto", "pretty", "json"] = "auto"
    """pretty: for eyes; json: one object a line; auto: pretty on a terminal, else json. Logs go to stderr."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe kind of line that is written. info has one line for each gated
    request, each error of ours and each step of a swap, debug one for every request."""

    def policy(self) -> Policy:
        """Return the numbers that the scheduler decides by."""
        values = {field.name: getattr(self, field.name) for field in fields(Policy)}
        values["cool_down_max_s"] = max(self.cool_down_s, self.cool_down_max_s)
        return Policy(**values)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each of them the source that won (``origins``: option to text)."""

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
    in_file = _read_file(path, messages) if path else {}
    in_environment = _read_environment(environ, messages)
    on_command_line = {key: value for key, value in overrides.items() if value is not None}
    origins = dict.fromkeys(Settings.model_fields, "default")
    origins |= dict.fromkeys(in_file, f"file {path}")
    origins |= {key: f"environment {env_name(key)}" for key in in_environment}
    origins |= dict.fromkeys(on_command_line, "command line")
    try:
        settings = Settings.model_validate({**in_file, **in_environment, **on_command_line})
    except ValidationError as error:
        messages += [_describe(detail, origins) for detail in error.errors(include_url=False)]
        raise ConfigError(messages) from None
    messages += _collisions(settings, origins)
    if messages:
        raise ConfigError(messages)
    return Loaded(settings, origins)


def env_name(key: str) -> str:
    """Return the environment variable of an option."""
    return ENV_PREFIX + key.upper()


def _read_file(path: Path, messages: list[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        messages.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        messages.append(f"{path}: is not valid TOML: {error}")
        return {}
    unknown = sorted(values.keys() - Settings.model_fields.keys())
    for key in unknown:
        if isinstance(values[key], dict):
            messages.append(f"[{key}] (file {path}): there are no tables; write the settings without one")
        else:
            messages.append(f"{key} (file {path}): there is no such setting; nearest valid name: {_nearest(key)}")
    return {key: value for key, value in values.items() if key in Settings.model_fields}


def _read_environment(environ: Mapping[str, str], messages: list[str]) -> dict[str, str]:
    values = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_VARIABLE:
            continue
        rest, value = name.removeprefix(ENV_PREFIX), environ[name]
        key = rest.lower()
        if key in Settings.model_fields and env_name(key) == name:
            if value:
                values[key] = value
        elif not _is_from_kubernetes(rest, value):
            nearest = CONFIG_VARIABLE if _nearest(key, "config") == "config" else env_name(_nearest(key))
            messages.append(f"{name} (environment): there is no such setting; nearest valid name: {nearest}")
    return values


def _is_from_kubernetes(rest: str, value: str) -> bool:
    if _KUBERNETES.fullmatch(rest):
        return True
    return _KUBERNETES_PORT.fullmatch(rest) is not None and _KUBERNETES_PORT_VALUE.fullmatch(value) is not None


def _nearest(key: str, *more: str) -> str:
    return difflib.get_close_matches(key.lower(), [*Settings.model_fields, *more], n=1, cutoff=0.0)[0]


def _describe(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    key = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"{key} ({origins[key]}): there is no such setting; nearest valid name: {_nearest(key)}"
    error = detail.get("ctx", {}).get("error")
    reason = str(error) if error else f"{detail['msg']}; got {detail['input']!r}"
    return f"{_label(key, origins)}: {reason[:1].lower()}{reason[1:]}"


def _label(key: str, origins: Mapping[str, str]) -> str:
    origin = origins[key]
    return f"{key} ({origin})" if env_name(key) in origin else f"{key} ({origin}; in the environment {env_name(key)})"


def _collisions(settings: Settings, origins: Mapping[str, str]) -> list[str]:
    found = []
    for key, listener in (("listen", settings.listen), ("admin", settings.admin)):
        if is_own_listener(settings.upstream, listener):
            found.append(f"{_label('upstream', origins)}: {settings.upstream} is our own listener ({key} = {listener})")
    if overlap(settings.listen, settings.admin):
        found.append(f"{_label('admin', origins)}: {settings.admin} is taken by listen = {settings.listen}")
    return found
