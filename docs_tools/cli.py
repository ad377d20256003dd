"""docs/reference/cli.md from the commands themselves: `python -m docs_tools.cli`."""

from __future__ import annotations

import click

from fsim.cli import main as fsim
from fsim.cli.group import COMMANDS

from .pages import DOCS

PAGE = DOCS / "reference" / "cli.md"

HEAD = """\
# Command line

Made from the commands by `python -m docs_tools.cli`; a test compares this page with them.

Results go to stdout, progress and errors to stderr. An error is one line. Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | a failure: a check failed, memory ran out, a bug |
| 2 | what was asked for is not valid, or cannot be written where it should go |
| 3 | incomplete: parts of a campaign are missing |
| 4 | an acceptance threshold was not met (`--fail-if`) |
| 130, 143 | interrupted, terminated |

`--json` prints one JSON document instead of tables. Probabilities are decimal: `1e-5`, `0.01`.
"""
_WIDTH = 100


def help_of(command: click.Command, words: list[str]) -> str:
    """The text of `--help`, at a fixed width."""
    context = click.Context(
        command, info_name=" ".join(words), terminal_width=_WIDTH, max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    text = command.get_help(context)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _entries(command: click.Command, words: list[str]):
    """(words, command) of a command and of those below it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words[-1])
        for name in command.list_commands(context):
            yield from _entries(command.get_command(context, name), [*words, name])


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    rows = [f"| [`fsim {name}`](#fsim-{name}) | {about} |" for name, (_, about) in COMMANDS.items()]
    parts.append("\n".join(["| command | |", "|---|---|", *rows]) + "\n")
    for words, command in _entries(fsim, ["fsim"]):
        if words == ["fsim"]:
            continue
        level = "##" if len(words) == 2 else "###"
        parts.append(f"{level} {' '.join(words)}\n\n```\n{help_of(command, words)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
