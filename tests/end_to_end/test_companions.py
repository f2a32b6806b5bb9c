"""Models that stay together on the card, for real: a chat model and its embedder, and who cannot be beside a pin."""

from __future__ import annotations

from ollama_swap_proxy.simulator import SimGPU
from tests.end_to_end.stage import EMBEDDER, SIGHTED, A, B, C, Stage, staged

SOON_TRIED_S = 0.2
"""Trials wait for so long here; in earnest for 6 s."""


async def _embed(stage: Stage) -> None:
    answer = await stage.post("/api/embed", {"model": "embedder", "input": "x"})
    assert answer.status == 200, answer.body


def _resident(stage: Stage) -> set[str]:
    return {resident.name for resident in stage.snapshot.residents}


async def test_chat_and_embedder_alternating_twenty_times_cost_two_loads() -> None:
    async with staged(companions="embedders", settle_max_s=SOON_TRIED_S) as stage:
        for _ in range(20):
            await stage.served("a")
            await _embed(stage)
        assert len(stage.ollama.ledger.loads()) == 2
        assert stage.evictions_by_ollama == []
        assert _resident(stage) == {"a:latest", "embedder:latest"}


async def test_an_embedder_loaded_after_a_chat_model_is_kept_across_its_swaps_once_it_was_loaded_anew() -> None:
    async with staged((A, B, C, EMBEDDER), companions="embedders", settle_max_s=SOON_TRIED_S) as stage:
        for model in "abcabcab":
            await stage.served(model)
            await _embed(stage)
        assert stage.loads == ["a", "embedder", "embedder", *"bcabcab"]
        assert stage.evictions_by_ollama == []


async def test_the_strict_form_swaps_them() -> None:
    async with staged(companions="none") as stage:
        for _ in range(2):
            await stage.served("a")
            await _embed(stage)
        assert len(stage.ollama.ledger.loads()) == 4


async def test_a_pair_that_does_not_fit_is_tried_once_in_each_load_order_and_never_again() -> None:
    """4500 and 300 MiB on a card of 4600: whatever Ollama makes of it."""
    async with staged(
        (A, EMBEDDER), gpu=SimGPU(4600, lag_s=0.0), companions="embedders", settle_max_s=SOON_TRIED_S
    ) as stage:
        for _ in range(6):
            await stage.served("a")
            await _embed(stage)
        proofs = stage.service._gate._scheduler._state.proofs
        assert not proofs.proven
        assert max(proofs.trials.values()) <= 3
        before = dict(proofs.trials)
        for _ in range(3):
            await stage.served("a")
            await _embed(stage)
        assert proofs.trials == before
        assert all(resident.spilled_bytes == 0 for resident in stage.snapshot.residents)


async def test_a_pinned_model_stays_and_what_cannot_be_beside_it_is_refused_at_once() -> None:
    async with staged(
        (A, SIGHTED, EMBEDDER), models={"a": {"pinned": True}}, companions="embedders", settle_max_s=SOON_TRIED_S
    ) as stage:
        await stage.served("a")
        await _embed(stage)
        assert _resident(stage) == {"a:latest", "embedder:latest"}
        for _ in range(4):
            answer = await stage.ask("sighted")
        assert answer.status == 503
        assert answer.code == "pinned_out"
        assert "a:latest" in answer.json["error"]
        await stage.served("a")
        assert "a:latest" in _resident(stage)


async def test_a_pinned_embedder_gets_its_place_back_from_a_model_that_evicts_it_which_is_then_refused() -> None:
    """4500 and 300 MiB on a card of 4600: Ollama throws the embedder out for the chat model, and in the other order the
    chat model.
    """
    async with staged(
        (A, EMBEDDER),
        gpu=SimGPU(4600, lag_s=0.0),
        models={"embedder": {"pinned": True}},
        companions="embedders",
        settle_max_s=SOON_TRIED_S,
    ) as stage:
        await _embed(stage)
        answers = [await stage.ask("a") for _ in range(3)]
        assert answers[-1].code == "pinned_out"
        assert "embedder:latest" in answers[-1].json["error"]
        assert stage.loads.count("a") == 1
        await _embed(stage)
        assert _resident(stage) == {"embedder:latest"}


async def test_a_pinned_embedder_stays_beside_chat_models_that_take_turns() -> None:
    async with staged(
        (A, B, EMBEDDER), models={"embedder": {"pinned": True}}, companions="embedders", settle_max_s=SOON_TRIED_S
    ) as stage:
        for model in "abab":
            await stage.served(model)
            await _embed(stage)
        loads = len(stage.loads)
        for model in "abab":
            await stage.served(model)
            assert _resident(stage) == {f"{model}:latest", "embedder:latest"}
        assert stage.loads[loads:] == ["a", "b", "a", "b"]
        assert stage.evictions_by_ollama == []
