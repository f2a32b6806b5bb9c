"""The numbers that the scheduler decides by, and where each comes from.

Owns the values. Must not decide by them: `settings` fills them in, the modules beside this one use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DRAIN_AFTERLIFE_S = 5.0
"""A drain outlives its last asker by this much: a client that gives up and tries again must not find it begun anew."""

DRAIN_SLOW_AFTER_S = 120.0
"""After this much draining the log names the leases that it waits for."""

STALE_VIEW_PATIENCE_S = 0.25
"""How long a warm request waits for a newer report before the last view serves it."""

UNLOAD_REPEAT_AFTER_S = 1.0
"""When a victim is still listed this long after Ollama took our unload, it is asked again: the first may be lost."""

RETRY_AFTER_S = 1.0
"""Pause before a call that failed for a passing reason (upstream's queue was full, no answer) is made again."""

CUT_AGAIN_AFTER_S = 1.0
"""A request that still runs so long after it should have been cut is cut again: it may just have been connecting."""

UPSTREAM_GRACE_S = 5.0
"""Waiting tickets outlive an upstream that is away for less than this: a service restart takes about 1 to 2 s."""

SHORTEST_TURN_S = 10.0
"""The floor of the automatic turn limit and of a turn that an overdue ticket may end."""

SHORT_DRAIN_S = 0.25
"""What has ended within this time, even one after another, may all run at once: it delays no drain that one notices."""

SWAPS_PER_EARLY_END = 3
"""A higher class ends a turn early at most once in as many swap costs: else classes would thrash."""

LEAST_PATIENCE_S = 0.3
"""A ticket without patience is rejected so soon: first it is seen whether it need not wait, and a look may take as long
as `STALE_VIEW_PATIENCE_S`."""

RETURN_WITHIN_S = 60.0
"""A client that gives up and asks again within this time keeps its place in the line."""

NEWCOMER_ROUNDS = 3
"""How often models that appear during a swap are evicted too before the load goes ahead beside them."""

POLL_S = 0.05
"""Pause between two reports while an unload or load is confirmed, where polling is safe (Ollama 0.32.4 and later)."""

CAREFUL_POLL_S = 0.25
"""The same for older or unknown versions: there a report during a load can answer 500 or kill the server."""

LASTS_AFTER_S = 1.0
"""A model that is listed this long after anything moved does not unload by itself at once (OLLAMA_KEEP_ALIVE=0)."""

SPILL_UNDONE_AFTER_S = 5.0
"""A spill is undone when nothing has moved for this long: a client in a loop, or one that alternates between two
models, comes back sooner, and must not find its model gone."""

SLOW_UNLOAD_S = 0.5
"""An idle model is gone some 10 ms after Ollama was asked. Longer means that Ollama is still busy with the unload
before: it looks every 250 ms, for up to 5 s, whether that one's memory has come back, and ends no other runner
meanwhile (server/sched.go: waitForVRAMRecovery). A load that begins before it has looked hides the memory from it."""

RECOVERY_WAIT_S = 5.0
"""So long at the most."""

RECOVERY_LOOK_S = 0.3
"""With this wait before a load Ollama has looked once, and the next unload is quick again."""

SETTLE_FIRST_S = 0.5
"""The first wait that a spill teaches; each further one doubles it. Drivers typically need 0.5 to 1.5 s."""

VARIANTS_KEPT = 1024
"""A client may ask for any number of variants (num_ctx is a number) and leave: what is kept of them is bounded."""


OVERRULED_AFTER_S = 0.25
"""A request's own keep_alive counts from when Ollama takes the request up; a later one, so much after it was granted,
overrules it."""

NEED_FRESH_S = 1.0
"""A model that nobody asks for is looked up again when we last did so longer ago: it may have been deleted since."""

WISH_AGAIN_AFTER_S = 60.0
"""A model that the operator wishes for and that could not be loaded is looked for again after so long."""

Mode = Literal["auto", "manual", "bypass"]
"""auto: a model that is waited for is swapped in; manual: only the operator swaps; bypass: everything is relayed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Every number that a setting can change. Meanings, units and defaults: docs/config.md."""

    mode: Mode = "auto"
    manual_refuses: bool = False
    manual_wait_s: float = 0.0
    parallel: int = 0
    residency: Literal["exclusive", "fit"] = "exclusive"
    companions: Literal["embedders", "none"] = "embedders"
    vram_budget_bytes: int = 0
    turn_limit_s: float = 0.0
    give_up_after_s: float = 3600.0
    stuck_after_s: float = 600.0
    load_timeout_s: float = 600.0
    unload_timeout_s: float = 60.0
    ttl_s: float = 0.0
    keep_alive: float = 0.0
    preloads: tuple[str, ...] = ()
    home: str = ""
    home_after_s: float = 300.0
    drain_timeout_s: float = 0.0
    first_byte_timeout_s: float = 0.0
    idle_stream_timeout_s: float = 0.0
    cool_down_s: float = 10.0
    cool_down_max_s: float = 600.0
    ps_max_age_s: float = 1.0
    ps_interval_s: float = 5.0
    settle_first_s: float = 0.5
    settle_max_s: float = 6.0
    line_limit: int = 512
