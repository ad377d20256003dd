"""Compiled simulation of the LUT array, and walks of single outputs.

Tables without faults are an exact multiplier and adder, so that only PEs with faults in
their tables look anything up; `run` steps the whole array through all cycles, `walk_outputs`
recomputes chosen outputs for `replay.py`.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.types import (
    LEVEL,
    STATE,
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

from ..placed_faults import placed_faults
from . import luts
from .schedule import cycles

# Components in fault-row order.
IFMAP, FILTER, PSUM, MUL, MUL_LUT, ADD_LUT = range(6)

# Entries of the vector of a machine's numbers.
M_BITS, M_ACC, M_SCRUB, M_ROWS, M_COLS = range(5)


def numbers(accel) -> np.ndarray:
    """Widths and sizes for the kernels, int64 (columns M_*)."""
    return np.array(
        [accel.operand_bits, accel.acc_bits, accel.parameters["scrub_cycles"], accel.rows,
         accel.cols], np.int64,
    )  # fmt: skip


def tables(accel) -> tuple[np.ndarray, np.ndarray]:
    """Configuration words of a multiplier and of an adder, int64."""
    return (
        np.array(luts.multiplier(accel.operand_bits), np.int64),
        np.array(luts.adder(accel.acc_bits), np.int64),
    )


@kernel
def signed(value, bits):
    """`value` reduced to `bits` bits of two's complement, 2 to 64."""
    return (value << (64 - bits)) >> (64 - bits)


@kernel
def force(value, event, bits):
    """The value that a fault makes of it."""
    return signed(((value & event[T_AND]) | event[T_OR]) ^ event[T_XOR], bits)


@kernel
def multiply(x, y, table, bits):
    """What a multiplier with these tables makes of two codes; see `luts.py`."""
    sums, carries, result = np.int64(0), np.int64(0), np.int64(0)
    for j in range(bits):
        digit = ((y >> j) & 1) << 1
        new_sums, new_carries = np.int64(0), np.int64(0)
        for i in range(bits):
            index = (
                ((x >> i) & 1) | digit | ((sums >> (i + 1)) & 1) << 2 | ((carries >> i) & 1) << 3
            )
            word = table[j * bits + i]
            new_sums |= ((word >> (32 + index)) & 1) << i
            new_carries |= ((word >> index) & 1) << i
        sums, carries = new_sums, new_carries
        result |= (sums & 1) << j
    sums |= np.int64(1) << bits
    ripple = np.int64(1)
    for q in range(bits):
        index = ((sums >> (q + 1)) & 1) | ((carries >> q) & 1) << 1 | ripple << 2
        word = table[bits * bits + q]
        result |= ((word >> (32 + index)) & 1) << (bits + q)
        ripple = (word >> index) & 1
    return signed(result, 2 * bits)


@kernel
def add(x, y, table, bits):
    """What an adder with these tables makes of a sum and a product."""
    carry, result = np.int64(0), np.int64(0)
    for p in range(bits):
        index = ((x >> p) & 1) | ((y >> p) & 1) << 1 | carry << 2
        result |= ((table[p] >> (32 + index)) & 1) << p
        carry = (table[p] >> index) & 1
    return signed(result, bits)


@kernel
def active(event, t):
    """Whether a fault acts in cycle t."""
    if event[T_EFFECT] == STATE:
        return event[T_FIRST] == t and t >= 0
    return event[T_FIRST] <= t <= event[T_LAST]


