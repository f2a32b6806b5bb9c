"""How each group was recorded: what was loaded, what was done between the exchanges, which faults were on."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_swap_proxy.simulator.models import LoadFailure, SimModel
from ollama_swap_proxy.simulator.service import SimulatedOllama
from tests.simulator.transcripts import Answer, Exchange, Wire, play

TIME_SCALE = 0.25

STARTING_S = 0.35
"""What a load took besides the engine's own time: discovery before, polled health after it."""
_PACE: dict[str, Any] = {"token_ms": 25, "prompt_ms": 20, "reply_tokens": 32}
# Of two victims the one whose weights come first by name goes first: small before alpha.
ALPHA = SimModel("alpha", 4500, load_s=1.5 + STARTING_S, weights="alpha8", **_PACE)
BRAVO = SimModel("bravo", 5000, load_s=0.8 + STARTING_S, **_PACE)
SMALL = SimModel("small", 1000, load_s=0.25 + STARTING_S, **_PACE)
BIG = SimModel("big", 12000, load_s=1.0 + STARTING_S, **_PACE)
EMBEDDER = SimModel("embedder", 300, load_s=0.1 + STARTING_S, prompt_ms=20, embed=True)
TOOLMAN = SimModel("toolman", 1000, load_s=0.25 + STARTING_S, tools=True, **_PACE)
MODELS = (ALPHA, BRAVO, SMALL, BIG, EMBEDDER, TOOLMAN)

BLOB = bytes(range(256)) * 2343 + b"\0" * 192  # 600,000 bytes
RECORDED_BLOB = "ed63fa907924e6177f0b3249adc36d9039e0d7a3076d6dcee68c6795715071e5"


@dataclass
class Stage:
    """A running simulator, for what a scene does beside the recorded exchanges."""

    sim: SimulatedOllama

    async def post(self, path: str, **fields: object) -> Answer:
        """Send a request that is in no recording and wait for its answer."""
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = await play(self.sim.port, Wire(head.encode(), body), hold_back=None, leave_after_s=None)
        assert " 200 " in answer.status_line, answer
        return answer

    async def load(self, *models: str, **fields: object) -> None:
        """Load models as an empty request does."""
        for model in models:
            await self.post("/api/generate", model=model, **fields)

    async def unload(self, *models: str) -> None:
        """Unload models and wait until all memory has come back."""
        for model in models:
            await self.post("/api/generate", model=model, keep_alive=0)
        while self.sim.ledger.count("vram_returned") < self.sim.ledger.count("load_start"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


Act = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """One group's circumstances. ``before``: name of an exchange, or its start -> what was done just before it."""

    models: tuple[SimModel, ...] = MODELS
    loaded: tuple[str, ...] = ()
    before: Mapping[str, Act] = field(default_factory=dict)
    time_scale: float = TIME_SCALE
    gpu_mib: float = 8000
    settings: Mapping[str, Any] = field(default_factory=dict)
    loose: frozenset[str] = frozenset()
    replace: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict)
    hold_back: Mapping[str, float] = field(default_factory=dict)
    amend: Callable[[Exchange], Exchange] = lambda exchange: exchange


def _faults(*, load: tuple[str, ...] = (), **knobs: object) -> Act:
    """First all faults off and these models loaded, then the knobs."""

    async def act(stage: Stage) -> None:
        stage.sim.faults.fail_load = stage.sim.faults.crash_in_stream = None
        stage.sim.faults.hang_in_stream = stage.sim.faults.oom_in_stream = None
        await stage.load(*load)
        for name, value in knobs.items():
            setattr(stage.sim.faults, name, value)

    return act


def _load(*models: str, **fields: object) -> Act:
    return lambda stage: stage.load(*models, **fields)


async def _doomed(stage: Stage) -> None:
    await stage.post("/api/copy", source="small", destination="doomed")
    await stage.load("doomed")


async def _family(stage: Stage) -> None:
    await stage.post("/api/copy", source="small", destination="small-alias")
    await stage.post("/api/create", model="small-derived", **{"from": "small"}, system="Be brief.")
    await stage.post("/api/create", model="small-derived2", **{"from": "small"}, parameters={"temperature": 0.1})


async def _only_big(stage: Stage) -> None:
    await stage.unload("alpha", "small")
    await stage.load("big")


async def _gone(stage: Stage) -> None:
    while stage.sim.machine.listed():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def _hung(stage: Stage) -> None:
    stage.sim.hang_engine("small")


