"""One spelling for one set of runner options, and the empty request that loads it."""

from __future__ import annotations

import json

import pytest

from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.core.variants import changes, load_recipe, variant_options


@pytest.mark.parametrize(
    ("own", "requested", "spelled"),
    [
        ({}, {}, ""),
        ({"temperature": 1, "stop": ["x"]}, {"top_k": 1}, ""),
        ({}, {"shift": False, "num_ctx": 8192}, "num_ctx=8192,shift=false"),
        ({"num_ctx": "4096", "use_mmap": "true"}, {}, "num_ctx=4096,use_mmap=true"),
        ({"num_ctx": 4096}, {"num_ctx": 8192.9}, "num_ctx=8192"),
        ({"num_batch": 64}, {"num_batch": None}, "num_batch=null"),
        ({}, {"num_gpu": 0, "main_gpu": 0}, "num_gpu=0,main_gpu=0"),
        ({}, {"num_ctx": float("inf")}, "num_ctx=huge"),
        ({}, {"num_ctx": 10**400}, "num_ctx=huge"),
        ({"num_ctx": "many"}, {}, "num_ctx=other"),
    ],
)
def test_effective_options_have_one_spelling(own, requested, spelled):
    assert variant_options(own, requested) == spelled


@pytest.mark.parametrize("options", [{"num_gpu": -1}, {"num_gpu": -2.0}, {"num_thread": 0}, {"num_thread": 0.5}])
def test_defaults_that_ollama_compares_as_numbers_are_the_same_as_absent(options):
    assert variant_options({}, options) == ""
    assert variant_options({"num_gpu": 20, "num_thread": 8}, options) != variant_options(
        {"num_gpu": 20, "num_thread": 8}, {}
    )


@pytest.mark.parametrize("options", [{"num_ctx": 4096}, {"num_batch": 512}, {"main_gpu": 0}, {"num_gpu": 0}])
def test_other_explicit_defaults_are_never_the_same_as_absent(options):
    assert variant_options({}, options) != variant_options({}, {})


def recipe(endpoint, options=None, capabilities=("completion",)):
    found = load_recipe(endpoint, "small:latest", options or {}, capabilities)
    return found and (found.path, json.loads(found.body))


def test_completers_are_loaded_by_generate_without_a_prompt_and_without_keep_alive():
    expected = ("/api/generate", {"model": "small:latest", "stream": False})
    for endpoint in (endpoints.GENERATE, endpoints.CHAT, endpoints.V1_CHAT, endpoints.V1_MESSAGES):
        assert recipe(endpoint) == expected
        assert recipe(endpoint, capabilities=None) == expected


def test_the_request_s_own_options_and_shift_go_along():
    options = {"num_ctx": 8192, "num_batch": None, "shift": False}
    assert recipe(endpoints.CHAT, options) == (
        "/api/generate",
        {"model": "small:latest", "options": {"num_ctx": 8192, "num_batch": None}, "shift": False, "stream": False},
    )
    assert recipe(endpoints.EMBED, {"num_ctx": 512}) == (
        "/api/embed",
        {"model": "small:latest", "options": {"num_ctx": 512}, "input": []},
    )


def test_embedders_are_loaded_by_embed_with_nothing_to_embed():
    expected = ("/api/embed", {"model": "small:latest", "input": []})
    for endpoint in (endpoints.EMBED, endpoints.EMBEDDINGS, endpoints.V1_EMBEDDINGS):
        assert recipe(endpoint, capabilities=None) == expected
        assert recipe(endpoint, capabilities=["embedding"]) == expected
    assert recipe(endpoints.GENERATE, capabilities=["embedding"]) == expected


def test_what_no_empty_request_loads_is_loaded_by_its_first_request():
    for endpoint in (endpoints.V1_TRANSCRIPTIONS, endpoints.V1_IMAGES, endpoints.V1_IMAGE_EDITS):
        assert recipe(endpoint, capabilities=None) is None
    assert recipe(endpoints.CHAT, capabilities=["image"]) is None
    assert recipe(endpoints.CHAT, capabilities=["completion", "image"]) is None
    assert recipe(endpoints.CHAT, {"num_ctx": float("inf")}) is None
    assert recipe(endpoints.CHAT, {"num_ctx": 10**400}) is None
    assert recipe(endpoints.CHAT, {"num_ctx": "big"}) is None


@pytest.mark.parametrize(
    ("has", "wanted", "differs"),
    [
        ("num_ctx=4096", "num_ctx=8192", ("num_ctx 4096 -> 8192",)),
        ("", "num_ctx=8192", ("num_ctx default -> 8192",)),
        ("num_ctx=1,shift=false", "num_ctx=1,num_gpu=0", ("shift false -> default", "num_gpu default -> 0")),
        ("adapters=ab+cd", "adapters=ef", ("adapters ab+cd -> ef",)),
        ("num_ctx=1", "num_ctx=1", ()),
    ],
)
def test_what_differs_between_two_spellings_is_told_by_option(has, wanted, differs):
    assert changes(has, wanted) == differs


def test_other_adapters_are_another_variant():
    assert variant_options({"num_ctx": 1}, {}, ("sha256-" + "a" * 20,)) == "num_ctx=1,adapters=" + "a" * 12
    assert variant_options({}, {}, ("x" * 12, "y" * 13)) == f"adapters={'x' * 12}+{'y' * 12}"
