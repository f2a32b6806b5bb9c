"""`python -m ollama_swap_proxy`: the command line. Must not hold anything else."""

from __future__ import annotations

from ollama_swap_proxy.cli import main

if __name__ == "__main__":
    main(prog_name="ollama-swap-proxy")
