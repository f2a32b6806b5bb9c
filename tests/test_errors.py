"""Errors of ours: what they never say, whatever Ollama said that they quote."""

from __future__ import annotations

import json

import pytest

from ollama_swap_proxy.errors import Dialect, ProxyError


@pytest.mark.parametrize("dialect", Dialect)
def test_no_quoted_word_makes_the_ollama_cli_start_a_server(dialect: Dialect):
    error = ProxyError("load_failed", 500, "dial tcp: connect: connection Refused; could not connect")
    body = error.body(dialect).decode().lower()
    assert "refused" not in body
    assert "could not connect" not in body
    assert "dial tcp: connect: connection rejected; found no connection" in body


@pytest.mark.parametrize("dialect", Dialect)
def test_a_lone_surrogate_in_a_quoted_text_is_replaced(dialect: Dialect):
    body = json.loads(ProxyError("load_failed", 500, "caf\u00e9 \ud800").body(dialect))
    assert "caf\u00e9 ?" in (body["error"] if dialect is Dialect.NATIVE else body["error"]["message"])


@pytest.mark.parametrize("status", [100, 101, 200, 204, 301, 304, 399, 600, 999])
def test_what_says_no_error_becomes_a_502(status: int):
    assert ProxyError("load_failed", status, "no").status == 502


@pytest.mark.parametrize("status", [400, 404, 503, 599])
def test_what_says_an_error_stays(status: int):
    assert ProxyError("load_failed", status, "no").status == status
