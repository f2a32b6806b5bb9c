"""What a request for a model needs, asked by name alone."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.core.tickets import LoadRecipe, Need, Traits, Variant
from ollama_swap_proxy.num_ctx import LeastNumCtx
from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.upstream.catalog import Entry
from ollama_swap_proxy.upstream.needs import AskedByAll, need_of, nothing_asked, plain_need

CHAT = Entry("chat:latest", "Chat:latest", "d", "blob", frozenset({"completion"}), {"num_ctx": "8192"})
VECTORS = Entry("e:latest", "e:latest", "d", "blob-e", frozenset({"embedding"}))


class Library:
    """A catalog of two models, and one that runs elsewhere."""

    async def find(self, name: str, max_age_s: float) -> Entry | None:
        assert max_age_s == 1.0
        stub = Entry("stub:latest", "stub:latest", "", "cloud:stub", remote=True)
        return {"chat:latest": CHAT, "e:latest": VECTORS, "stub:latest": stub}.get(name)

    def traits(self, entry: Entry) -> Traits:
        return Traits(embedder=entry is VECTORS)


async def asked(model: str, asked_by_all: AskedByAll = nothing_asked) -> Need | str:
    return await plain_need(cast("Any", Library()), model, 1.0, asked_by_all)


async def test_a_model_is_asked_by_its_name_on_disk_with_its_own_parameters_and_the_endpoint_that_it_has() -> None:
    recipe = LoadRecipe("/api/generate", b'{"model": "Chat:latest", "stream": false}')
    assert await asked("CHAT") == Need("Chat:latest", Variant("blob", "num_ctx=8192"), recipe, Traits())
    need = await asked("e")
    assert isinstance(need, Need)
    assert need.recipe == LoadRecipe("/api/embed", b'{"model": "e:latest", "input": []}')


async def test_it_is_asked_with_the_context_that_the_operator_gives_to_all_its_requests() -> None:
    asked_by_all = LeastNumCtx(Settings.model_validate({"models": {"chat": {"min_num_ctx": 9000}}})).asked_by_all
    need = await asked("chat", asked_by_all)
    assert isinstance(need, Need)
    assert need.variant == Variant("blob", "num_ctx=9000")
    assert need.recipe is not None
    assert b'"num_ctx": 9000' in need.recipe.body


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("nobody", "Ollama has no model nobody"),
        ("stub", "stub runs elsewhere"),
        ("x:cloud", "x:cloud runs elsewhere"),
        ("a b", "'a b' names no model"),
    ],
)
async def test_what_needs_no_lease_is_told_in_words(model: str, why: str) -> None:
    told = await asked(model)
    assert isinstance(told, str)
    assert told.startswith(why)


def test_adapters_are_part_of_the_variant() -> None:
    entry = Entry("a:latest", "a:latest", "d", "blob", adapters=("sha256-0123456789abcdef",))
    assert need_of(endpoints.GENERATE, {}, entry, Traits()).variant == Variant("blob", "adapters=456789abcdef")
    assert (
        need_of(endpoints.GENERATE, {"num_ctx": 5}, entry, Traits()).variant.options
        == "num_ctx=5,adapters=456789abcdef"
    )
