"""Compiled simulation of the crossbar, one fold at a time.

Within a fold every cell is programmed, every ADC captures and every sum starts anew before
it is used, so that a fold's sums depend on its own operands and on the faults that act in
its cycles. `fold_sums` computes them for any columns of one fold, `replay.py` for those
that faults touch, `run` here for all, with the registers handed from fold to fold.
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
from .schedule import adc_width, cell_width, exact, fold_cycles, slices, sum_width

# Components in fault-row order.
IFMAP, WORD_LINE, G_POS, G_NEG, ADC_POS, ADC_NEG, SUM, ACC = range(8)

# Entries of the vector of a machine's numbers.
M_BITS, M_SLICES, M_CELL, M_FRACTION, M_ADC, M_SUM, M_ACC = range(7)


def numbers(accel) -> np.ndarray:
    """Widths for the kernel, int64 (columns M_*)."""
    parameters = accel.parameters
    return np.array(
        [accel.operand_bits, slices(accel), parameters["cell_bits"], parameters["fraction_bits"],
         adc_width(accel), sum_width(accel), accel.acc_bits], np.int64,
    )  # fmt: skip


def programmed(accel, b: np.ndarray) -> np.ndarray:
    """Conductances of weights b (k, n): int64 (n, slices, 2, k), positive cells first."""
    signs = np.stack([np.maximum(b, 0), np.maximum(-b, 0)])
    cell = accel.parameters["cell_bits"]
    shift = np.arange(slices(accel)) * cell
    levels = (signs[..., None] >> shift) & ((1 << cell) - 1)
    levels = levels.transpose(2, 3, 0, 1) << accel.parameters["fraction_bits"]
    return np.ascontiguousarray(levels, np.int64)


@kernel
def signed(value, bits):
    """`value` reduced to `bits` bits of two's complement; 1 bit is unsigned."""
    if bits == 1:
        return value & 1
    return (value << (64 - bits)) >> (64 - bits)


@kernel
def masked(value, event):
    """((value & and) | or) ^ xor of an event, not reduced."""
    return ((value & event[T_AND]) | event[T_OR]) ^ event[T_XOR]


@kernel
def strike(events, t, numbers, position, cells, ifmap, adc, acc):
    """Act with the faults of cycle t on the registers, in place; see `fold_sums`."""
    cell_mask = (np.int64(1) << (numbers[M_CELL] + numbers[M_FRACTION])) - 1
    adc_mask = (np.int64(1) << numbers[M_ADC]) - 1
    for e in range(events.shape[0]):
        event = events[e]
        if t < event[T_FIRST] or t > event[T_LAST] or (t < 0 and event[T_EFFECT] == STATE):
            continue
        component, row = event[T_COMPONENT], event[T_ROW]
        if component == IFMAP:
            ifmap[row] = signed(masked(ifmap[row], event), numbers[M_BITS])
            continue
        j = position[event[T_COL]]
        if j < 0:
            continue
        word = max(event[T_WORD], 0)
        if component == G_POS or component == G_NEG:
            place = cells[j, word, component - G_POS]
            place[row] = masked(place[row], event) & cell_mask
        elif component == ADC_POS or component == ADC_NEG:
            sign = component - ADC_POS
            adc[j, word, sign] = masked(adc[j, word, sign], event) & adc_mask
        elif component == ACC:
            acc[j] = signed(masked(acc[j], event), numbers[M_ACC])


