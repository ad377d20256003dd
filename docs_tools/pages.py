"""The pages of docs/: their code blocks, commands with the output they show, and links.

How a page is written:

* A `sh` block holds commands. A `console` block holds `$ command` lines, each with its
  output below. A command may go on after a backslash, and `cat > FILE <<'EOF'` may write a
  file. A line `...` stands for any lines, also none.
* A `python` block is a program; a `text` block right below it is what it prints.
* `<!-- not run: reason -->` on the line above a block exempts it from being run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)$")
_EXEMPT = re.compile(r"^<!-- not run: (.+) -->$")
_HERE = re.compile(r"^cat > (\S+) <<'(\w+)'$")


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its fence, counted from 1; `exempt` the reason why
    it is not run, or None."""

    line: int
    language: str
    text: str
    exempt: str | None


@dataclass(frozen=True)
class Step:
    """A command and the output that the page shows, None if it shows none.

    here  (file, content) where the command is a here-document
    line  of the command in its block, from 0; upto: first line that is not its output
    """

    command: str
    output: str | None
    here: tuple[str, str] | None
    line: int
    upto: int


def blocks(text: str) -> list[Block]:
    """Fenced blocks of a page, in order. ValueError for a fence that is not closed."""
    found: list[Block] = []
    lines = text.splitlines()
    begin = None
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if begin is None and match:
            begin, language = number, match[1]
        elif begin is not None and line == "```":
            above = _EXEMPT.match(lines[begin - 1]) if begin else None
            body = "".join(one + "\n" for one in lines[begin + 1 : number])
            found.append(Block(begin + 1, language, body, above[1] if above else None))
            begin = None
    if begin is not None:
        raise ValueError(f"the block that begins on line {begin + 1} must end")
    return found


def steps(block: Block) -> Iterator[Step]:
    """Commands of a `sh` or `console` block."""
    lines = block.text.splitlines()
    console = block.language == "console"
    at = 0
    while at < len(lines):
        begin, line = at, lines[at]
        at += 1
        if console:
            if not line.startswith("$ "):
                raise ValueError(f"line {block.line + at} must begin with '$ ', got {line!r}")
            line = line[2:]
        elif not line.strip() or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + lines[at].strip()
            at += 1
        here = None
        match = _HERE.match(line)
        if match:
            end = lines.index(match[2], at)
            here = match[1], "".join(one + "\n" for one in lines[at:end])
            at = end + 1
        first = at
        while console and at < len(lines) and not lines[at].startswith("$ "):
            at += 1
        output = "".join(one + "\n" for one in lines[first:at]) if console else None
        yield Step(line, output, here, begin, at)


_VARIES = [
    (re.compile(r"\d[\d,.]*(e[-+]?\d+)?(?= (s|KiB|faults a second)\b)"), "#"),
    (re.compile(r"\b[0-9a-f]{16,64}\b"), "#"),
]
"""Times, speeds and sizes differ from run to run, and hashes of codes, whose scales are
calibrated in float arithmetic, from CPU to CPU."""


def comparable(text: str) -> list[str]:
    """Lines of an output without what differs from run to run."""
    for pattern, stands in _VARIES:
        text = pattern.sub(stands, text)
    return [line.rstrip() for line in text.rstrip("\n").splitlines()]


def agrees(shown: str, got: str) -> bool:
    """Whether an output is the one that a page shows."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in comparable(shown)
    )
    return re.fullmatch(pattern, "".join(line + "\n" for line in comparable(got))) is not None


def resembles(shown: str, got: str) -> bool:
    """Whether every line that a page shows is in an output, whatever its numbers are."""

    def words(text: str) -> set[str]:
        return {" ".join(re.sub(r"[\d.,]*\d", "#", line).split()) for line in comparable(text)}

    return words(shown) - {"..."} <= words(got)


_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def links(text: str) -> list[str]:
    """Targets of the links of a page, code left out."""
    outside, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside and not line.startswith("    "):
            outside.append(re.sub(r"`[^`]*`", "", line))
    return _LINK.findall("\n".join(outside))


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as Markdown renderers make them."""
    found, inside = set(), False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside and re.match(r"#+ ", line):
            words = re.sub(r"[^\w\s-]", "", line.lstrip("# ").lower())
            found.add(re.sub(r"\s+", "-", words.strip()))
    return found
