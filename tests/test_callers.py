"""Whom a request comes from, whom of what is said about it is believed, and the class that follows."""

from __future__ import annotations

import hashlib
import timeit
from typing import Any

import pytest
import structlog

from ollama_swap_proxy import callers
from ollama_swap_proxy.callers import Caller, Callers
from ollama_swap_proxy.listener.answers import Refusal
from ollama_swap_proxy.listener.incoming import Incoming
from ollama_swap_proxy.listener.request import HTTP_11, RequestHead
from ollama_swap_proxy.settings.options import Settings

PEER = "192.0.2.7"
PROXY = "10.0.0.1"
KEY = "sk-local-0123456789abcdef"
SHA = hashlib.sha256(KEY.encode()).hexdigest()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _head(*headers: tuple[str, str]) -> RequestHead:
    values = [value.encode("utf-8", "surrogateescape") for _, value in headers]
    return RequestHead("POST", "/", HTTP_11, [name.encode() for name, _ in headers], values)


def _ask(
    asked: Callers | None = None,
    *headers: tuple[str, str],
    peer: str = PEER,
    path: str = "/api/chat",
    model: str = "qwen3:8b",
) -> Caller:
    return (asked or Callers(Settings())).identify(_head(*headers), peer, path, model)


def _with(**settings: object) -> Callers:
    return Callers(Settings.model_validate(settings))


# --- Identity ---


def test_without_a_key_a_client_is_its_address() -> None:
    assert _ask().client == PEER
    assert _ask(peer="::ffff:192.0.2.7").client == PEER
    assert _ask(peer="").client == ""


@pytest.mark.parametrize(
    "header",
    [("Authorization", f"Bearer {KEY}"), ("authorization", f"bearer  {KEY}"), ("x-api-key", KEY)],
)
def test_a_key_is_told_by_its_hash_and_address_however_it_is_sent(header: tuple[str, str]) -> None:
    assert _ask(None, header).client == f"key:{_sha(KEY)}@{PEER}"


def test_a_dummy_key_that_everybody_sends_does_not_make_everybody_one_client() -> None:
    dummy = ("Authorization", "Bearer ollama")
    here, there = _ask(None, dummy), _ask(None, dummy, peer="192.0.2.8")
    assert here.client != there.client
    assert _ask(None, ("Authorization", "Bearer other")).client != here.client


def test_a_key_that_a_rule_names_is_one_client_wherever_it_comes_from() -> None:
    asked = _with(rules=[{"class": "batch", "key_sha256": SHA}])
    for peer in (PEER, "192.0.2.8"):
        caller = _ask(asked, ("X-Api-Key", KEY), peer=peer)
        assert (caller.client, caller.klass.name) == (f"key:{SHA[:12]}", "batch")
    assert _ask(asked, ("X-Api-Key", KEY + "x")).klass.name == "normal"


def test_another_scheme_than_bearer_counts_as_a_whole() -> None:
    assert _ask(None, ("Authorization", "Basic bWU6aXQ=")).client == f"key:{_sha('Basic bWU6aXQ=')}@{PEER}"


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "bearer   "])
def test_an_empty_token_is_none(value: str) -> None:
    assert _ask(None, ("Authorization", value)).client == PEER


def test_no_key_appears_in_what_is_told() -> None:
    assert KEY not in repr(_ask(None, ("Authorization", f"Bearer {KEY}")))


# --- Proxies ---


def test_forwarded_addresses_and_users_count_for_nothing_unless_the_peer_is_trusted() -> None:
    said = [("X-Forwarded-For", "198.51.100.1"), ("X-OpenWebUI-User-Id", "boss")]
    assert _ask(None, *said).client == PEER
    asked = _with(trusted_proxies=[PROXY], user_header="X-OpenWebUI-User-Id")
    assert _ask(asked, *said).client == PEER
    assert _ask(asked, *said, peer=PROXY).client == "user:boss"
    assert _ask(asked, said[0], peer=PROXY).client == "198.51.100.1"


