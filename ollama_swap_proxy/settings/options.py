"""Every option: what it does, its unit, its default, the meaning of 0 and why.

Owns the options. Must not read them from anywhere (`config` does) nor act on one. docs/config.md and
config.example.toml repeat what stands here, and tests compare them.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.policy import Mode, Policy
from ollama_swap_proxy.settings.tables import Classes, Models, Rules
from ollama_swap_proxy.settings.values import (
    AUTO_STATE_FILE,
    NO_STATE_FILE,
    Bytes,
    ClassName,
    Count,
    CountOrZero,
    HeaderName,
    Hosts,
    Interval,
    KeepAlive,
    Listen,
    ModelOrNone,
    Networks,
    Seconds,
    SecondsOrZero,
    StateFilePath,
    Upstream,
)

ENV_PREFIX = "OLLAMA_SWAP_PROXY_"


def env_name(key: str) -> str:
    """Return the environment variable of an option."""
    return ENV_PREFIX + key.upper()


class Settings(BaseModel):
    """All settings. Times are in seconds (``_s``), sizes in bytes (``_bytes``; ``"8 MiB"`` is read too)."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    listen: Listen = Address("127.0.0.1", 11435)
    """HOST:PORT that clients talk to; port 0 lets the system choose. Beside Ollama's own port, so that it can be
    tried without moving Ollama."""

    upstream: Upstream = URL("http://127.0.0.1:11434")
    """Your Ollama: http://HOST:PORT, https://HOST:PORT, HOST:PORT or HOST (then port 11434; with http:// and no port
    80, with https:// 443, as Ollama's own clients read it). No path. Must not be one of our own listeners."""

    admin: Listen = Address("127.0.0.1", 11445)
    """HOST:PORT of the operator's listener (/healthz, /readyz, /v1/snapshot, /v1/mode, /v1/pause). Keep it on
    loopback: it asks for no password."""

    allowed_hosts: Hosts = ()
    """Further Host names accepted while we listen on loopback (in the environment: separated by commas). Loopback
    names, .local, .internal and the like are accepted anyway, as Ollama does; the check keeps web pages from
    reaching you by DNS rebinding. Empty: none."""

    mode: Mode = "auto"
    """What happens to a request for a model that is not resident. auto: the model is swapped in when its turn comes.
    manual: only the operator loads and evicts; the request waits for that. bypass: everything is relayed at once, as if
    this proxy were not there. It can be changed while we run, by POST /v1/mode."""

    manual_refuses: bool = False
    """In manual mode: true answers a request for a model that is not resident 503 not_resident at once; false lets
    it wait for the operator."""

    manual_wait_s: SecondsOrZero = 0
    """How long such a request waits before it is answered 503 not_resident. 0: give_up_after_s. stuck_after_s does
    not count for it: nothing need move while the operator is away."""

    parallel: CountOrZero = 0
    """How many requests for one model run side by side; further ones wait. 0: learned for each model, from 4 on: as
    many as Ollama really serves side by side (OLLAMA_NUM_PARALLEL, unless it decides otherwise), and one more to keep
    it busy. Set it where answers are not streamed, for only streams show how many run: a little above
    OLLAMA_NUM_PARALLEL."""

    line_limit: Count = 512
    """How many requests may wait in all; one more is answered 503 line_full. The same as Ollama's own
    OLLAMA_MAX_QUEUE."""

    turn_limit_s: SecondsOrZero = 0
    """How long one model is served while others wait. 0: the larger of 10 s and twice what the swap costs, so that
    swapping takes at most a third of a saturated card."""

    max_wait_s: Seconds = 120
    """What a wait for a model should not exceed, for classes without a maximum of their own. A request that is about
    to have waited so long, allowing for the swap that it needs, goes before all that are less late, and ends a turn
    that lasts longer; but not before that has lasted the larger of 10 s and twice that swap. Refuses nobody."""

    give_up_after_s: Seconds = 3600
    """A request that waited so long is answered 503 waited_too_long, even though things move. Longer than any
    client's own patience."""

    stuck_after_s: Seconds = 600
    """Waiting requests are answered 503 when nothing at all moved for so long: no grant, no streamed byte, no step
    of a swap; a drain without a byte for so long is given up. Long, because a slow answer that is not streamed moves
    nothing until its end."""

    default_class: ClassName = "normal"
    """The class of a request that no rule and no [models] table gives one. One of interactive, normal, batch, or of
    the [classes] in the file."""

    trusted_proxies: Networks = ()
    """Addresses and networks of proxies and applications that may say whom a request comes from: by forwarded_header,
    user_header and class_header (in the environment: separated by commas). Each must overwrite or drop what its own
    clients send there, or append to forwarded_header. Empty: nobody, a client is who connects."""

    forwarded_header: HeaderName = "X-Forwarded-For"
    """Where trusted proxies name the client's address. The rightmost one that is not trusted itself counts. Only this
    one header, since a proxy passes others on as its clients sent them; Forwarded is read as RFC 7239 has it. Empty
    (in the file only): none."""

    user_header: HeaderName = ""
    """Where trusted proxies name the user, who then is the client. For Open WebUI, which must run with
    ENABLE_FORWARD_USER_INFO_HEADERS=true, X-OpenWebUI-User-Id. Empty: none, because a proxy trusted for addresses may
    let its clients write here what they like."""

    class_header: HeaderName = ""
    """A header by which a request names its class, as X-Ollama-Swap-Proxy-Class. From a trusted proxy it goes before
    all rules; others may only step back by it, to a rank no higher and a maximum wait no shorter than they have anyway.
    Empty: none."""

    patience_header: HeaderName = "X-Ollama-Swap-Proxy-Patience"
    """A header by which a request says how many seconds it would wait, fractions allowed, where that is less than
    give_up_after_s. 0 in it: not at all. What is no such number counts as not sent. Empty (in the file only): none."""

    response_headers: bool = False
    """true: the answer to a request that had a lease says in X-Ollama-Swap-Proxy-Waited for how many seconds it waited,
    and in X-Ollama-Swap-Proxy-Swapped whether a swap was made meanwhile (true or false). false: no header is added, so
    that an answer is as Ollama gave it."""

    load_timeout_s: Seconds = 600
    """How long a model may take to load before those who wait for it are answered 504. Twice Ollama's own
    OLLAMA_LOAD_TIMEOUT (5 min)."""

    unload_timeout_s: Seconds = 60
    """How long a model may take to be gone after we asked Ollama to unload it; then the waiting requests are
    answered 504. Real unloads take 1 to 6 s. A model that others loaded may be busy with requests that we cannot
    see: it gets stuck_after_s where that is longer."""

    drain_timeout_s: SecondsOrZero = 0
    """How long a model that must make room waits for its running requests; then they are cut, or answered 503
    drain_timeout where no byte of their answer has come. 0: for ever, so that no running answer is ever lost (but see
    stuck_after_s)."""

    first_byte_timeout_s: SecondsOrZero = 0
    """How long Ollama may take to send the first byte of an answer, once the request has its lease; then we close its
    connection, and the request is answered 504 upstream_timeout. An answer that is not streamed sends its first byte
    at its end; a load has load_timeout_s. 0: for ever, because long prompts and long answers take their time."""

    idle_stream_timeout_s: SecondsOrZero = 0
    """How long an answer may pause in its midst, be it because of Ollama or because its client does not read; then it
    is cut on both sides. 0: for ever, as without us."""

    ttl_s: SecondsOrZero = 0
    """How long a model may be idle before it is unloaded by us, to free its memory: since its last request through us
    ended, or since it was first seen (requests that go past us are not seen). In manual mode too, but not while paused.
    0: never, because Ollama has a timer of its own (keep_alive, 5 min), which ends sooner where it is shorter."""

    cool_down_s: SecondsOrZero = 10
    """After a failed swap the same one is not tried for so long, doubling with each failure. 0: tried again at once."""

    cool_down_max_s: SecondsOrZero = 600
    """Where that doubling ends. 0: never longer than cool_down_s."""

    residency: Literal["exclusive", "fit"] = "exclusive"
    """Which models may be resident together. exclusive: one model that generates at a time, with embedders beside it
    (see companions) and pinned models. fit: any, once they were tried together and lay wholly in GPU memory.
    Whatever is together was tried first: a set is tried three times at most, and not again in a load order in which
    it did not fit."""

    companions: Literal["embedders", "none"] = "embedders"
    """Who may stay beside the model that generates, with residency = "exclusive". embedders: models that can only
    embed, once that is proven. none: nobody, the strict form."""

    keep_alive: KeepAlive = 0
    """How long Ollama keeps a model after its last request, whatever keep_alive clients send: seconds, a text as "30m",
    or -1 for ever. Their requests reach Ollama as sent; it is set anew by an empty request of ours, behind each that
    carries one. One below 1 s is overruled while its request runs, if that takes longer than 0.25 s; a request to
    unload (ollama stop) is obeyed. 0: what clients send counts, as without us."""

    preload_pinned: bool = False
    """true: pinned models are loaded by us at our start, and when Ollama was restarted, as soon as nobody waits and
    nothing runs; an idle model makes room for them if it must. In auto mode only. false: their first request loads
    them, as without us. Ollama's own timer (keep_alive) unloads pinned models, too."""

    home: ModelOrNone = ""
    """The model that the card goes back to when nobody needs another, by its name. Idle models make room for it if they
    must; it has no time to live. In auto mode only, not while paused. Ollama's own timer (keep_alive) unloads it, too:
    then it is loaded again. Empty: none, what was used last stays."""

    home_after_s: SecondsOrZero = 300
    """How long nothing may have moved before that: no request, no load, nothing new in /api/ps. 0: at once, when the
    last request has ended. As long as Ollama's own timer, so that who comes back soon finds his model."""

    vram_budget_bytes: Bytes = ByteSize(0)
    """The GPU memory that all models together may take: sets whose measured sizes exceed it are not even tried. 0:
    not known, so that trying tells."""

    settle_first_s: SecondsOrZero = 0.5
    """The wait between an unload and the next load while it is not known how late this card's memory comes back. 0:
    none, as is right for unified memory; else a model that spilled teaches it. Drivers typically need 0.5 to 1.5 s, and
    a first load that comes too early costs a spill, and up to 5 s at the next unload, in which Ollama waits for
    memory that it cannot see any more."""

    settle_max_s: SecondsOrZero = 6
    """The longest learned wait between an unload and the next load, for memory that comes back late. 0: never wait.
    Drivers need up to about 5 s; the wait itself is learned and starts at settle_first_s."""

    ps_max_age_s: SecondsOrZero = 1
    """How old our last look at /api/ps may be for a request to go straight through. 0: every request asks anew."""

    ps_interval_s: Interval = 5
    """How often /api/ps is read when nobody asks, so that models loaded behind our back are noticed. At least 0.1."""

    report_timeout_s: Seconds = 2
    """How long /api/ps may take before what is resident counts as unknown. Ollama answers in 1 ms, but blocks for
    seconds while it ends a runner."""

    connect_timeout_s: Seconds = 5
    """How long connecting to Ollama may take; then the request is answered 502. Once it is sent, nothing of ours
    limits its time but first_byte_timeout_s, idle_stream_timeout_s and drain_timeout_s, where they are set; while it
    waits for its model, give_up_after_s, stuck_after_s, load_timeout_s and unload_timeout_s do."""

    body_limit_bytes: Bytes = ByteSize(1024**3)
    """The largest body of a request on a gated route; a larger one is answered 413. 0: no limit. Uploads
    (/api/blobs) have no limit either way. 1 GiB is twenty times the largest image request we heard of."""

    body_memory_bytes: Bytes = ByteSize(8 * 1024**2)
    """How much of such a body is kept in memory while its request waits; the rest goes to a temporary file. 0: all
    of it does, but for bodies of up to 16 KiB that come at once. 8 MiB holds any text."""

    shutdown_grace_s: SecondsOrZero = 30
    """How long running answers may go on after SIGTERM. 0: they are cut at once. A second signal ends at once
    anyway."""

    state_file: StateFilePath = AUTO_STATE_FILE
    """Where what was learned is kept across restarts: which models fit together, sizes, how long swaps take. The
    absolute path of a file, which is replaced as a whole: its folder must be writable, and is made if it is
    missing. auto: state.json in $STATE_DIRECTORY (systemd sets it), else
    $XDG_STATE_HOME/ollama-swap-proxy/state.json or ~/.local/state/ollama-swap-proxy/state.json, else none. none (in
    the file an empty text too): nothing is kept, all is learned anew."""

    log_format: Literal["auto", "pretty", "json"] = "auto"
    """pretty: for eyes; json: one object a line; auto: pretty on a terminal, else json. Logs go to stderr."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe kind of line that is written. info has one line for each gated
    request, each error of ours and each step of a swap, debug one for every request."""

    classes: Classes = {}  # pydantic copies it, and lays it over the built-in ones
    """Named priorities, each with its maximum wait. interactive, normal and batch are there without being written;
    a table changes one of them or adds another. interactive has 60 s because a person waits before a screen; batch has
    1800 s because nobody does, and that leaves it half of give_up_after_s."""

    rules: Rules = ()
    """Which requests are of which class. The first rule whose conditions all hold decides; then the model's table, then
    default_class."""

    models: Models = {}  # pydantic copies it
    """Settings of single models, each under its name; "qwen3" means "qwen3:latest", as in Ollama."""

    @property
    def state_path(self) -> Path | None:
        """The state file, or None: no file. ``auto`` is none either: `config` has put a path in its place, or not."""
        return None if self.state_file in {AUTO_STATE_FILE, NO_STATE_FILE} else Path(self.state_file)

    @property
    def preloads(self) -> tuple[str, ...]:
        """The models that are loaded by us at the start."""
        return tuple(name for name, table in self.models.items() if table.pinned) if self.preload_pinned else ()

    def policy(self) -> Policy:
        """Return the numbers that the scheduler decides by."""
        values = {field.name: getattr(self, field.name) for field in fields(Policy)}
        values["cool_down_max_s"] = max(self.cool_down_s, self.cool_down_max_s)
        return Policy(**values)

    def ticket_classes(self) -> dict[str, TicketClass]:
        """Return every class by its name, the maximum wait of each filled in."""
        return {
            name: TicketClass(name, table.rank, table.max_wait_s or self.max_wait_s)
            for name, table in self.classes.items()
        }
