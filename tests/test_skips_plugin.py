"""Only a skip that is on the list may pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.skips_plugin import LIST, forbidden, patterns

ROOT = Path(__file__).parents[1]


def test_patterns_leave_comments_out() -> None:
    assert patterns("# why\n\ntests/a*\n") == ["tests/a*"]
    assert all(pattern.startswith("tests/") for pattern in patterns(LIST.read_text(encoding="utf-8")))


def test_only_what_no_pattern_matches_is_forbidden() -> None:
    assert forbidden(["tests/a.py::x[1]", "tests/b.py::y"], ["tests/a.py::*"]) == ["tests/b.py::y"]


def test_an_unlisted_skip_fails_a_run_and_is_named(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n\ndef test_silent(): pytest.skip('no')\n\ndef test_loud(): pass\n", encoding="utf-8"
    )
    arguments = [
        "-p",
        "tests.skips_plugin",
        "-q",
        "-c",
        str(tmp_path / "none.ini"),
        "--rootdir",
        str(tmp_path),
        str(test),
    ]
    (tmp_path / "none.ini").write_text("[pytest]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    assert "test_it.py::test_silent" in done.stdout
