"""Many faults in one product, each struck alone: the outputs that each changes, in one call."""

from __future__ import annotations

import numpy as np

from fsim.accel_models.plan import (
    MOVING,
    P_ACC_BITS,
    P_BASE0,
    P_COLS,
    P_FOLDS,
    P_M,
    P_N,
    P_N_TILES,
    P_OUTPUT_STATIONARY,
    P_PHASE_CYCLES,
    P_PRODUCT_BITS,
    P_ROWS,
    P_SLOTS,
    S_EVEN,
    S_LAST_E,
    S_STAGE,
    S_T,
    S_T_J,
    S_T_L,
    S_T_P,
    WEIGHT,
)
from fsim.jit import kernel
from fsim.types import T_COL, T_COMPONENT, T_EFFECT, T_FIRST, T_ROW, T_WORD

from .replay import apply_mask, mark, walk, wrap


@kernel
def survey(tables, count):
    """What a fault table holds, in one pass: (least and greatest, components, flips).

    tables  (f, 10) int64 with f > 0; count  components of the machine
    Returns (3, 2) int64: least and greatest component, row and col, the last two of rows that
    name no word of a memory; (count,) bool: which components are named; whether all rows are
    STATE ones of registers or nets in cycle 0 or later.
    """
    limits = np.zeros((3, 2), np.int64)
    limits[0] = tables[0, T_COMPONENT]
    named = np.zeros(count, np.bool_)
    flips = True
    for f in range(tables.shape[0]):
        component, row, col = tables[f, T_COMPONENT], tables[f, T_ROW], tables[f, T_COL]
        limits[0, 0] = min(limits[0, 0], component)
        limits[0, 1] = max(limits[0, 1], component)
        if 0 <= component < count:
            named[component] = True
        if tables[f, T_WORD] >= 0:
            flips = False
            continue
        flips = flips and tables[f, T_EFFECT] == 0 and tables[f, T_FIRST] >= 0
        limits[1, 0], limits[1, 1] = min(limits[1, 0], row), max(limits[1, 1], row)
        limits[2, 0], limits[2, 1] = min(limits[2, 0], col), max(limits[2, 1], col)
    return limits, named, flips


