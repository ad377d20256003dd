"""The replay backend: recompute only the outputs that faults touch."""

from __future__ import annotations

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.types import T_LAST, T_WORD

from .kernels import replay as kernels

# Cycles beyond any schedule; keeps `last - time` of permanent faults in int64.
_FAR = np.int64(1) << 60


def own_walk(accel: Accel):
    """The replay module of a family without a plan that walks outputs of layers, or None.

    It has `struck_sums` and `stored_sums`, as `nvdla/replay.py`.
    """
    if hasattr(accel.schedule, "plan") or accel.kind.layers:
        return None
    return accel.replay if hasattr(accel.replay, "struck_sums") else None


def component_bits(accel: Accel) -> np.ndarray:
    """Widths of the machine's components, in component order, int64."""
    return np.array([component.bits for component in accel.components], np.int64)


def walk_outputs(
    accel: Accel,
    a: np.ndarray,
    b: np.ndarray,
    d: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
    *,
    everything: bool = False,
) -> np.ndarray:
    """Patch `out` (m, n) int64 with the faulty values of all touched outputs.

    a (m, k), b (k, n), d (m, n) int64; table (f, 10) int64 fault table: rows with
    a word >= 0 are flips of partial sums in memory, word = m_index * n + n_index,
    first = the fold that stored the sum.
    everything  walk all outputs: where an adder may saturate, the plan itself
                is the machine's arithmetic
    Returns the touched outputs as a (m, n) bool array.
    """
    if not hasattr(accel.schedule, "plan"):
        return accel.replay.run(accel, a, b, d, table, out, everything)
    plan = accel.schedule.plan(accel, a.shape[0], a.shape[1], b.shape[1])
    if plan.transposed:
        a, b, d = b.T, a.T, d.T
        out = out.T
    table = table.copy()
    np.minimum(table[:, T_LAST], _FAR, out=table[:, T_LAST])
    if plan.transposed:
        stored = table[:, T_WORD] >= 0
        row, col = np.divmod(table[stored, T_WORD], plan.m)
        table[stored, T_WORD] = col * plan.n + row
    vector, segments = plan.vector(), plan.table()
    touched = np.zeros(out.shape, np.uint8)
    if everything:
        touched[:] = 1
    else:
        kernels.mark(vector, segments, table, touched)
    patched = np.ascontiguousarray(out)
    kernels.replay(
        np.ascontiguousarray(a),
        np.ascontiguousarray(b.T),
        np.ascontiguousarray(d),
        vector,
        segments,
        table,
        component_bits(accel),
        touched,
        patched,
    )
    if patched is not out:
        out[...] = patched
    return (touched.T if plan.transposed else touched).astype(bool)
