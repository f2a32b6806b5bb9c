"""One spelling for one set of runner options, and the empty request that loads it."""

from __future__ import annotations

import json

import pytest

from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.core.variants import load_recipe, variant_options


@pytest.mark.parametrize(
    ("own", "requested", "spelled"),
    [
        ({}, {}, ""),
        ({"temperature": 1, "stop": ["x"]}, {"top_k": 1}, ""),
        ({}, {"shift": False, "num_ctx": 8192}, "num_ctx=8192,shift=false"),
        ({"num_ctx": "4096", "use_mmap": "true"}, {}, "num_ctx=4096,use_mmap=true"),
        ({"num_ctx": 4096}, {"num_ctx": 8192.9}, "num_ctx=8192"),
        ({"num_ctx": 4096}, {"num_ctx": None}, "num_ctx=null"),
        ({}, {"num_gpu": -1, "main_gpu": 0}, "num_gpu=-1,main_gpu=0"),
        ({}, {"num_ctx": float("inf")}, "num_ctx=huge"),
        ({}, {"num_ctx": 10**400}, "num_ctx=huge"),
        ({"num_ctx": "many"}, {}, "num_ctx=other"),
    ],
)
def test_effective_options_have_one_spelling(own, requested, spelled):
    assert variant_options(own, requested) == spelled


def test_absent_is_never_equal_to_an_explicit_default():
    assert variant_options({}, {}) != variant_options({}, {"num_gpu": -1})


def recipe(endpoint, options=None, capabilities=("completion",)):
    found = load_recipe(endpoint, "small:latest", options or {}, capabilities)
    return found and (found.path, json.loads(found.body))


def test_completers_are_loaded_by_generate_without_a_prompt_and_without_keep_alive():
    expected = ("/api/generate", {"model": "small:latest", "stream": False})
    for endpoint in (endpoints.GENERATE, endpoints.CHAT, endpoints.V1_CHAT, endpoints.V1_MESSAGES):
        assert recipe(endpoint) == expected
        assert recipe(endpoint, capabilities=None) == expected


def test_the_request_s_own_options_and_shift_go_along():
    options = {"num_ctx": 8192, "num_gpu": None, "shift": False}
    assert recipe(endpoints.CHAT, options) == (
        "/api/generate",
        {"model": "small:latest", "options": {"num_ctx": 8192, "num_gpu": None}, "shift": False, "stream": False},
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
    assert recipe(endpoints.V1_TRANSCRIPTIONS) is None
    assert recipe(endpoints.CHAT, capabilities=["image"]) is None
    assert recipe(endpoints.CHAT, capabilities=["completion", "image"]) is None
    assert recipe(endpoints.CHAT, {"num_ctx": float("inf")}) is None
    assert recipe(endpoints.CHAT, {"num_ctx": 10**400}) is None
    assert recipe(endpoints.CHAT, {"num_ctx": "big"}) is None
