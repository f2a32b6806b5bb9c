"""The proxy port: connections of clients, their requests, and the answers that do not come from upstream.

A package of its own because its parts know each other. Must not route, must not know upstream or the gate.
"""
