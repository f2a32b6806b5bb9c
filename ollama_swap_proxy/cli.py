"""The command line: serve, run, demo, check, healthcheck, explain.

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


EXPLAINED_WITHIN_S = 30.0
"""It may have to ask Ollama what the model is."""

OK = 200


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
    """Check the settings, and print each with where it came from (the output is valid TOML).

    What is doubtful about them is told on stderr. Ollama is asked which models it has, where it answers within 2 s.
    """
    loaded = _load(path, listen=listen, upstream=upstream, admin=admin)
    for line in toml.lines(loaded.settings, loaded.origins):
        click.echo(line)
    from ollama_swap_proxy.checks import survey  # noqa: PLC0415

    with asyncio.Runner() as runner:
        doubts, said = runner.run(survey.check(loaded.settings))
    for doubt in doubts:
        click.echo(f"ollama-swap-proxy: warning: {doubt}", err=True)
    click.echo(said, err=True)


@main.command()
@_with_settings
def healthcheck(listen: str | None, upstream: str | None, admin: str | None, path: Path | None) -> None:
    """Ask a running proxy with the same settings whether it is alive (for containers; exit code 0 or 1)."""
    settings = _load(path, listen=listen, upstream=upstream, admin=admin).settings
    url = f"http://{settings.admin.to_connect_to}/healthz"
    answer = _fetch(url, HEALTHY_WITHIN_S)
    if answer is None:
        sys.exit(1)
    status, body = answer
    click.echo(f"{url}: {body.strip()}" if status == OK else f"ollama-swap-proxy: {url}: {status}", err=status != OK)
    sys.exit(0 if status == OK else 1)


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of /v1/explain as it is.")
@_with_settings
def explain(
    model: str, *, as_json: bool, listen: str | None, upstream: str | None, admin: str | None, path: Path | None
) -> None:
    """Ask a running proxy with the same settings what would happen to a request for MODEL now.

    Who would have to go, why, and how long it would wait; nothing is done. Exit code 1: it cannot be told.
    """
    settings = _load(path, listen=listen, upstream=upstream, admin=admin).settings
    import json  # noqa: PLC0415
    from urllib.parse import quote  # noqa: PLC0415

    url = f"http://{settings.admin.to_connect_to}/v1/explain?model={quote(model, safe='')}"
    answer = _fetch(url, EXPLAINED_WITHIN_S)
    if answer is None:
        sys.exit(1)
    status, body = answer
    try:
        told = json.loads(body)
        text = told["text"] if status == OK else told["error"]
    except (ValueError, KeyError, TypeError):
        click.echo(f"ollama-swap-proxy: {url}: answered {status}, and not as a proxy of this version does", err=True)
        sys.exit(1)
    click.echo(body if as_json else text, err=status != OK and not as_json)
    sys.exit(0 if status == OK else 1)


@main.command()
def demo() -> None:
    """Watch three simulated clients share a simulated card for some 20 s, with and without the proxy."""
    from ollama_swap_proxy.demo import run as run_demo  # noqa: PLC0415

    sys.exit(_run(run_demo()))


def _fetch(url: str, within_s: float) -> tuple[int, str] | None:
    """Return the status and the text of a page of a running proxy; None, and say why, if there is none."""
    from urllib.error import HTTPError, URLError  # noqa: PLC0415
    from urllib.request import ProxyHandler, build_opener  # noqa: PLC0415

    try:
        with build_opener(ProxyHandler({})).open(url, timeout=within_s) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (URLError, OSError, ValueError) as error:
        click.echo(f"ollama-swap-proxy: {url}: {error}", err=True)
        return None


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
