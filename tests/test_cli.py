"""The command line: exit codes, what ``check`` prints, and what is said when settings are bad."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ollama_swap_proxy import __version__
from ollama_swap_proxy.cli import main
from ollama_swap_proxy.config import ENV_PREFIX, Settings


def _invoke(*arguments: str, **environ: str | None) -> Result:
    return CliRunner().invoke(main, arguments, env={f"{ENV_PREFIX}{key}": value for key, value in environ.items()})


def test_version_is_the_packages() -> None:
    result = _invoke("--version")
    assert result.exit_code == 0
    assert __version__ in result.stdout


def test_check_prints_every_setting_as_toml_with_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('allowed_hosts = ["gpu.example"]\n', encoding="utf-8")
    result = _invoke("check", "--listen", "127.0.0.1:9", "--config", str(path), PARALLEL="2")
    assert result.exit_code == 0, result.output
    printed = tomllib.loads(result.stdout)
    assert printed.keys() == Settings.model_fields.keys()
    assert (printed["listen"], printed["parallel"], printed["allowed_hosts"]) == ("127.0.0.1:9", 2, ["gpu.example"])
    origins = {line.split()[0]: line.partition("  # ")[2] for line in result.stdout.partition("\n\n")[0].splitlines()}
    assert origins["listen"] == "command line"
    assert origins["parallel"] == "environment OLLAMA_SWAP_PROXY_PARALLEL"
    assert origins["allowed_hosts"] == f"file {path}"
    assert origins["max_wait_s"] == "default"


def test_what_check_prints_can_be_used_as_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(_invoke("check", "--upstream", "10.0.0.5").stdout, encoding="utf-8")
    result = _invoke("check", "--config", str(path))
    assert result.exit_code == 0, result.output
    assert tomllib.loads(result.stdout)["upstream"] == "http://10.0.0.5:11434"


def test_check_prints_tables_and_tells_what_is_wrong_in_them(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[classes.vip]\nrank = 30\n[[rules]]\nclass = "vip"\nmodel = "qwen3"\n', encoding="utf-8")
    result = _invoke("check", "--config", str(path))
    assert f"[classes.vip]  # file {path}\nrank = 30\n" in result.stdout
    assert tomllib.loads(result.stdout)["rules"] == [{"class": "vip", "model": ["qwen3:latest"]}]
    path.write_text('[[rules]]\nclass = "vip"\nmodel = "qwen3"\n', encoding="utf-8")
    result = _invoke("check", "--config", str(path))
    assert result.exit_code == 2
    assert f"[[rules]] no. 1 class (file {path}): there is no class 'vip'; nearest valid name: " in result.stderr


@pytest.mark.parametrize("command", ["check", "serve", "run"])
def test_bad_settings_end_with_2_and_every_message(command: str) -> None:
    result = _invoke(command, "--listen", "nowhere", PARALEL="3")
    assert result.exit_code == 2
    assert "nearest valid name: OLLAMA_SWAP_PROXY_PARALLEL" in result.stderr
    assert "must be HOST:PORT" in result.stderr
    assert result.stdout == ""


def test_serve_refuses_its_own_listener_as_upstream() -> None:
    result = _invoke("serve", "--listen", "0.0.0.0:11434")
    assert result.exit_code == 2
    assert "is our own listener" in result.stderr


def test_the_package_can_be_run_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ollama_swap_proxy", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"ollama-swap-proxy, version {__version__}"


def test_importing_the_command_line_loads_neither_server_nor_client() -> None:
    code = "import sys, ollama_swap_proxy.cli; print('aiohttp' in sys.modules, 'structlog' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("command", [("healthcheck",), ("explain", "qwen3")])
def test_a_proxy_that_is_not_there_is_said_to_be_away(command: tuple[str, ...], unused_tcp_port: int) -> None:
    result = _invoke(*command, "--admin", f"127.0.0.1:{unused_tcp_port}")
    assert result.exit_code == 1
    assert f"127.0.0.1:{unused_tcp_port}" in result.stderr
