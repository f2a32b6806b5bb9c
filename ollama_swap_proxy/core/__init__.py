"""The pure middle: what to do, decided from facts and a number for the time.

Everything below this package is standard library only: no ``await``, no clock, no logging, no I/O. Facts come in as
`events`, what is to be done goes out as `commands`; `scheduler.Scheduler.handle` is the only way state changes. The
modules that read requests are pure functions over bytes. `tests/test_layering.py` enforces the direction of imports.

Where to look:

- the words: `tickets`, `events`, `commands`, `classes`, `policy`
- what a request asks for: `endpoints`, `requests`, `json_fields`, `skeleton`, `forms`, `names`, `durations`, `variants`
- one event from end to end: `scheduler`, `intake`, `state`, and `warm`, a shortcut for the usual one
- whose turn it is: `line`, `leases`, `slots`, `gaps`, `turns`, `granting`
- who may stay, who must go: `residency`, `together`, `proofs`, `victims`, `plans`, `company`
- a swap, step by step: `swapping`, `evicting`, `loading`, `steps`, `bounds`, `failing`
- what the operator wishes: `modes`, `upkeep`, `limits`, `cutting`, `keepalive`
- what is learned, and kept: `forecast`, `accuracy`, `memory`, `keeping`
- what can be seen: `snapshot`, `explain`, `waiting`
"""
