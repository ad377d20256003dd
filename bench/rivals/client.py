"""The bench's side of a rival: a process of the rivals' environment, asked line by line."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".bench-rivals"
"""`make bench-rivals` sets it up."""

PATIENCE_S = 120.0
"""A rival that does not answer for so long has failed."""


class RivalError(Exception):
    """The rival is not there, or failed; the text says which."""


def python() -> Path:
    """The environment's interpreter; RivalError if it is not set up."""
    found = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (ENVIRONMENT / ".ok").is_file() or not found.is_file():
        raise RivalError("the rivals' environment is not set up (make bench-rivals)")
    return found


class Rival:
    """A running tool; a context manager that ends it.

    command  of the process, by default the tool's server in the rivals' environment
    """

    def __init__(self, tool: str, command: list[str] | None = None):
        self.tool = tool
        if command is None:
            command = [str(python()), "-m", "bench.rivals.serve", tool]
        # Nothing of this environment: the tool must not see fsim's packages.
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.said, text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, do: str, **arguments) -> dict:
        """The answer to one request; RivalError if there is none or it is an error."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=PATIENCE_S)
        except OSError:
            line = ""
        except queue.Empty:
            self.process.kill()
            raise RivalError(f"{self.tool} did not answer in {PATIENCE_S:g} s") from None
        if not line:
            status = self.process.wait()
            self.said.seek(0)
            last = self.said.read().strip().split("\n")[-1]
            raise RivalError(f"{self.tool} ended with status {status}: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise RivalError(f"{self.tool}: {answer['error']}")
        return answer["ok"]

    def best(
        self, layouts: list[str], batches, seconds: float, budget_s: float
    ) -> list[tuple[float, int, str]]:
        """(injections a second, batch, layout), the fastest first; that one is chosen.

        Batches are tried in their order, each in every layout for `seconds`, and no more of
        them once `budget_s` is spent: on a machine that others use, one batch takes minutes.
        """
        tried, start = [], time.monotonic()
        for batch in batches:
            if tried and time.monotonic() - start > budget_s:
                break
            for layout in layouts:
                found = self.ask("try", batch=batch, layout=layout, seconds=seconds)
                tried.append((found["injections"] / found["seconds"], batch, layout))
        tried.sort(reverse=True)
        self.ask("choose", batch=tried[0][1], layout=tried[0][2])
        return tried

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.said.close()

    def __enter__(self) -> Rival:
        return self

    def __exit__(self, *error) -> None:
        self.close()