@pytest.mark.parametrize("written", ["::ffff:10.0.0.1", "::ffff:10.0.0.0/104", PROXY])
@pytest.mark.parametrize("peer", [PROXY, f"::ffff:{PROXY}"])
def test_ipv4_written_as_ipv6_is_the_same_in_the_settings_and_on_the_wire(written: str, peer: str) -> None:
    assert _ask(_with(trusted_proxies=[written]), ("X-Forwarded-For", PEER), peer=peer).client == PEER
    assert _ask(_with(rules=[{"class": "batch", "client": written}]), peer=peer).klass.name == "batch"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["203.0.113.5, 198.51.100.1"], "198.51.100.1"),
        (["203.0.113.5, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        (["203.0.113.5", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:DB8::1]:4711"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["fe80::1%<b>eth0</b>"], "fe80::1"),
        (["unknown"], PROXY),
        (["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        (["198.51.100.1,"], PROXY),
        ([""], PROXY),
        ([], PROXY),
        (["198.51.100.1, " + "10.0.0.2, " * 400_000 + "10.0.0.2"], "10.0.0.2"),
        (["x" * 1_000_000], PROXY),
        ([f"198.51.100.{n % 250}" for n in range(1, 9000)], "198.51.100.249"),
    ],
)
def test_the_rightmost_address_that_is_no_proxy_counts(forwarded: list[str], client: str) -> None:
    asked = _with(trusted_proxies=["10.0.0.0/8"])
    said = [("X-Forwarded-For", value) for value in forwarded]
    assert _ask(asked, *said, peer=PROXY).client == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('For="[2001:db8::1]:4711";proto=http;by=203.0.113.43', "2001:db8::1"),
        ("for=203.0.113.5, proto=https; for=198.51.100.1", "198.51.100.1"),
        ("for=198.51.100.1, for=10.9.9.9", "198.51.100.1"),
        ("for=_hidden", PROXY),
        ("by=198.51.100.1", PROXY),
        ("proto=http;xfor=198.51.100.1", PROXY),
    ],
)
def test_forwarded_is_read_as_its_standard_has_it(forwarded: str, client: str) -> None:
    asked = _with(trusted_proxies=["10.0.0.0/8"], forwarded_header="Forwarded")
    assert _ask(asked, ("Forwarded", forwarded), ("X-Forwarded-For", "203.0.113.9"), peer=PROXY).client == client


def test_only_the_named_header_is_believed() -> None:
    asked = _with(trusted_proxies=[PROXY])
    assert _ask(asked, ("Forwarded", "for=203.0.113.5"), ("X-Real-IP", "203.0.113.5"), peer=PROXY).client == PROXY
    asked = _with(trusted_proxies=[PROXY], forwarded_header="x-real-ip")
    assert _ask(asked, ("X-Real-IP", "203.0.113.5"), peer=PROXY).client == "203.0.113.5"


def test_a_key_behind_a_proxy_goes_with_the_forwarded_address_and_a_user_before_the_key() -> None:
    asked = _with(trusted_proxies=[PROXY], user_header="X-User")
    said = [("Authorization", f"Bearer {KEY}"), ("X-Forwarded-For", "198.51.100.1")]
    assert _ask(asked, *said, peer=PROXY).client == f"key:{SHA[:12]}@198.51.100.1"
    assert _ask(asked, *said, ("X-User", "ann@example.org"), peer=PROXY).client == "user:ann@example.org"


@pytest.mark.parametrize("user", ["a\x1b[31m", "a b", 'a"b', "ä", "a\ud8ff", "x" * 65, "x" * 1_000_000, "\udcff\udcfe"])
def test_a_users_name_that_could_harm_a_log_is_told_by_its_hash(user: str) -> None:
    asked = _with(trusted_proxies=[PROXY], user_header="X-User")
    if user == "a\ud8ff":
        user = "a\udcd8\udcff"  # what a parser makes of bytes that are no UTF-8
    client = _ask(asked, ("X-User", user), peer=PROXY).client
    assert client.startswith("user:sha256-")
    assert len(client) == len("user:sha256-") + 12


async def test_bytes_that_are_no_utf8_are_borne_as_the_parser_gives_them() -> None:
    asked = _with(
        trusted_proxies=[PROXY],
        user_header="X-User",
        class_header="X-Class",
        rules=[{"class": "batch", "user_agent": "b*", "header": {"X-Job": "?"}}],
    )
    head = (
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nX-User: \xc3\x28\r\nX-Class: \xff\r\n"
        b"X-Job: \xff\r\nUser-Agent: b\xfe\r\nX-Forwarded-For: \xff\r\nX-Ollama-Swap-Proxy-Patience: \xb2\r\n\r\n"
    )
    incoming = Incoming()
    incoming.feed(head)
    coming = incoming.take()
    assert not isinstance(coming, Refusal)
    message, _ = coming
    caller = asked.identify(message, PROXY, "/api/chat", "m:latest")
    assert caller.client.isascii()
    assert caller.klass.name == "batch"
    assert caller.patience_s is None
    assert asked.identify(message, PEER, "/api/chat", "m:latest").client.isascii()


# --- Classes ---


def test_without_rules_every_request_is_of_the_default_class() -> None:
    assert _ask().klass == ("normal", 10, 120.0)
    assert _ask(_with(default_class="batch", max_wait_s=7)).klass == ("batch", 0, 1800.0)
    assert _ask(_with(max_wait_s=7)).klass == ("normal", 10, 7.0)


