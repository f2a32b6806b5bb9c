"""What you watch: a line for every step of a swap and every answer that was waited for, and below them both cards.

Owns words, colours and layout; fits into 80 columns. Without a terminal there are the lines and the table only. Must
not measure anything that the closing table shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.demo.traffic import CHAT, CLIENTS, Crowd, Question
from ollama_swap_proxy.simulator import SimModel, SimulatedOllama

SAID_TO_WAIT_AFTER_S = 0.5
"""Who has no first byte by then is said to wait."""

COLOURS = {"agent": "cyan", "chat": "green", "notes": "magenta", "proxy": "yellow"}


@dataclass(frozen=True, slots=True)
class Side:
    """One half of the demonstration: its clients, and the machine that they end up at."""

    name: str
    crowd: Crowd
    ollama: SimulatedOllama


def short(model: object) -> str:
    """A model's name as the screen shows it: ``sim-llama3.1:8b`` is ``llama3.1``."""
    return str(model).removeprefix("sim-").partition(":")[0]


def _decided(line: MutableMapping[str, Any]) -> str:
    out = ", ".join(short(victim) for victim in line["victims"])
    why = "to load it anew, wholly on the card" if line["reason"] == "spill" else f"{line['waiting']} waiting"
    return f"swap: {short(line['target'])} in, {out or 'nobody'} out ({why})"


def _ended(line: MutableMapping[str, Any]) -> str:
    if line["outcome"] != "loaded":
        return f"swap to {short(line['target'])} ended: {str(line['outcome']).replace('_', ' ')}"
    return f"{short(line['target'])} is loaded, in {line['load_s']:.1f} s; the whole swap took {line['took_s']:.1f} s"


def _spilled(line: MutableMapping[str, Any]) -> str:
    share = 1 - line["size_vram_bytes"] / line["size_bytes"]
    return f"spill: {share:.0%} of {short(line['model'])} is on the CPU (memory came back late)"


STEPS: dict[str, Callable[[MutableMapping[str, Any]], str]] = {
    "swap_decided": _decided,
    "swap_retargeted": lambda line: f"the swap is for {short(line['target'])} now",
    "drain_started": lambda line: f"no new requests for the victim; {len(line['waits_for'])} running one(s) may end",
    "drain_ended": lambda line: f"the last of them has ended, after {line['took_s']:.1f} s",
    "eviction_sent": lambda line: f"asks Ollama to unload {short(line['victim'])}",
    "eviction_repeated": lambda line: f"{short(line['victim'])} is still there: asks again",
    "eviction_confirmed": lambda line: f"confirmed: it is gone, after {line['took_s']:.2f} s",
    "settle_started": lambda line: f"lets the card's memory come back: {line['wait_s']:.1f} s",
    "load_started": lambda line: f"loads {short(line['model'])}",
    "swap_ended": _ended,
    "spill_found": _spilled,
    "settle_learned": lambda line: f"learned: wait {line['wait_s']:.1f} s between an unload and a load",
    "resident_gone": lambda line: f"{short(line['model'])} has left the card by itself (keep_alive)",
}
"""What each step in the proxy's log is called here; others are not shown."""


