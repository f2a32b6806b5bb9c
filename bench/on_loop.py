"""Run a server of the benchmarks on one kind of event loop: ``on_loop.py asyncio|uvloop SCRIPT-OR-PACKAGE ARGUMENT``.

For asyncio, uvloop is made to look as if it were not installed; for uvloop it becomes the default of asyncio, too.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from typing import Any, cast


def main() -> None:
    kind, target = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    if kind == "uvloop":
        import uvloop  # noqa: PLC0415  # an extra

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    else:
        cast("dict[str, Any]", sys.modules)["uvloop"] = None  # importing it now fails
    run = runpy.run_path if target.endswith(".py") else runpy.run_module
    run(target, run_name="__main__")


if __name__ == "__main__":
    main()