@pytest.mark.parametrize(
    ("condition", "headers", "more"),
    [
        ({"model": "qwen3:*"}, (), {}),
        ({"model": ["llama*", "QWEN3:8B"]}, (), {}),
        ({"model": "qwen3"}, (), {"model": "qwen3:latest"}),
        ({"path": "/api/*"}, (), {}),
        ({"client": "192.0.2.0/24"}, (), {}),
        ({"client": ["2001:db8::/32", "192.0.2.7"]}, (), {"peer": "::ffff:192.0.2.7"}),
        ({"user_agent": "ollama-python/*"}, (("User-Agent", "Ollama-Python/0.6.3"),), {}),
        ({"header": {"X-Job": "*"}}, (("x-job", ""),), {}),
        ({"header": {"X-Job": "night?"}}, (("X-Job", "day"), ("X-Job", "night1")), {}),
        ({"key_sha256": SHA.upper()}, (("Authorization", f"Bearer {KEY}"),), {}),
        ({"key_sha256": ["0" * 64, SHA]}, (("X-Api-Key", KEY),), {}),
    ],
)
def test_a_rule_holds(condition: dict[str, object], headers: tuple[tuple[str, str], ...], more: dict[str, str]) -> None:
    asked = _with(rules=[{"class": "batch", **condition}])
    assert _ask(asked, *headers, **more).klass.name == "batch"  # type: ignore[arg-type]
    assert _ask(asked, *headers, **more).klass.name == "batch"  # type: ignore[arg-type]  # as remembered


@pytest.mark.parametrize(
    ("condition", "headers"),
    [
        ({"model": "qwen3"}, ()),
        ({"path": "/v1/*"}, ()),
        ({"client": "192.0.2.8"}, ()),
        ({"client": "::/0"}, ()),
        ({"user_agent": "*"}, ()),
        ({"header": {"X-Job": "*", "X-Other": "*"}}, (("X-Job", "1"),)),
        ({"model": "*", "path": "*", "user_agent": "a*"}, (("User-Agent", "b"),)),
        ({"key_sha256": SHA}, (("X-Api-Key", SHA),)),
        ({"header": {"X-Job": "night"}}, (("X-Job", "nightly"),)),
    ],
)
def test_a_rule_of_which_one_condition_fails_does_not_hold(
    condition: dict[str, object], headers: tuple[tuple[str, str], ...]
) -> None:
    assert _ask(_with(rules=[{"class": "batch", **condition}]), *headers).klass.name == "normal"


def test_the_first_rule_that_holds_decides_then_the_model_then_the_default() -> None:
    asked = _with(
        default_class="batch",
        rules=[{"class": "interactive", "path": "/api/chat"}, {"class": "batch", "model": "*"}],
        models={"Qwen3:8b": {"class": "normal"}},
    )
    assert _ask(asked).klass.name == "interactive"
    assert _ask(asked, path="/api/embed").klass.name == "batch"
    asked = _with(default_class="batch", models={"Qwen3:8b": {"class": "normal"}})
    assert _ask(asked).klass.name == "normal"
    assert _ask(asked, model="other:latest").klass.name == "batch"


def test_a_rule_on_the_client_sees_the_forwarded_address() -> None:
    asked = _with(trusted_proxies=[PROXY], rules=[{"class": "batch", "client": "198.51.100.0/24"}])
    said = ("X-Forwarded-For", "198.51.100.9")
    assert _ask(asked, said, peer=PROXY).klass.name == "batch"
    assert _ask(asked, said).klass.name == "normal"


def test_a_rule_on_the_users_header_believes_only_trusted_proxies() -> None:
    rules = [{"class": "interactive", "header": {"x-openwebui-user-id": "boss"}}]
    asked = _with(trusted_proxies=[PROXY], user_header="X-OpenWebUI-User-Id", rules=rules)
    said = ("X-OpenWebUI-User-Id", "boss")
    assert _ask(asked, said, peer=PROXY).klass.name == "interactive"
    assert _ask(asked, said).klass.name == "normal"


def test_a_class_header_lets_everybody_step_back_but_only_trusted_proxies_step_up() -> None:
    asked = _with(class_header="X-Class", trusted_proxies=[PROXY], classes={"hasty": {"rank": 0, "max_wait_s": 1}})
    assert _ask(asked, ("X-Class", "batch")).klass.name == "batch"
    assert _ask(asked, ("X-Class", " Batch ")).klass.name == "batch"
    assert _ask(asked, ("X-Class", "interactive")).klass.name == "normal"
    assert _ask(asked, ("X-Class", "hasty")).klass.name == "normal", "a short maximum is a way to the front too"
    assert _ask(asked, ("X-Class", "interactive"), peer=PROXY).klass.name == "interactive"
    for nonsense in ("", "nobody", "x" * 100_000, "batch\udcff"):
        assert _ask(asked, ("X-Class", nonsense)).klass.name == "normal"
    assert _ask(None, ("X-Ollama-Swap-Proxy-Class", "batch")).klass.name == "normal", "off unless named"


