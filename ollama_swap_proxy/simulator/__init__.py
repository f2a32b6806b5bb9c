"""A simulated Ollama on a real socket with a simulated GPU: the embedded default, the demo, tests and benchmarks.

`SimulatedOllama` (in `service`) is the way in. Must not import anything of the proxy's but `core`, so that it stays a
judge of the proxy and not a part of it.
"""
