"""Facts, in the past tense: the only things that the scheduler is told.

Owns the shapes. Must not hold behaviour: `scheduler` says what each fact means. None is to be changed; the two that
every request brings are not frozen, because to make a frozen one costs several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

from ollama_swap_proxy.core.policy import Mode
from ollama_swap_proxy.core.tickets import Need, Report, Ticket, Variant


@dataclass(slots=True)
class Arrived:
    """A request that needs a lease is here, its body read."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The client of a waiting ticket left."""

    ticket_id: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """The answer to a leased request moved: upstream sent bytes, the last of them at ``at``.

    ``stream_began_at`` is when the first came, of an answer that is streamed.
    """

    ticket_id: int
    at: float
    stream_began_at: float | None = None


@dataclass(slots=True)
class Released:
    """A leased request is over. ``failed`` says that upstream answered it with a status of 500 or more, or broke
    off. ``stream`` is when the first and the last byte came, of an answer that was streamed.
    """

    ticket_id: int
    failed: bool = False
    stream: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ResidencyObserved:
    """A report came. It answers the last `commands.Observe`, or is one of the periodic ones."""

    report: Report


@dataclass(frozen=True, slots=True)
class ResidencyUnknown:
    """A report was late, failed or malformed. Unknown is never "gone", and never room.

    ``unreachable`` is True when no Ollama seems to be there: no connection, or one closed without an answer.
    """

    asked_at: float
    reason: str
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class EvictionAnswered:
    """Ollama answered our unload request. Confirms nothing: the answer comes before anything is unloaded.

    ``accepted`` is False when no name reached the runner (404) or the call failed; ``reason`` then says why.
    """

    key: str
    accepted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Why a load failed: upstream's own status and error text, or ours.

    ``transient`` marks what is no failed load: a full queue (503), an upstream that went away.
    """

    status: int
    text: str
    transient: bool = False


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """Our load request was answered; ``failure`` is None when Ollama says that the model is loaded."""

    variant: Variant
    failure: LoadFailure | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What a plain request for this model needs was found out; or not, for this ``reason``."""

    name: str
    need: Need | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KeptAlive:
    """Our request that sets a keep_alive was answered, or failed for this ``reason``."""

    key: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ViewOutdated:
    """Something passed by us that may have changed what is resident (an unload request, an answered passthrough)."""

    reason: str


@dataclass(frozen=True, slots=True)
class ModelChanged:
    """A pull, create, copy or delete of a name of this key went through: its cool-down is over."""

    key: str


@dataclass(frozen=True, slots=True)
class UpstreamIdentified:
    """Upstream told its version; ``ps_is_safe`` from v0.32.4 on, where polling takes locks (PR #17376)."""

    version: str
    ps_is_safe: bool


@dataclass(frozen=True, slots=True)
class ModeSet:
    """The operator set the mode; that it was set already changes nothing."""

    mode: Mode


@dataclass(frozen=True, slots=True)
class Paused:
    """The operator stopped granting: tickets keep their place."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The operator lets granting go on."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What an earlier run has learned was found: as `Scheduler.remembered` gave it, unless it was damaged since. To be
    told before anything else.
    """

    memory: object


@dataclass(frozen=True, slots=True)
class Stopping:
    """We were asked to end: waiting tickets are answered, running leases go on."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The time that the last `commands.WakeAt` asked for has come (or any other moment: it is harmless)."""


Event = (
    Arrived
    | Abandoned
    | Progressed
    | Released
    | ResidencyObserved
    | ResidencyUnknown
    | EvictionAnswered
    | LoadEnded
    | Described
    | KeptAlive
    | ViewOutdated
    | ModelChanged
    | UpstreamIdentified
    | ModeSet
    | Paused
    | Resumed
    | Recalled
    | Stopping
    | TimePassed
)
