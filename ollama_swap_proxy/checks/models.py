"""What can be told of the settings where it is known which models there are, how large, and how long they take.

Owns these judgements and their words. Must not ask or read anything (`survey` does), and must not decide who may be
together: `core.together` does, and is asked. All are warnings, never errors: what is known may be a guess, and a start
must not depend on whether Ollama happens to answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ollama_swap_proxy.checks.alone import Doubt, classes_in_use, model_place, rule_place
from ollama_swap_proxy.core import plans
from ollama_swap_proxy.core.forecast import Forecast
from ollama_swap_proxy.core.names import ModelName, parse
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Variant
from ollama_swap_proxy.core.together import Facts, Member, Reason, Verdict, listing, may_be_together, mib
from ollama_swap_proxy.core.turns import Turn
from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.settings.toml import value_text

_PER_NAME = frozenset({"class", "klass", "groups"})
"""Settings of a model that may differ between its names: requests have a class by name, and groups add up."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model that Ollama has. ``file_bytes`` is the size of its files: it needs at least about that much memory.

    ``variant`` is the one without options of a request's own; None: it was not looked at.
    """

    name: str
    file_bytes: int
    remote: bool = False
    variant: Variant | None = None
    embedder: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What is known besides the settings. ``found``: by canonical name; None: Ollama was not asked.

    ``learned`` is a scheduler's state that has recalled what an earlier run learned, or a new one.
    """

    learned: State
    found: Mapping[str, Found] | None = None


def nothing_learned(settings: Settings) -> State:
    """Return the state of a scheduler that has never run."""
    policy = settings.policy()
    return State(policy, Forecast(policy.settle_max_s), Turn(0.0))


def doubts_of_models(settings: Settings, known: Known) -> list[Doubt]:
    """Return what is doubtful by what is known."""
    found = [*_of_swaps(settings, known)]
    if known.found is not None:
        found += _of_names(settings, known.found)
        found += _of_one_model(settings, known.found)
        found += _of_pins(settings, known.found, known.learned)
        found += _of_groups(settings, known.found, known.learned)
    return found


def named_models(settings: Settings) -> list[str]:
    """Return the canonical names that the settings speak of, patterns not among them."""
    in_rules = [glob for rule in settings.rules for glob in rule.model or () if isinstance(parse(glob), ModelName)]
    home = [settings.home] if settings.home else []
    return list(dict.fromkeys([*settings.models, *in_rules, *home]))


def _of_swaps(settings: Settings, known: Known) -> Iterator[Doubt]:
    forecast = known.learned.forecast
    names = {model.variant.key: model.name for model in (known.found or {}).values() if model.variant}
    slowest = max(forecast.swap_s, key=lambda variant: forecast.swap_s[variant], default=Variant(""))
    takes_s = forecast.swap_cost_s(slowest)
    if slowest.key:
        what = f"a swap to {names.get(slowest.key, 'the slowest model')} takes {takes_s:.3g} s, as was learned"
    else:
        what = f"a swap may take {takes_s:g} s (a guess: none was seen yet)"
    classes = settings.ticket_classes()
    for name in classes_in_use(settings):
        max_wait_s = classes[name].max_wait_s
        if max_wait_s <= takes_s:
            key = "max_wait_s" if not settings.classes[name].max_wait_s else f"[classes.{name}] max_wait_s"
            yield Doubt(
                key,
                f"{value_text(max_wait_s)} cannot be kept for class {name}: {what}. Set it to several times that, or "
                "pin the model that must answer sooner",
            )


def _of_names(settings: Settings, found: Mapping[str, Found]) -> Iterator[Doubt]:
    places = [(model_place(name), name) for name in settings.models]
    for number, rule in enumerate(settings.rules):
        named = [glob for glob in rule.model or () if isinstance(parse(glob), ModelName)]
        places += [(rule_place(number, "model"), name) for name in named]
    if settings.home and settings.home not in settings.models:
        places.append(("home", settings.home))
    for place, name in places:
        model = found.get(name)
        if model is None:
            short = {known.removesuffix(":latest"): known for known in found}
            near = difflib.get_close_matches(name.removesuffix(":latest"), list(short), n=1, cutoff=0.5)
            hint = f" (it has {short[near[0]]})" if near else ""
            yield Doubt(place, f"Ollama has no model {name}{hint}. Pull it, or correct the name")
        elif model.remote:
            yield Doubt(place, f"{name} runs elsewhere and never waits, so this has no effect. Drop it")


def _of_one_model(settings: Settings, found: Mapping[str, Found]) -> Iterator[Doubt]:
    """Find two tables that mean one runner and say different things: names with the same weights are one model."""
    first_of: dict[str, str] = {}
    for name, table in settings.models.items():
        model = found.get(name)
        if model is None or model.variant is None:
            continue
        first = first_of.setdefault(model.variant.key, name)
        other = settings.models[first]
        differ = [key for key in type(table).model_fields if getattr(table, key) != getattr(other, key)]
        differ = [key for key in differ if key not in _PER_NAME]
        if differ:
            yield Doubt(
                model_place(name),
                f"is the same model as {first} (the same weights, so one of them resident is both), and the two "
                f"tables differ in {', '.join(differ)}: pinned by one is pinned, and the highest priority and the "
                "longest of times count. Write the same in both",
            )


