"""The scheduler against anything that may happen, in any order.

The invariants, as numbered in the design:

I1  by our doing, no two models are resident together that the policy does not allow together.
I2  a model with leases is never evicted.
I3  every ticket ends exactly once.
I4  nobody idles while someone waits, unless a pause, manual mode, a linger, a cool-down or unknown residency says so,
    and each of these ends or is the operator's.
I5  every wait is bounded; from any state, once everybody else leaves, whoever waits comes to an end.
I6  same history, same commands.
I7  nothing is evicted unless a waiting ticket, the undoing of a spill, a time to live that is over, the preload of a
    pinned model or the home model asks for it when the eviction is sent; by a time to live only what nobody uses or
    waits for.
I8  no grant for a model before a report newer than the last eviction or load shows it may be used.
I9  a victim gets no grant until it is gone or the swap is given up.
I10 a ticket that left delays nobody (but for the 5 s of a drain's afterlife).

While paused nothing is granted, evicted or loaded anew; in manual mode no swap begins; in bypass mode nobody waits.
Holds join them with the feature. ``HYPOTHESIS_PROFILE=deep`` takes minutes.
"""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ollama_swap_proxy.core import events
from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.tickets import Variant
from tests.properties.adversary import CLASSES, POLICY, Adversary, Loaded

_PROFILES = {
    "fast": settings(max_examples=150, stateful_step_count=60, derandomize=True),
    "deep": settings(max_examples=1200, stateful_step_count=100),
}
PROFILE = settings(
    _PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "fast")],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

KEYS = st.sampled_from("aabbceep")
OPTIONS = st.sampled_from(["", "", "", "num_ctx=8192"])
PICK = st.integers(min_value=0, max_value=1_000_000)
WISHES = [
    {"ttl_s": 15.0},
    {"ttl_s": 0.05},
    {"preloads": ("p",)},
    {"preloads": ("p", "a"), "ttl_s": 20.0},
    {"keep_alive": 600.0},
    {"keep_alive": -1.0, "ttl_s": 20.0},
    {"home": "b", "home_after_s": 3.0},
    {"home": "e", "home_after_s": 0.0, "preloads": ("p",), "ttl_s": 30.0},
    {"drain_timeout_s": 4.0, "first_byte_timeout_s": 7.0, "idle_stream_timeout_s": 9.0},
]
VRAM = st.sampled_from([1000, 1000, 1000, 500, 0])
EXPIRES = st.sampled_from([None, 300.0, 0.02, 0.0, -5.0])
FAILURES = st.sampled_from(
    [
        LoadFailure(500, "no such tensor"),
        LoadFailure(404, "model not found"),
        LoadFailure(504, "not answered in time"),
        LoadFailure(503, "server busy", transient=True),
        LoadFailure(502, "connection lost", transient=True),
    ]
)


