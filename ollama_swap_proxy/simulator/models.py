"""What is simulated: models, the card, and the faults that can be switched on.

Owns plain data only. Must not hold behaviour: `machine` says what the numbers do, `server` what the faults do on the
wire.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SimModel:
    """One name in the simulated library.

    ``name`` as a client would write it (``alpha``, ``sim-mistral:7b``, ``hf.co/user/repo:Q4``). ``size_mib`` is the
    video
    memory of its runner and the size of its weights. ``load_s``, ``token_ms``, ``prompt_ms`` are before ``time_scale``.
    Two models with the same ``weights`` seed share one runner, as ``ollama cp`` aliases and models made FROM a base do.
    ``reply`` is the text of an answer, None for the countable one: `` NAME.0 NAME.1 ...``, one token each.
    ``reply_tokens`` is the length of an answer that no ``num_predict`` bounds.
    """

    name: str
    size_mib: float
    load_s: float = 0.05
    token_ms: float = 5.0
    prompt_ms: float = 1.0
    reply_tokens: int = 40
    reply: str | None = None
    embed: bool = False
    tools: bool = False
    vision: bool = False
    thinking: bool = False
    family: str = "llama"
    parameter_size: str = "512"
    quantization: str = "unknown"
    context_length: int = 131072
    embedding_length: int = 64
    parameters: Mapping[str, object] = field(default_factory=dict)
    system: str = ""
    template: str = "{{ .Prompt }}"
    license: str = ""
    weights: str = ""
    """Seed of the weights blob, or its 64 hex digits themselves; empty: the name."""
    parent: str = ""

    @property
    def weights_digest(self) -> str:
        """The 64 hex digits of the weights blob: what makes two names one runner (server/sched.go:110)."""
        if len(self.weights) == 64 and not set(self.weights) - set("0123456789abcdef"):
            return self.weights
        return hashlib.sha256(f"weights of {self.weights or self.name}".encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Size of the weights, and of the runner in video memory."""
        return int(self.size_mib * MIB)


@dataclass(slots=True)
class SimGPU:
    """The card; mutable, so that a test can take memory away while it runs.

    ``lag_s``: how long after a process ended its memory comes back; a number, a (low, high) pair, or a function of the
    seeded random source. ``external_mib``: held by other programs. ``fit_margin_mib``: what the engine leaves free.
    ``spill``: what a load does for which the free memory is too small: True puts the rest on the CPU, False fails.
    """

    total_mib: float = 8192.0
    lag_s: float | tuple[float, float] | Callable[[Random], float] = 0.5
    external_mib: float = 0.0
    fit_margin_mib: float = 0.0
    spill: bool = True

    def draw_lag_s(self, random: Random) -> float:
        """One lag, in seconds."""
        if callable(self.lag_s):
            return self.lag_s(random)
        if isinstance(self.lag_s, tuple):
            return random.uniform(*self.lag_s)
        return self.lag_s


@dataclass(slots=True)
class LoadFailure:
    """A load that fails with this answer. ``model``: a name, or empty for every model; ``times``: how often, None for
    ever.
    """

    text: str = "llama-server process has terminated: exit status 1: error loading model: simulated crash while loading"
    status: int = 500
    model: str = ""
    times: int | None = 1
    after: float = 1.0
    """Share of the load time that passes before it fails."""


