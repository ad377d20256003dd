"""Cycles as SCALE-Sim counts them, to set beside a machine's own.

SCALE-Sim knows a plain array whose folds follow one another without overlap; machines
that load, drain or overlap in other ways take other numbers of cycles (docs/cycles.md).
"""

from __future__ import annotations

from .accel import Accel
from .plan import ceil_div

FAMILIES = ("systolic", "gemmini", "pipelined", "tpu")
"""Families whose array and dataflow SCALE-Sim has: systolic ones."""


def scalesim_cycles(accel: Accel, m: int, k: int, n: int) -> int | None:
    """Cycles of the product (m x k)(k x n) by SCALE-Sim's folds; None where it has none.

    Folds times cycles of one, without stalls: output stationary ceil(m/R) ceil(n/C) of
    k + R + C - 2, weight stationary ceil(k/R) ceil(n/C) of 2R + C + m - 2, input stationary
    ceil(k/R) ceil(m/C) of 2R + C + n - 2. Source: SCALE-Sim v3 (commit 1d62b68), the
    compute classes systolic_compute_os, _ws and _is, whose demand matrices have that many
    rows; the "Total Cycles" of its reports are one less.
    """
    if accel.family not in FAMILIES:
        return None
    rows, cols = accel.rows, accel.cols
    if accel.dataflow == "os":
        return ceil_div(m, rows) * ceil_div(n, cols) * (k + rows + cols - 2)
    if accel.dataflow == "is":
        m, n = n, m
    return ceil_div(k, rows) * ceil_div(n, cols) * (m + 2 * rows + cols - 2)
