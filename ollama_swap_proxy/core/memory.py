"""What was learned, as plain JSON values that outlive a restart, and back.

Owns their form. Must not know where they are kept (`state_file` does). Only facts and durations are kept: moments
(pauses, cool-downs) are those of a clock that ends with the process. What comes back may be damaged: a part that cannot
be understood is ignored as a whole, with a log line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from ollama_swap_proxy.core import proofs
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Variant

FORMAT: Final = 1

VARIANTS_REMEMBERED: Final = 256
"""Those that were swapped to last. What is kept must stay small: it is written as a whole, again and again."""

LONGEST_S: Final = 1e6
"""No duration that we learn is longer; nor is a size larger than `LARGEST_BYTES`, nor a number of leases negative."""

LARGEST_BYTES: Final = 2**50

T = TypeVar("T")


def remembered(state: State) -> dict[str, object]:
    """Return what was learned; `recall` reads it. Times in seconds (``_s``), sizes in bytes (``_bytes``)."""
    forecast = state.forecast
    return {
        "format": FORMAT,
        "version": state.version,
        "settle_s": forecast.settle_s,
        "look_s": forecast.look_s,
        "largest_vram_bytes": state.residency.largest_vram_bytes,
        "variants": [_variant(state, variant) for variant in _latest(state)],
        "leases": state.slots.learned(),
        "proofs": state.proofs.to_json(),
    }


def recall(state: State, memory: object) -> None:
    """Take in what an earlier run remembered. Nothing is raised: what is damaged is told and ignored."""
    if not isinstance(memory, dict) or memory.get("format") != FORMAT:
        known = str(memory.get("format"))[:40] if isinstance(memory, dict) else "none"
        _ignore(state, "all", f"its format is not known: {known}")
        return
    version = memory.get("version")
    state.version = version if isinstance(version, str) else None
    readers: dict[str, Callable[[State, dict[object, object]], None]] = {
        "settle": _recall_settle,
        "variants": _recall_variants,
        "leases": _recall_leases,
        "proofs": _recall_proofs,
    }
    for part, read in readers.items():
        try:
            read(state, memory)
        except ValueError as error:
            _ignore(state, part, str(error))
    state.plans.clear()


def _ignore(state: State, part: str, reason: str) -> None:
    state.say("memory_ignored", warning=True, part=part, reason=reason)


def _latest(state: State) -> Iterator[Variant]:
    """Yield the variants of which anything was learned, the oldest of them first."""
    forecast = state.forecast
    others = [*state.sizes, *forecast.fitted, *forecast.accepted, *forecast.suspects, *forecast.settle_before_spills_s]
    newest_first = list(dict.fromkeys([*reversed(forecast.swap_s), *reversed(others)]))
    yield from reversed(newest_first[:VARIANTS_REMEMBERED])


def _variant(state: State, variant: Variant) -> dict[str, object]:
    forecast = state.forecast
    known = {
        "swap_s": forecast.swap_s.get(variant),
        "load_s": forecast.load_s.get(variant),
        "answer_s": forecast.answer_s.get(variant),
        "unload_s": forecast.unload_s.get(variant.key),
        "size_vram_bytes": state.sizes.get(variant),
        "fitted": variant in forecast.fitted or None,
        "accepted": variant in forecast.accepted or None,
        "suspect_since_settle_s": forecast.suspects.get(variant),
        "settle_before_spills_s": forecast.settle_before_spills_s.get(variant),
    }
    return {**variant._asdict(), **{name: value for name, value in known.items() if value is not None}}


def _recall_settle(state: State, memory: dict[object, object]) -> None:
    forecast, most_s = state.forecast, state.forecast.settle_max_s
    settle_s, look_s = _seconds(memory.get("settle_s")), _seconds(memory.get("look_s"))
    largest_bytes = _whole(memory.get("largest_vram_bytes"), LARGEST_BYTES)
    forecast.settle_s, forecast.look_s = min(settle_s, most_s), min(look_s, most_s)
    state.residency.largest_vram_bytes = max(state.residency.largest_vram_bytes, largest_bytes)


def _recall_variants(state: State, memory: dict[object, object]) -> None:
    forecast = state.forecast
    swap_s, suspects, before_s = dict[Variant, float](), dict[Variant, float](), dict[Variant, float]()
    load_s, answer_s, unload_s = dict[Variant, float](), dict[Variant, float](), dict[str, float]()
    fitted, accepted = dict[Variant, None](), dict[Variant, None]()
    sizes = dict[Variant, int]()
    for each in _a(list, memory.get("variants"))[-VARIANTS_REMEMBERED:]:
        saved = _a(dict, each)
        variant = Variant(_a(str, saved.get("key")), _a(str, saved.get("options")))
        for known_s, name in (
            (swap_s, "swap_s"),
            (load_s, "load_s"),
            (answer_s, "answer_s"),
            (suspects, "suspect_since_settle_s"),
            (before_s, "settle_before_spills_s"),
        ):
            if name in saved:
                known_s[variant] = _seconds(saved[name])
        if "unload_s" in saved:
            unload_s[variant.key] = _seconds(saved["unload_s"])
        if "size_vram_bytes" in saved:
            sizes[variant] = _whole(saved["size_vram_bytes"], LARGEST_BYTES)
        if saved.get("fitted") is True:
            fitted[variant] = None
        elif saved.get("accepted") is True:
            accepted[variant] = None
    forecast.swap_s, forecast.suspects, forecast.settle_before_spills_s = swap_s, suspects, before_s
    forecast.load_s, forecast.answer_s, forecast.unload_s = load_s, answer_s, unload_s
    forecast.fitted, forecast.accepted, state.sizes = fitted, accepted, sizes


def _recall_leases(state: State, memory: dict[object, object]) -> None:
    saved = _a(dict, memory.get("leases"))
    state.slots.recall({_a(str, key): _whole(most, 2**31) for key, most in saved.items()})


def _recall_proofs(state: State, memory: dict[object, object]) -> None:
    state.proofs, damage = proofs.from_json(memory.get("proofs"))
    if damage is not None:
        raise ValueError(damage)


def _a(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"a {kind.__name__} was expected, not {type(value).__name__}")  # noqa: TRY004 - of a file
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
        raise ValueError(f"a number of seconds was expected, not {str(value)[:40]}")
    return float(value)


def _whole(value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"a whole number up to {most} was expected, not {str(value)[:40]}")
    return value
