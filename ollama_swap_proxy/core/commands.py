"""Imperatives: the only things that the scheduler asks for.

Owns the shapes. The gate carries them out and tells the outcome as an event. Must not hold behaviour. None is to be
changed; a grant is not frozen, because every request needs one, and to make a frozen one costs several times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ollama_swap_proxy.core.tickets import LoadRecipe, Variant


@dataclass(slots=True)
class Grant:
    """Let this ticket's request through: it now holds a lease.

    ``swapped`` says whether a swap was made while it waited (for the request's log line). ``loads`` marks the request
    by which Ollama itself loads the model: the gate tells its first byte at once (`events.Progressed`), that of
    others later.
    """

    ticket_id: int
    swapped: bool = False
    loads: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a ticket ends without a lease. ``code`` is stable and documented (docs/api.md).

    Codes: ``upstream_down`` (502), ``waited_too_long`` (503), ``nothing_moved`` (503), ``unload_not_confirmed``
    (504), ``drain_stuck`` (503), ``drain_timeout`` (503), ``upstream_timeout`` (504), ``load_failed`` (upstream's
    status), ``load_timeout`` (504), ``line_full`` (503), ``pinned_out`` (503), ``not_resident`` (503), ``stopping``
    (503).
    """

    code: str
    status: int
    message: str
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer this ticket's request with an error of ours."""

    ticket_id: int
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Cut:
    """End a leased request that runs: with this error where nothing of its answer has come, else by cutting it.

    ``unless_moved_since``: not if upstream has sent a byte after this moment, of which we are told later.
    """

    ticket_id: int
    rejection: Rejection
    unless_moved_since: float | None = None


@dataclass(frozen=True, slots=True)
class Observe:
    """Fetch a report that is asked for now or later than now (one that is under way already is too old)."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Ask upstream to unload whatever runner has this key, by any name that still reaches it."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class Load:
    """Make upstream load this variant, on a task that no client owns."""

    variant: Variant
    name: str
    recipe: LoadRecipe
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Describe:
    """Find out, as of now, what a plain request for this model needs; told as `events.Described`."""

    name: str


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Set the keep_alive of the runner of this key by an empty request: its variant's ``recipe`` and ``keep_alive``,
    in seconds (negative: for ever). Told as `events.KeptAlive`.
    """

    key: str
    name: str
    recipe: LoadRecipe
    keep_alive: float


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send `events.TimePassed` at this time; replaces the wake asked for before. None: no wake is needed."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """Something worth a log line happened; ``name`` is stable, ``fields`` are plain values. Logging is a command too.

    The names and what each means to an operator: docs/operations.md, "What the log says".
    """

    name: str
    fields: Mapping[str, object] = field(default_factory=dict)
    warning: bool = False


Command = Grant | Reject | Cut | Observe | Evict | Load | Describe | KeepAlive | WakeAt | Step