@kernel
def simulate(a, b, d, events, numbers, mul_table, add_table, out, keep, waves):
    """All cycles of a GEMM on the array; see `cycle.py`.

    a (m, k), b (k, n), d (m, n) int64; events (e, 10) int64 fault table
    mul_table, add_table  configuration without faults
    out    (m, n) int64, overwritten
    waves  (ifmap, filter, psum (cycles, rows, cols), mul_lut, add_lut (..., luts)); keep: record
    """
    bits, acc_bits, scrub = numbers[M_BITS], numbers[M_ACC], numbers[M_SCRUB]
    rows, cols = numbers[M_ROWS], numbers[M_COLS]
    m, k = a.shape
    n = b.shape[1]
    tiles = -(-n // cols)
    folds = -(-m // rows) * tiles
    length = k + rows + cols - 2
    state = np.zeros((3, rows, cols), np.int64)
    own = np.zeros((rows, cols), np.bool_)  # PEs with faults in their tables
    for e in range(events.shape[0]):
        if events[e, T_COMPONENT] >= MUL_LUT:
            own[events[e, T_ROW], events[e, T_COL]] = True
    stored = (
        np.empty((rows, cols, len(mul_table)), np.int64),
        np.empty((rows, cols, len(add_table)), np.int64),
    )
    stored[0][:] = mul_table
    stored[1][:] = add_table
    read = stored[0].copy(), stored[1].copy()
    for t in range(-1, folds * length):
        fold, c = t // length, t % length
        m0, n0 = (fold // tiles) * rows, (fold % tiles) * cols
        if t >= 0:
            for i in range(rows):
                for j in range(cols):
                    step = c - i - j
                    if not 0 <= step < k:
                        continue
                    x, y = state[IFMAP, i, j], state[FILTER, i, j]
                    product = multiply(x, y, read[0][i, j], bits) if own[i, j] else x * y
                    for e in range(events.shape[0]):
                        event = events[e]
                        if event[T_COMPONENT] == MUL and event[T_ROW] == i and event[T_COL] == j:
                            if active(event, t):
                                product = force(product, event, 2 * bits)
                    start = state[PSUM, i, j]
                    if step == 0:
                        start = d[m0 + i, n0 + j] if m0 + i < m and n0 + j < n else 0
                    if own[i, j]:
                        state[PSUM, i, j] = add(start, product, read[1][i, j], acc_bits)
                    else:
                        state[PSUM, i, j] = signed(start + product, acc_bits)
        # The last edge of a fold latches the first words of the next one.
        ahead, word = fold, c + 1
        if c == length - 1 and fold + 1 < folds:
            ahead, word = fold + 1, 0
        m0, n0 = (ahead // tiles) * rows, (ahead % tiles) * cols
        for i in range(rows - 1, -1, -1):
            for j in range(cols - 1, -1, -1):
                if j > 0:
                    state[IFMAP, i, j] = state[IFMAP, i, j - 1]
                else:
                    inside = m0 + i < m and 0 <= word - i < k
                    state[IFMAP, i, j] = a[m0 + i, word - i] if inside else 0
                if i > 0:
                    state[FILTER, i, j] = state[FILTER, i - 1, j]
                else:
                    inside = n0 + j < n and 0 <= word - j < k
                    state[FILTER, i, j] = b[word - j, n0 + j] if inside else 0
        if t < 0:
            state[PSUM] = 0
        for e in range(events.shape[0]):
            event = events[e]
            component, i, j = event[T_COMPONENT], event[T_ROW], event[T_COL]
            if component <= PSUM and active(event, t):
                width = acc_bits if component == PSUM else bits
                state[component, i, j] = force(state[component, i, j], event, width)
        for i in range(rows):
            for j in range(cols):
                if own[i, j]:
                    if scrub and t >= 0 and t % scrub == 0:
                        stored[0][i, j] = mul_table
                        stored[1][i, j] = add_table
        for effect in (STATE, LEVEL):
            for e in range(events.shape[0]):
                event = events[e]
                if event[T_COMPONENT] < MUL_LUT or event[T_EFFECT] != effect:
                    continue
                if not active(event, t):
                    continue
                which, word = event[T_COMPONENT] - MUL_LUT, event[T_WORD]
                i, j = event[T_ROW], event[T_COL]
                target = read if effect == LEVEL else stored
                place = target[0][i, j] if which == 0 else target[1][i, j]
                place[word] = force(place[word], event, 64)
            if effect == STATE:
                for i in range(rows):
                    for j in range(cols):
                        if own[i, j]:
                            read[0][i, j] = stored[0][i, j]
                            read[1][i, j] = stored[1][i, j]
        if keep and t >= 0:
            waves[0][t] = state[IFMAP]
            waves[1][t] = state[FILTER]
            waves[2][t] = state[PSUM]
            waves[3][t] = read[0]
            waves[4][t] = read[1]
        if t >= 0 and c == length - 1:
            m0, n0 = (fold // tiles) * rows, (fold % tiles) * cols
            for i in range(min(rows, m - m0)):
                for j in range(min(cols, n - n0)):
                    out[m0 + i, n0 + j] = state[PSUM, i, j]


@kernel
def read_tables(events, chosen, count, which, t, scrub, clean, into):
    """The tables of one kind as they read in cycle t; False if they are the clean ones.

    chosen  (count first,) rows of `events` in one PE, STATE ones by cycle, LEVEL ones after
    """
    differ = False
    last_scrub = t // scrub * scrub if scrub and t >= 0 else np.int64(-1)
    for n in range(count):
        event = events[chosen[n]]
        if event[T_COMPONENT] != which:
            continue
        if event[T_EFFECT] == STATE:
            acts = last_scrub <= event[T_FIRST] <= t
        else:
            acts = event[T_FIRST] <= t <= event[T_LAST]
        if acts:
            if not differ:
                into[:] = clean
                differ = True
            into[event[T_WORD]] = force(into[event[T_WORD]], event, 64)
    return differ


@kernel
def walk_outputs(a, b_t, d, events, numbers, mul_table, add_table, touched, out):
    """Recompute every output marked in `touched` (m, n), in place.

    b_t     (n, k) int64: the second operand, transposed
    events  (e, 10) int64: faults of registers and nets in table order, but those of tables
            last, STATE before LEVEL and STATE by cycle

    A word of a reaches PE (i, j) through the ifmap registers of columns 0 to j, one a
    cycle, and is multiplied the cycle after; so for b and rows 0 to i.
    """
    bits, acc_bits, scrub = numbers[M_BITS], numbers[M_ACC], numbers[M_SCRUB]
    rows, cols = numbers[M_ROWS], numbers[M_COLS]
    m, k = a.shape
    n = b_t.shape[0]
    tiles = -(-n // cols)
    length = k + rows + cols - 2
    faults = events.shape[0]
    lists = np.empty((5, max(faults, 1)), np.int64)  # ifmap, filter, psum, mul, tables
    counts = np.zeros(5, np.int64)
    mul_read, add_read = mul_table.copy(), add_table.copy()
    for row in range(m):
        for col in range(n):
            if not touched[row, col]:
                continue
            i, j = row % rows, col % cols
            base = (row // rows * tiles + col // cols) * length
            counts[:] = 0
            for e in range(faults):
                event = events[e]
                component, at_i, at_j = event[T_COMPONENT], event[T_ROW], event[T_COL]
                if component == IFMAP:
                    mine, hop = at_i == i and at_j <= j, T_COL
                elif component == FILTER:
                    mine, hop = at_j == j and at_i <= i, T_ROW
                else:
                    mine, hop = at_i == i and at_j == j, -1
                # The first cycle of a fold's walk is the edge before its first one.
                if not mine or event[T_FIRST] >= base + length:
                    continue
                if event[T_LAST] < base - 1 and not (
                    component >= MUL_LUT and event[T_EFFECT] == STATE
                ):
                    continue
                kind = min(component, np.int64(4))
                place = counts[kind]
                if hop >= 0:  # by register, in the order in which a word passes them
                    while place > 0 and events[lists[kind, place - 1], hop] > event[hop]:
                        lists[kind, place] = lists[kind, place - 1]
                        place -= 1
                lists[kind, place] = e
                counts[kind] += 1
            value = d[row, col]
            for u in range(k):
                t = base + u + i + j
                x, y = a[row, u], b_t[col, u]
                for q in range(counts[IFMAP]):
                    event = events[lists[IFMAP, q]]
                    if active(event, t - 1 - j + event[T_COL]):
                        x = force(x, event, bits)
                for q in range(counts[FILTER]):
                    event = events[lists[FILTER, q]]
                    if active(event, t - 1 - i + event[T_ROW]):
                        y = force(y, event, bits)
                product = x * y
                if counts[4] and read_tables(
                    events, lists[4], counts[4], MUL_LUT, t - 1, scrub, mul_table, mul_read
                ):
                    product = multiply(x, y, mul_read, bits)
                for q in range(counts[MUL]):
                    event = events[lists[MUL, q]]
                    if active(event, t):
                        product = force(product, event, 2 * bits)
                if counts[4] and read_tables(
                    events, lists[4], counts[4], ADD_LUT, t - 1, scrub, add_table, add_read
                ):
                    value = add(value, product, add_read, acc_bits)
                else:
                    value = signed(value + product, acc_bits)
                until = t if u < k - 1 else base + length - 1
                for time in range(t, until + 1) if counts[PSUM] else range(0):
                    for q in range(counts[PSUM]):
                        event = events[lists[PSUM, q]]
                        if active(event, time):
                            value = force(value, event, acc_bits)
            out[row, col] = value


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the array, every PE in every cycle.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  return every register as well, as `cycle.run` does
    clean     not needed

    Returns out (m, n) int64 and None or the waves. Raises FaultError for a fault of a
    memory or outside the machine.
    """
    placed_faults(accel, table)  # refuses what is not on the machine
    (m, k), n = a.shape, b.shape[1]
    out = np.zeros((m, n), np.int64)
    total = cycles(accel, m, k, n) if waveform else 0
    shape, (mul_table, add_table) = (total, accel.rows, accel.cols), tables(accel)
    waves = (
        *(np.zeros(shape, np.int64) for _ in range(3)),
        *(np.zeros((*shape, len(words)), np.int64) for words in (mul_table, add_table)),
    )
    simulate(
        a, b, out.copy() if d is None else d, np.ascontiguousarray(table), numbers(accel),
        mul_table, add_table, out, waveform, waves,
    )  # fmt: skip
    if not waveform:
        return out, None
    names = ("ifmap", "filter", "psum", "mul_lut", "add_lut")
    return out, dict(zip(names, waves)) | {"out": waves[2].reshape(total, -1)}
