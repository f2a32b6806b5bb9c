"""The deployment examples do what they say: valid settings, nothing published too widely, serve starts by them."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from ollama_swap_proxy.cli import main
from ollama_swap_proxy.config import CONFIG_VARIABLE, Settings, load_settings
from ollama_swap_proxy.errors import MARK

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "deploy" / "ollama-swap-proxy.service").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    composed = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    return dict(composed["services"])


def test_the_proxy_takes_the_name_that_clients_know_and_the_server_is_not_published(services: dict[str, Any]) -> None:
    proxy, server = services["ollama"], services["ollama-server"]
    assert (ROOT / "deploy" / proxy["build"] / "Dockerfile").exists()
    assert all(port.startswith("127.0.0.1:") for port in proxy["ports"])
    assert "ports" not in server
    assert "network_mode" not in server


def test_the_compose_settings_are_valid_and_lead_from_the_one_to_the_other(services: dict[str, Any]) -> None:
    settings = load_settings({}, services["ollama"]["environment"])
    assert settings.upstream.host == "ollama-server"
    published = services["ollama"]["ports"][0].rpartition(":")[2]
    assert settings.listen.port == int(published)
    assert not settings.listen.is_loopback
    assert settings.admin.is_loopback


def test_a_supervisor_waits_longer_than_running_answers_may_take(services: dict[str, Any]) -> None:
    grace_s = Settings.model_fields["shutdown_grace_s"].default
    assert int(services["ollama"]["stop_grace_period"].removesuffix("s")) > grace_s
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert stop
    assert int(stop[1]) > grace_s


def test_serve_starts_by_exactly_the_environment_of_the_compose_example(services: dict[str, Any]) -> None:
    environ = {name: str(value) for name, value in services["ollama"]["environment"].items()}
    settings = load_settings({}, environ)
    for place in (settings.listen, settings.admin):
        if not _is_free(place.host, place.port):
            pytest.skip(f"port {place.port} is in use on this machine")
    command = [sys.executable, "-m", "ollama_swap_proxy"]
    with subprocess.Popen([*command, "serve"], env=environ, cwd=ROOT, stderr=subprocess.PIPE, text=True) as serving:
        try:
            status, _, body = _get_once_open("http://127.0.0.1:11445/healthz", serving)
            assert (status, body) == (200, "ok\n")
            assert subprocess.run([*command, "healthcheck"], env=environ, cwd=ROOT, check=False).returncode == 0
            status, code, body = _get("http://127.0.0.1:11434/api/version")
            assert (status, code) == (502, "upstream_down")
            assert "error" in json.loads(body)
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(10) == 0
        finally:
            serving.kill()
    assert subprocess.run([*command, "healthcheck"], env=environ, cwd=ROOT, check=False).returncode == 1


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _get(url: str) -> tuple[int, str | None, str]:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
            return answer.status, answer.headers[MARK], answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.headers[MARK], error.read().decode()


def _get_once_open(url: str, process: subprocess.Popen[str]) -> tuple[int, str | None, str]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return _get(url)
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[1])


def test_the_unit_has_valid_settings_and_calls_a_command_that_exists() -> None:
    environ = dict(re.findall(r"^Environment=(\w+)=(\S+)$", UNIT, re.MULTILINE))
    settings = load_settings({}, environ)
    assert (settings.listen.port, settings.upstream.port) == (11434, 11435)
    command = re.search(r"^ExecStart=(.+)$", UNIT, re.MULTILINE)
    assert command
    program, *arguments = shlex.split(command[1])
    assert program.endswith("/ollama-swap-proxy")
    assert arguments == ["serve"]


def test_the_image_runs_as_nobody_checks_its_health_and_listens_where_it_can_be_published() -> None:
    user = re.search(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert user
    assert int(user[1]) != 0
    environ = dict(re.findall(r"^ENV (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    settings = load_settings({"upstream": "http://ollama-server:11434"}, environ)
    assert str(settings.listen) == "0.0.0.0:11434"
    for line in ("HEALTHCHECK", "CMD"):
        found = re.search(rf'^{line} .*?"([a-z]+)"\]$', DOCKERFILE, re.MULTILINE)
        assert found, line
        assert found[1] in main.commands  # type: ignore[attr-defined]


def test_what_was_learned_is_kept_where_the_user_of_the_image_and_of_the_unit_may_write(
    services: dict[str, Any],
) -> None:
    environ = dict(re.findall(r"^ENV (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    folder = load_settings({"upstream": "http://ollama-server:11434"}, environ).state_path
    assert folder is not None
    made = re.search(rf"^RUN install -d -o (\d+) -g \d+ -m 0700 {folder.parent}$", DOCKERFILE, re.MULTILINE)
    user = re.search(r"^USER (\d+):", DOCKERFILE, re.MULTILINE)
    assert made
    assert user
    assert made[1] == user[1]
    assert services["ollama"]["read_only"] is True
    assert [volume.partition(":")[2] for volume in services["ollama"]["volumes"]] == [str(folder.parent)]
    assert re.search(r"^StateDirectory=(\S+)$", UNIT, re.MULTILINE)


def test_the_build_gets_all_that_it_copies() -> None:
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    for names in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in names.split()[:-1]:
            assert name in kept
            assert (ROOT / name).exists()


@pytest.mark.parametrize("name", ["ollama-swap-proxy.service", "compose.yaml"])
def test_each_example_shows_where_a_file_of_settings_goes(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    assert re.search(rf"^ *# ?(?:Environment=)?{CONFIG_VARIABLE}(?:=|: )(/etc/\S+\.toml)$", text, re.MULTILINE)


def test_the_compose_example_with_its_file_mounted_is_still_one() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(rf"^( *)# ({CONFIG_VARIABLE}: |- \./)", r"\1\2", text, flags=re.MULTILINE)
    proxy = yaml.safe_load(text)["services"]["ollama"]
    assert proxy["environment"][CONFIG_VARIABLE] == "/etc/ollama-swap-proxy.toml"
    assert "./ollama-swap-proxy.toml:/etc/ollama-swap-proxy.toml:ro" in proxy["volumes"]
