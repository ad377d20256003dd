"""One product under many faults, each struck alone: the batched sibling of `gemm`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.plan import ACC_OUT, MOVING, WEIGHT, Plan
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.explicit import rows_of
from fsim.types import FAULT, T_COMPONENT, T_LAST, T_WORD, Fault, fault_table

from .gemm import check_operands, check_rows, choose_backend, clean, configure, overflow_free
from .kernels.each import flip_each, replay_each, survey
from .replay import _FAR, component_bits


def gemm_each(
    a, b, d=None, *, accel: str | Accel, faults: Sequence[Fault] | np.ndarray,
    backend: str = "replay",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """What each fault, struck alone, changes in a @ b + d; in one compiled call.

    a, b, d, accel  as of `gemm`
    faults          `Fault` values, FAULT rows, or an int64 (f, 10) fault table (see
                    `fsim.types.fault_table`); every one a run of its own
    backend         "replay", or "tile": cycle by cycle. One call of the simulation for all on
                    output-stationary `systolic`, one for each elsewhere

    Returns (run, output, value), int64 and equally long, sorted by run: output m * n_size + n of
    run number `run` is `value` instead of the fault-free one. `gemm` with faults=[faults[run]]
    gives the same bits, one at a time.

    FaultError for a fault that the backend does not serve, and by replay where an adder may
    saturate or a product overflow: then every output must be walked, and `gemm` does that.
    """
    accel = configure(accel)
    a, b, d = check_operands(accel, a, b, d)
    (m, k), n = a.shape, b.shape[1]
    if isinstance(faults, np.ndarray) and faults.dtype == np.int64 and faults.ndim == 2:
        table = np.ascontiguousarray(faults)
    elif isinstance(faults, np.ndarray) and faults.dtype == FAULT:
        table = fault_table(faults)
    else:
        table = fault_table(rows_of(faults, accel, accel.schedule.cycles(accel, m, k, n)))
    if backend == "tile":
        return _simulated(accel, a, b, d, table)
    if backend != "replay":
        raise ConfigError(f"backend must be replay or tile, got {backend!r}")
    flips = _check(accel, table)
    if not hasattr(accel.schedule, "plan") or not overflow_free(accel, a, b, d):
        raise FaultError(
            f"faults struck alone need an accumulation plan and sums that stay within bounds, "
            f"which {accel.name} does not have here; gemm takes them one at a time"
        )
    plan = accel.schedule.plan(accel, m, k, n)
    short = flips and direct(plan)
    if not short:
        table = table.copy()
        np.minimum(table[:, T_LAST], _FAR, out=table[:, T_LAST])
    golden = clean(accel, a, b, d)
    if plan.transposed:
        a, b, d, golden = b.T, a.T, d.T, golden.T
        stored = table[:, T_WORD] >= 0
        row, col = np.divmod(table[stored, T_WORD], n)
        table[stored, T_WORD] = col * m + row
    kernel = flip_each if short else replay_each
    found = kernel(
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


def _simulated(accel: Accel, a, b, d, table):
    """`gemm_each` cycle by cycle."""
    for component in {accel.components[i] for i in np.unique(table[:, T_COMPONENT])
                      if 0 <= i < len(accel.components)}:  # fmt: skip
        if "tile" not in component.backends:
            raise FaultError(f"backend tile does not serve {component.name!r} of {accel.name}")
    golden = clean(accel, a, b, d)
    if hasattr(accel.tile, "run_each"):
        found = accel.tile.run_each(accel, a, b, d, table, golden)
        if found is not None:
            return tuple(np.ascontiguousarray(column) for column in found.T)
    runs, outputs, values = [], [], []
    for number in range(len(table)):
        out = accel.tile.run(accel, a, b, d, table[number : number + 1], clean=golden)[0]
        changed = np.flatnonzero(out != golden)
        runs.append(np.full(len(changed), number))
        outputs.append(changed)
        values.append(out.reshape(-1)[changed])
    empty = [np.zeros(0, np.int64)]
    return tuple(np.concatenate(empty + parts) for parts in (runs, outputs, values))


def _check(accel: Accel, table: np.ndarray) -> bool:
    """Whether all rows are flips of registers, once each is known to be one that replay serves.

    FaultError for a row that is not of this machine or that replay does not serve.
    """
    if table.shape[1:] != (10,):
        raise FaultError(f"a fault table must have the shape (f, 10), got {table.shape}")
    if not len(table):
        return True
    limits, named, flips = survey(table, len(accel.components))
    rows = np.zeros(2, FAULT)
    rows["component"] = np.clip(limits[0], -1, len(accel.components))
    check_rows(rows, accel)
    # One row for each component: what serves a component serves all its faults.
    rows = np.zeros(int(named.sum()), FAULT)
    rows["component"] = np.flatnonzero(named)
    choose_backend(accel, rows, "replay", False)
    for (low, high), size, name in zip(limits[1:], (accel.rows, accel.cols), ("row", "col")):
        if low < 0 or high >= size:
            raise FaultError(f"{name} must be in 0..{size - 1} on {accel.name}, got {low}..{high}")
    kinds = {accel.components[i].kind for i in np.flatnonzero(named)}
    return flips and kinds == {"register"}


def direct(plan: Plan) -> bool:
    """Whether every register of the plan holds one term, or one sum, for a flip to change.

    Output stationary, one fold, adders that wrap; moving operands pass from column 0 to the
    output's own, weights from row 0, sums stay where they are until the fold ends.
    """
    shapes = {
        MOVING: ("col", (0, 0, 0), (0, 0, 1), None),
        WEIGHT: ("row", (0, 0, 0), (0, 1, 0), None),
        ACC_OUT: ("", (0, 0, 0), (0, 0, 0), plan.phase_cycles - 1),
    }
    registers = [segment for segment in plan.segments if segment.stage in shapes]
    fixed = {MOVING: 3, WEIGHT: 2, ACC_OUT: 4}  # the coordinate that is not the fault's own
    return (
        plan.output_stationary and plan.folds == 1 and plan.init_d and not plan.saturate
        and plan.phase_cycles >= plan.slots
        and all(
            (segment.hops, segment.lo, segment.hi, segment.last_hold) == shapes[segment.stage]
            and segment.hold is None and segment.time[1] == 1
            and segment.time[fixed[segment.stage]] == 0
            and len(set(segment.components)) == 1
            for segment in registers
        )
        and len({segment.components for segment in registers}) == len(registers) == 3
        and len(plan.segments) == 4  # and the product, a net, that no flip is in
    )  # fmt: skip
