"""Write the output of the commands of pages into them: `python -m docs_tools.fill PAGE...`.

Every page runs in an empty folder, as the test runs it. Look at what changed before you
commit it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

from .pages import Block, agrees, blocks, steps
from .shell import Shell


def filled(text: str) -> str:
    """A page with the outputs that its commands have in the current folder."""
    lines, shell = text.splitlines(), Shell()
    found = blocks(text)
    replaced: list[tuple[int, int, list[str]]] = []
    for number, block in enumerate(found):
        if block.exempt:
            continue
        if block.language in ("sh", "console"):
            replaced += _commands(block, shell)
        elif block.language == "python":
            printed = printed_by(block.text)
            below = found[number + 1] if number + 1 < len(found) else None
            if below is not None and below.language == "text":
                size = len(below.text.splitlines())
                replaced.append((below.line, below.line + size, printed.splitlines()))
    for first, last, new in reversed(replaced):
        lines[first:last] = new
    return "\n".join(lines) + "\n"


def _commands(block: Block, shell: Shell):
    for step in steps(block):
        begin = time.monotonic()
        try:
            got = shell.run(step)
        except Exception as error:  # the page keeps what it shows; the test will say so
            print(f"{step.command}: {error!r}", file=sys.stderr)
            continue
        print(f"{time.monotonic() - begin:6.1f} s  {step.command[:110]}", file=sys.stderr)
        if shell.status:
            print(f"          exit code {shell.status}: {got[-300:]}", file=sys.stderr)
        if step.output is None or (step.output and agrees(step.output, got)):
            continue
        size = len(step.output.splitlines())
        last = block.line + step.upto
        yield last - size, last, [line.rstrip() for line in got.splitlines()]


def printed_by(program: str) -> str:
    """What a program prints, run as a script in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, "<page>", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def main(pages: list[str]) -> None:
    """Fill pages."""
    here = Path.cwd()
    for page in pages:
        path = (here / page).resolve()
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
            text = filled(path.read_text("utf-8"))
            sys.path.remove(folder)
            os.chdir(here)
        path.write_text(text, "utf-8")
        print(f"{time.monotonic() - begin:6.1f} s  {page}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
