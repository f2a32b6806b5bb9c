"""The words that the simulator's surfaces and its engine share: a request, the pieces of an answer, an error.

Owns the shapes between "bytes of one dialect" and "what the engine does". Must not know any dialect, HTTP or time.

How a dialect fits in (`openai`, `anthropic`, `responses`, `native` each do this)
--------------------------------------------------------------------------------
A dialect module exports ``SURFACES: Mapping[str, Surface]``, from path (``"/v1/chat/completions"``) to a `Surface`,
which is
nothing but pure functions::

    def parse_chat(body: bytes) -> Completion  # raises SimError
    def answer_chat(request: Completion, reply: Reply, scribe: Scribe) -> bytes  # the body of a whole 200
    def encode_chat(request: Completion, scribe: Scribe) -> Encoder  # Encoder = Callable[[Piece], list[bytes]]
    def error(failure: SimError, scribe: Scribe) -> bytes  # the body of an error in this dialect

- ``parse`` gets the body after zstd was undone. It reads it with `gojson.decode` (Go's rules, Go's error texts) and
  raises
  `SimError` for what the route checks before the model is looked up. The server has already answered cloud names;
  afterwards
  it looks the model up, checks capabilities, queues, loads, runs.
- ``encode`` is called once for a streamed answer, when the first piece is there; the function it returns is then
  called with each `Piece`
  in order. Each element of the returned list is sent as one HTTP chunk and flushed by itself. The last piece is a
  `Done` or a
  `Failure` (an answer that fails after its first byte; if a `Failure` comes first, the server answers ``error`` with
  its
  status instead). An empty list sends nothing.
- ``answer`` gets all pieces collected in a `Reply`. A Completion without a prompt or messages only loads: its `Reply`
  has no
  text and ``done.reason == "load"`` (or ``"unload"`` when ``keep_alive_s == 0``); the server never streams that one
  on native routes,
  but on /v1 it streams what ``request.stream`` says.
- ``error``: ``failure.early`` tells which of Go's two writers answers: True (refused while the request was read:
  content type
  ``application/json; charset=utf-8``, no newline), False (refused later: `Surface.json_type`, trailing newline where
  the
  dialect has one). The server sets the content type, ``error`` the body with or without its newline.

Also in `openai`, for GET /v1/models and /v1/models/NAME (``created`` in unix seconds)::

    def list_models(models: Sequence[tuple[str, int]]) -> bytes
    def show_model(name: str, created: int) -> bytes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Route = Literal["generate", "chat", "embed", "embeddings"]
"""Which of Ollama's handlers runs it: they differ in capability, in error texts and in what a missing model is called.
``/v1/completions`` is generate, ``/v1/embeddings`` is embed, the other /v1 routes are chat."""


class SimError(Exception):
    """An answer that is an error. ``status`` is the HTTP status, ``message`` Ollama's text.

    ``early``: refused while the request was read (see the module's text). ``extra``: further members of the native
    object.
    """

    def __init__(
        self, status: int, message: str, *, early: bool = False, extra: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.early = early
        self.extra = dict(extra or {})


@dataclass(frozen=True, slots=True)
class Completion:
    """One inference request, whatever dialect it came in.

    ``options`` are Ollama's (num_predict, num_ctx, temperature ...): a dialect translates (max_tokens -> num_predict)
    and leaves out what
    was absent. ``keep_alive_s`` is None when unset, ``math.inf`` for ever. ``loads_only`` is set by the dialect: an
    empty prompt or no
    messages. ``source`` is the decoded request, for whatever the dialect wants to echo (stream_options, tools,
    instructions).
    """

    route: Route
    model: str
    stream: bool
    prompt: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    inputs: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    format: object = None
    tools: Sequence[Mapping[str, Any]] = ()
    """As native writes them: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""
    think: object = None
    images: int = 0
    suffix: str = ""
    raw: bool = False
    shift: bool | None = None
    loads_only: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """A bit of text, as the engine made it."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. Native, and so every dialect, gets it in one piece right before `Done`."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    index: int = 0


@dataclass(frozen=True, slots=True)
class Vectors:
    """What an embedder answers: one vector for each input."""

    vectors: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a good answer. ``reason``: stop, length, load, unload, or empty for an answer that the engine cut off.

    Durations in nanoseconds, 0 is "absent".

    Native answers a tool call and its `Done` as one object: ``ToolCall`` pieces come first, the encoder may hold them
    back.
    """

    reason: str
    prompt_tokens: int = 0
    tokens: int = 0
    total_ns: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of an answer that failed."""

    error: SimError


Piece = Token | ToolCall | Vectors | Done | Failure
Encoder = Callable[[Piece], list[bytes]]


@dataclass(frozen=True, slots=True)
class Reply:
    """All pieces of an answer that is sent whole."""

    text: str
    tool_calls: Sequence[ToolCall]
    vectors: Sequence[Sequence[float]]
    done: Done


def collect(pieces: Sequence[Piece]) -> Reply:
    """Put the pieces of a whole answer together.

    Raises:
        SimError: the answer's `Failure`.
    """
    text: list[str] = []
    calls: list[ToolCall] = []
    vectors: Sequence[Sequence[float]] = ()
    done = Done("")
    for piece in pieces:
        match piece:
            case Token():
                text.append(piece.text)
            case ToolCall():
                calls.append(piece)
            case Vectors():
                vectors = piece.vectors
            case Done():
                done = piece
            case Failure():
                raise piece.error
    return Reply("".join(text), calls, vectors, done)


class Scribe(Protocol):
    """Where a dialect gets the time and its random ids, so that it stays pure."""

    def unix_s(self) -> int:
        """Now, in whole seconds (OpenAI's ``created``)."""

    def iso(self) -> str:
        """Now, as Go writes it in UTC: ``2026-11-23T20:52:13.704884994Z``."""

    def number(self, below: int) -> int:
        """A random number (``chatcmpl-115``)."""

    def hex(self, digits: int) -> str:
        """So many random lower-case hex digits (``msg_`` and ``req_`` ids)."""


@dataclass(frozen=True, slots=True)
class Surface:
    """One inference path of one dialect; see the module's text."""

    parse: Callable[[bytes], Completion]
    answer: Callable[[Completion, Reply, Scribe], bytes]
    encode: Callable[[Completion, Scribe], Encoder]
    error: Callable[[SimError, Scribe], bytes]
    json_type: str = "application/json"
    stream_type: str = "text/event-stream"
    stream_headers: Sequence[tuple[str, str]] = ()
    """Sent before Content-Type with a streamed answer (``Cache-Control: no-cache``, ``Connection: keep-alive``)."""