class Screen:
    """Prints as things happen. `live` also shows both cards while it lasts, on a terminal."""

    def __init__(self, console: Console, with_us: Side, without: Side, scale: float) -> None:
        self._console = console
        self._with_us, self._without = with_us, without
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._patience_s = SAID_TO_WAIT_AFTER_S * scale
        crowd = with_us.crowd
        crowd.asked, crowd.began, crowd.ended = self._asked, self._answer_began, self._answer_ended

    def introduce(self, duration_s: float, settings: Settings, models: Sequence[SimModel]) -> None:
        """Say what will be seen."""
        say = self._console.print
        gpu = self._with_us.ollama.gpu
        sizes = {model.name: f"{model.size_mib / 1024:.1f} GiB, loads in {model.load_s:.1f} s" for model in models}
        say("[bold]One card, three models, three clients: with the proxy and, beside it, without.[/]")
        for client in CLIENTS:
            what = f"{short(client.model):<9}{sizes[client.model]}  {client.does}"
            say(f"  [{COLOURS[client.name]}]{client.name:<6}[/] {what}")
        say(f"Each side has a simulated Ollama and a simulated card of {gpu.total_mib / 1024:.0f} GiB, whose memory")
        say(f"comes back {gpu.lag_s} s after an unload. Both are healthy: no fault is switched on.")
        say(f"The clients ask for {duration_s:g} s; what is open then is still answered. To suit that,")
        say(f"the proxy has turn_limit_s = {settings.turn_limit_s:g} and settle_max_s = {settings.settle_max_s:g}.")
        say(f"A rule makes requests for {short(CHAT.model)} interactive: a person waits for them.")
        say("[bold]The lines are the proxy's side.[/] Ctrl-C ends early.\n")
        self._began_at = self._loop.time()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show both cards below the lines; without a terminal do nothing."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._cards, console=self._console, refresh_per_second=8, transient=True):
            yield

    def close(self, table: Table, conclusion: str, *, early: bool) -> None:
        """Show the closing table, what it comes to, and what its lines mean."""
        say = self._console.print
        say("\nStopped early; the figures so far:" if early else "")
        say(table)
        say(conclusion, style="bold", highlight=False)
        say("Here Ollama alone swaps for nearly every answer. In turns a program waits longer", style="dim")
        say("for its own, and gets several answers in it; the person comes in between.", style="dim")
        say("Waits last until the first byte.", style="dim")
        say("All counted in the clients' records and in both machines' ledgers.", style="dim")
        say("Now with your own models: [bold]make run[/], or [bold]ollama-swap-proxy serve[/].")

    def tell_step(self, _: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Show one log line of the proxy's (a structlog processor, the last one)."""
        words = STEPS.get(str(line["event"]))
        if words is not None:
            self._say("proxy", words(line))
        raise structlog.DropEvent

    def _asked(self, question: Question) -> None:
        self._loop.call_later(self._patience_s, self._still_waits, question)

    def _still_waits(self, question: Question) -> None:
        if question.first_byte_at is None and question.ended_at is None:
            self._say(question.client.name, f"waits for {short(question.client.model)}")

    def _answer_began(self, question: Question) -> None:
        waited_s = question.waited_s(self._loop.time())
        if waited_s >= self._patience_s:
            self._say(question.client.name, f"its answer begins, after {waited_s:.1f} s", style="bold")

    def _answer_ended(self, question: Question) -> None:
        if question.error:
            self._say(question.client.name, f"gets an error: {question.error}", style="bold red")

    def _say(self, who: str, text: str, style: str = "") -> None:
        at_s = self._loop.time() - self._began_at
        colour = COLOURS[who]
        parts = [
            (f"{at_s:6.1f} s  ", "dim"),
            (f"{who:<6} ", colour),
            (text, style or ("" if who != "proxy" else "yellow")),
        ]
        self._console.print(Text.assemble(*parts, no_wrap=True, overflow="ellipsis"))

    def _cards(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, min_width=24)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for label, side in (("with the proxy", self._with_us), ("Ollama alone", self._without)):
            grid.add_row(label, card(side.ollama), self._waiting(side.crowd))
        return grid

    def _waiting(self, crowd: Crowd) -> Text:
        now = self._loop.time()
        longest: dict[str, float] = {}
        for question in crowd.waiting():
            name = question.client.name
            longest[name] = max(longest.get(name, 0.0), question.waited_s(now))
        parts = [(f"{name} {wait_s:.1f} s  ", COLOURS[name]) for name, wait_s in longest.items()]
        return Text.assemble(("waiting: ", "dim"), *(parts or [("nobody", "dim")]))


def card(ollama: SimulatedOllama) -> Text:
    """What is on a card now, in a few words."""
    spilled = {load.runner for load in ollama.ledger.spills()}
    words = []
    for process in ollama.ledger.residencies():
        if process.returned is not None:
            continue
        name = short(process.model)
        if process.exited is not None:
            words.append(f"({name}'s memory returns)")
        elif process.ready is None:
            words.append(f"loading {name}")
        else:
            words.append(f"{name}, part on CPU" if process.runner in spilled else name)
    return Text(" ".join(words) or "empty", style="bold")