def _endless(exchange: Exchange) -> Exchange:
    """The one request whose recording is not whole: an endless answer, left in its midst."""
    if "http" in exchange.request:
        return exchange
    body = '{"model": "small", "prompt": "hi", "options": {"num_predict": 30000}}'
    headers = [["Host", "127.0.0.1:21534"], ["Content-Length", str(len(body))]]
    request = {**exchange.request, "http": "1.1", "headers": headers, "body": body}
    start = [["Content-Type", "application/x-ndjson"], ["Date", ""], ["Transfer-Encoding", "chunked"]]
    response = {**exchange.response, "status_line": "HTTP/1.1 200 OK", "headers": start}
    return replace(exchange, request=request, response=response)


_ONE_CRASH = _faults(load=("small",), crash_in_stream=3)
_DIGEST = hashlib.sha256(BLOB).hexdigest()
_TANGO = replace(SMALL, name="tango", parameter_size="123K", token_ms=3)

SCENES: Mapping[str, Scene] = {
    "blobs": Scene(
        replace={RECORDED_BLOB: _DIGEST},
        bodies={"(600000 bytes, left out)": BLOB},
        hold_back={
            "POST again, body of 3 KB held back": 0.0,
            "the same again, body held back": 0.0,
            "the same again, half of the body sent": 0.5,
        },
    ),
    "busy_keep_alive_cancels_unload": Scene(loaded=("alpha",)),
    "busy_victim_starves_newcomer": Scene(loaded=("alpha",)),
    "deleted_while_loaded": Scene(
        before={"ps before": _doomed, "re-create small with other weights while loaded": _load("small")}
    ),
    "disconnect_in_fast_stream": Scene(
        models=(replace(SMALL, token_ms=0.5, reply_tokens=2),),
        loaded=("small",),
        before={"endless stream": _faults(leak_slot_on_disconnect=True)},
        amend=_endless,
    ),
    "disconnect_while_generating": Scene(loaded=("alpha",)),
    "disconnect_while_ollama_evicts": Scene(loaded=("alpha",)),
    "encodings": Scene(before={"zstd on /v1/chat/completions": _load("small")}),
    "errors_v1": Scene(loaded=("small",)),
    "faults": Scene(
        before={
            "crash while loading": _faults(fail_load=LoadFailure(times=2)),
            "crash in mid-answer": _ONE_CRASH,
            "next request reloads": _faults(),
            "hang in mid-answer": _faults(hang_in_stream=3),
            "ps before out of memory": _faults(load=("small", "alpha")),
            "out of memory in mid-answer": _faults(oom_in_stream=3),
        }
    ),
    # Recorded while the end of the runner had to wait for that of an earlier one.
    "keep_alive_table": Scene(
        time_scale=1.0,
        before={"keep_alive 1e20": _faults(slow_unload_s=0.8), 'ps after keep_alive "0m"': _gone},
    ),
    "load_timeout": Scene(
        before={"load that never ends": _faults(hang_load="alpha")}, settings={"load_timeout_s": 3.0}
    ),
    "num_ctx_reload": Scene(loaded=("alpha",)),
    "ollama_evicts": Scene(loaded=("alpha",)),
    "ollama_evicts_beside_another": Scene(
        loaded=("alpha", "small"), before={"generate with bravo": _faults(short_wait_beside_another=1.0)}
    ),
    "ollama_evicts_beside_another_slow": Scene(
        loaded=("alpha", "small"), before={"generate with bravo": _faults(short_wait_beside_another=0.0)}
    ),
    "openai": Scene(loaded=("small",)),
    "ps": Scene(
        before={
            "one loaded": _load("alpha"),
            "two loaded, one forever": _load("small", keep_alive=-1),
            "busy again after idle": _load("small", keep_alive="30s"),
            "spilled": _only_big,
            "first request, running": lambda stage: stage.unload("big"),
        }
    ),
    "ps_blocked_by_hung_engine": Scene(loaded=("small",), before={"request to the hung model": _hung}),
    "queue_full": Scene(settings={"max_queue": 1}),
    "real_engine": Scene(
        models=(_TANGO, BRAVO),
        gpu_mib=0,
        settings={"context_length": 512},
        before={
            "engine error in mid-stream": _faults(cut_in_stream=2),
            "unload": _faults(cut_in_stream=None),
        },
        loose=frozenset({"$.response", "$.message.content", "$.choices[].delta.content", "$.prompt_eval_count"}),
    ),
    "routing": Scene(before={"GET /nosuch": _family}),
    "spill_after_api_unload": Scene(loaded=("alpha",)),
    "spill_after_eviction_beside_api_unload": Scene(
        loaded=("alpha", "embedder"), before={"unload alpha": _faults(short_wait_beside_another=1.0)}
    ),
    "tools": Scene(loaded=("toolman",)),
    "unload_busy": Scene(loaded=("alpha",)),
    "unload_idle": Scene(loaded=("alpha",)),
}
"""Groups that need nothing are not listed."""
