"""What can be told from the settings alone: each of them is valid, together some have no effect or defeat each other.

Owns these judgements and their words: what is wrong, and what to do. Must not ask or read anything. What stops the
start is no doubt: `settings.complaints` has that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.settings.tables import BUILT_IN_CLASSES, RuleTable
from ollama_swap_proxy.settings.toml import key_text, value_text


class Doubt(NamedTuple):
    """What is doubtful about a setting, and what to do. ``about`` is the setting as it is written in the file."""

    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


def doubts_alone(settings: Settings) -> list[Doubt]:
    """Return what is doubtful whatever Ollama has, in the order of docs/config.md."""
    found = (_of_waits(settings), _of_proxies(settings), _of_residency(settings), _of_classes(settings))
    return [doubt for each in (*found, _of_rules(settings), _of_models(settings)) for doubt in each]


def classes_in_use(settings: Settings) -> list[str]:
    """Return the classes that a request can get, in the order of the settings. A header may name any of them."""
    if settings.class_header:
        return list(settings.classes)
    named = {settings.default_class, *(rule.klass for rule in settings.rules)}
    named |= {table.klass for table in settings.models.values() if table.klass is not None}
    return [name for name in settings.classes if name in named]


def model_place(name: str, key: str = "") -> str:
    """Write where a setting of a model stands."""
    return f"[models.{key_text(name)}] {key}".rstrip()


def rule_place(number: int, key: str = "") -> str:
    """Write where a condition of a rule stands; the first rule is number 0 here."""
    return f"[[rules]] no. {number + 1} {key}".rstrip()


def _of_waits(settings: Settings) -> Iterator[Doubt]:
    classes = settings.ticket_classes()
    for name in classes_in_use(settings):
        max_wait_s = classes[name].max_wait_s
        if max_wait_s >= settings.give_up_after_s:
            yield Doubt(
                "give_up_after_s",
                f"{value_text(settings.give_up_after_s)} is not above the maximum wait of class {name} "
                f"({value_text(max_wait_s)}): its requests are turned away before they would go first. Raise it, or "
                f"lower max_wait_s of [classes.{name}]",
            )


def _of_proxies(settings: Settings) -> Iterator[Doubt]:
    if settings.user_header and not settings.trusted_proxies:
        yield Doubt(
            "user_header",
            f"{settings.user_header} counts only from trusted_proxies, and there are none: nobody is known by it, and "
            "no rule on it ever holds. Name the address of whoever sends it in trusted_proxies",
        )
    if settings.trusted_proxies and not (settings.forwarded_header or settings.user_header or settings.class_header):
        yield Doubt(
            "trusted_proxies",
            "they are trusted for nothing: forwarded_header, user_header and class_header are all empty. Set the one "
            "that they send",
        )
    for network in settings.trusted_proxies:
        if network.prefixlen == 0:
            yield Doubt(
                "trusted_proxies",
                f"{network} is everybody: anyone may say who he is. Name the proxies' own addresses",
            )


def _of_residency(settings: Settings) -> Iterator[Doubt]:
    if settings.residency == "fit" and settings.companions == "none":
        yield Doubt(
            "companions",
            'none has no effect with residency = "fit", which lets any models be together that fit. For one model at '
            'a time set residency = "exclusive"',
        )


def _of_classes(settings: Settings) -> Iterator[Doubt]:
    in_use = classes_in_use(settings)
    for name in settings.classes:
        if name not in in_use and name not in BUILT_IN_CLASSES:
            yield Doubt(
                f"[classes.{name}]",
                "no request can get this class: no rule names it, no model, nor default_class. Name it in one of "
                "these, or set class_header",
            )
    classes = settings.ticket_classes()
    # Of one rank the shortest comes last, next to the ranks above.
    ranked = sorted((classes[name] for name in in_use), key=lambda klass: (klass.rank, -klass.max_wait_s))
    for lower, higher in pairwise(ranked):
        if lower.max_wait_s < higher.max_wait_s:
            yield Doubt(
                f"[classes.{higher.name}] max_wait_s",
                f"{value_text(higher.max_wait_s)} is longer than that of class {lower.name} "
                f"({value_text(lower.max_wait_s)}), which has the lower rank: whoever waited so long goes before it "
                "all the same. The higher the rank, the shorter the maximum wait should be",
            )


def _of_rules(settings: Settings) -> Iterator[Doubt]:
    for number, rule in enumerate(settings.rules):
        before = next((other for other in range(number) if _covers(settings.rules[other], rule)), None)
        if before is not None:
            yield Doubt(
                rule_place(number),
                f"never decides: whatever it holds for, no. {before + 1} holds for already. Write it above that one",
            )


def _covers(first: RuleTable, later: RuleTable) -> bool:
    """Say whether the first surely holds wherever the later does: each of its conditions is there, no wider."""
    return all(
        theirs is None or "*" in theirs or (ours is not None and set(ours) <= set(theirs))
        for theirs, ours in (
            *((getattr(first, name), getattr(later, name)) for name in ("model", "path", "key_sha256", "client")),
            (_heads(first), _heads(later) if _heads(first) == _heads(later) else None),
        )
    )


def _heads(rule: RuleTable) -> tuple[object, ...] | None:
    """Return what a rule wants of headers, User-Agent among them; None: nothing."""
    wanted = {name.lower(): globs for name, globs in (rule.header or {}).items()}
    if rule.user_agent is not None:
        wanted["user-agent"] = rule.user_agent
    return tuple(sorted(wanted.items())) or None


def _of_models(settings: Settings) -> Iterator[Doubt]:
    for name, table in settings.models.items():
        if table.pinned and table.priority:
            yield Doubt(
                model_place(name, "priority"),
                "has no effect on a pinned model, which never has to leave for another. Drop one of the two",
            )
    sizes = Counter(group for table in settings.models.values() for group in set(table.groups))
    for name, table in settings.models.items():
        for group in table.groups:
            if sizes[group] == 1:
                yield Doubt(
                    model_place(name, "groups"),
                    f"no other model is in the group {group}, so it has no effect. Name it at the models that may be "
                    "resident with this one",
                )
