"""The backends as functions of one signature, so that one code can judge them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fsim.types import (
    FAULT,
    T_AND,
    T_COL,
    T_COMPONENT,
    T_EFFECT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_ROW,
    T_WORD,
    T_XOR,
)

Runner = Callable[..., tuple[np.ndarray, dict[str, np.ndarray] | None]]
"""run(accel, a, b, d, table, waveform) -> (out, waves or None), as `accel.cycle.run`."""


def run_reference(accel, a, b, d, table, waveform=False):
    """The cycle-level reference."""
    return accel.cycle.run(accel, a, b, d, table, waveform)


def run_tile(accel, a, b, d, table, waveform=False):
    """The compiled cycle-level simulation."""
    return accel.tile.run(accel, a, b, d, table, waveform)


def run_replay(accel, a, b, d, table, waveform=False):
    """Replay on the accumulation plan; it has no registers and so no waves."""
    from fsim.simulator.gemm import gemm

    return gemm(a, b, d, accel=accel, faults=table_rows(table), backend="replay").out, None


RUNNERS: dict[str, Runner] = {
    "reference": run_reference,
    "tile": run_tile,
    "replay": run_replay,
}


def table_rows(table: np.ndarray) -> np.ndarray:
    """FAULT rows of trial 0, one event a row, from a fault table with the columns T_*."""
    rows = np.zeros(len(table), FAULT)
    rows["event"] = np.arange(len(table))
    rows["image"] = rows["layer"] = -1
    for field, column in (
        ("component", T_COMPONENT),
        ("row", T_ROW),
        ("col", T_COL),
        ("word", T_WORD),
        ("effect", T_EFFECT),
        ("first", T_FIRST),
        ("last", T_LAST),
        ("and_mask", T_AND),
        ("or_mask", T_OR),
        ("xor_mask", T_XOR),
    ):
        rows[field] = table[:, column]
    return rows
