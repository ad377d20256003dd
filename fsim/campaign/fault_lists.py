"""Fault lists: read from a table or from another campaign."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.sites import Placement, check_rows
from fsim.simulator.trace import read_trace

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
    check_rows(placement, rows, images)
    return rows


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
