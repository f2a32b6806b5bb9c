"""Build the wheel, install it where nothing else is, and use it as somebody does who got it by pipx or uvx.

Owns the smoke test of what is shipped. Must not import the package from the checkout: it runs from an empty directory.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0
CLOSED_PORT = "127.0.0.1:9"


def main() -> None:
    """Run all steps; the first that fails ends it with a message."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wheel = build(place)
        command = install(wheel, place)
        for arguments in (["--version"], ["check"]):
            done = subprocess.run([command, *arguments], cwd=place, capture_output=True, text=True, check=True)
            print(f"{' '.join(arguments)}: {done.stdout.splitlines()[0]}")
        try_run(command, place)


def build(place: Path) -> Path:
    """Build the wheel and check what is in it."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", place / "dist", ROOT], check=True, stdout=-3)
    (wheel,) = (place / "dist").glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], check=True, capture_output=True, text=True)
    for wanted in ("ollama_swap_proxy/py.typed", "ollama_swap_proxy/simulator/", "licenses/LICENSE"):
        if wanted not in listed.stdout:
            sys.exit(f"{wanted} is not in the wheel")
    if re.search(r"^(tests|bench|docs)/", listed.stdout, re.MULTILINE):
        sys.exit("the wheel carries more than the package")
    print(f"built {wheel.name}")
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """Install the wheel into a fresh environment; return the command."""
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", wheel], check=True, cwd=place)
    subprocess.run([*pip, "check"], check=True, cwd=place, stdout=subprocess.DEVNULL)
    return python.with_name("ollama-swap-proxy")


def try_run(command: Path, place: Path) -> None:
    """Start ``run`` where no Ollama is, do what it says (the printed curl line), and stop it."""
    places = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", CLOSED_PORT]
    with subprocess.Popen([command, "run", *places], cwd=place, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        try:
            curl = read_curl_line(process)
            done = subprocess.run(["bash", "-c", f"{curl} --fail --silent"], capture_output=True, text=True, check=True)
            answer = json.loads(done.stdout)
            print(f"{curl}\n -> {answer['response']!r}")
            if not (answer["done"] and "simulated" in answer["response"].lower()):
                sys.exit("the answer does not say that it is simulated")
            process.send_signal(signal.SIGTERM)
            if process.wait() != 0:
                sys.exit(f"run ended with {process.returncode}")
        finally:
            watchdog.cancel()
            process.kill()


def read_curl_line(process: subprocess.Popen[str]) -> str:
    """Return the line that a new user is told to try."""
    told = False
    for line in process.stdout or ():
        told = told or line.startswith("No Ollama answers at")
        if line.strip().startswith("curl"):
            if not told:
                sys.exit("run did not say that it fell back to the simulated Ollama")
            return line.strip()
    sys.exit(f"run ended with {process.wait()} and printed no curl line")


if __name__ == "__main__":
    main()