@kernel
def fold_sums(
    a, levels, events, base, numbers, position, cells, ifmap, adc, acc, sums, keep, waves
):
    """The sums that one fold makes in some columns, with faults.

    a         (m, rows) int64 codes
    levels    (cols, slices, 2, rows) int64 conductances to program
    events    (e, 10) int64 fault table of registers and nets
    base      cycle of the fold's first edge
    numbers   see the function of that name
    position  (array columns,) int64: place of a column among those simulated, or -1
    cells, ifmap, adc, acc  registers, of shapes (cols, slices, 2, rows), (rows,),
              (cols, slices, 2), (cols,); changed
    sums      (m, cols) int64, overwritten
    keep      record waves
    waves     (ifmap (cycles, rows), cells (cycles, ...), adc, acc) of all cycles
    """
    bits, count, cell = numbers[M_BITS], numbers[M_SLICES], numbers[M_CELL]
    fraction = numbers[M_FRACTION]
    half = (np.int64(1) << fraction) >> 1
    top = (np.int64(1) << numbers[M_ADC]) - 1
    m, rows = a.shape
    cols = levels.shape[0]
    lines = np.zeros(rows, np.int64)
    steps = np.zeros(cols, np.int64)
    on_nets = False
    for e in range(events.shape[0]):
        component = events[e, T_COMPONENT]
        on_nets |= component == WORD_LINE or component == SUM
    if base == 0:
        strike(events, -1, numbers, position, cells, ifmap, adc, acc)
    for c in range(rows + m * bits + 1):
        t = base + c
        if rows < c:
            x = (c - rows - 1) % bits
            for j in range(cols):
                total = np.int64(0)
                for s in range(count):
                    total += (adc[j, s, 0] - adc[j, s, 1]) << (s * cell)
                steps[j] = total
            if on_nets:
                for e in range(events.shape[0]):
                    event = events[e]
                    if event[T_COMPONENT] == SUM and event[T_FIRST] <= t <= event[T_LAST]:
                        j = position[event[T_COL]]
                        if j >= 0:
                            steps[j] = signed(masked(steps[j], event), numbers[M_SUM])
            for j in range(cols):
                step = steps[j] << x
                start = np.int64(0) if x == 0 else acc[j]
                value = start - step if x == bits - 1 else start + step
                acc[j] = signed(value, numbers[M_ACC])
        if rows <= c < rows + m * bits:
            for i in range(rows):
                lines[i] = ifmap[i] & 1
            if on_nets:
                for e in range(events.shape[0]):
                    event = events[e]
                    if event[T_COMPONENT] == WORD_LINE and event[T_FIRST] <= t <= event[T_LAST]:
                        row = event[T_ROW]
                        lines[row] = masked(lines[row], event) & 1
            for j in range(cols):
                for s in range(count):
                    for sign in range(2):
                        place = cells[j, s, sign]
                        current = np.int64(0)
                        for i in range(rows):
                            current += place[i] * lines[i]
                        adc[j, s, sign] = min((current + half) >> fraction, top)
        streamed = c - (rows - 1)
        if streamed >= 0 and streamed % bits == 0 and streamed < m * bits:
            ifmap[:] = a[streamed // bits]
        else:
            for i in range(rows):
                ifmap[i] >>= 1
        if c < rows:
            cells[:, :, :, c] = levels[:, :, :, c]
        strike(events, t, numbers, position, cells, ifmap, adc, acc)
        if keep:
            waves[0][t] = ifmap
            waves[1][t] = cells
            waves[2][t] = adc
            waves[3][t] = acc
        done = c - rows
        if done > 0 and done % bits == 0:
            for j in range(cols):
                sums[done // bits - 1, j] = acc[j]


def registers(accel, cols: int) -> tuple[np.ndarray, ...]:
    """cells, ifmap, adc and acc of some columns after reset."""
    count = slices(accel)
    return (
        np.zeros((cols, count, 2, accel.rows), np.int64),
        np.zeros(accel.rows, np.int64),
        np.zeros((cols, count, 2), np.int64),
        np.zeros(cols, np.int64),
    )


_NO_WAVES = tuple(np.zeros((0,) * axes, np.int64) for axes in (2, 5, 4, 2))


def faulty_sums(accel, a, b, table, base: int, columns: np.ndarray) -> np.ndarray:
    """Sums (m, len(columns)) int64 of one fold, with faults.

    a        (m, up to rows), b (up to rows, up to cols) int64 codes of the fold
    table    (f, 10) int64 faults of registers and nets that act in the fold
    base     cycle of its first edge
    columns  (c,) int64 array columns that are wanted
    """
    a, b = _padded(a, accel.rows), _padded(b.T, accel.rows)
    levels = programmed(accel, b[columns].T)
    lasting = _lasting(table, base, base + fold_cycles(accel, len(a)) - 1)
    position = np.full(accel.cols, -1, np.int64)
    position[columns] = np.arange(len(columns))
    mask = (1 << cell_width(accel)) - 1
    for event in table[lasting]:
        j = position[event[T_COL]]
        if j >= 0:
            at = j, max(int(event[T_WORD]), 0), int(event[T_COMPONENT]) - G_POS, event[T_ROW]
            levels[at] = ((int(levels[at]) & int(event[T_AND])) | int(event[T_OR])) & mask
    table = np.ascontiguousarray(table[~lasting])
    if not len(table) and not accel.parameters["fraction_bits"] and exact(accel):
        # Nothing is rounded or cut off: the levels are digits of weights.
        weight = np.int64(1) << (np.arange(slices(accel)) * accel.parameters["cell_bits"])
        read = np.einsum("s,jsi->ij", weight, levels[:, :, 0] - levels[:, :, 1])
        return _wrapped(a @ read, accel.acc_bits)
    sums = np.zeros((len(a), len(columns)), np.int64)
    fold_sums(
        a, levels, table, base, numbers(accel), position, *registers(accel, len(columns)), sums,
        False, _NO_WAVES,
    )  # fmt: skip
    return sums


def _lasting(table, start: int, end: int) -> np.ndarray:
    """(f,) bool: faults that set or clear bits of a cell during the whole fold.

    To force a programmed level once is then the same as in every cycle. Not so where
    another fault of the same cell acts for a part of it, or inverts.
    """
    cells = (table[:, T_COMPONENT] == G_POS) | (table[:, T_COMPONENT] == G_NEG)
    whole = (table[:, T_EFFECT] == LEVEL) & (table[:, T_FIRST] <= start)
    whole &= (table[:, T_LAST] >= end) & (table[:, T_XOR] == 0) & cells
    if whole.any() and not whole[cells].all():
        place = table[:, (T_COMPONENT, T_ROW, T_COL, T_WORD)]
        others = {tuple(p) for p in place[cells & ~whole].tolist()}
        whole &= np.array([tuple(p) not in others for p in place.tolist()])
    return whole


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """(r, c) with zeros appended to `size` columns."""
    return np.pad(values, ((0, 0), (0, size - values.shape[1])))


def _wrapped(values: np.ndarray, bits: int) -> np.ndarray:
    return (values << (64 - bits)) >> (64 - bits)


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the crossbar, all folds and columns, cycle by cycle.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  return every register as well, as `cycle.run` does
    clean     not needed

    Returns out (m, n) int64 and None or the waves. Raises FaultError for a fault of a
    memory or outside the machine.
    """
    placed_faults(accel, table)  # refuses what is not on the machine
    (m, k), n = a.shape, b.shape[1]
    rows, cols, length = accel.rows, accel.cols, fold_cycles(accel, m)
    out = np.zeros((m, n), np.int64) if d is None else d.astype(np.int64)
    total = accel.schedule.cycles(accel, m, k, n) if waveform else 0
    cells, ifmap, adc, acc = registers(accel, cols)
    waves = tuple(
        np.zeros((total, *kept.shape), np.int64) for kept in (ifmap, cells, adc, acc)
    )  # fmt: skip
    sums, position = np.zeros((m, cols), np.int64), np.arange(cols)
    base = 0
    table = np.ascontiguousarray(table)
    for n0 in range(0, n, cols):
        for k0 in range(0, k, rows):
            part = b[k0 : k0 + rows, n0 : n0 + cols]
            levels = programmed(accel, _padded(_padded(part.T, rows).T, cols))
            fold_sums(
                _padded(a[:, k0 : k0 + rows], rows), levels, acting(table, base, length), base,
                numbers(accel), position, cells, ifmap, adc, acc, sums, waveform, waves,
            )  # fmt: skip
            here = out[:, n0 : n0 + cols]
            here[:] = _wrapped(here + sums[:, : here.shape[1]], accel.acc_bits)
            base += length
    return out, _registers_of(waves) if waveform else None


def _registers_of(waves) -> dict[str, np.ndarray]:
    """Recordings of the kernel as `cycle.run` names and shapes them."""
    ifmap, cells, adc, acc = waves
    found = {"ifmap": ifmap[:, :, None]}
    for sign, name in enumerate(("pos", "neg")):
        found[f"g_{name}"] = cells[:, :, :, sign].transpose(0, 3, 1, 2)
        found[f"adc_{name}"] = adc[:, None, :, :, sign]
    found = {name: w[..., 0] if w.ndim == 4 and w.shape[-1] == 1 else w
             for name, w in found.items()}  # fmt: skip
    return found | {"acc": acc[:, None, :], "out": acc}


def acting(table: np.ndarray, base: int, length: int) -> np.ndarray:
    """The faults that act in the fold [base, base + length), in order."""
    here = (table[:, T_FIRST] < base + length) & (table[:, T_LAST] >= base)
    if base == 0:
        here |= table[:, T_FIRST] < 0
    return np.ascontiguousarray(table[here])
