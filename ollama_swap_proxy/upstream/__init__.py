"""Talks to Ollama: control calls, the catalog of what exists, reports of what is resident, the relay.

Must not decide anything: events go in to the core, commands come out.
"""
