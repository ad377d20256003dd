"""FIT budgets from tables that people bring, and the published examples beside this file.

A CSV with one row a component, and lines that begin with # as comments:

    component            name, once
    share or bits        part of the whole that raw_fit is of; or bits, for a rate per Mbit
    raw_fit              FIT of the whole; may be missing where the command gives it
    active               share of time (or of the bits) in which an upset meets something in use
    unmasked             P(failure | upset there); or failures and trials that it was found with
    class                for subtotals; may be missing
    any other column     a further derating in [0, 1] of that name

FIT of a row = raw_fit x share x active x unmasked x ..., or FIT per Mbit x bits / Mbit x ...
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.rates import MBIT, fit_per_bit

from .lines import Budget, Line
from .terms import Counts

EXAMPLES = Path(__file__).resolve().parent / "examples"
MAX_BYTES = 1 << 20
MAX_ROWS = 10_000

_OWN = ("component", "class", "share", "bits", "raw_fit", "active", "unmasked", "failures",
        "trials")  # fmt: skip
_ROUNDING = 1e-9  # shares that should add up to 1 may miss it by so much


def examples() -> list[str]:
    """Names of the published examples, sorted."""
    return sorted(path.stem for path in EXAMPLES.glob("*.csv"))


def example_path(name: str) -> Path:
    """The table of a published example; ConfigError if there is none of that name."""
    if name not in examples():
        raise ConfigError(f"example must be one of {', '.join(examples())}, got {name!r}")
    return EXAMPLES / f"{name}.csv"


def comments(path: Path) -> list[str]:
    """What the table's comments say, a line each."""
    return [line[1:].strip() for line in _text(path).splitlines() if line.startswith("#")]


def read_budget(
    path: Path,
    *,
    raw_fit: float | None = None,
    fit_per_mbit: float | None = None,
    mbit: int = MBIT,
    confidence: float = 0.95,
) -> Budget:
    """The budget of a table.

    raw_fit       FIT of the whole that shares are of, for tables without that column
    fit_per_mbit  of bits, with `mbit` bits a Mbit

    ConfigError names the line of what is not valid; it is also raised for a rate that no row
    takes.
    """
    lines, shares = [], []
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        names = {line.component for line in lines}
        if not row["component"] or row["component"] in names:
            raise ConfigError(
                f"{where}: component must be a name given once, got {row['component'][:60]!r}"
            )
        value = {
            name: _number(row, name, where)
            for name in row
            if name not in ("component", "class") and row[name] != ""
        }
        bits = value.get("bits")
        if (bits is None) == ("share" not in value):
            raise ConfigError(f"{where}: share or bits must be given, and not both")
        if bits is None:
            if raw_fit is not None and "raw_fit" in value:
                raise ConfigError(f"{where}: raw_fit must be given in the table or beside it")
            whole = value.get("raw_fit", raw_fit)
            if whole is None:
                raise ConfigError(f"{where}: a share needs the FIT of the whole: raw_fit")
            raw = whole * value["share"]
            shares.append(value["share"])
        else:
            if fit_per_mbit is None:
                raise ConfigError(f"{where}: bits need a rate: --fit-per-mbit")
            raw = fit_per_bit(fit_per_mbit, mbit=mbit) * bits
        factors = {name: value[name] for name in value if name not in _OWN or name == "active"}
        lines.append(
            Line(row["component"], row.get("class") or "all", bits, raw, factors,
                 _failing(value, where), "an upset that meets something in use")
        )  # fmt: skip
    for given, name, used in (
        (raw_fit, "--raw-fit", bool(shares)),
        (fit_per_mbit, "--fit-per-mbit", len(shares) < len(lines)),
    ):
        if given is not None and not used:
            column = "share" if name == "--raw-fit" else "bits"
            raise ConfigError(f"{name} must be taken by a row, got none with {column} ({path})")
    return Budget(lines, "as the table counts it", confidence, notes=_notes(lines, shares))


def _notes(lines: list[Line], shares: list[float]) -> tuple[str, ...]:
    """What a table whose shares do not add up to 1 leaves open."""
    left = 1.0 - sum(shares)
    if not shares or len(shares) < len(lines) or abs(left) <= _ROUNDING:
        return ()
    if left < 0:
        raise ConfigError(f"shares must add up to at most 1, got {sum(shares):.10g}")
    most = max(line.raw / share for line, share in zip(lines, shares) if share) * left
    return (
        f"shares add up to {sum(shares):.10g}: {100 * left:.6g} % of the whole is in no row and "
        "counts as never failing",
        f"if each upset there were a failure, the total would be {most:.6g} FIT higher",
    )


def _failing(value: dict[str, float], where: str) -> float | Counts:
    if "unmasked" in value and not {"failures", "trials"} & set(value):
        return value["unmasked"]
    if "unmasked" in value or not {"failures", "trials"} <= set(value):
        raise ConfigError(f"{where}: unmasked must be given, or failures and trials instead")
    failures, trials = value["failures"], value["trials"]
    if failures != int(failures) or trials != int(trials) or not 0 <= failures <= trials:
        raise ConfigError(
            f"{where}: counts must be whole numbers with 0 <= failures <= trials, "
            f"got {failures:g} and {trials:g}"
        )
    return Counts(np.array([failures], np.int64), np.array([trials], np.int64))


def _number(row: dict[str, str], name: str, where: str) -> float:
    """The value of a column: a rate or count of at least 0, or a share in [0, 1]."""
    try:
        value = float(row[name])
    except ValueError:
        raise ConfigError(f"{where}: {name} must be a number, got {row[name][:60]!r}") from None
    most = 1e18 if name in ("raw_fit", "bits", "failures", "trials") else 1.0
    if not 0.0 <= value <= most:  # false for nan
        raise ConfigError(f"{where}: {name} must be from 0 to {most:g}, got {row[name][:60]}")
    return value


def _text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"a table must be a file that exists, got {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"a table must be at most {MAX_BYTES >> 20} MiB ({path})")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"a table must be CSV in UTF-8, got {error} ({path})") from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line of the file, column -> text) of every row."""
    numbered = [
        (number, line)
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    if len(numbered) > MAX_ROWS:
        raise ConfigError(f"a table must have at most {MAX_ROWS} rows ({path})")
    try:
        cells = [next(csv.reader([line])) for _, line in numbered]
    except csv.Error as error:
        raise ConfigError(f"a table must be CSV, got {error} ({path})") from None
    if len(cells) < 2:
        raise ConfigError(f"a table must have a head line and at least one row ({path})")
    head = [name.strip() for name in cells[0]]
    if len(set(head)) < len(head) or "component" not in head or "" in head:
        raise ConfigError(
            f"a table must have the column component and each column once, "
            f"got {','.join(head)[:200]} ({path})"
        )
    for (number, _), row in zip(numbered[1:], cells[1:]):
        if len(row) != len(head):
            raise ConfigError(
                f"{path}, line {number}: {len(head)} values are needed, got {len(row)}"
            )
        yield number, dict(zip(head, (text.strip() for text in row)))
