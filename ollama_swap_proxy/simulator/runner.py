"""One engine process as the simulated scheduler sees it, and the requests that wait for one.

Owns the shapes. Must not move them: `machine` does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ollama_swap_proxy.simulator.clock import Timer
from ollama_swap_proxy.simulator.models import SimModel

FOREVER_S = (2**63 - 1) / 1e9
"""What an endless keep_alive is to Go: 292 years (2^63 - 1 ns)."""

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict", "shift")
"""Options that make another runner; all others only shape an answer (server/sched.go:1381, api/types.go:588)."""

_DEFAULTS: Mapping[str, object] = {"num_batch": 512, "num_gpu": -1, "main_gpu": 0, "num_thread": 0, "shift": True}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs: the model under the name it used, its digest, and the runner options in force."""

    name: str
    digest: str
    model: SimModel
    options: Mapping[str, object]
    keep_alive_s: float | None = None

    @property
    def key(self) -> str:
        """What makes two requests share a runner."""
        return self.model.weights_digest


@dataclass(slots=True, eq=False)
class Runner:
    """A resident engine. Times are monotonic; ``expires`` is None while it was never idle."""

    number: int
    wanted: Wanted
    session_s: float
    size: int
    size_vram: int
    slots: asyncio.Semaphore
    refs: int = 0
    expires: float | None = None
    timer: Timer | None = None
    timer_due: float = 0.0
    crashed: bool = False
    frozen: bool = False
    hung: bool = False
    """Its engine answers nothing, not even whether it is well."""
    ending: bool = False
    why: str = "expiry"
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def spill_share(self) -> float:
        """Share of the model that runs on the CPU."""
        return 1 - self.size_vram / self.size if self.size else 0.0


@dataclass(slots=True, eq=False)
class Pending:
    """A request in the queue. ``granted`` gives the runner or the error; ``left`` is set when its client went away."""

    wanted: Wanted
    granted: asyncio.Future[Runner]
    left: asyncio.Event = field(default_factory=asyncio.Event)


def effective_options(model: SimModel, options: Mapping[str, object], context_length: int) -> dict[str, object]:
    """The runner options in force: defaults, then the model's own parameters, then the request's.

    num_ctx is clamped to the training context and not below 4 (2048 for vision).
    """
    merged: dict[str, object] = {"num_ctx": context_length, **_DEFAULTS}
    for source in (model.parameters, options):
        merged.update({k: source[k] for k in RUNNER_OPTIONS if source.get(k) is not None})
    floor = 2048 if model.vision else 4
    asked = merged["num_ctx"]
    merged["num_ctx"] = min(
        max(int(asked) if isinstance(asked, int | float) else context_length, floor), model.context_length
    )
    return merged


def needs_reload(runner: Runner, wanted: Wanted) -> bool:
    """Whether this runner cannot serve that request as it is."""
    if runner.crashed or runner.hung:
        return True
    have, want = dict(runner.wanted.options), dict(wanted.options)
    if want.get("num_gpu") == -1:
        want["num_gpu"] = have.get("num_gpu")
    return have != want


def session_order(runner: Runner) -> tuple[float, str]:
    """Ollama's order of victims: shortest session first, then the weights' path; recency does not count."""
    return (math.inf if runner.session_s == math.inf else runner.session_s, runner.wanted.key)