def _of_pins(settings: Settings, found: Mapping[str, Found], learned: State) -> Iterator[Doubt]:
    pins = _members(settings, found, learned, [name for name, table in settings.models.items() if table.pinned])
    facts = plans.facts(learned)
    budget_bytes = settings.vram_budget_bytes
    too_large = [pin for pin in pins if budget_bytes and (pin.size_bytes or 0) > budget_bytes]
    for pin in too_large:
        yield Doubt(
            model_place(pin.name, "pinned"),
            f"{pin} is larger than vram_budget_bytes ({mib(budget_bytes)}): nothing may be resident beside it, so "
            "while it is, every request for another model is turned away (pinned_out). Do not pin it, or correct the "
            "budget",
        )
    forecast = learned.forecast
    spilling = {variant.key for variant in forecast.accepted} - {variant.key for variant in forecast.fitted}
    for pin in pins:
        if pin.key in spilling:
            yield Doubt(
                model_place(pin.name, "pinned"),
                f"{pin} lay partly on the CPU when it was loaded, whatever was tried: nothing fits beside it, so while "
                "it is resident, requests for other models are turned away (pinned_out). Do not pin it, give it a "
                "smaller context, or find out what else holds memory",
            )
    answer = may_be_together(pins, facts)
    if answer.verdict is Verdict.NO and not too_large:
        yield Doubt(
            ", ".join(model_place(pin.name) for pin in pins),
            f"these pinned models cannot be resident together: {answer.text}. Those that come later are turned away "
            "(pinned_out). Pin fewer of them"
            + (", or correct vram_budget_bytes" if answer.reason is Reason.OVER_BUDGET else ""),
        )
    elif pins and not too_large:
        yield from _of_who_is_kept_out(settings, found, learned, pins, facts)


def _of_who_is_kept_out(
    settings: Settings, found: Mapping[str, Found], learned: State, pins: list[Member], facts: Facts
) -> Iterator[Doubt]:
    keys = {pin.key for pin in pins}
    others = [each for each in _members(settings, found, learned, found) if each.key not in keys]
    kept_out = [each for each in others if may_be_together([*pins, each], facts).verdict is Verdict.NO]
    if kept_out:
        yield Doubt(
            ", ".join(model_place(pin.name, "pinned") for pin in pins),
            f"beside {listing(pins)} there is no room for {listing(kept_out)}: "
            f"{may_be_together([*pins, kept_out[0]], facts).text}. Requests for what has no room are turned away "
            "(pinned_out) while the pinned models are resident. Pin fewer or smaller models, or do without the others",
        )
    for home in _members(settings, found, learned, [settings.home]):
        if home.key in {each.key for each in kept_out}:
            yield Doubt(
                "home",
                f"{home} cannot be loaded while {listing(pins)} are resident, so the card hardly ever goes back to it. "
                "Choose another, or pin fewer or smaller models",
            )


def _of_groups(settings: Settings, found: Mapping[str, Found], learned: State) -> Iterator[Doubt]:
    budget_bytes = settings.vram_budget_bytes
    groups = sorted({group for table in settings.models.values() for group in table.groups})
    for group in groups if budget_bytes else ():
        names = [name for name, table in settings.models.items() if group in table.groups]
        members = _members(settings, found, learned, names)
        needed_bytes = sum(member.size_bytes or 0 for member in members)
        if needed_bytes > budget_bytes and len(members) > 1:
            yield Doubt(
                f"the group {group}",
                f"{listing(members)} need {mib(needed_bytes)} together, and vram_budget_bytes is "
                f"{mib(budget_bytes)}: a group is loaded together whatever the budget, so part of it would run on "
                "the CPU. Take a model out of the group, or correct the budget",
            )


def _members(settings: Settings, found: Mapping[str, Found], learned: State, names: Collection[str]) -> list[Member]:
    """Return these models as the residency policy sees them, each once, as far as they are there.

    One that was not looked at is known by its name and the size of its files only.
    """
    members: dict[str, Member] = {}
    for name in names:
        model, table = found.get(name), settings.models.get(name)
        if model is None or model.remote:
            continue
        variant = model.variant or Variant(f"name:{name}")
        members.setdefault(
            variant.key,
            Member(
                variant,
                name,
                size_bytes=_size_bytes(learned, model),
                embedder=model.embedder,
                pinned=table is not None and table.pinned,
                groups=frozenset(table.groups) if table is not None else frozenset(),
            ),
        )
    return list(members.values())


def _size_bytes(learned: State, model: Found) -> int:
    """Return what it takes of GPU memory: as measured, else as the smallest of its variants, else as its files say."""
    if model.variant is None:
        return model.file_bytes
    measured = learned.sizes.get(model.variant)
    if measured is not None:
        return measured
    variants = [size for variant, size in learned.sizes.items() if variant.key == model.variant.key]
    return min(variants, default=model.file_bytes)
