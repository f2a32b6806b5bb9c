"""Routes are judged as Ollama's own routers judge them."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import endpoints
from ollama_swap_proxy.core.endpoints import Dialect, changes_library, dialect_of, match, path_of

GATED_PATHS = [
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/audio/transcriptions",
]


@pytest.mark.parametrize("path", GATED_PATHS)
def test_every_inference_route_is_gated_in_all_spellings_that_reach_it(path):
    endpoint = match("POST", path)
    assert endpoint is not None
    assert endpoint.path == path
    escaped = path.replace("e", "%65")
    for target in (path, f"{path}?ts=1", f"http://host:1/{path[1:]}", f"HTTPS://h{path}?x=/y", escaped, path + "?%zz"):
        assert match("POST", target) is endpoint, target
        assert match("POST", target.encode()) is endpoint, target


@pytest.mark.parametrize("path", GATED_PATHS)
def test_what_ollama_redirects_or_refuses_is_passthrough(path):
    for target in (
        f"{path}/",
        f"/{path}",
        f"/x/..{path}",
        f"/.{path}",
        path.upper(),
        f"{path}%zz",
        f"{path}%2",
        f"{path};x",
        f"{path}#x",
        f"{path}%20",
        path[1:],
        f"{path}\x01",
        "*",
        "",
    ):
        assert match("POST", target) is None, target
        assert match("POST", target.encode()) is None, target


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post", "CONNECT", ""])
def test_only_post_loads(method):
    assert all(match(method, path) is None for path in GATED_PATHS)


def test_an_encoded_slash_separates_as_gin_sees_the_decoded_path():
    assert match("POST", "/api%2Fgenerate") is endpoints.GENERATE
    assert match("POST", "/api%2F%2Fgenerate") is None
    assert match("POST", "/api/%2e%2e/api/generate") is None


def test_an_absolute_target_without_a_path_is_passthrough():
    assert path_of("http://host") is None
    assert path_of("http:api/generate") is None
    assert path_of("http:/api/generate") == b"/api/generate"


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        ("/api/generate", Dialect.NATIVE),
        ("/", Dialect.NATIVE),
        ("/v1", Dialect.OPENAI),
        ("/v1/models/x?y", Dialect.OPENAI),
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/audio/transcriptions", Dialect.OPENAI),
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/v1/messagesx", Dialect.OPENAI),
        ("/v10", Dialect.NATIVE),
        ("*", Dialect.NATIVE),
        ("/%zz", Dialect.NATIVE),
    ],
)
def test_every_path_has_a_dialect(target, dialect):
    assert dialect_of(target) is dialect
    assert dialect_of(target.encode()) is dialect


def test_what_changes_the_library_is_told_apart_from_what_reads_it():
    for method, path in (
        ("POST", "/api/pull"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
    ):
        assert changes_library(method, path)
        assert changes_library(method, path.encode() + b"?x=1")
        assert not changes_library("GET", path)
        assert not changes_library(method, path + "/")
    for path in ("/api/push", "/api/show", "/api/tags", "/api/generate", "/api/delete"):
        assert not changes_library("POST", path)


def test_only_v1_json_routes_take_zstd_and_only_native_ones_have_options():
    assert [e.path for e in endpoints.GATED if e.takes_zstd] == GATED_PATHS[4:11]
    assert [e.path for e in endpoints.GATED if e.is_native] == GATED_PATHS[:4]
