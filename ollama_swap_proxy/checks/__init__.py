"""Settings that are valid, and still cannot bring about what they are meant for: found at start, and by ``check``."""
