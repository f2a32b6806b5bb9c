"""An Ollama, a gate and clients with bad manners around the scheduler, in virtual time; it checks every invariant.

`Adversary` carries commands out only when told to, in any order, late, twice or never; it is plain data, so that a copy
of any state can be played to its end (`play_to_the_end`, the deadlock detector). The numbers are the design's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from ollama_swap_proxy.core import bounds, commands, events, granting
from ollama_swap_proxy.core.classes import NORMAL, TicketClass
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.policy import DRAIN_AFTERLIFE_S, RETRY_AFTER_S, Mode, Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.snapshot import Snapshot
from ollama_swap_proxy.core.state import Phase
from ollama_swap_proxy.core.tickets import LoadRecipe, Need, Report, Resident, Ticket, Traits, Variant
from ollama_swap_proxy.core.turns import End

POLICY = Policy(
    parallel=2,
    give_up_after_s=400.0,
    stuck_after_s=60.0,
    load_timeout_s=40.0,
    unload_timeout_s=10.0,
    cool_down_s=5.0,
    cool_down_max_s=40.0,
    line_limit=12,
)
CLASSES = (TicketClass("high", 20, 30.0), NORMAL, TicketClass("low", 0, 300.0))
RECIPE = LoadRecipe("/api/generate", b"{}")
ENDS_WITHIN_S = 200.0
"""Far more than the truthful rest of any history takes: a cool-down (40 s), a turn and a swap for each variant."""
MOST_REPORTS_AT_ONCE = 6


TRAITS = {"e": Traits(embedder=True), "p": Traits(pinned=True)}
"""``e`` may stay beside others, ``p`` is never a victim."""


def traits(key: str) -> Traits:
    return TRAITS.get(key, Traits())


class LongWay(Scheduler):
    """A scheduler that thinks about every event."""

    _short_way = staticmethod(lambda *_: False)


def _decisions(out: list[commands.Command]) -> list[commands.Command]:
    """Leave out when to look again: the short way leaves that to the wake, which may come in the same moment."""
    return [command for command in out if not isinstance(command, commands.WakeAt | commands.Observe)]


@dataclass
class Loaded:
    """What upstream really has in memory under a key."""

    options: str
    size: int = 1000
    vram: int = 1000
    expires_in_s: float | None = None


@dataclass
class Adversary:
    """The world. Methods named after facts tell them to the scheduler."""

    policy: Policy = POLICY
    now: float = 0.0
    loaded: dict[str, Loaded] = field(default_factory=dict)
    waiting: dict[int, Ticket] = field(default_factory=dict)
    leases: dict[int, Ticket] = field(default_factory=dict)
    loading_leases: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    rejected: dict[int, commands.Rejection] = field(default_factory=dict)
    observes: list[tuple[float, tuple[Resident, ...]]] = field(default_factory=list)
    unloads: dict[str, bool] = field(default_factory=dict)
    """Unload requests under way, by key; True once answered."""
    loads: list[Variant] = field(default_factory=list)
    keeping: set[str] = field(default_factory=set)
    """Keys for which a keep_alive is being set."""
    describes: list[str] = field(default_factory=list)
    """Names that the scheduler wants to know more of."""
    delivered: list[Report] = field(default_factory=list)
    wake_at: float | None = None
    moved_at: dict[int, float] = field(default_factory=dict)
    """When each lease last moved."""
    begun: set[int] = field(default_factory=set)
    """Leases whose answer has begun."""
    cut: set[int] = field(default_factory=set)
    """Leases that were to be cut: they end when somebody releases them."""
    history: list[tuple[events.Event, float]] = field(default_factory=list)
    answers: list[list[commands.Command]] = field(default_factory=list)
    last_good: Report | None = None
    in_swap: bool = False
    undoing: bool = False
    goes_ahead: bool = False
    evicted_in_swap: set[str] = field(default_factory=set)
    evicted_at: dict[str, float] = field(default_factory=dict)
    load_ended_at: float = float("-inf")
    observed_at_once: int = 0
    stopping: bool = False
    mode: Mode = "auto"
    paused: bool = False
    stood_still_until: float = 0.0
    """When granting was last resumed, or the mode last changed."""
    relayed: set[int] = field(default_factory=set)
    """Leases that ran in bypass mode."""
    idle_since: float = 0.0
    used_until: dict[str, float] = field(default_factory=dict)
    """By key, when its last lease ended."""
    seen_since: dict[str, float] = field(default_factory=dict)
    """By key, since when reports list it."""
    next_id: int = 1
    steps: int = 0
    sound: bool = True
    """False once a check has failed: the rest of the history says nothing."""

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.policy)

    # --- telling ----------------------------------------------------------------------------------------------------
    def tell(self, event: events.Event) -> None:
        """Tell one fact, carry out what costs nothing, check everything."""
        self.steps += 1
        self.sound = False
        if not isinstance(event, events.ResidencyObserved | events.TimePassed):
            self.observed_at_once = 0
        out = self.scheduler.handle(event, self.now)
        self.history.append((event, self.now))
        self.answers.append(out)
        for command in out:
            self._carry_out(command)
        self._check_after()
        self.sound = True

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.Grant(ticket_id, _, loads):
                self._granted(ticket_id, loads=loads)
            case commands.Reject(ticket_id, rejection):
                assert ticket_id in self.waiting, f"I3: ticket {ticket_id} rejected, but it does not wait"
                del self.waiting[ticket_id]
                self.ended.add(ticket_id)
                self.rejected[ticket_id] = rejection
                assert rejection.retry_after_s is None or 1 <= rejection.retry_after_s <= 59
            case commands.Cut(ticket_id, rejection, since):
                self._cut(ticket_id, rejection.code, since)
            case commands.Observe():
                self.observed_at_once += 1
                assert self.observed_at_once <= MOST_REPORTS_AT_ONCE, "a flood of reports"
                self.observes.append((self.now, self.listed()))
            case commands.Evict(key, _):
                assert self.mode != "bypass", "evicted in bypass mode"
                assert not self.paused or key in self.unloads or key in self.evicted_in_swap, "evicted while paused"
                self._evict(key)
            case commands.Load(variant, _, _, _):
                assert self.mode != "bypass", "loaded in bypass mode"
                assert not self.paused, "loaded while paused"
                self._check_alone(variant)
                self.loads.append(variant)
            case commands.KeepAlive(key, _, _, keep_alive):
                assert keep_alive == self.policy.keep_alive != 0, "a keep_alive without a setting"
                assert key not in self.keeping, "set twice at a time"
                assert self.last_good is not None, "a keep_alive without a report"
                assert key in {r.key for r in self.last_good.residents}, f"{key} would be loaded by a keep_alive"
                assert key not in self.evicted_in_swap or not self.in_swap, f"{key} would be loaded again"
                assert self.state.swap is None or key in self.state.swap.spared, "a victim is kept alive"
                self.keeping.add(key)
            case commands.Describe(name):
                assert name not in self.describes, "asked twice"
                self.describes.append(name)
            case commands.WakeAt(at):
                assert at is None or at > self.now, f"a wake at {at} that is due at once ({self.now}): a busy loop"
                self.wake_at = at
            case commands.Step(name, fields):
                self._note_step(name, dict(fields))

    def _note_step(self, name: str, fields: dict[str, object]) -> None:
        if name == "unload_decided":
            assert not self.in_swap, "two swaps at a time"
            assert self.mode != "bypass", "a model is unloaded in bypass mode"
            assert not self.paused, "a model is unloaded while paused"
            self.in_swap, self.undoing, self.goes_ahead = True, False, False
            self.evicted_in_swap.clear()
        elif name == "swap_decided":
            assert not self.in_swap, "two swaps at a time"
            assert self.mode == "auto", f"a swap begins in {self.mode} mode"
            assert not self.paused, "a swap begins while paused"
            wished = fields["reason"] in {"preload", "home"}
            assert not wished or not (self.waiting or self.leases), "I7: a wish goes before a request"
            self.in_swap, self.undoing, self.goes_ahead = True, fields["reason"] in {"spill", "pin"}, False
            self.evicted_in_swap.clear()
        elif name in {"swap_ended", "swap_given_up", "load_failed"}:
            self.in_swap = False
        elif name == "newcomer_found" and fields["consequence"] != "evicted too":
            self.goes_ahead = True
        elif name == "swap_retargeted":
            assert self.mode == "auto", f"a swap is turned over in {self.mode} mode"
            self.undoing = False

    def _granted(self, ticket_id: int, *, loads: bool) -> None:
        assert ticket_id in self.waiting, f"I3: ticket {ticket_id} granted, but it does not wait"
        ticket = self.waiting.pop(ticket_id)
        self.moved_at[ticket_id] = self.now
        key = ticket.variant.key
        if self.mode == "bypass":
            self.leases[ticket_id] = ticket
            self.relayed.add(ticket_id)
            return
        assert not self.paused, f"{ticket} granted while paused"
        if loads:
            self._check_alone(ticket.variant)
            self.loading_leases.add(ticket_id)
        else:
            swap = self.state.swap
            beside = swap is not None and key in swap.staying and not swap.trial
            assert not self.in_swap or beside, f"I9: {ticket.variant} granted during a swap that it has no part in"
            assert self.last_good is not None, "I8: granted without any report"
            assert key in {r.key for r in self.last_good.residents}, f"I8: {key} granted, but the last report lacks it"
            since = max(self.load_ended_at, self.evicted_at.get(key, float("-inf")))
            assert self.last_good.asked_at >= since, (
                f"I8: {key} granted by a report older than the last load or eviction"
            )
            others = {t.variant for t in self.leases.values() if t.variant.key == key} - {ticket.variant}
            assert not others, f"I1: {ticket.variant} in flight beside {others}"
            on_it = sum(1 for t in self.leases.values() if t.variant.key == key)
            assert on_it < self.policy.parallel, "more leases than parallel"
        assert not any(self.leases[i].variant.key == key for i in self.loading_leases if i != ticket_id), (
            "I8: beside a loader"
        )
        self.leases[ticket_id] = ticket

    def _cut(self, ticket_id: int, code: str, since: float | None) -> None:
        assert ticket_id in self.leases, f"I3: ticket {ticket_id} is cut, but it does not run"
        swap = self.state.swap
        if code == "drain_timeout":
            assert swap is not None, "cut in no drain"
            assert swap.phase is Phase.DRAINING, "cut in no drain"
            assert not self.paused, "a drain that stands still cuts somebody"
            assert self.policy.drain_timeout_s, "cut without a setting"
        else:
            assert ticket_id not in self.relayed, "cut though it was relayed"
            assert since == self.moved_at[ticket_id], "cut by an old byte"
            assert self.now >= since + self._limit_s(ticket_id) > since, f"{ticket_id} is cut before its time"
        self.cut.add(ticket_id)

    def _limit_s(self, ticket_id: int) -> float:
        """How long a lease may be silent; 0: for ever."""
        if ticket_id in self.begun:
            return self.policy.idle_stream_timeout_s
        limit_s = self.policy.first_byte_timeout_s
        loads = ticket_id in self.loading_leases and limit_s
        return limit_s + self.policy.load_timeout_s if loads else limit_s

    def _check_alone(self, variant: Variant) -> None:
        """I1: what makes upstream load something is sent only when the last report shows room for it."""
        assert self.last_good is not None, "I1: loaded without any report"
        assert self.last_good.asked_at >= max(self.evicted_at.values(), default=0.0), "I1: loaded before confirmation"
        beside = {r.key for r in self.last_good.residents} - {variant.key}
        generating = {key for key in {*beside, variant.key} if traits(key) == Traits()}
        assert len(generating) <= 1 or self.goes_ahead, f"I1: {variant} loaded beside {beside}"
        swap = self.state.swap
        spared = set() if swap is None or swap.trial else swap.staying
        busy = {t.variant for t in self.leases.values() if t.variant.key not in spared} - {variant}
        assert not busy, f"I1: {variant} loaded while {busy} have leases"
        assert not self.relayed & set(self.leases), f"I1: {variant} loaded while requests run that were relayed"

    def _evict(self, key: str) -> None:
        assert key not in self.keeping, f"{key} evicted while its keep_alive is being set: it would be loaded again"
        busy = [t.id for t in self.leases.values() if t.variant.key == key]
        assert not busy, f"I2: {key} evicted, leased by {busy}"
        wanted = any(t.variant.key != key or not self._serves(t.variant) for t in self.waiting.values())
        swap = self.state.swap
        own = swap is not None and (swap.undoes_spill or swap.unasked) and swap.in_aid_of is None  # the end of a trial
        reloads = swap is not None and key in {swap.target.key, swap.asked_for.key}
        assert not traits(key).pinned or reloads or (swap is not None and swap.returning), f"a pin is a victim: {swap}"
        outlived = swap is not None and swap.unloads and self._has_outlived(key)
        wished = swap is not None and swap.wished and self.mode != "manual"
        assert wanted or own or outlived or wished or self.undoing or key in self.evicted_in_swap, (
            f"I7: {key} evicted, and nobody asks for it"
        )
        assert self.last_good is not None, "I7: evicted without any report"
        assert key in {r.key for r in self.last_good.residents}, f"I7: {key} evicted, though not listed"
        self.evicted_in_swap.add(key)
        self.evicted_at[key] = self.now
        self.unloads[key] = False

    def _has_outlived(self, key: str) -> bool:
        """Say whether its time to live is over, and nobody waits for it."""
        if any(ticket.variant.key == key for ticket in self.waiting.values()) or traits(key).pinned:
            return False
        since = max(self.used_until.get(key, 0.0), self.seen_since.get(key, self.now))
        return self.policy.ttl_s > 0 and self.now >= since + self.policy.ttl_s

    def _serves(self, variant: Variant) -> bool:
        return self.state.residency.holds(variant)

    @property
    def state(self):
        """The scheduler's memory, to check what its commands alone do not show."""
        return self.scheduler._state

    # --- checks after each event ------------------------------------------------------------------------------------
    def _check_after(self) -> None:
        state, swap, now = self.state, self.state.swap, self.now
        assert {t.id for t in state.line} == set(self.waiting), "I3: the line is not who waits"
        assert {lease.ticket.id for lease in state.leases} == set(self.leases), "I3: the leases are not who was granted"
        assert (swap is not None) == self.in_swap, "a swap began or ended without a word"
        assert not (self.stopping and self.waiting), "I4: somebody waits though we are stopping"
        for ticket_id in self.leases.keys() - self.relayed - self.cut:
            limit_s = self._limit_s(ticket_id)
            assert not limit_s or now < self.moved_at[ticket_id] + limit_s, f"{ticket_id} is silent, and not cut"
        for ticket in self.waiting.values():
            by_operator = granting.awaits_operator(state, ticket.variant)
            longest_s = self.policy.give_up_after_s
            if by_operator and self.policy.manual_wait_s:
                longest_s = self.policy.manual_wait_s
            assert now < ticket.arrived_at + longest_s, f"I5: a ticket outlived {longest_s} s"
            assert not (by_operator and self.policy.manual_refuses and self._is_fresh()), "I5: it should be refused"
        assert not (self.waiting and self.mode == "bypass"), "I4: somebody waits in bypass mode"
        if swap is None:
            self._check_nobody_idles()
            return
        if not bounds.is_held_back(state, swap):
            longest_s = max(self.policy.load_timeout_s + 1, self.policy.stuck_after_s)
            if swap.phase is Phase.EVICTING:
                longest_s = 8 * max(self.policy.stuck_after_s, self.policy.unload_timeout_s)
            since = max(swap.phase_since, self.stood_still_until)
            bounded = swap.phase is not Phase.DRAINING
            over_s = now - since - longest_s - RETRY_AFTER_S  # a report may be asked for only after a pause
            assert not bounded or over_s <= 0, f"I5: {swap.phase} takes longer than {longest_s} s"
        asked = any(t.variant == swap.asked_for for t in self.waiting.values())
        if swap.phase is Phase.DRAINING and not asked and not swap.goes_on_by_itself:
            assert swap.asker_left_at is not None, "I10: a drain for nobody"
            assert now < swap.asker_left_at + DRAIN_AFTERLIFE_S, "I10: a drain outlives its asker for too long"

    def _check_nobody_idles(self) -> None:
        state = self.state
        if not self._is_fresh() or self.stopping or self.paused:
            return
        for ticket in self.waiting.values():
            key = ticket.variant.key
            if not state.residency.holds(ticket.variant) or key in state.residency.leaving:
                continue
            on_it = sum(1 for t in self.leases.values() if t.variant.key == key)
            loads = any(self.leases[i].variant.key == key for i in self.loading_leases)
            assert on_it >= self.policy.parallel or loads, f"I4: {ticket} waits beside its idle model"
        resists = any(pause.until > self.now for pause in state.resisting.values())
        leaving = bool(state.residency.leaving)
        wants = [ticket for ticket in self.waiting.values() if not granting.awaits_operator(state, ticket.variant)]
        idle = wants and not self.leases and not resists and not leaving
        assert not idle or self._lingers(), f"I4: somebody waits, and nothing is under way: {self._seen()}"

    def _is_fresh(self) -> bool:
        return self.state.residency.is_fresh(self.now, self.policy.ps_max_age_s)

    def _seen(self) -> Snapshot:
        return self.scheduler.snapshot(self.now)

    def _lingers(self) -> bool:
        """Say whether the idle model is kept for who is likely to come back: not longer than one swap costs."""
        target = granting.foremost(self.state, self.now)
        if target is None:
            return False
        ending = granting.turn_ending(self.state, target)
        cost_s = self.state.forecast.swap_cost_s(target.variant)
        since = max(self.idle_since, min(ticket.arrived_at for ticket in self.waiting.values()))
        return ending.why is End.IDLE and self.now < ending.at <= since + cost_s

    # --- facts ------------------------------------------------------------------------------------------------------
    def arrive(
        self,
        key: str,
        options: str = "",
        *,
        recipe: bool = True,
        briefly: bool = False,
        aged_s: float = 0.0,
        client: str = "",
        klass: TicketClass = NORMAL,
    ) -> int:
        ticket = Ticket(
            self.next_id,
            Variant(key, options),
            key,
            max(0.0, self.now - aged_s),
            RECIPE if recipe else None,
            client,
            stays_briefly=briefly,
            klass=klass,
            traits=traits(key),
            sets_keep_alive=briefly or aged_s > 0,
        )
        self.next_id += 1
        self.waiting[ticket.id] = ticket
        self.tell(events.Arrived(ticket))
        return ticket.id

    def abandon(self, ticket_id: int) -> None:
        del self.waiting[ticket_id]
        self.ended.add(ticket_id)
        self.tell(events.Abandoned(ticket_id))

    def progress(self, ticket_id: int) -> None:
        ticket = self.leases[ticket_id]
        if ticket.variant.key not in self.loaded or ticket_id in self.loading_leases:
            self.loaded[ticket.variant.key] = Loaded(ticket.variant.options)
        self.loading_leases.discard(ticket_id)
        self.moved_at[ticket_id] = self.now
        self.begun.add(ticket_id)
        self.tell(events.Progressed(ticket_id, self.now))

    def release(self, ticket_id: int, *, failed: bool = False) -> None:
        self.used_until[self.leases[ticket_id].variant.key] = self.now
        del self.leases[ticket_id]
        self.relayed.discard(ticket_id)
        self.loading_leases.discard(ticket_id)
        self.ended.add(ticket_id)
        self.idle_since = self.now
        self.tell(events.Released(ticket_id, failed))

    def listed(self) -> tuple[Resident, ...]:
        return tuple(
            Resident(key, key, f"d-{key}", it.size, it.vram, it.expires_in_s, traits(key))
            for key, it in self.loaded.items()
        )

    def report(self, index: int = 0, *, as_of_asking: bool = False, twice: bool = False) -> None:
        """Answer an outstanding Observe; the content is of any moment between the question and the answer."""
        asked_at, then = self.observes.pop(index)
        residents = then if as_of_asking else self.listed()
        self.deliver(Report(asked_at, residents + residents[:1] if twice else residents))

    def deliver(self, report: Report) -> None:
        self.delivered.append(report)
        if self.last_good is None or report.asked_at >= self.last_good.asked_at:
            self.last_good = report
            self.seen_since = {r.key: self.seen_since.get(r.key, self.now) for r in report.residents}
        self.tell(events.ResidencyObserved(report))

    def no_report(self, index: int = 0, *, unreachable: bool = False) -> None:
        asked_at, _ = self.observes.pop(index)
        self.tell(events.ResidencyUnknown(asked_at, "no answer", unreachable))

    def answer_unload(self, key: str, *, accepted: bool) -> None:
        self.unloads[key] = True
        if not accepted:
            del self.unloads[key]
        self.tell(events.EvictionAnswered(key, accepted, "" if accepted else "no name reaches it"))

    def unload(self, key: str) -> None:
        """The unload takes effect, as soon as the model is idle."""
        if key in self.loaded and any(t.variant.key == key for t in self.leases.values()):
            return
        answered = self.unloads.pop(key)
        self.loaded.pop(key, None)
        if not answered:
            self.tell(events.EvictionAnswered(key, accepted=True))

    def keep(self, key: str, reason: str = "") -> None:
        self.keeping.discard(key)
        self.tell(events.KeptAlive(key, reason))

    def describe(self, name: str, *, known: bool = True) -> None:
        self.describes.remove(name)
        need = Need(name, Variant(name), RECIPE, traits(name)) if known else None
        self.tell(events.Described(name, need, "" if known else "no such model"))

    def end_load(self, index: int, failure: LoadFailure | None, *, lasts: bool = True, vram: int = 1000) -> None:
        variant = self.loads.pop(index)
        if failure is None and lasts:
            if vram == 0:  # Ollama made room for it by itself
                self.loaded = {key: it for key, it in self.loaded.items() if key in self._busy()}
            self.loaded[variant.key] = Loaded(variant.options, vram=vram or 1000)
        if failure is None:
            self.load_ended_at = self.now
        self.tell(events.LoadEnded(variant, failure))

    def _busy(self) -> set[str]:
        return {ticket.variant.key for ticket in self.leases.values()}

    def restart(self) -> None:
        """Upstream goes away with all it holds; running requests break."""
        self.loaded.clear()
        self.unloads.clear()
        for ticket_id in list(self.leases):
            self.release(ticket_id, failed=True)
        while self.loads:
            self.end_load(0, LoadFailure(502, "connection lost", transient=True))

    # --- the operator -----------------------------------------------------------------------------------------------
    def set_mode(self, mode: Mode) -> None:
        if self.mode == "bypass" != mode:
            self.stood_still_until = self.now
        self.mode = mode
        if mode == "bypass":
            self.relayed |= set(self.leases)
            self.loading_leases.clear()
        self.tell(events.ModeSet(mode))

    def pause(self) -> None:
        self.paused = True
        self.tell(events.Paused())

    def resume(self) -> None:
        if self.paused:
            self.stood_still_until = self.now
        self.paused = False
        self.tell(events.Resumed())

    # --- time -------------------------------------------------------------------------------------------------------
    def pass_time(self, seconds: float) -> None:
        """Let time pass, waking the scheduler whenever it asked for it."""
        until = self.now + seconds
        while self.wake_at is not None and self.wake_at <= until:
            self.now, self.wake_at, self.observed_at_once = max(self.now, self.wake_at), None, 0
            self.tell(events.TimePassed())
        self.now, self.observed_at_once = until, 0

    def behave(self, seconds: float, vram: int = 1000) -> None:
        """Let upstream do what it is asked, promptly, for a while; clients stay as they are."""
        until = self.now + seconds
        while self.now < until:
            while self.observes:
                self.report()
            for name in list(self.describes):
                self.describe(name)
            for key in sorted(self.keeping):
                self.keep(key)
            for key in list(self.unloads):
                self.unload(key)
            if self.loads:
                self.pass_time(0.5)
                if self.loads:
                    self.end_load(0, None, vram=vram)
            self.pass_time(0.04)

    def play_to_the_end(self) -> None:
        """The deadlock detector: everybody else leaves, upstream behaves, the operator lets all go on; whoever waits
        must come to an end.
        """
        world = copy.deepcopy(self)
        world.resume()
        world.set_mode("auto")
        ends_at = world.now + ENDS_WITHIN_S
        while world.waiting or world.in_swap or world.leases:
            assert world.now < ends_at, f"I5: still waiting: {world.waiting}, {world.scheduler.snapshot(world.now)}"
            for ticket_id in list(world.leases):
                world.progress(ticket_id)
                if ticket_id in world.leases:
                    world.release(ticket_id)
            world.behave(0.5)

    def replay(self) -> None:
        """I6: the same history gives the same commands; so it does without the short way."""
        again, long_way = Scheduler(self.policy), LongWay(self.policy)
        for (event, now), answer in zip(self.history, self.answers, strict=True):
            assert again.handle(event, now) == answer, f"I6: {event} at {now} was answered otherwise"
            slowly = long_way.handle(event, now)
            short, long = _decisions(answer), _decisions(slowly)
            assert short == long, f"{event} at {now}: the short way leads elsewhere: {short}, not {long}"
