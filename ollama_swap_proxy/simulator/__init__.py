"""A simulated Ollama on a real socket with a simulated GPU: the embedded default, the demo, tests and benchmarks.

`SimulatedOllama` is the way in. Must not import anything of the proxy's, so that it stays a judge of the proxy and does
not become a part of it.
"""

from ollama_swap_proxy.simulator.models import DEFAULT_MODELS, Faults, LoadFailure, SimGPU, SimModel
from ollama_swap_proxy.simulator.service import SimulatedOllama

__all__ = ["DEFAULT_MODELS", "Faults", "LoadFailure", "SimGPU", "SimModel", "SimulatedOllama"]
