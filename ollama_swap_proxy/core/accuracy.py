"""How good the expected waits were: what was foretold at a ticket's arrival, against how long it then waited.

Owns the comparison. Must not foretell anything itself (`waiting` does).
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

ERRORS_KEPT: Final = 64
"""The median is of so many newest errors."""

LEAST_WAIT_S: Final = 0.1
"""Where neither the forecast nor the wait is as long, nothing was to be foretold; no error is a share of less."""


class Accuracy:
    """Forecasts of tickets that wait, and the errors of those that were granted since. Times are those of `handle`.

    ``foretold`` holds, by ticket, when something was foretold and what. Mostly it is empty: look before you ask.
    """

    def __init__(self) -> None:
        self.foretold: dict[int, tuple[float, float]] = {}
        self._errors: deque[float] = deque(maxlen=ERRORS_KEPT)

    def foretell(self, ticket_id: int, now: float, expected_wait_s: float) -> None:
        """Note what a waiting ticket is told; later it is `granted`, or it is to be forgotten."""
        self.foretold[ticket_id] = now, expected_wait_s

    def granted(self, ticket_id: int, now: float) -> None:
        """Compare, if anything was foretold."""
        foretold = self.foretold.pop(ticket_id, None)
        if foretold is None:
            return
        at, expected_s = foretold
        waited_s = now - at
        if max(waited_s, expected_s) >= LEAST_WAIT_S:
            self._errors.append(abs(expected_s - waited_s) / max(waited_s, LEAST_WAIT_S))

    def forget(self, ticket_id: int) -> None:
        """Drop what was foretold to a ticket that ends without a grant: how long it would have waited nobody knows."""
        self.foretold.pop(ticket_id, None)

    @property
    def median_error(self) -> float | None:
        """The median of |forecast - wait| / wait over the newest waits; None before the first."""
        return median(self._errors) if self._errors else None
