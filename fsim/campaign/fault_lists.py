"""Fault lists: read from a table or from another campaign."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError, FaultError
from fsim.simulator.sites import Placement, check_rows
from fsim.simulator.trace import read_trace
from fsim.types import STATE

from .tables import faults_table, names_of, rows_of

MAX_BYTES = 1 << 30


def read_fault_list(path: Path, placement: Placement, images: int) -> np.ndarray:
    """FAULT rows sorted by trial, checked against the machine and the network.

    path  .csv with the columns of `fsim trace export --table faults`, or an .h5 trace, whose
          layers and components are found by their names
    """
    layers = [op.name for op in placement.program.ops]
    components = [component.name for component in placement.accel.components]
    if path.suffix == ".h5":
        trace = read_trace(path)
        table = faults_table(trace.faults, names_of(trace))
        columns = {name: [str(v) for v in values.tolist()] for name, values in table.items()}
        lines = None
    elif path.suffix == ".csv":
        columns, lines = _read_csv(path)
    else:
        raise ConfigError(f"a fault list must be a .csv or .h5 file, got {path}")
    rows = rows_of(columns, layers, components, str(path), lines)
    if not len(rows):
        raise ConfigError(f"a fault list must have at least one fault ({path})")
    try:
        check_rows(placement, rows, images)
        _check_masks(rows, placement)
    except FaultError as error:
        raise FaultError(f"{path}: {error}; rows count from 0, sorted by trial") from None
    return rows


def _check_masks(rows: np.ndarray, placement: Placement) -> None:
    """Every fault must change bits that its word has; FaultError otherwise."""
    accel = placement.accel
    bits = np.array([component.bits for component in accel.components])[rows["component"]]
    memory = np.array([c.kind == "memory" for c in accel.components])[rows["component"]]
    changed = rows["xor_mask"] | rows["or_mask"] | ~rows["and_mask"]
    # Masks are sign-extended beyond the word: what lies above is all zeros or all ones.
    above = changed >> bits
    signed = changed >> (bits - 1)
    inside = (above == 0) | (signed == -1)
    for bad, said in (
        (changed == 0, "a fault must change at least one bit"),
        (~inside, "masks must not reach beyond the word"),
        (memory & ((rows["row"] != -1) | (rows["col"] != -1)), "row and col of a word must be -1"),
        (memory & (rows["effect"] == STATE) & (rows["last"] != rows["first"]),
         "last of a flip must be its first"),
    ):  # fmt: skip
        if bad.any():
            raise FaultError(f"{said} (fault row {int(np.flatnonzero(bad)[0])})")


def _read_csv(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Columns by name, and the line of the file that each of their values is in."""
    if not path.is_file():
        raise ConfigError(f"a fault list must be a file that exists, got {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"a fault list must be under {MAX_BYTES >> 20} MiB ({path})")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            head = [name.strip() for name in next(reader, [])]
            if len(set(head)) < len(head):
                raise ConfigError(f"columns of a fault list must differ ({path})")
            columns: dict[str, list[str]] = {name: [] for name in head}
            lists, lines = list(columns.values()), []
            for line in reader:
                if not line:
                    continue
                if len(line) != len(head):
                    raise ConfigError(
                        f"{path}, line {reader.line_num}: {len(head)} values are needed, "
                        f"got {len(line)}"
                    )
                lines.append(reader.line_num)
                for column, text in zip(lists, line):
                    column.append(text.strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"a fault list must be CSV in UTF-8, got {error} ({path})") from None
    return columns, lines
