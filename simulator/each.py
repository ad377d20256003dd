"""One product under many faults, each struck alone: the batched sibling of `gemm`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.errors import FaultError
from fsim.fault_models.explicit import rows_of
from fsim.types import FAULT, T_LAST, T_WORD, Fault, fault_table

from .gemm import check_operands, check_rows, choose_backend, clean, configure, overflow_free
from .kernels.each import replay_each
from .replay import _FAR, component_bits


def gemm_each(
    a, b, d=None, *, accel: str | Accel, faults: Sequence[Fault] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each fault, struck alone, changes in a @ b + d; by replay, in one compiled call.

    a, b, d, accel  as of `gemm`
    faults          `Fault` values or FAULT rows, every one a run of its own

    Returns (run, output, value), int64 and equally long, sorted by run: output m * n_size + n of
    run number `run` is `value` instead of the fault-free one. `gemm` with faults=[faults[run]]
    gives the same bits, one at a time.

    FaultError for a fault that replay does not serve, and where an adder may saturate or a
    product overflow: then every output must be walked, and `gemm` does that.
    """
    accel = configure(accel)
    a, b, d = check_operands(accel, a, b, d)
    (m, k), n = a.shape, b.shape[1]
    if isinstance(faults, np.ndarray) and faults.dtype == FAULT:
        check_rows(faults, accel)
        rows = faults
    else:
        rows = rows_of(faults, accel, accel.schedule.cycles(accel, m, k, n))
    choose_backend(accel, rows, "replay", False)
    if not hasattr(accel.schedule, "plan") or not overflow_free(accel, a, b, d):
        raise FaultError(
            f"faults struck alone need an accumulation plan and sums that stay within bounds, "
            f"which {accel.name} does not have here; gemm takes them one at a time"
        )
    plan = accel.schedule.plan(accel, m, k, n)
    table = fault_table(rows)
    np.minimum(table[:, T_LAST], _FAR, out=table[:, T_LAST])
    golden = clean(accel, a, b, d)
    if plan.transposed:
        a, b, d, golden = b.T, a.T, d.T, golden.T
        stored = table[:, T_WORD] >= 0
        row, col = np.divmod(table[stored, T_WORD], n)
        table[stored, T_WORD] = col * m + row
    found = replay_each(
        np.ascontiguousarray(a), np.ascontiguousarray(b.T), np.ascontiguousarray(d),
        np.ascontiguousarray(golden), plan.vector(), plan.table(), component_bits(accel), table,
    )  # fmt: skip
    run, output, value = (np.ascontiguousarray(column) for column in found.T)
    if plan.transposed:
        row, col = np.divmod(output, m)
        output = col * n + row
        order = np.lexsort((output, run))
        run, output, value = run[order], output[order], value[order]
    return run, output, value
