"""Names are compared as Ollama compares them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.names import CloudName, InvalidName, ModelName, canonical, parse

SAME_AS_SMALL = [
    "small",
    "SMALL",
    "small:latest",
    "Small:LATEST",
    " small ",
    "\u2003small\n",
    "library/small",
    "registry.ollama.ai/library/small:latest",
    "https://registry.ollama.ai/library/small",
    "https:///library/small",
    "x://registry.ollama.ai/Library/small",
]


@pytest.mark.parametrize("name", SAME_AS_SMALL)
def test_all_spellings_of_a_name_are_one(name):
    assert parse(name) == ModelName("small:latest")
    assert canonical(name) == "small:latest"


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("hf.co/User/Repo:Q4_K_M", "hf.co/user/repo:q4_k_m"),
        ("hf.co/library/x", "hf.co/library/x:latest"),
        ("me/small", "me/small:latest"),
        ("host:5000/me/small", "host:5000/me/small:latest"),
        ("foo-cloud", "foo-cloud:latest"),
        ("_x.y-z:1.5b", "_x.y-z:1.5b"),
        ("a" * 80 + ":" + "b" * 80, "a" * 80 + ":" + "b" * 80),
    ],
)
def test_names_that_are_not_the_default_keep_their_parts(name, spelled):
    assert parse(name) == ModelName(spelled)
    assert canonical(name) == spelled


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "small@sha256:0000",
        "https://small",
        "/small",
        "small/",
        "small:",
        ":x",
        "-x",
        ".x",
        "a/b/c/d",
        "n.s/small",
        "x:a/b",
        "é",
        "\u017fmall",
        "small\x1c",
        "\x1csmall",
        "a" * 81,
        "x:" + "b" * 81,
        "small :local",
        ":cloud",
        "a b:cloud",
        "\ud800",
        "!MISSING!",
    ],
)
def test_what_ollama_refuses_is_invalid(name):
    assert parse(name) == InvalidName("invalid model name")


@pytest.mark.parametrize("name", ["", " ", "\t\n\v\f\r", "\u3000\x85\xa0"])
def test_a_blank_name_is_a_missing_one(name):
    assert parse(name) == InvalidName("model is required")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x:local", ModelName("x:latest", explicitly_local=True)),
        ("x:8b:local", ModelName("x:8b", explicitly_local=True)),
        ("x: LOCAL ", ModelName("x:latest", explicitly_local=True)),
        ("x:cloud", CloudName("x:latest")),
        ("x:CLOUD", CloudName("x:latest")),
        ("x:120b-cloud", CloudName("x:120b")),
        ("x:8b:cloud", CloudName("x:8b")),
        ("x:120b-Cloud", CloudName("x:120b")),
        ("hf.co/me/x:cloud", CloudName("hf.co/me/x:latest")),
        ("x:-cloud", InvalidName("invalid model name")),
        ("host:5000-cloud/me/x", InvalidName("invalid model name")),
        ("x:local:cloud", InvalidName("use either :local or :cloud, not both")),
        ("x:cloud:local", InvalidName("use either :local or :cloud, not both")),
        ("x:1-cloud:cloud", InvalidName("use either :local or :cloud, not both")),
    ],
)
def test_suffixes_say_where_a_model_lives(name, expected):
    if name.startswith("host:"):
        expected = ModelName("host:5000-cloud/me/x:latest")  # a slash after the colon: no suffix
    assert parse(name) == expected


def test_names_that_ollama_lists_keep_their_cloud_tag():
    assert canonical("x:cloud") == "x:cloud"
    assert canonical("x:120b-cloud") == "x:120b-cloud"


def test_an_invalid_name_stands_for_itself():
    assert canonical("a b") == "a b"


PART = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=12)


@given(host=PART, namespace=PART, model=PART, tag=PART.filter(lambda t: t.lower() not in {"cloud", "local"}))
def test_a_canonical_name_is_its_own_canonical_name_and_case_never_matters(host, namespace, model, tag):
    full = f"{host}/{namespace}/{model}:{tag}"
    spelled = canonical(full)
    assert canonical(spelled) == spelled == canonical(full.upper()) == canonical(f"https://{full}")
    assert parse(full) == ModelName(spelled)


@given(st.text(max_size=30) | st.text("ab/:.-_@ ", max_size=12))
def test_every_string_has_an_answer(name):
    parsed = parse(name)
    if not isinstance(parsed, InvalidName):
        assert canonical(parsed.canonical) == parsed.canonical
        assert parsed.canonical.isascii()
