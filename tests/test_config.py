"""Sources and their order, errors that name what is wrong, and no way to be our own upstream."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import ConfigError, Settings, load, load_settings
from ollama_swap_proxy.core.policy import Policy


def _messages(
    overrides: dict[str, object] | None = None, environ: dict[str, str] | None = None, path: Path | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(overrides or {}, environ or {}, path)
    return caught.value.messages


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_design() -> None:
    settings = load_settings({}, {})
    assert settings.listen == Address("127.0.0.1", 11435)
    assert settings.admin == Address("127.0.0.1", 11445)
    assert settings.upstream == URL("http://127.0.0.1:11434")
    assert settings.policy() == Policy()


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    path = _file(tmp_path, "parallel = 1\nline_limit = 1\nps_interval_s = 1\n")
    environ = {"OLLAMA_SWAP_PROXY_PARALLEL": "2", "OLLAMA_SWAP_PROXY_LINE_LIMIT": "2"}
    loaded = load({"parallel": 3, "max_wait_s": None}, environ, path)
    chosen = loaded.settings
    assert (chosen.parallel, chosen.line_limit, chosen.ps_interval_s, chosen.max_wait_s) == (3, 2, 1, 120)
    assert loaded.origins["parallel"] == "command line"
    assert loaded.origins["line_limit"] == "environment OLLAMA_SWAP_PROXY_LINE_LIMIT"
    assert loaded.origins["ps_interval_s"] == f"file {path}"
    assert loaded.origins["max_wait_s"] == "default"


def test_the_file_may_be_named_by_the_environment_and_a_flag_overrides_that(tmp_path: Path) -> None:
    path = _file(tmp_path, "parallel = 7\n")
    environ = {"OLLAMA_SWAP_PROXY_CONFIG": str(path)}
    assert load_settings({}, environ).parallel == 7
    other = tmp_path / "other.toml"
    other.write_text("parallel = 8\n", encoding="utf-8")
    assert load_settings({}, environ, other).parallel == 8


def test_ollama_host_is_never_read() -> None:
    assert load_settings({}, {"OLLAMA_HOST": "example.test:1"}) == load_settings({}, {})


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_settings({}, {"OLLAMA_SWAP_PROXY_UPSTREAM": ""}).upstream == URL("http://127.0.0.1:11434")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings({}, {})
    with pytest.raises(ValidationError):
        settings.parallel = 2  # type: ignore[misc]


def test_every_policy_number_is_a_setting_with_the_same_default() -> None:
    for field in dataclasses.fields(Policy):
        assert getattr(Settings(), field.name) == field.default, field.name


@pytest.mark.parametrize(
    ("text", "value"), [("1048576", 1024**2), ("8 MiB", 8 * 1024**2), ("1GiB", 1024**3), ("0", 0), ("2 MB", 2_000_000)]
)
def test_sizes_are_read_as_numbers_and_with_units(text: str, value: int) -> None:
    assert load_settings({}, {"OLLAMA_SWAP_PROXY_BODY_LIMIT_BYTES": text}).body_limit_bytes == value


def test_host_names_come_as_a_list_or_with_commas(tmp_path: Path) -> None:
    environ = {"OLLAMA_SWAP_PROXY_ALLOWED_HOSTS": "GPU.example, nas.lan.,"}
    assert load_settings({}, environ).allowed_hosts == ("gpu.example", "nas.lan")
    path = _file(tmp_path, 'allowed_hosts = ["a.example"]\n')
    assert load_settings({}, {}, path).allowed_hosts == ("a.example",)


def test_an_unknown_key_in_the_file_stops_with_the_nearest_name(tmp_path: Path) -> None:
    path = _file(tmp_path, "max_wait = 3\n")
    assert _messages(path=path) == [f"max_wait (file {path}): there is no such setting; nearest valid name: max_wait_s"]


def test_an_unknown_variable_stops_with_the_nearest_name() -> None:
    (message,) = _messages(environ={"OLLAMA_SWAP_PROXY_UPSTREEM": "x"})
    assert message.startswith("OLLAMA_SWAP_PROXY_UPSTREEM (environment)")
    assert message.endswith("nearest valid name: OLLAMA_SWAP_PROXY_UPSTREAM")
    (message,) = _messages(environ={"OLLAMA_SWAP_PROXY_CONFIGS": "x"})
    assert message.endswith("nearest valid name: OLLAMA_SWAP_PROXY_CONFIG")
    (message,) = _messages(environ={"OLLAMA_SWAP_PROXY_listen": "x:1"})
    assert message.endswith("nearest valid name: OLLAMA_SWAP_PROXY_LISTEN")


def test_what_kubernetes_puts_into_every_container_is_no_setting() -> None:
    environ = {
        "OLLAMA_SWAP_PROXY_SERVICE_HOST": "10.0.0.7",
        "OLLAMA_SWAP_PROXY_SERVICE_PORT": "11434",
        "OLLAMA_SWAP_PROXY_SERVICE_PORT_HTTP": "11434",
        "OLLAMA_SWAP_PROXY_PORT": "tcp://10.0.0.7:11434",
        "OLLAMA_SWAP_PROXY_PORT_11434_TCP": "tcp://10.0.0.7:11434",
        "OLLAMA_SWAP_PROXY_PORT_11434_TCP_PROTO": "tcp",
        "OLLAMA_SWAP_PROXY_PORT_11434_TCP_PORT": "11434",
        "OLLAMA_SWAP_PROXY_PORT_11434_TCP_ADDR": "10.0.0.7",
        "OLLAMA_SWAP_PROXY_ADMIN_SERVICE_PORT": "11445",
        "OLLAMA_SWAP_PROXY_ADMIN_PORT": "tcp://10.0.0.8:11445",
    }
    assert load_settings({}, environ) == load_settings({}, {})


def test_a_port_that_a_person_wrote_is_not_taken_for_kubernetes() -> None:
    (message,) = _messages(environ={"OLLAMA_SWAP_PROXY_LISTEN_PORT": "11434"})
    assert message.endswith("nearest valid name: OLLAMA_SWAP_PROXY_LISTEN")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("parallel", "-1", "greater than or equal to 0"),
        ("parallel", "many", "valid integer"),
        ("parallel", "true", "valid integer"),
        ("max_wait_s", "inf", "finite"),
        ("max_wait_s", "nan", "greater than 0"),
        ("max_wait_s", "0", "greater than 0"),
        ("settle_max_s", "-1", "greater than or equal to 0"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("listen", "11435", "must be HOST:PORT"),
        ("listen", "::1:11435", "needs brackets"),
        ("listen", "http://127.0.0.1:11435", "HOST:PORT, without http://"),
        ("listen", "localhost:http", "must be a number"),
        ("listen", "localhost:70000", "0 to 65535"),
        ("upstream", "http://box/ollama", "must not have a path"),
        ("upstream", "ftp://box", "must be http://"),
        ("upstream", "http://me:secret@box:1", "must not carry a user"),
        ("upstream", "box:99999", "is no URL"),
        ("body_limit_bytes", "8 parsecs", "byte unit"),
        ("upstream", "http://a..b:1", "1 to 63 characters between dots"),
        ("upstream", f"{'a' * 64}.lan", "1 to 63 characters between dots"),
        ("upstream", "http://" + "é" * 60, "is no URL"),
        ("upstream", "http://" + "ab." * 90 + "c", "up to 253 in all"),
        ("upstream", "http://a\0b:1", "must not have control characters"),
        ("upstream", "http://a\tb:1", "must not have control characters"),
        ("upstream", "http://a b:1", "no spaces"),
        ("listen", ".a:1", "1 to 63 characters between dots"),
        ("listen", f"{'a' * 64}:1", "1 to 63 characters between dots"),
        ("listen", "a\0b:1", "no control characters"),
        ("admin", "a\x7fb:1", "no control characters"),
        ("allowed_hosts", "a\0b", "must not have control characters"),
        ("allowed_hosts", "https://box", "without scheme"),
    ],
)
def test_a_bad_value_is_named_with_its_variable_and_the_reason(key: str, value: str, reason: str) -> None:
    variable = f"OLLAMA_SWAP_PROXY_{key.upper()}"
    (message,) = _messages(environ={variable: value})
    assert message.startswith(f"{key} (environment {variable}): ")
    assert reason in message


def test_a_bad_value_in_the_file_names_key_file_and_variable(tmp_path: Path) -> None:
    path = _file(tmp_path, "parallel = true\n[listen]\nport = 1\n")
    listen, parallel = sorted(_messages(path=path))
    assert parallel == (
        f"parallel (file {path}; in the environment OLLAMA_SWAP_PROXY_PARALLEL): must be a number, not true or false"
    )
    assert listen.startswith("listen (file ")


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = _file(tmp_path, "paralel = 3\nparallel = -1\n")
    assert len(_messages({"listen": "x"}, {"OLLAMA_SWAP_PROXY_NONSENSE": "1"}, path)) == 4


def test_a_file_that_is_missing_or_no_toml_stops_the_start(tmp_path: Path) -> None:
    (message,) = _messages(path=tmp_path / "absent.toml")
    assert "absent.toml: cannot be read: No such file" in message
    (message,) = _messages(path=_file(tmp_path, "parallel = \n"))
    assert "is not valid TOML" in message


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://10.0.0.5:11434/", "http://10.0.0.5:11434"),
        ("10.0.0.5:9", "http://10.0.0.5:9"),
        ("10.0.0.5", "http://10.0.0.5:11434"),
        ("http://10.0.0.5", "http://10.0.0.5:80"),
        ("https://10.0.0.5", "https://10.0.0.5:443"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_upstream_is_read_as_ollama_reads_its_own_address(text: str, url: str) -> None:
    found = load_settings({"upstream": text}, {}).upstream
    assert (found.scheme, found.host, found.port) == (URL(url).scheme, URL(url).host, URL(url).port)


@pytest.mark.parametrize(
    ("listen", "upstream"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("127.0.0.1:11434", "localhost:11434"),
        ("127.0.0.1:11434", "[::1]:11434"),
        ("127.0.0.1:11434", "0.0.0.0:11434"),
        ("0.0.0.0:11434", "127.0.0.1:11434"),
        ("[::]:11434", "localhost"),
        ("localhost:11434", "127.0.0.1:11434"),
        ("127.0.0.1:1", "127.0.0.1:11445"),
        ("127.0.0.1:80", "http://localhost"),
    ],
)
def test_an_upstream_that_is_our_own_listener_stops_the_start(listen: str, upstream: str) -> None:
    (message,) = _messages({"listen": listen, "upstream": upstream})
    assert "is our own listener" in message
    assert "OLLAMA_SWAP_PROXY_UPSTREAM" in message


def test_an_upstream_by_this_machines_own_name_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _own_address()
    resolve = socket.getaddrinfo

    def with_our_name(host: str, *rest: object, **more: object) -> object:
        return resolve(own if host == "proxy.example" else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", with_our_name)
    (message,) = _messages({"listen": "0.0.0.0:11434", "upstream": "http://proxy.example:11434"})
    assert "is our own listener" in message


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only makes the system choose a source address
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("listen", "upstream"),
    [
        ("0.0.0.0:11434", "http://192.0.2.7:11434"),
        ("127.0.0.1:11435", "127.0.0.1:11434"),
        ("0.0.0.0:11434", "http://no-such-name.invalid:11434"),
        ("127.0.0.1:0", "127.0.0.1:11434"),
        ("192.0.2.7:11434", "127.0.0.1:11434"),
    ],
)
def test_another_server_on_the_same_or_another_port_is_fine(listen: str, upstream: str) -> None:
    load_settings({"listen": listen, "upstream": upstream}, {})


def test_both_listeners_on_one_port_stop_the_start() -> None:
    (message,) = _messages({"listen": "0.0.0.0:11500", "admin": "127.0.0.1:11500"})
    assert message.startswith("admin (command line")
    assert "is taken by listen" in message
    load_settings({"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_wait_s = 3600", "3600 must be below give_up_after_s (3600)"),
        ("max_wait_s = 7200.5", "7200.5 must be below give_up_after_s (3600)"),
        ("max_wait_s = 90\ngive_up_after_s = 80", "90 must be below give_up_after_s (80)"),
    ],
)
def test_a_maximum_wait_that_would_come_after_giving_up_stops_the_start(tmp_path: Path, text: str, reason: str) -> None:
    (told,) = _messages(path=_file(tmp_path, text))
    assert told.startswith("max_wait_s (file ")
    assert told.endswith(f"): {reason}, where requests are turned away")


def test_who_only_shortens_giving_up_need_not_repeat_the_default_maximum_wait() -> None:
    assert load_settings({}, {"OLLAMA_SWAP_PROXY_GIVE_UP_AFTER_S": "60"}).give_up_after_s == 60


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5000, "cannot be read: lists or tables lie too deep in each other"),
        ("models = " + "{a=" * 3000, "cannot be read: lists or tables lie too deep in each other"),
        ("parallel = " + "9" * 5000, "cannot be read: a number has too many digits"),
        ("parallel = 0x" + "f" * 5000, "got something (type int) too large to be written here"),
        ("body_limit_bytes = 0x" + "f" * 5000, "got something (type int) too large to be written here"),
        ("parallel" + ".a" * 5000 + " = 1", "got something (type dict) too large to be written here"),
        ("listen" + ".a" * 5000 + " = 1", "got something (type dict) too large to be written here"),
    ],
    ids=range(7),
)
def test_a_file_beyond_all_bounds_stops_the_start_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    (told,) = _messages(path=_file(tmp_path, text))
    assert told.endswith(reason)


def test_a_long_bad_value_is_cut_short() -> None:
    (told,) = _messages({"mode": "x" * 5000})
    assert told.endswith("x...")
    assert len(told) < 500


@pytest.mark.parametrize("key", [key for key in Settings.model_fields if key not in {"classes", "rules", "models"}])
def test_a_value_that_is_no_utf8_is_told_as_such(key: str) -> None:
    name, value = f"OLLAMA_SWAP_PROXY_{key.upper()}", os.fsdecode(b"/a\xff")
    reason = "must be UTF-8, and no. 3 is no character of it"
    assert _messages(environ={name: value}) == [f"{key} (environment {name}): {reason}"]
    assert _messages({key: value}) == [f"{key} (command line): {reason}"]


@pytest.mark.parametrize("name", ["STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"])
def test_a_place_for_the_state_file_that_is_no_utf8_is_told_as_such(tmp_path: Path, name: str) -> None:
    place = tmp_path / os.fsdecode(b"\xff")
    place.mkdir()
    (told,) = _messages(environ={name: str(place)})
    assert told.startswith("state_file (auto, from STATE_DIRECTORY, XDG_STATE_HOME, HOME): must be UTF-8")


def test_a_file_may_have_any_name_and_what_is_said_of_it_stays_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\nb\xff.toml")
    path.write_text("parallel = 3\n", encoding="utf-8")
    loaded = load({}, {"OLLAMA_SWAP_PROXY_CONFIG": str(path)})
    assert loaded.settings.parallel == 3
    assert loaded.origins["parallel"].isprintable()
    path.write_text("=", encoding="utf-8")
    (told,) = _messages(path=path)
    assert told.isprintable()


def test_a_longest_cool_down_below_the_first_is_the_first() -> None:
    settings = load_settings({"cool_down_s": 20, "cool_down_max_s": 0}, {})
    assert settings.policy().cool_down_max_s == 20


def test_addresses_know_loopback_and_print_as_they_are_read() -> None:
    settings = load_settings({"listen": "[::1]:9", "admin": "localhost:8"}, {})
    assert str(settings.listen) == "[::1]:9"
    assert settings.listen.is_loopback
    assert settings.admin.is_loopback
    assert not Address("0.0.0.0", 1).is_loopback


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/x", "XDG_STATE_HOME": "/xdg", "HOME": "{home}"}, "/var/lib/x/state.json"),
        ({"STATE_DIRECTORY": "/var/lib/x:/var/lib/y"}, "/var/lib/x/state.json"),
        ({"XDG_STATE_HOME": "/xdg", "HOME": "{home}"}, "/xdg/ollama-swap-proxy/state.json"),
        ({"XDG_STATE_HOME": "xdg", "HOME": "{home}"}, "{home}/.local/state/ollama-swap-proxy/state.json"),
        ({"HOME": "{home}"}, "{home}/.local/state/ollama-swap-proxy/state.json"),
        ({"HOME": "{home}/missing"}, "none"),
        ({"HOME": "/"}, "none"),
        ({"HOME": ""}, "none"),
        ({}, "none"),
        ({"HOME": "{home}", "OLLAMA_SWAP_PROXY_STATE_FILE": "none"}, "none"),
        ({"HOME": "{home}", "OLLAMA_SWAP_PROXY_STATE_FILE": "/elsewhere/s.json"}, "/elsewhere/s.json"),
        (
            {"HOME": "{home}", "OLLAMA_SWAP_PROXY_STATE_FILE": "auto"},
            "{home}/.local/state/ollama-swap-proxy/state.json",
        ),
    ],
)
def test_the_state_file_has_its_place_where_the_environment_has_one(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    environ = {name: value.format(home=tmp_path) for name, value in environ.items()}
    settings = load_settings({}, environ)
    expected = expected.format(home=tmp_path)
    assert settings.state_file == expected
    assert settings.state_path == (None if expected == "none" else Path(expected))


def test_an_empty_state_file_in_the_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('state_file = ""\n', encoding="utf-8")
    assert load_settings({}, {"HOME": str(tmp_path)}, path).state_path is None


@pytest.mark.parametrize("value", ["state.json", "~/state.json", "/var/lib/", "/a\nb", "off"])
def test_a_state_file_is_named_by_an_absolute_path(value: str) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        load_settings({}, {"OLLAMA_SWAP_PROXY_STATE_FILE": value})


def test_settings_that_were_read_from_nowhere_keep_nothing() -> None:
    assert Settings().state_path is None
