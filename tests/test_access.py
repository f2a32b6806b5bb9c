"""The Host check, by the table of Ollama's own (server/routes.go:1803)."""

from __future__ import annotations

import socket

import pytest

from ollama_swap_proxy.access import HostGuard
from ollama_swap_proxy.addresses import Address

LOOPBACK = Address("127.0.0.1", 11435)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LOCALHOST:11435",
        "127.0.0.1:11435",
        "127.9.9.9",
        "[::1]:11435",
        "::1",
        "0.0.0.0:11435",
        "10.1.2.3:11435",
        "172.16.0.9",
        "192.168.1.20:11435",
        "[fd00::1]",
        "box.local:11435",
        "app.localhost",
        "ollama.internal",
        f"{socket.gethostname()}:11435",
    ],
)
def test_what_ollama_takes_for_local_is_served(host: str):
    assert HostGuard(LOOPBACK).allows(host)


@pytest.mark.parametrize(
    "host",
    ["ollama", "gpu.example.com:11435", "100.64.0.1", "8.8.8.8", "evil.test", "127.0.0.1.evil.test", "[2001:db8::1]"],
)
def test_a_name_that_a_web_page_could_rebind_is_not_served(host: str):
    assert not HostGuard(LOOPBACK).allows(host)


def test_further_names_are_served_when_the_operator_says_so():
    guard = HostGuard(LOOPBACK, ["gpu.example.com"])
    assert guard.allows("GPU.example.com:11435")
    assert not guard.allows("other.example.com")


def test_the_check_is_off_like_ollamas_when_we_do_not_listen_on_loopback():
    assert HostGuard(Address("0.0.0.0", 11434)).allows("ollama")


def test_endless_names_do_not_fill_the_memory():
    guard = HostGuard(LOOPBACK)
    for n in range(5000):
        guard.allows(f"{n}.example.com")
    assert len(guard._known) <= HostGuard._REMEMBERED


def test_a_name_longer_than_the_dns_has_is_neither_served_nor_remembered():
    guard = HostGuard(LOOPBACK)
    longest = "a" * 247 + ".local:11435"
    assert guard.allows(longest)
    assert not guard.allows("a" + longest)
    assert list(guard._known) == [longest]
