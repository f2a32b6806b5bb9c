"""What an engine process does with a request: prefill, tokens at their pace, vectors, tool calls, and its own faults.

Owns the pacing and the text. Must not know the queue or HTTP: it gets a `Runner` that is already held.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import AsyncGenerator, Iterator, Sequence

from ollama_swap_proxy.simulator.generation import Completion, Done, Failure, Piece, SimError, Token, ToolCall, Vectors
from ollama_swap_proxy.simulator.models import SimModel
from ollama_swap_proxy.simulator.runner import Runner
from ollama_swap_proxy.simulator.world import World

SPILL_SLOWDOWN = 4.0
"""How much slower a model is that runs on the CPU alone."""
STALL_STEP_S = 0.01
PREDICT_PER_CONTEXT = 10
_CRASHED = "an error was encountered while running the model: CUDA error: an illegal memory access was encountered"
_NO_MEMORY = "an error was encountered while running the model: cudaMalloc failed: out of memory"


class Engine:
    """Runs requests on runners. One for a whole machine; each call of `run` is one answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._calls = itertools.count(1)

    async def run(
        self, runner: Runner, request: Completion, arrived: float, load_ns: int
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one answer, in their time. Closing the iterator early is a client that left.

        ``arrived`` is when the request came (monotonic), ``load_ns`` what it took to get the runner.
        """
        world = self._world
        await runner.slots.acquire()
        keep_slot = False
        outcome, tokens = "aborted", 0
        world.note("serve_start", runner, route=request.route)
        try:
            async for piece in self._pieces(runner, request, arrived, load_ns):
                if isinstance(piece, Token):
                    tokens += 1
                elif isinstance(piece, Done | Failure):
                    outcome = "ok" if isinstance(piece, Done) else "failed"
                yield piece
        finally:
            keep_slot = world.faults.leak_slot_on_disconnect and request.stream and outcome == "aborted"
            if not keep_slot:
                runner.slots.release()
            world.note("serve_end", runner, outcome=outcome, tokens=tokens)

    async def _pieces(
        self, runner: Runner, request: Completion, arrived: float, load_ns: int
    ) -> AsyncGenerator[Piece, None]:
        world, model = self._world, runner.wanted.model
        slow = 1 + (SPILL_SLOWDOWN - 1) * runner.spill_share
        begun = world.now
        count = prompt_tokens(request, model)
        await self._pause(runner, begun + world.scaled(model.prompt_ms * slow / 1000))
        prompt_ns = _ns(world.now - begun)
        if request.route in {"embed", "embeddings"}:
            yield Vectors([vector(model.weights_digest, text, model.embedding_length) for text in request.inputs])
            yield Done("stop", count, 0, _ns(world.now - arrived), load_ns, prompt_ns, 0)
            return
        call = self._tool_call(request, model)
        if call is not None:
            yield call
            yield Done("stop", count, 0, _ns(world.now - arrived), load_ns, prompt_ns, 30_000)
            return
        reason, text = plan(request, model, int(str(runner.wanted.options["num_ctx"])))
        started, step_s, made = world.now, world.scaled(model.token_ms * slow / 1000), 0
        for piece in text:
            if made == world.faults.cut_in_stream:
                return
            failure = await self._strike(runner, made)
            if failure is not None:
                yield Failure(failure)
                return
            await self._pause(runner, started + (made + 1) * step_s)
            made += 1
            yield Token(piece)
        now = world.now
        yield Done(reason, count, made, _ns(now - arrived), load_ns, prompt_ns, max(1, _ns(now - started)))

    async def _pause(self, runner: Runner, until: float) -> None:
        """Wait for that moment; a frozen runner's moment never comes."""
        clock = self._world.clock
        await clock.sleep(until - clock.now())
        while runner.frozen:
            await clock.sleep(STALL_STEP_S)

    async def _strike(self, runner: Runner, made: int) -> SimError | None:
        """The fault that strikes after so many tokens, if one does."""
        world = self._world
        while world.faults.hang_in_stream is not None and made >= world.faults.hang_in_stream:
            await world.clock.sleep(STALL_STEP_S)
        if world.faults.crash_in_stream == made:
            runner.crashed = True
            return SimError(500, _CRASHED)
        if world.faults.oom_in_stream == made:
            runner.crashed = True
            world.ledger.note(world.now, "out_of_memory", runner.wanted.name, runner.number)
            return SimError(500, _NO_MEMORY)
        return None

    def _tool_call(self, request: Completion, model: SimModel) -> ToolCall | None:
        """A model that was offered tools calls the first one, unless it has just been told what a tool said."""
        if not (model.tools and request.tools) or any(m.get("role") == "tool" for m in request.messages):
            return None
        function = request.tools[0].get("function")
        name = str(function.get("name", "")) if isinstance(function, dict) else ""
        return ToolCall(f"chatcmpl-23685-{next(self._calls)}", name, {})


def plan(request: Completion, model: SimModel, num_ctx: int) -> tuple[str, Sequence[str] | Iterator[str]]:
    """The reason for which the answer will end, and its tokens.

    ``num_predict`` n gives n tokens exactly of a countable reply; Ollama caps it at ten times the context.
    """
    asked = request.options.get("num_predict", model.parameters.get("num_predict"))
    limit = math.inf if not isinstance(asked, int | float) or asked < 0 else asked
    limit = min(limit, PREDICT_PER_CONTEXT * num_ctx)
    name = model.name.removesuffix(":latest")
    if request.format:
        text = json.dumps({"model": name, "answer": "simulated"})
        tokens = [text[i : i + 4] for i in range(0, len(text), 4)]
    elif model.reply is not None:
        tokens = _split(model.reply)
    elif limit < PREDICT_PER_CONTEXT * num_ctx:
        return "length", (f" {name}.{i}" for i in range(int(limit)))
    else:
        return "stop", (f" {name}.{i}" for i in range(model.reply_tokens))
    return ("length", tokens[: int(limit)]) if limit < len(tokens) else ("stop", tokens)


def prompt_tokens(request: Completion, model: SimModel) -> int:
    """A plausible and stable count of the prompt's tokens: four bytes each, and a chat template's share."""
    texts = [request.prompt, *request.inputs, *(content_of(m) for m in request.messages)]
    spoken = sum(math.ceil(len(text.encode()) / 4) for text in texts)
    overhead = 7 if model.tools and request.route == "chat" else 0
    return spoken + overhead


def content_of(message: object) -> str:
    """The text of a chat message, whatever its form."""
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else "" if content is None else json.dumps(content)


@functools.lru_cache(maxsize=1024)
def vector(weights: str, text: str, length: int) -> list[float]:
    """A unit vector that depends on the weights and the text alone."""
    raw = hashlib.shake_256(f"{weights} {text}".encode("utf-8", "replace")).digest(2 * length)
    numbers = [int.from_bytes(raw[2 * i : 2 * i + 2], "big") - 32768 + 0.5 for i in range(length)]
    norm = math.sqrt(sum(n * n for n in numbers))
    # With six digits a number is its own shortest float32, which is what Go writes.
    return [float(f"{n / norm:.6g}") for n in numbers]


def _split(text: str) -> list[str]:
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
