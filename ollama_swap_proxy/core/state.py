"""Everything that the scheduler remembers between two events, and the commands it is writing.

Owns the data and the smallest moves on it. Must not decide: `granting`, `swapping` and `scheduler` do.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from enum import Enum

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.accuracy import Accuracy
from ollama_swap_proxy.core.forecast import Forecast
from ollama_swap_proxy.core.gaps import Gaps
from ollama_swap_proxy.core.leases import Leases
from ollama_swap_proxy.core.line import Line
from ollama_swap_proxy.core.policy import VARIANTS_KEPT, Mode, Policy
from ollama_swap_proxy.core.proofs import Proofs
from ollama_swap_proxy.core.residency import Residency
from ollama_swap_proxy.core.slots import Slots
from ollama_swap_proxy.core.tickets import LoadRecipe, Need, Ticket, Traits, Variant
from ollama_swap_proxy.core.turns import Turn
from ollama_swap_proxy.core.victims import Impossible, Victims

NEVER = float("-inf")


class Phase(Enum):
    """The steps of a swap, in order; a newcomer leads from settling back to evicting."""

    DRAINING = "draining"
    EVICTING = "evicting"
    SETTLING = "settling"
    LOADING = "loading"
    CONFIRMING = "confirming"


@dataclass(frozen=True, slots=True)
class Reload:
    """Why a model is loaded anew though it is resident: who wants other options, and which; `variants.changes`.

    ``client`` and ``ticket_id`` are those of the oldest ticket for the target, ``""`` and None where nobody waits.
    ``has`` are the options that the resident has, None where they are unknown.
    """

    client: str
    ticket_id: int | None
    has: str | None
    changes: tuple[str, ...]


@dataclass(slots=True)
class Swap:
    """The one change of residents that is under way. Times are those of `handle`, in seconds."""

    id: int
    target: Variant
    name: str
    reason: str
    decided_at: float
    phase: Phase = Phase.DRAINING
    phase_since: float = 0.0
    undoes_spill: bool = False
    drained_at: float = 0.0
    asker_left_at: float | None = None
    drain_said_slow: bool = False
    settle_said: bool = False
    report_needed_since: float = NEVER
    poll_at: float = NEVER
    clear_reports: int = 0
    victim: str | None = None
    first_asked_at: float = NEVER
    freed_before_at: float = NEVER
    last_asked_at: float = NEVER
    answered: bool = False
    refused: bool = False
    eviction_text: str = ""
    evicted: set[str] = field(default_factory=set)
    expected_victims: frozenset[str] = frozenset()
    staying: frozenset[str] = frozenset()
    """Who is to stay beside the target."""
    beside: tuple[Variant, ...] = ()
    """Those, by the report before the load."""
    stay_until: dict[str, float] = field(default_factory=dict)
    """When Ollama would unload them by itself, by that report."""
    trial: bool = False
    """Whether it is unknown that they fit together: then nobody is served meanwhile."""
    declared: bool = False
    """Whether all of them are one group of the operator's: then a trial that fails is only told."""
    reload: Reload | None = None
    """Set where the target's own key is one of the victims, for other options."""
    returning: tuple[Variant, ...] = ()
    """Pinned models that go for the target and come back beside it."""
    in_aid_of: Variant | None = None
    """It loads its target, which is resident, anew before this one is loaded beside it."""
    outliving: frozenset[str] = frozenset()
    """Who of those beside the target outlived a model when it was loaded (`Residency.outlives`)."""
    is_fair: bool = True
    """Whether it is the set's own fault if it does not fit: not where one of it outlived a model or had spilled."""
    unasked: bool = False
    """It restores a pinned model: nobody need wait for it."""
    wished: bool = False
    """The operator wishes for its target, and nobody waits; whoever comes for another model takes it over."""
    withdraws: bool = False
    """The target did not fit beside a pin, and goes again."""
    unloads: bool = False
    """It only unloads its target, for which nobody waited, and loads nothing; all others go on being served."""
    newcomer_rounds: int = 0
    settled_for_s: float = 0.0
    not_before: float = NEVER
    first_load_at: float | None = None
    load_sent_at: float = NEVER
    load_breaks: int = 0
    loader: int | None = None
    loader_failed: bool = False
    overtaken: bool = False
    """Bypass mode came while it was under way: only its load is waited for still."""

    @property
    def spared(self) -> frozenset[str]:
        """The keys of those that go on being served meanwhile: who stays, but nobody in a trial."""
        return frozenset() if self.trial else self.staying

    @property
    def asked_for(self) -> Variant:
        """The variant whose waiting tickets ask for this swap."""
        return self.target if self.in_aid_of is None else self.in_aid_of

    @property
    def goes_on_by_itself(self) -> bool:
        """Say whether it goes on though nobody waits for its target."""
        undoes = self.undoes_spill and self.in_aid_of is None
        return undoes or self.unasked or self.unloads or self.wished

    @property
    def admits_companions(self) -> bool:
        """Say whether those that stay may be granted now: not before a report shows what a load has left of them."""
        return self.phase is not Phase.CONFIRMING


