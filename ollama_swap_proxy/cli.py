"""The command line: serve, run, demo, check.

Owns arguments and exit codes (2: bad settings or arguments). Must not read settings (`config` does) nor do anything
itself; what a command needs is imported when it runs, so that ``check`` and ``--version`` start fast.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from ollama_swap_proxy import __version__, config
from ollama_swap_proxy.config import ConfigError, Loaded, Settings
from ollama_swap_proxy.settings import toml

BAD_SETTINGS = 2

HEALTHY_WITHIN_S = 3.0
"""A proxy that cannot answer one line of its own in this time is not healthy."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ollama-swap-proxy")
def main() -> None:
    """Let many Ollama models share one GPU: confirmed swaps, bounded waits, nothing hangs.

    Every setting can also be given in the environment as OLLAMA_SWAP_PROXY_<OPTION>, or in a TOML file.
    """


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--listen", metavar="HOST:PORT", help="Where clients connect to. Default: 127.0.0.1:11435."),
        click.option("--upstream", metavar="URL", help="Your Ollama. Default: http://127.0.0.1:11434."),
        click.option("--admin", metavar="HOST:PORT", help="The operator's listener. Default: 127.0.0.1:11445."),
        click.option("--config", "path", metavar="FILE", type=click.Path(path_type=Path), help="A TOML file."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command(short_help="Run the proxy in front of your Ollama.")
@_with_settings
def serve(listen: str | None, upstream: str | None, admin: str | None, path: Path | None) -> None:
    """Run the proxy in front of your Ollama (production: never falls back to a simulated one)."""
    settings = _load(path, listen=listen, upstream=upstream, admin=admin).settings
    _configure_logs(settings)
    from ollama_swap_proxy.serving import serve as serve_app  # noqa: PLC0415

    sys.exit(_run(serve_app(settings)))


@main.command(short_help="Try it: simulates an Ollama where none answers.")
@_with_settings
def run(listen: str | None, upstream: str | None, admin: str | None, path: Path | None) -> None:
    """Try the proxy: as serve, but if no Ollama answers, a simulated one takes its place."""
    settings = _load(path, listen=listen, upstream=upstream, admin=admin).settings
    _configure_logs(settings)
    from ollama_swap_proxy import first_run  # noqa: PLC0415

    sys.exit(_run(first_run.run(settings, click.echo)))


@main.command()
@_with_settings
def check(listen: str | None, upstream: str | None, admin: str | None, path: Path | None) -> None:
    """Check the settings, and print each with where it came from (the output is valid TOML)."""
    loaded = _load(path, listen=listen, upstream=upstream, admin=admin)
    for line in toml.lines(loaded.settings, loaded.origins):
        click.echo(line)


@main.command()
@_with_settings
def healthcheck(listen: str | None, upstream: str | None, admin: str | None, path: Path | None) -> None:
    """Ask a running proxy with the same settings whether it is alive (for containers; exit code 0 or 1)."""
    settings = _load(path, listen=listen, upstream=upstream, admin=admin).settings
    from urllib.error import URLError  # noqa: PLC0415
    from urllib.request import ProxyHandler, build_opener  # noqa: PLC0415

    url = f"http://{settings.admin.to_connect_to}/healthz"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=HEALTHY_WITHIN_S) as answer:
            click.echo(f"{url}: {answer.read().decode().strip()}")
    except (URLError, OSError, ValueError) as error:
        click.echo(f"ollama-swap-proxy: {url}: {error}", err=True)
        sys.exit(1)


@main.command()
def demo() -> None:
    """Watch three simulated clients share a simulated card for some 20 s, with and without the proxy."""
    from ollama_swap_proxy.demo import run as run_demo  # noqa: PLC0415

    sys.exit(_run(run_demo()))


def _load(path: Path | None, **overrides: str | None) -> Loaded:
    try:
        return config.load(overrides, path=path)
    except ConfigError as error:
        for message in error.messages:
            click.echo(f"ollama-swap-proxy: {message}", err=True)
        click.echo("Every setting is described in docs/config.md and config.example.toml.", err=True)
        sys.exit(BAD_SETTINGS)


def _configure_logs(settings: Settings) -> None:
    from ollama_swap_proxy import logs  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)


def _run(work: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # an extra: used where it is installed
    except ImportError:
        return None
    return uvloop.new_event_loop
