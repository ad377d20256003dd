"""A shell of few words that runs the commands of pages.

Known are here-documents (`pages.steps`), `fsim ...` with an optional `> FILE` at the end,
`python FILE`, both run in this process to save their start, `echo $?`, and any other command,
which goes to sh.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from fsim.cli import main

from .pages import Step


class Shell:
    """Runs steps in the current folder. status: exit code of the last command."""

    def __init__(self):
        self.status = 0

    def run(self, step: Step) -> str:
        """What the step prints, stdout and stderr as on a terminal; exceptions of fsim rise."""
        if step.here is not None:
            Path(step.here[0]).write_text(step.here[1], "utf-8")
            self.status = 0
            return ""
        if step.command == "echo $?":
            text, self.status = f"{self.status}\n", 0
            return text
        words = shlex.split(step.command, comments=True)
        if words[0] == "fsim":
            return self._fsim(words[1:])
        if words[0] == "python" and len(words) == 2:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                runpy.run_path(words[1], run_name="__main__")
            self.status = 0
            return printed.getvalue()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        done = subprocess.run(
            ["sh", "-c", step.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=environment, timeout=120,
        )  # fmt: skip
        self.status = done.returncode
        return done.stdout

    def _fsim(self, words: list[str]) -> str:
        target = None
        if len(words) > 2 and words[-2] == ">":
            words, target = words[:-2], words[-1]
        done = CliRunner().invoke(main, words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.status = done.exit_code
        if target is None:
            return done.output
        Path(target).write_text(done.stdout, "utf-8")
        return done.stderr
