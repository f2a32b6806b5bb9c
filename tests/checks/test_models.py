"""Settings held against what Ollama has and what was learned: what cannot fit, what is not there, what takes longer."""

from __future__ import annotations

from ollama_swap_proxy.checks.models import Found, Known, doubts_of_models, named_models, nothing_learned
from ollama_swap_proxy.core.proofs import Outcome
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Variant
from ollama_swap_proxy.settings.options import Settings

GIB = 2**30
PIN = {"pinned": True}


def _found(*, remote: str = "", embedder: str = "", **sizes_gib: float) -> dict[str, Found]:
    """Models by name; the key of ``a2`` is that of ``a``: the same weights."""
    return {
        f"{name}:latest": Found(
            f"{name}:latest",
            int(size * GIB),
            remote=name == remote,
            variant=None if name == remote else Variant(name[0]),
            embedder=name == embedder,
        )
        for name, size in sizes_gib.items()
    }


def _settings(**settings: object) -> Settings:
    return Settings.model_validate(settings)


def _said(settings: Settings, found: dict[str, Found] | None = None, learned: State | None = None) -> list[str]:
    return [str(each) for each in doubts_of_models(settings, Known(learned or nothing_learned(settings), found))]


def test_nothing_is_doubtful_about_the_defaults() -> None:
    assert _said(_settings()) == []
    assert _said(_settings(), _found(a=5, b=6)) == []


def test_names_that_ollama_has_not_are_told_with_the_nearest_one() -> None:
    settings = _settings(models={"qwen": {}, "zzz": {}}, rules=[{"class": "batch", "model": ["a", "b*", "quen"]}])
    assert named_models(settings) == ["qwen:latest", "zzz:latest", "a:latest", "quen:latest"]
    said = _said(settings, _found(a=1, qwen3=2))
    assert said[0] == (
        '[models."qwen:latest"]: Ollama has no model qwen:latest (it has qwen3:latest). Pull it, or correct the name'
    )
    assert said[1].startswith('[models."zzz:latest"]: Ollama has no model zzz:latest. Pull it')
    assert said[2].startswith("[[rules]] no. 1 model: Ollama has no model quen:latest")
    assert len(said) == 3
    assert _said(settings) == [], "nothing was asked"


def test_a_model_that_runs_elsewhere_never_waits() -> None:
    (said,) = _said(_settings(models={"big": PIN}), _found(remote="big", big=0))
    assert said.startswith('[models."big:latest"]: big:latest runs elsewhere')


def test_two_names_of_one_model_with_other_settings() -> None:
    found = _found(a=1, a2=1)
    (said,) = _said(_settings(models={"a": PIN, "a2": {"priority": 2}}), found)
    assert said.startswith('[models."a2:latest"]: is the same model as a:latest')
    assert "differ in pinned, priority" in said
    assert _said(_settings(models={"a": PIN, "a2": {**PIN, "class": "batch"}}), found) == []


def test_a_pin_that_leaves_room_for_nobody() -> None:
    found = _found(a=9, b=1)
    (said,) = _said(_settings(models={"a": PIN}, vram_budget_bytes="8 GiB"), found)
    assert said.startswith(
        '[models."a:latest"] pinned: a:latest (9216 MiB) is larger than vram_budget_bytes (8192 MiB)'
    )
    assert _said(_settings(models={"a": PIN}, vram_budget_bytes="10 GiB"), found) == []
    assert _said(_settings(models={"a": PIN}), found) == []
    (said,) = _said(_settings(models={"a": PIN, "b": PIN}, vram_budget_bytes="8 GiB"), found)
    assert said.startswith('[models."a:latest"] pinned: ')


def test_pins_that_do_not_fit_together() -> None:
    found = _found(a=5, b=5)
    (said,) = _said(_settings(models={"a": PIN, "b": PIN}, vram_budget_bytes="8 GiB"), found)
    assert said.startswith('[models."a:latest"], [models."b:latest"]: these pinned models cannot be resident together')
    assert "need 10240 MiB of GPU memory, of which there is 8192 MiB" in said
    assert "correct vram_budget_bytes" in said
    assert _said(_settings(models={"a": PIN, "b": PIN}), found) == []


def test_a_pin_that_never_lay_wholly_on_the_card() -> None:
    settings = _settings(models={"a": PIN, "b": {}})
    learned = nothing_learned(settings)
    learned.forecast.accepted |= {Variant("a", "num_ctx=9"): None, Variant("b"): None}
    (said,) = _said(settings, _found(a=5, b=5), learned)
    assert said.startswith('[models."a:latest"] pinned: a:latest (5120 MiB) lay partly on the CPU when it was loaded')
    learned.forecast.fitted[Variant("a")] = None
    assert _said(settings, _found(a=5, b=5), learned) == [], "with less context it fits"


