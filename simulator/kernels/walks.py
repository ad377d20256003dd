"""Register faults, one an inference: the sums each changes, many inferences in one call.

What `replay` needs of the moving operand is fetched as it is needed: a fault touches few
output positions, and the others' windows are never read.
"""

from __future__ import annotations

import numpy as np

from fsim.accel_models.plan import (
    P_COLS,
    P_FOLDS,
    P_N_TILES,
    P_OUTPUT_STATIONARY,
    P_ROWS,
)
from fsim.jit import kernel

from .replay import mark, walk, wrap


@kernel
def _window(codes, geometry, channel, position, out):
    """Operand row of one output position: (kernel row, kernel column, channel), 0 outside."""
    h, w, channels, out_w, kernel_h, kernel_w, sy, sx, top, left, dy, dx = geometry
    y0, x0 = position // out_w * sy - top, position % out_w * sx - left
    at = 0
    for ky in range(kernel_h):
        y = y0 + ky * dy
        for kx in range(kernel_w):
            x = x0 + kx * dx
            if 0 <= y < h and 0 <= x < w:
                for c in range(channels):
                    out[at + c] = codes[y, x, channel + c]
            else:
                out[at : at + channels] = 0
            at += channels


@kernel
def struck_sums(
    codes, acc, bias, weight, geometry, n, plan, segments, bits, acc_bits, transposed, tables,
    slot, group,
):  # fmt: skip
    """Final sums that register faults change; each row strikes one inference alone.

    codes    (images, h, w, c) what the layer read; acc (images, m * outputs) its exact sums
    bias     (outputs,) int64; weight (outputs, k) integers in slot order
    geometry  h, w, channels of a group, out_w, kernel_h, kernel_w, strides, padding, dilation
    n        output channels of a group
    plan, segments, bits  of one group's product; `transposed`: its rows are output channels
    tables   (f, 10) int64: row f is a fault whose cycles are its group's
    slot, group  (f,) int64 inference and group it strikes
    Returns (fault, index into m * outputs, value) of sums that differ.
    """
    outputs = len(bias)
    k = weight.shape[1]
    m = acc.shape[1] // outputs
    rows, cols, folds, n_tiles = plan[P_ROWS], plan[P_COLS], plan[P_FOLDS], plan[P_N_TILES]
    first, second = (n, m) if transposed else (m, n)
    touched = np.zeros((first, second), np.uint8)
    moving, own = np.empty(k, np.int64), np.empty(k, np.int64)
    space = 1024
    fault, where, value = (
        np.empty(space, np.int64), np.empty(space, np.int64), np.empty(space, np.int64)
    )
    count = 0
    most = max(1, segments.shape[0])
    scratch = (
        np.empty((most, 5), np.int64), np.empty((most, 7), np.int64), np.empty(most, np.int64)
    )  # fmt: skip
    # Positions go outermost: a window is read once for all its outputs.
    for f in range(len(tables)):
        table = tables[f : f + 1]
        touched[:] = 0
        mark(plan, segments, table, touched)
        image, begin = slot[f], group[f] * n
        channel = group[f] * geometry[2]
        for position in range(m):
            loaded = False
            for o in range(n):
                i, j = (o, position) if transposed else (position, o)
                if not touched[i, j]:
                    continue
                if not loaded:
                    _window(codes[image], geometry, channel, position, moving)
                    loaded = True
                if plan[P_OUTPUT_STATIONARY]:
                    phase, p = i // rows * n_tiles + j // cols, i % rows
                else:
                    phase, p = j // cols * folds, i
                for u in range(k):
                    own[u] = weight[begin + o, u]
                a_row, b_col = (own, moving) if transposed else (moving, own)
                found = walk(
                    a_row, b_col, bias[begin + o], np.int64(-2), plan, segments, table, bits,
                    phase, p, j % cols, scratch,
                )  # fmt: skip
                index = position * outputs + begin + o
                if found == wrap(acc[image, index] + bias[begin + o], acc_bits):
                    continue
                if count == space:
                    space *= 2
                    grown = np.empty(space, np.int64)
                    grown[:count] = fault
                    fault = grown
                    grown = np.empty(space, np.int64)
                    grown[:count] = where
                    where = grown
                    grown = np.empty(space, np.int64)
                    grown[:count] = value
                    value = grown
                fault[count], where[count], value[count] = f, index, found
                count += 1
    return fault[:count].copy(), where[:count].copy(), value[:count].copy()