@dataclass(frozen=True, slots=True)
class Pause:
    """Something that failed is left alone until a moment; each failure in a row doubles the pause."""

    until: float
    failures: int
    rejection: commands.Rejection


@dataclass(slots=True)
class Wish:
    """A model that the operator wants on the card though nobody asks for it, by the name that he gave it.

    ``need`` is what Ollama said of it at ``described_at``; ``asked_at`` is when that was last asked for, ``tried_at``
    when its load was last begun. It is left alone until ``again_at``; ``told`` is the reason that was logged last.
    """

    name: str
    need: Need | None = None
    described_at: float = NEVER
    asked_at: float = NEVER
    tried_at: float = NEVER
    again_at: float = NEVER
    told: str = ""


@dataclass(slots=True)
class State:
    """All of it. ``out`` is written anew for each event, ``wake_at`` for each that decisions follow."""

    policy: Policy
    forecast: Forecast
    turn: Turn
    line: Line = field(default_factory=Line)
    residency: Residency = field(default_factory=Residency)
    leases: Leases = field(default_factory=Leases)
    swap: Swap | None = None
    swaps_begun: int = 0
    last_swap_ended_at: float = NEVER
    gaps: Gaps = field(default_factory=Gaps)
    accuracy: Accuracy = field(default_factory=Accuracy)
    room_expected: tuple[float, float] = (NEVER, NEVER)
    """When it was last asked when the full line will have room, and the answer (`waiting` keeps it for a moment)."""
    slots: Slots = field(init=False)
    early_end_at: float = NEVER
    """When a higher class last ended a turn before its limit."""
    places_kept: dict[tuple[str, Variant, str], tuple[float, float]] = field(default_factory=dict)
    """By client, variant and class: for how long an abandoned ticket had waited in all, and when it was abandoned."""
    cool_downs: dict[Variant, Pause] = field(default_factory=dict)
    resisting: dict[str, Pause] = field(default_factory=dict)
    vanishing: set[str] = field(default_factory=set)
    recipes: dict[Variant, tuple[str, LoadRecipe]] = field(default_factory=dict)
    spills_to_undo: set[Variant] = field(default_factory=set)
    pins_to_restore: dict[Variant, None] = field(default_factory=dict)
    """Pinned models that a trial has cost their place, or that left it for another load order; in that order."""
    lost_outliving: set[str] = field(default_factory=set)
    """Pinned models that lost their place to a load beside them while they outlived a model (`Residency.outlives`)."""
    traits: dict[str, Traits] = field(default_factory=dict)
    sizes: dict[Variant, int] = field(default_factory=dict)
    """The GPU memory of each variant when it was last seen wholly loaded, in bytes."""
    proofs: Proofs = field(default_factory=Proofs)
    plans: dict[Variant, Victims | Impossible] = field(default_factory=dict)
    """What the policy says of a target, for the present residents: `plans` asks it once a report."""
    moved_at: float = NEVER
    view_wanted_since: float | None = None
    observe_sent_at: float = NEVER
    observe_not_before: float = NEVER
    unreachable_since: float | None = None
    unknown_reason: str | None = None
    version: str | None = None
    ps_is_safe: bool = False
    stopping: bool = False
    mode: Mode = field(init=False)
    mode_since: float = NEVER
    paused_at: float | None = None
    ordinary: bool = True
    """Whether granting goes its usual way: not stopping, not paused, not bypassed."""
    preloads: dict[str, Wish] = field(default_factory=dict)
    """Pinned models that are yet to be loaded since our start, or upstream's."""
    keep_alive_due: dict[str, float] = field(default_factory=dict)
    """By key, from when on the operator's keep_alive is to be set anew."""
    keeping_alive: set[str] = field(default_factory=set)
    """Keys for which such a request is under way: they are not evicted meanwhile."""
    home: Wish | None = field(init=False)
    """The model that the card goes back to when nobody needs another."""
    attentive: bool = False
    """Whether the operator set anything that `upkeep` sees to: then it looks at every event."""
    out: list[commands.Command] = field(default_factory=list)
    wake_at: float = float("inf")

    def __post_init__(self) -> None:
        self.slots = Slots(self.policy.parallel or None)
        self.mode = self.policy.mode
        policy = self.policy
        timeouts = policy.drain_timeout_s, policy.first_byte_timeout_s, policy.idle_stream_timeout_s
        self.attentive = bool(policy.ttl_s or policy.preloads or policy.home or policy.keep_alive) or any(timeouts)
        self.home = Wish(policy.home) if policy.home else None
        self.wish_for_pins()
        self.note_ordinary()

    def note_ordinary(self) -> None:
        """Take note of a change of mode, of a pause, or of a stop: one flag for all three is asked for each request."""
        self.ordinary = not self.stopping and self.paused_at is None and self.mode != "bypass"

    def wish_for_pins(self) -> None:
        """Have the pinned models loaded that are to be: we have started, or upstream has."""
        self.preloads = {name: self.preloads.get(name, Wish(name)) for name in self.policy.preloads}
        for wish in self.preloads.values():
            wish.again_at = NEVER

    def imagined(self, ticket: Ticket) -> State:
        """Return a state that knows of this ticket's model what the ticket says; asking it leaves this one alone.

        It shares all else with this one, and is not to be changed.
        """
        other = copy(self)
        other.plans, other.out = {}, []
        other.traits = {**self.traits, ticket.variant.key: ticket.traits}
        if ticket.recipe is not None:
            other.recipes = {**self.recipes, ticket.variant: (ticket.name, ticket.recipe)}
        return other

    def say(self, step: str, *, warning: bool = False, **fields: object) -> None:
        """Write a log line."""
        swap = {"swap": self.swap.id} if self.swap is not None and "swap" not in fields else {}
        self.out.append(commands.Step(step, {**swap, **fields}, warning))

    def wake(self, at: float) -> None:
        """Ask to be told when this moment has come."""
        self.wake_at = min(self.wake_at, at)

    def has_report_since(self, moment: float, now: float) -> bool:
        """Say whether we know what is resident by a report asked for since then; if not, have one fetched."""
        if self.residency.is_newer_than(moment):
            return True
        if self.observe_sent_at < moment or self.observe_sent_at == NEVER:
            if now < self.observe_not_before:
                self.wake(self.observe_not_before)
            else:
                self.observe_sent_at = now
                self.out.append(commands.Observe())
        return False

    def has_fresh_view(self, now: float) -> bool:
        """Say whether the view is young enough to act on; if not, have a report fetched."""
        if self.residency.is_fresh(now, self.policy.ps_max_age_s):
            return True
        if self.view_wanted_since is None:
            self.view_wanted_since = now
        wanted_since = max(self.residency.outdated_at, now - self.policy.ps_max_age_s)
        if self.residency.known and now >= self.residency.first_expiry_at:
            wanted_since = max(wanted_since, self.residency.first_expiry_at)
        return self.has_report_since(wanted_since, now) and self.residency.is_fresh(now, self.policy.ps_max_age_s)

    def reject(self, ticket: Ticket, rejection: commands.Rejection) -> None:
        """End a waiting ticket with an error."""
        self.line.remove(ticket.id)
        self.accuracy.forget(ticket.id)
        self.gaps.gave_up(ticket.client, ticket.variant)
        self.out.append(commands.Reject(ticket.id, rejection))

    def reject_all(self, variant: Variant, rejection: commands.Rejection) -> int:
        """End all tickets that wait for a variant with the same error; return how many there were."""
        waiting = self.line.waiting_for(variant)
        for ticket in waiting:
            self.reject(ticket, rejection)
        return len(waiting)

    def remember_recipe(self, ticket: Ticket) -> None:
        """Keep how to load a variant for when its askers have left; of variants nobody uses only so many."""
        if ticket.recipe is not None:
            self.keep_recipe(ticket.variant, ticket.name, ticket.recipe)

    def keep_recipe(self, variant: Variant, name: str, recipe: LoadRecipe) -> None:
        """Keep how to load a variant."""
        if len(self.recipes) >= VARIANTS_KEPT and variant not in self.recipes:
            target = self.swap.target if self.swap is not None else None
            self.recipes = {
                known: how
                for known, how in self.recipes.items()
                if known == target or self.line.awaits(known) or self.residency.holds(known)
            }
        self.recipes[variant] = (name, recipe)

    def remember_cool_down(self, variant: Variant, pause: Pause, now: float) -> None:
        """Leave a variant alone; where that becomes too much, forget pauses that are over, else the first to end."""
        self.cool_downs[variant] = pause
        if len(self.cool_downs) > VARIANTS_KEPT:
            self.cool_downs = {v: kept for v, kept in self.cool_downs.items() if kept.until > now}
        if len(self.cool_downs) > VARIANTS_KEPT:
            del self.cool_downs[min(self.cool_downs, key=lambda v: self.cool_downs[v].until)]


def doubled(pause: Pause | None, first_s: float, longest_s: float) -> tuple[float, int]:
    """Return the length of the pause after one more failure, and how many there are now."""
    failures = pause.failures + 1 if pause is not None else 1
    return min(longest_s, first_s * 2 ** (min(failures, 30) - 1)), failures