def test_pins_that_were_tried_together_in_vain() -> None:
    settings = _settings(models={"a": PIN, "b": PIN})
    learned = nothing_learned(settings)
    pair = (Variant("a"), Variant("b"))
    for newcomer in "ab":
        learned.proofs.note(pair, newcomer, Outcome.FAILED, trial=True)
    (said,) = _said(settings, _found(a=5, b=5), learned)
    assert "were tried together in both load orders and did not fit" in said
    assert "vram_budget_bytes" not in said


def test_who_has_no_room_beside_the_pins() -> None:
    settings = _settings(models={"a": PIN}, vram_budget_bytes="8 GiB")
    (said,) = _said(settings, _found(a=3, b=4, c=6, d=7))
    assert said.startswith('[models."a:latest"] pinned: beside a:latest (3072 MiB) there is no room for ')
    assert "c:latest (6144 MiB) and d:latest (7168 MiB): " in said
    assert "b:latest" not in said


def test_another_name_of_a_pinned_model_is_no_other_model() -> None:
    settings = _settings(models={"a": PIN}, vram_budget_bytes="8 GiB")
    found = {"a2:latest": Found("a2:latest", GIB, variant=Variant("a", "num_ctx=2")), **_found(a=3)}
    assert _said(settings, found) == []


def test_sizes_are_as_measured_where_they_were() -> None:
    settings = _settings(models={"a": PIN}, vram_budget_bytes="8 GiB")
    learned = nothing_learned(settings)
    learned.sizes[Variant("a")] = 9 * GIB
    learned.sizes[Variant("a", "num_ctx=2")] = 3 * GIB
    assert "a:latest (9216 MiB) is larger" in _said(settings, _found(a=1), learned)[0]
    del learned.sizes[Variant("a")]
    learned.sizes[Variant("a", "num_ctx=4")] = 4 * GIB
    assert _said(settings, _found(a=9), learned) == []


def test_a_group_larger_than_the_budget() -> None:
    models = {"a": {"groups": ["rag"]}, "b": {"groups": ["rag", "x"]}, "c": {"groups": ["x"]}}
    (said,) = _said(_settings(models=models, vram_budget_bytes="8 GiB"), _found(a=5, b=5, c=1))
    assert said.startswith("the group rag: a:latest (5120 MiB) and b:latest (5120 MiB) need 10240 MiB together")
    assert _said(_settings(models=models), _found(a=5, b=5, c=1)) == []


def test_a_maximum_wait_shorter_than_the_slowest_learned_swap() -> None:
    settings = _settings(rules=[{"class": "interactive", "path": "/api/chat"}])
    learned = nothing_learned(settings)
    learned.forecast.swap_s |= {Variant("a"): 61.0, Variant("b"): 20.0}
    (said,) = _said(settings, _found(a=5, b=5), learned)
    assert said.startswith(
        "[classes.interactive] max_wait_s: 60 cannot be kept for class interactive: a swap to a:latest"
    )
    assert "a swap to the slowest model takes 61 s" in _said(settings, None, learned)[0]
    learned.forecast.swap_s[Variant("a")] = 59.0
    assert _said(settings, _found(a=5, b=5), learned) == []


def test_a_maximum_wait_shorter_than_any_swap_before_one_was_seen() -> None:
    (said,) = _said(_settings(max_wait_s=4))
    assert said.startswith("max_wait_s: 4 cannot be kept for class normal: a swap may take 5 s (a guess")


def test_a_home_model_that_is_not_there_or_never_has_room() -> None:
    assert named_models(_settings(home="h")) == ["h:latest"]
    (said,) = _said(_settings(home="h"), _found(a=1))
    assert said.startswith("home: Ollama has no model h:latest")
    pinned_out = _settings(home="h", models={"a": PIN}, vram_budget_bytes="8 GiB")
    assert _said(pinned_out, _found(a=6, h=4))[-1].startswith(
        "home: h:latest (4096 MiB) cannot be loaded while a:latest"
    )
    assert _said(pinned_out, _found(a=6, h=1)) == []
    assert _said(_settings(home="h", models={"e": PIN}), _found(embedder="e", e=1, h=1)) == []
    assert _said(_settings(home="h"), _found(a=1, h=1)) == []
