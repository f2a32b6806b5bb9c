"""The pure middle: what to do, decided from facts and a number for the time.

Everything below this package is standard library only: no ``await``, no clock, no logging, no I/O. Facts come in as
`events`, what is to be done goes out as `commands`; `scheduler.Scheduler.handle` is the only way state changes. The
modules that read requests (`endpoints`, `json_fields`, `names`, `requests`) are pure functions over bytes.
`tests/test_layering.py` enforces the direction of imports.
"""