# --- Patience ---


@pytest.mark.parametrize(
    ("value", "patience_s"),
    [
        ("30", 30.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("3599.9", 3599.9),
        ("3600", None),
        ("99999999", None),
        ("9" * 1_000_000, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        ("1_0", None),
        ("٣", None),
        ("30 s", None),
        ("30\n", 30.0),
    ],
)
def test_patience_is_seconds_below_the_cap_and_nothing_else(value: str, patience_s: float | None) -> None:
    assert _ask(None, ("x-ollama-swap-proxy-patience", value)).patience_s == patience_s


def test_patience_goes_with_any_kind_of_caller_and_can_have_another_name() -> None:
    asked = _with(patience_header="X-Wait", rules=[{"class": "batch", "path": "*"}], give_up_after_s=2000)
    caller = _ask(asked, ("X-Wait", "5"), ("X-Api-Key", KEY))
    assert caller == Caller(f"key:{SHA[:12]}@{PEER}", asked._classes["batch"], 5.0)
    assert _ask(asked, ("X-Wait", "2500")).patience_s is None
    assert _ask(_with(patience_header=""), ("X-Ollama-Swap-Proxy-Patience", "5")).patience_s is None


# --- Cost and bounds ---


def test_what_is_remembered_is_bounded_in_number_and_size() -> None:
    asked = _with(rules=[{"class": "batch", "user_agent": "x*"}], trusted_proxies=[PROXY], user_header="X-User")
    plain = Callers(Settings())
    for number in range(callers._REMEMBERED + 10):
        said = [("Authorization", f"Bearer {number}"), ("User-Agent", f"{number}")]
        _ask(asked, *said, peer=f"10.1.{number // 256}.{number % 256}")
        _ask(plain, *said)
    long = "x" * (callers._LONGEST_REMEMBERED + 1)
    _ask(asked, ("Authorization", long), ("User-Agent", long))
    _ask(plain, ("Authorization", long))
    for table in (asked._sources, asked._judged, asked._peers, plain._plain):
        assert 0 < len(table) <= callers._REMEMBERED
        assert long not in repr(table)


def test_two_requests_that_differ_in_what_a_rule_looks_at_are_judged_apart() -> None:
    asked = _with(rules=[{"class": "batch", "header": {"X-Job": "1"}}, {"class": "interactive", "path": "/v1/*"}])
    assert _ask(asked, ("X-Job", "1")).klass.name == "batch"
    assert _ask(asked, ("X-Job", "2")).klass.name == "normal"
    assert _ask(asked, ("X-Job", "2"), path="/v1/messages").klass.name == "interactive"


@pytest.mark.parametrize("headers", [(), (("Authorization", "Bearer ollama"),)])
def test_while_nothing_is_configured_a_known_caller_costs_no_new_one(headers: tuple[tuple[str, str], ...]) -> None:
    asked = Callers(Settings())
    assert _ask(asked, *headers) is _ask(asked, *headers)
    given = _head(("Host", "x"), ("User-Agent", "y"), *headers)
    several = timeit.repeat(lambda: asked.identify(given, PEER, "/api/chat", "m"), number=1000, repeat=5)
    assert min(several) < 1000 * 10e-6, "some 0.2 us; fifty times that is a fault on any machine"


# --- What is said of those who are not believed ---


def _told(lines: list[Any]) -> list[tuple[str, str]]:
    return [(line["address"], line["header"]) for line in lines if line["event"] == "user_not_believed"]


@pytest.mark.parametrize("trusted", [[], [PROXY]])
def test_an_address_that_names_a_user_and_is_not_trusted_is_told_once(trusted: list[str]) -> None:
    user = ("X-OpenWebUI-User-Id", "alice")
    with structlog.testing.capture_logs() as lines:
        asked = _with(trusted_proxies=trusted, user_header="x-openwebui-user-id")
        for _ in range(3):
            assert _ask(asked, user).client == PEER
        _ask(asked, peer="192.0.2.8")
        assert _told(lines) == [(PEER, "x-openwebui-user-id")]
        if trusted:
            assert _ask(asked, user, peer=PROXY).client == "user:alice"
        for last in range(100):
            _ask(asked, user, peer=f"198.51.100.{last}")
    assert len(_told(lines)) == 16, "whoever tries addresses does not fill the log"


def test_without_a_user_header_nobody_is_told_of() -> None:
    with structlog.testing.capture_logs() as lines:
        _ask(_with(trusted_proxies=[PROXY]), ("X-OpenWebUI-User-Id", "alice"))
    assert lines == []
