"""A pytest plugin (``-p tests.skips_plugin``): a skip that is not on the list fails the run.

Owns the rule only; the list, with a reason for each entry, is allowed_skips.txt.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("allowed_skips.txt")


def patterns(text: str) -> list[str]:
    """Return the patterns of the list, comments left out."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def forbidden(skipped: list[str], allowed: list[str]) -> list[str]:
    """Return the skipped tests that no pattern allows."""
    return [name for name in skipped if not any(fnmatchcase(name, pattern) for pattern in allowed)]


class SkipWatch:
    """Collects what was skipped and fails the session for what may not be."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if forbidden(self.skipped, self.allowed) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        names = forbidden(self.skipped, self.allowed)
        if names:
            terminalreporter.section("skips that are not on tests/allowed_skips.txt", red=True)
            for name in names:
                terminalreporter.line(name)


def pytest_configure(config: pytest.Config) -> None:
    """Put the watch on this session."""
    config.pluginmanager.register(SkipWatch(patterns(LIST.read_text(encoding="utf-8"))), "skip-watch")
