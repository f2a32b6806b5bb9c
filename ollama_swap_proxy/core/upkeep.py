"""What is done when nobody waits, because the operator wishes it so: an idle model's time to live ends,
pinned models are loaded, and the card goes back to its home model.

Owns when a wish is due. Must not evict or load anything (`swapping` begins what does), and nothing that a request waits
for: whoever asks goes first.
"""

from __future__ import annotations

from ollama_swap_proxy.core import commands, events, granting, limits, plans, swapping
from ollama_swap_proxy.core.policy import NEED_FRESH_S, WISH_AGAIN_AFTER_S
from ollama_swap_proxy.core.state import State, Wish
from ollama_swap_proxy.core.tickets import Need, Resident
from ollama_swap_proxy.core.victims import Impossible


def begin_if_due(state: State, now: float) -> bool:
    """Begin what is due, of which there is one thing at a time; say whether anything was."""
    return _end_a_life(state, now) or _preload(state, now) or _go_home(state, now)


def lives_until(state: State, key: str) -> float | None:
    """Return when a resident's time to live ends, if nobody asks for it before; None: it has none, or is in use.

    It begins with the end of its last lease, or when it was first seen. One that resists is left alone for a while,
    one that is leaving goes by itself.
    """
    ttl_s = limits.ttl_s(state, key)
    if not ttl_s or state.leases.running.get(key, 0) or key in state.residency.leaving:
        return None
    idle_since = state.leases.idle_since(key)
    seen_since = state.residency.seen_since[key]
    ends_at = (seen_since if idle_since is None else max(idle_since, seen_since)) + ttl_s
    pause = state.resisting.get(key)
    return ends_at if pause is None else max(ends_at, pause.until)


def _end_a_life(state: State, now: float) -> bool:
    """Unload a resident whose time to live is over: in manual mode too, for nothing is loaded by that."""
    spared = {variant.key for variant in state.line.variants()} | state.keeping_alive
    due: list[tuple[float, Resident]] = []
    for key, resident in state.residency.residents.items():
        ends_at = None if key in spared else lives_until(state, key)
        if ends_at is None:
            continue
        if now < ends_at:
            state.wake(ends_at)
        else:
            due.append((ends_at, resident))
    if not due or any(lease.relayed for lease in state.leases) or not state.has_fresh_view(now):
        return False
    _, first = min(due, key=lambda each: (each[0], each[1].key))
    swapping.begin_unloading(state, first.key, "ttl", now)
    return True


def _preload(state: State, now: float) -> bool:
    """Load a pinned model that is to be loaded since our start, or upstream's; a load that fails is not repeated."""
    for wish in list(state.preloads.values()) if _is_idle(state) else ():
        need = _fresh_need(state, wish, now)
        if need is None:
            continue
        variant = need.variant
        failed = variant in state.cool_downs or variant.key in state.vanishing
        if variant.key in state.residency.residents or failed:
            del state.preloads[wish.name]
        elif _may_load(state, wish, need, now):
            _load(state, need, "preload", now)
            return True
    return False


def home_due_at(state: State) -> float | None:
    """Return when the card goes back to its home model if nothing moves before; None: it is there, or is kept from it.

    What others loaded meanwhile counts as moving.
    """
    home = state.home
    if home is None or not _is_idle(state) or not state.ordinary:
        return None
    if home.need is not None and home.need.variant.key in state.residency.residents:
        return None
    moved_at = max([state.moved_at, *state.residency.seen_since.values()])
    return max(moved_at + state.policy.home_after_s, home.again_at)


def _go_home(state: State, now: float) -> bool:
    """Load the home model when nothing has moved for a while; one that fails is tried again after its cool-down."""
    home, due_at = state.home, home_due_at(state)
    if home is None or due_at is None:
        return False
    if now < due_at:
        state.wake(due_at)
        return False
    need = _fresh_need(state, home, now)
    if need is None:
        return False
    failed = state.cool_downs.get(need.variant)
    if need.variant.key in state.vanishing:
        _leave_alone(state, home, "Ollama unloads it at once (OLLAMA_KEEP_ALIVE=0)", now)
    elif failed is not None and now < (again_at := max(failed.until, home.tried_at + WISH_AGAIN_AFTER_S)):
        home.again_at = again_at
        state.wake(again_at)
    elif _may_load(state, home, need, now):
        home.tried_at = now
        _load(state, need, "home", now)
        return True
    return False


def _is_idle(state: State) -> bool:
    """Say whether something may be loaded that nobody asks for: in manual mode only the operator loads."""
    return state.mode == "auto" and not state.leases and not state.line.tickets


def _fresh_need(state: State, wish: Wish, now: float) -> Need | None:
    """Return what is needed to load a model, or None, and have it found out if it is not known of this moment."""
    if now < wish.again_at:
        state.wake(wish.again_at)
        return None
    if now - wish.described_at <= NEED_FRESH_S:
        return wish.need
    if wish.asked_at <= wish.described_at and state.has_fresh_view(now):
        wish.asked_at = now
        state.out.append(commands.Describe(wish.name))
    return None


def _may_load(state: State, wish: Wish, need: Need, now: float) -> bool:
    """Say whether a swap to this target may begin now."""
    if plans.has_pins(state) and isinstance(chosen := plans.plan(state, need.variant), Impossible):
        _leave_alone(state, wish, chosen.text, now)
        return False
    until = granting.resisted_until(state, need.variant, now)
    if until > now:
        wish.again_at = until
        state.wake(until)
        return False
    return state.has_fresh_view(now)


def _load(state: State, need: Need, reason: str, now: float) -> None:
    swapping.begin_towards(state, need.variant, need.name, reason, now).wished = True


def described(state: State, event: events.Described, now: float) -> None:
    """Take in what Ollama says of a model that the operator wishes for; one that it has not is looked for again."""
    for wish in (state.preloads.get(event.name), state.home):
        if wish is not None and wish.name == event.name:
            _learn(state, wish, event, now)


def _learn(state: State, wish: Wish, event: events.Described, now: float) -> None:
    wish.need, wish.described_at = event.need, now
    if event.need is None:
        _leave_alone(state, wish, event.reason, now)
    elif event.need.recipe is None:
        _leave_alone(state, wish, "only a request can load it", now)
    else:
        plans.note_traits(state, event.need.variant.key, event.need.traits)
        state.keep_recipe(event.need.variant, event.need.name, event.need.recipe)


def _leave_alone(state: State, wish: Wish, reason: str, now: float) -> None:
    wish.again_at = now + WISH_AGAIN_AFTER_S
    if wish.told != reason:
        wish.told = reason
        state.say("wish_not_granted", warning=True, model=wish.name, reason=reason)