class AnythingMayHappen(RuleBasedStateMachine):
    """Few rules, each with many meanings: every rule is as likely as any other, and most of them let things go on."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Adversary()
        self.has_operator = False

    @initialize(
        found=st.lists(KEYS, unique=True, max_size=2),
        safe=st.booleans(),
        told=st.booleans(),
        operator=st.sampled_from([None, None, "patient", "refusing"]),
        wishes=st.sampled_from([{}, {}, {}, *WISHES]),
    )
    def start(
        self, found: list[str], operator: str | None, wishes: dict[str, float], *, safe: bool, told: bool
    ) -> None:
        policy = replace(POLICY, **wishes)
        if operator is not None:
            self.has_operator = True
            policy = replace(policy, manual_refuses=operator == "refusing", manual_wait_s=90.0)
        self.world = Adversary(policy)
        for key in found:
            self.world.loaded[key] = Loaded("")
        if told:
            self.world.tell(events.UpstreamIdentified("0.33.0" if safe else "0.30.0", safe))

    # --- clients ----------------------------------------------------------------------------------------------------
    @rule(
        keys=st.lists(KEYS, min_size=1, max_size=4),
        options=OPTIONS,
        recipe=st.sampled_from([True, True, True, True, False]),
        briefly=st.sampled_from([False, False, False, True]),
        aged_s=st.sampled_from([0.0, 0.0, 1.0, 100.0]),
        client=st.sampled_from(["x", "x", "y"]),
        klass=st.sampled_from([CLASSES[1], CLASSES[1], *CLASSES]),
    )
    def arrive(
        self,
        keys: list[str],
        options: str,
        *,
        recipe: bool,
        briefly: bool,
        aged_s: float,
        client: str,
        klass: TicketClass,
    ) -> None:
        for key in keys:
            self.world.arrive(key, options, recipe=recipe, briefly=briefly, aged_s=aged_s, client=client, klass=klass)

    @precondition(lambda self: self.world.waiting)
    @rule(pick=PICK, all_of_them=st.booleans())
    def abandon(self, pick: int, *, all_of_them: bool) -> None:
        key = self.world.waiting[_pick(self.world.waiting, pick)].variant.key
        leaving = [t.id for t in self.world.waiting.values() if t.variant.key == key]
        for ticket_id in leaving if all_of_them else leaving[:1]:
            if ticket_id in self.world.waiting:
                self.world.abandon(ticket_id)

    @precondition(lambda self: self.world.leases)
    @rule(pick=PICK)
    def progress(self, pick: int) -> None:
        self.world.progress(_pick(self.world.leases, pick))

    @precondition(lambda self: self.world.leases)
    @rule(pick=PICK, failed=st.booleans(), first_all_move=st.booleans(), all_of_them=st.booleans())
    def release(self, pick: int, *, failed: bool, first_all_move: bool, all_of_them: bool) -> None:
        for ticket_id in list(self.world.leases) if first_all_move else []:
            self.world.progress(ticket_id)
        for ticket_id in list(self.world.leases) if all_of_them else [_pick(self.world.leases, pick)]:
            self.world.release(ticket_id, failed=failed)

    # --- upstream ---------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.world.observes)
    @rule(pick=PICK, as_of_asking=st.booleans(), twice=st.booleans())
    def report(self, pick: int, *, as_of_asking: bool, twice: bool) -> None:
        self.world.report(pick % len(self.world.observes), as_of_asking=as_of_asking, twice=twice)

    @precondition(lambda self: self.world.observes)
    @rule(pick=PICK, unreachable=st.booleans(), for_s=st.sampled_from([0.0, 0.0, 0.0, 5.0, 30.0, 100.0]))
    def no_report(self, pick: int, *, unreachable: bool, for_s: float) -> None:
        self.world.no_report(pick % len(self.world.observes), unreachable=unreachable)
        until = self.world.now + for_s
        while self.world.now < until:
            while self.world.observes:
                self.world.no_report(unreachable=unreachable)
            self.world.pass_time(0.5)

    @precondition(lambda self: self.world.unloads)
    @rule(pick=PICK, how=st.sampled_from(["done", "done", "accepted", "refused"]))
    def unload(self, pick: int, how: str) -> None:
        key = _pick(self.world.unloads, pick)
        if how == "done":
            self.world.unload(key)
        else:
            self.world.answer_unload(key, accepted=how == "accepted")

    @precondition(lambda self: self.world.loads)
    @rule(pick=PICK, vram=VRAM, lasts=st.sampled_from([True, True, True, False]))
    def load_done(self, pick: int, vram: int, *, lasts: bool) -> None:
        self.world.end_load(pick % len(self.world.loads), None, vram=vram, lasts=lasts)

    @precondition(lambda self: self.world.loads)
    @rule(pick=PICK, failure=FAILURES)
    def load_failed(self, pick: int, failure: LoadFailure) -> None:
        self.world.end_load(pick % len(self.world.loads), failure)

    @rule(seconds=st.sampled_from([0.1, 1.0, 8.0]), vram=VRAM)
    def upstream_behaves(self, seconds: float, vram: int) -> None:
        self.world.behave(seconds, vram=vram)

    # --- oddities ---------------------------------------------------------------------------------------------------
    @rule(key=KEYS, options=OPTIONS, expires=EXPIRES, vram=VRAM, comes=st.booleans())
    def behind_our_back(self, key: str, options: str, expires: float | None, vram: int, *, comes: bool) -> None:
        if not comes:
            self.world.loaded.pop(key, None)
        elif key not in self.world.loaded:
            self.world.loaded[key] = Loaded(options, vram=vram, expires_in_s=expires)

    @rule(
        what=st.sampled_from(["described", "kept", "restart", "outdated", "changed", "safe", "unsafe", "stray", "old"]),
        pick=PICK,
    )
    def oddity(self, what: str, pick: int) -> None:
        world, key = self.world, "abcep"[pick % 5]
        match what:
            case "described" if world.describes:
                world.describe(world.describes[pick % len(world.describes)], known=pick % 3 > 0)
            case "kept" if world.keeping:
                key = sorted(world.keeping)[pick % len(world.keeping)]
                world.keep(key, "no answer" if pick % 3 == 0 else "")
            case "restart":
                world.restart()
            case "outdated":
                world.tell(events.ViewOutdated("an unload passed by"))
            case "changed":
                world.tell(events.ModelChanged(key))
            case "safe" | "unsafe":
                world.tell(events.UpstreamIdentified(what, what == "safe"))
            case "old" if world.delivered:
                world.deliver(world.delivered[pick % len(world.delivered)])
            case "stray":
                self._stray_facts(pick, key)
            case _:
                pass

    def _stray_facts(self, pick: int, key: str) -> None:
        """Facts about what is over, or that come twice, change nothing."""
        world = self.world
        if world.ended:
            over = _pick(dict.fromkeys(sorted(world.ended)), pick)
            world.tell(events.Released(over, failed=True))
            world.tell(events.Abandoned(over))
            world.tell(events.Progressed(over, world.now))
        if world.waiting:
            waits = _pick(world.waiting, pick)
            world.tell(events.Released(waits))
            world.tell(events.Arrived(world.waiting[waits])) if waits in world.waiting else None
        if key not in world.unloads:
            world.tell(events.EvictionAnswered(key, accepted=False, reason="stray"))
        world.tell(events.LoadEnded(Variant("never", "asked for"), LoadFailure(500, "stray")))

    @precondition(lambda self: self.world.steps > 150)
    @rule(really=st.sampled_from([True, False, False, False, False, False, False, False]))
    def stopping(self, *, really: bool) -> None:
        if really:
            self.world.stopping = True
            self.world.tell(events.Stopping())

    # --- the operator -----------------------------------------------------------------------------------------------
    @precondition(lambda self: self.has_operator)
    @rule(what=st.sampled_from(["pause", "pause", "resume", "resume", "manual", "bypass", "auto", "auto"]))
    def operator(self, what: str) -> None:
        match what:
            case "pause":
                self.world.pause()
            case "resume":
                self.world.resume()
            case "manual" | "bypass" | "auto":
                self.world.set_mode(what)

    # --- time -------------------------------------------------------------------------------------------------------
    @rule(seconds=st.sampled_from([0.0, 0.001, 0.06, 0.3, 1.1, 6.0, 12.0, 41.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(2):
            self.world.tell(events.TimePassed())
        self.world.pass_time(seconds)

    @rule()
    def everybody_else_leaves(self) -> None:
        self.world.play_to_the_end()

    def teardown(self) -> None:
        if not self.world.sound:
            return
        self.world.play_to_the_end()
        self.world.replay()


def _pick(among: dict[object, object], number: int) -> object:
    return list(among)[number % len(among)]


AnythingMayHappen.TestCase.settings = PROFILE
TestScheduler = AnythingMayHappen.TestCase
