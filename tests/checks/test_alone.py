"""Settings that are each fine and together have no effect: what is said of them, whatever Ollama has."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.checks.alone import doubts_alone
from ollama_swap_proxy.settings.options import Settings

PROXY = {"trusted_proxies": ["10.0.0.5"]}
EMBED = {"class": "batch", "path": "/api/embed*"}


def _said(**settings: object) -> list[str]:
    return [str(doubt) for doubt in doubts_alone(Settings.model_validate(settings))]


def _doubt(**settings: object) -> str:
    (said,) = _said(**settings)
    return said


def test_nothing_is_doubtful_about_the_defaults() -> None:
    assert _said() == []


def test_a_class_in_use_whose_maximum_is_beyond_the_end_of_all_waits() -> None:
    said = _doubt(give_up_after_s=1000, rules=[EMBED])
    assert said.startswith("give_up_after_s: 1000 is not above the maximum wait of class batch (1800)")
    assert _said(give_up_after_s=1000) == [], "nobody is of class batch"
    assert _said(give_up_after_s=1801, rules=[EMBED]) == []


def test_a_user_header_that_nobody_is_believed_in() -> None:
    said = _doubt(user_header="X-User")
    assert "user_header: X-User counts only from trusted_proxies, and there are none" in said
    assert _said(user_header="X-User", **PROXY) == []


def test_proxies_trusted_for_nothing_and_proxies_that_are_everybody() -> None:
    assert _doubt(forwarded_header="", **PROXY).startswith("trusted_proxies: they are trusted for nothing")
    assert _said(forwarded_header="", class_header="X-Class", **PROXY) == []
    assert _doubt(trusted_proxies="0.0.0.0/0").startswith("trusted_proxies: 0.0.0.0/0 is everybody")
    assert _said(**PROXY) == []


def test_companions_where_all_may_be_together() -> None:
    assert _doubt(residency="fit", companions="none").startswith("companions: none has no effect")
    assert _said(residency="fit") == []
    assert _said(companions="none") == []


def test_a_class_that_no_request_can_get() -> None:
    night = {"night": {"rank": 5, "max_wait_s": 900}}
    assert _doubt(classes=night).startswith("[classes.night]: no request can get this class")
    assert _said(classes=night, class_header="X-Class") == []
    assert _said(classes=night, models={"qwen3": {"class": "night"}}) == []


def test_a_higher_class_that_may_wait_longer_than_a_lower_one() -> None:
    slow = {"interactive": {"max_wait_s": 300}}
    rules = [{"class": "interactive", "path": "/api/chat"}]
    said = _doubt(classes=slow, rules=rules)
    assert said.startswith("[classes.interactive] max_wait_s: 300 is longer than that of class normal (120)")
    assert _said(classes=slow) == [], "nobody is of it"
    same_rank = {"interactive": {"rank": 10}, "normal": {"max_wait_s": 300}}
    assert _said(classes=same_rank, rules=rules) == []
    two = {"normal": {"max_wait_s": 50}, "slow": {"rank": 10, "max_wait_s": 100}, "interactive": {"max_wait_s": 80}}
    said = _doubt(classes=two, rules=[*rules, {"class": "slow", "path": "*"}])
    assert "longer than that of class normal (50)" in said


@pytest.mark.parametrize(
    ("first", "later", "covered"),
    [
        ({"path": "/api/embed*"}, {"path": "/api/embed*", "client": "10.0.0.1"}, True),
        ({"model": "*"}, {"path": "/api/chat"}, True),
        ({"model": ["a", "b"]}, {"model": "b"}, True),
        ({"header": {"X-Job": "*"}}, {"header": {"x-job": "*"}, "model": "b"}, True),
        ({"path": "/api/embed*", "client": "10.0.0.1"}, {"path": "/api/embed*"}, False),
        ({"model": "b"}, {"model": ["a", "b"]}, False),
        ({"header": {"X-Job": "*"}}, {"model": "b"}, False),
        ({"user_agent": "curl*"}, {"header": {"X-Job": "*"}}, False),
        ({"user_agent": "curl*"}, {"model": "b"}, False),
    ],
)
def test_a_rule_behind_one_that_holds_for_all_of_it(
    first: dict[str, str], later: dict[str, str], covered: bool
) -> None:
    said = _said(rules=[{"class": "batch", **first}, {"class": "interactive", **later}])
    assert [each.partition(",")[0] for each in said] == (
        ["[[rules]] no. 2: never decides: whatever it holds for"] * covered
    )


def test_a_priority_that_a_pin_makes_pointless() -> None:
    said = _doubt(models={"qwen3": {"pinned": True, "priority": 3}})
    assert said.startswith('[models."qwen3:latest"] priority: has no effect on a pinned model')
    assert _said(models={"qwen3": {"pinned": True}, "other": {"priority": 3}}) == []


def test_a_group_of_one() -> None:
    said = _doubt(models={"qwen3": {"groups": ["rag"]}})
    assert said.startswith('[models."qwen3:latest"] groups: no other model is in the group rag')
    assert _said(models={"qwen3": {"groups": ["rag"]}, "bge-m3": {"groups": ["rag"]}}) == []