@dataclass
class Faults:
    """Named knobs; all may be turned while the server runs. Everything off is a healthy server."""

    _watcher: Callable[[], None] | None = field(default=None, init=False, repr=False, compare=False)

    lose_unloads: float = 0.0
    """Probability that an unload request is answered 200 and does nothing."""
    ps_block_s: float = 0.0
    """How long GET /api/ps says nothing before it answers."""
    ps_block_probability: float = 1.0
    """Share of the /api/ps requests that ``ps_block_s`` befalls."""
    ps_status: int = 0
    """Answer /api/ps with this status and an error; 0: normal."""
    ps_malformed: bool = False
    """Answer /api/ps with 200 and half a JSON document."""
    hang_load: str = ""
    """Name of a model whose load never ends (``*``: any), until the fault is taken back or its client leaves."""
    fail_load: LoadFailure | None = None
    """Loads that fail."""
    crash_in_stream: int | None = None
    """The engine dies after so many tokens of an answer; its runner stays listed until its next request or expiry."""
    hang_in_stream: int | None = None
    """The engine says nothing more after so many tokens, until its client leaves or the fault is taken back."""
    cut_in_stream: int | None = None
    """The engine reports an error inside its stream after so many tokens, which Ollama drops: the answer just ends,
    with neither ``done:true`` nor an error."""
    oom_in_stream: int | None = None
    """Out of memory after so many tokens: the answer fails and all runners are expired."""
    short_wait_beside_another: float = 0.25
    """How often the wait for a victim's memory, when another runner shares the card, ends at its first tick with
    nothing recovered, and not after 5 s: seen in 3 of 12 runs of a real server."""
    slow_unload_s: float = 0.0
    """Extra time that ending a process takes; it stays listed meanwhile."""
    refuse_connections: bool = False
    """The port is closed: connecting fails. Open connections go on."""
    drop_connections: bool = False
    """Every request's connection is closed without an answer."""
    queue_full: bool = False
    """Every request that would have to queue is answered 503."""
    vanish: bool = False
    """As OLLAMA_KEEP_ALIVE=0: a runner without a keep_alive of its own is gone as soon as it is idle."""
    deadlock_on_eviction_under_load: bool = False
    """When the queue must evict a runner that has requests, nothing of that runner or the queue ever moves again,
    as real servers have been seen to do, until `SimulatedOllama.restart` or until all its clients leave."""
    leak_slot_on_disconnect: bool = False
    """A client that leaves a stream takes the runner's parallel slot with it for the life of the runner (bug
    #17131)."""

    def watch(self, watcher: Callable[[], None] | None) -> None:
        """Call ``watcher`` whenever ``refuse_connections`` is turned: that one needs a door to be closed."""
        self._watcher = watcher

    def __setattr__(self, name: str, value: object) -> None:
        changed = name == "refuse_connections" and getattr(self, name, value) != value
        super().__setattr__(name, value)
        if changed and self._watcher is not None:
            self._watcher()


_TEMPLATE = "{{ if .Tools }}{{ .Tools }}{{ end }}{{ .Prompt }}"
DEFAULT_MODELS = (
    SimModel(
        "sim-llama3.1:8b",
        5200,
        load_s=1.8,
        token_ms=18,
        prompt_ms=40,
        tools=True,
        template=_TEMPLATE,
        parameter_size="8.0B",
        quantization="Q4_K_M",
        reply="This is a simulated answer from sim-llama3.1: no model was run and no weights were read.",
    ),
    SimModel(
        "sim-qwen2.5:7b",
        4900,
        load_s=1.5,
        token_ms=16,
        prompt_ms=35,
        tools=True,
        template=_TEMPLATE,
        family="qwen2",
        parameter_size="7.6B",
        quantization="Q4_K_M",
        reply="This is a simulated answer from sim-qwen2.5: the card, the memory and the words are made up.",
    ),
    SimModel(
        "sim-mistral:7b",
        4600,
        load_s=1.2,
        token_ms=15,
        prompt_ms=30,
        parameter_size="7.2B",
        quantization="Q4_0",
        reply="This is a simulated answer from sim-mistral: it only shows that your request arrived.",
    ),
    SimModel(
        "sim-nomic-embed:latest",
        320,
        load_s=0.3,
        prompt_ms=8,
        embed=True,
        family="nomic-bert",
        parameter_size="137M",
        quantization="F16",
        context_length=2048,
        embedding_length=768,
    ),
)
"""A small library for an 8 GiB card: any two of the first three do not fit together, the embedder fits beside each."""