@kernel
def replay_each(a, b_t, d, clean, plan, segments, bits, tables):
    """Outputs that faults change; row f of `tables` is the only fault of run f.

    a (m, k), b_t (n, k), d (m, n), clean (m, n) int64: operands as of `replay` and the
    fault-free result; plan, segments, bits as of `replay`; tables (f, 10) int64
    Returns (run, output m * n_size + n, value), int64, of the outputs that differ from `clean`,
    in that order.
    """
    rows, cols, folds = plan[P_ROWS], plan[P_COLS], plan[P_FOLDS]
    n_tiles, n_size = plan[P_N_TILES], plan[P_N]
    size = clean.shape[0] * n_size
    # Marks are looked through eight at a time: most are 0 for most faults.
    marks = np.zeros(-(-size // 8) * 8, np.uint8)
    words = marks.view(np.int64)
    touched = marks[:size].reshape(clean.shape)
    most = max(1, segments.shape[0])
    scratch = (
        np.empty((most, 5), np.int64), np.empty((most, 7), np.int64), np.empty(most, np.int64)
    )  # fmt: skip
    space = 1024
    found = np.empty((space, 3), np.int64)
    count = 0
    for f in range(tables.shape[0]):
        table = tables[f : f + 1]
        mark(plan, segments, table, touched)
        for word in range(words.shape[0]):
            if words[word] == 0:
                continue
            for index in range(word * 8, min(word * 8 + 8, size)):
                if not marks[index]:
                    continue
                m, n = index // n_size, index % n_size
                if plan[P_OUTPUT_STATIONARY]:
                    phase, p = m // rows * n_tiles + n // cols, m % rows
                else:
                    phase, p = n // cols * folds, m
                value = walk(
                    a[m], b_t[n], d[m, n], index, plan, segments, table, bits, phase, p,
                    n % cols, scratch,
                )  # fmt: skip
                if value == clean[m, n]:
                    continue
                if count == space:
                    space *= 2
                    grown = np.empty((space, 3), np.int64)
                    grown[:count] = found
                    found = grown
                found[count, 0], found[count, 1], found[count, 2] = f, index, value
                count += 1
            words[word] = 0
    return found[:count].copy()


@kernel
def flip_each(a, b_t, d, clean, plan, segments, bits, tables):
    """`replay_each` where one flip is one changed term of a sum that wraps.

    For output-stationary plans of one fold whose segments are those of `simulator.each.direct`,
    and STATE rows of registers in cycle 0 or later. An operand flipped in slot u adds
    (x' - x) w to each output that it still passes; a sum flipped after slot u adds what the
    mask makes of the terms up to u. Adders that wrap carry either to the end unchanged.
    """
    m_size, n_size, n_tiles = plan[P_M], plan[P_N], plan[P_N_TILES]
    rows, cols, slots = plan[P_ROWS], plan[P_COLS], plan[P_SLOTS]
    length, product_bits, acc_bits = plan[P_PHASE_CYCLES], plan[P_PRODUCT_BITS], plan[P_ACC_BITS]
    phases = n_tiles * (-(-m_size // rows))
    space = 1024
    found = np.empty((space, 3), np.int64)
    count = 0
    for f in range(tables.shape[0]):
        component, row, col = tables[f, T_COMPONENT], tables[f, T_ROW], tables[f, T_COL]
        width = bits[component]
        if count + max(rows, cols) > space:
            space = 2 * space + max(rows, cols)
            grown = np.empty((space, 3), np.int64)
            grown[:count] = found[:count]
            found = grown
        for s in range(segments.shape[0]):
            if segments[s, S_EVEN] != component:
                continue
            stage = segments[s, S_STAGE]
            time = tables[f, T_FIRST] - plan[P_BASE0]
            past = segments[s, S_T]  # cycles of the phase before slot 0 stands in this register
            if stage == MOVING:
                past += segments[s, S_T_P] * row + segments[s, S_T_L] * col
            elif stage == WEIGHT:
                past += segments[s, S_T_J] * col + segments[s, S_T_L] * row
            else:
                past += segments[s, S_T_P] * row + segments[s, S_T_J] * col
            if stage == MOVING or stage == WEIGHT:
                phase = (time - past) // length
                u = time - past - phase * length
            else:
                phase = time // length
                u = time - phase * length - past
                if u >= slots and time - phase * length <= segments[s, S_LAST_E]:
                    u = slots - 1  # the finished sum waits to be read
            if phase < 0 or phase >= phases or u < 0 or u >= slots:
                continue
            m, n = phase // n_tiles * rows + row, phase % n_tiles * cols + col
            if stage == MOVING and m < m_size:
                x = a[m, u]
                struck = apply_mask(x, tables, f, width, 1)
                for at in range(n, min(n - col + cols, n_size)):
                    w = b_t[at, u]
                    delta = wrap(struck * w, product_bits) - x * w
                    value = wrap(clean[m, at] + delta, acc_bits)
                    if value != clean[m, at]:
                        found[count, 0], found[count, 1] = f, m * n_size + at
                        found[count, 2] = value
                        count += 1
            elif stage == WEIGHT and n < n_size:
                w = b_t[n, u]
                struck = apply_mask(w, tables, f, width, 1)
                for at in range(m, min(m - row + rows, m_size)):
                    x = a[at, u]
                    delta = wrap(x * struck, product_bits) - x * w
                    value = wrap(clean[at, n] + delta, acc_bits)
                    if value != clean[at, n]:
                        found[count, 0], found[count, 1] = f, at * n_size + n
                        found[count, 2] = value
                        count += 1
            elif stage != MOVING and stage != WEIGHT and m < m_size and n < n_size:
                total = d[m, n]
                for i in range(u + 1):
                    total += a[m, i] * b_t[n, i]
                total = wrap(total, acc_bits)
                delta = apply_mask(total, tables, f, width, 1) - total
                value = wrap(clean[m, n] + delta, acc_bits)
                if value != clean[m, n]:
                    found[count, 0], found[count, 1] = f, m * n_size + n
                    found[count, 2] = value
                    count += 1
    return found[:count].copy()
