"""Plain-text tables, and JSON that other programs can rely on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> str:
    """Aligned columns under a head line.

    right  names of the columns that are aligned to the right (numbers)
    """
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(len(line[i]) for line in lines)]) for i, name in enumerate(head)]
    flush = [name in set(right) for name in head]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, flush)
        ).rstrip()
        for line in [list(head), *lines]
    )


def pairs(rows: Iterable[tuple[str, object]]) -> str:
    """Aligned `name  value` lines."""
    rows = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in rows)


def print_json(value: object) -> None:
    """One JSON document on stdout; nan and infinities are refused, not written."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
