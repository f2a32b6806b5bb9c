"""A transparent reverse proxy that lets many Ollama models share one GPU."""

__version__ = "0.1.0.dev0"
