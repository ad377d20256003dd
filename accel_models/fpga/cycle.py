"""The LUT array, PE by PE, LUT by LUT and cycle by cycle: the specification.

S[t] is the state after clock edge t. Edge c of a fold, in PE (i, j), step u = c - i - j:

* 0 <= u < k: psum' = adder(u == 0 ? bias : psum, mul), where mul = multiplier(ifmap, filter);
  otherwise psum holds. The result of the fold is psum after its last edge.
* ifmap and filter take what the PE to the left and above holds; at the edges of the array
  word u of their row and column. The last edge of a fold latches the next fold's first word.

Both networks are evaluated LUT by LUT from the tables as they read in S[t-1]. The tables
are memory apart: a STATE fault changes what is stored, until a scrub rewrites it, at every
edge t that is a multiple of scrub_cycles, before that cycle's faults strike. A LEVEL fault
changes what is read, in its cycles only, and leaves what is stored.
"""

from __future__ import annotations

import numpy as np

from fsim.types import wrap

from ..placed_faults import placed_faults
from . import luts
from .schedule import fold_cycles

_TABLES = ("mul_lut", "add_lut")


def multiply(x: int, y: int, tables: list[int], bits: int) -> int:
    """What the multiplier makes of two `bits`-bit codes, 2 * bits bits, two's complement."""

    def look_up(lut, *inputs):
        index = sum(bit << position for position, bit in enumerate(inputs))
        return tables[lut] >> (32 + index) & 1, tables[lut] >> index & 1

    sums, carries, result = {}, {}, 0
    for j in range(bits):
        for i in range(bits):
            sums[i, j], carries[i, j] = look_up(
                j * bits + i, x >> i & 1, y >> j & 1,
                sums.get((i + 1, j - 1), 0), carries.get((i, j - 1), 0),
            )  # fmt: skip
        result |= sums[0, j] << j
    ripple = 1
    for q in range(bits):
        upper = sums[q + 1, bits - 1] if q + 1 < bits else 1
        total, ripple = look_up(bits * bits + q, upper, carries[q, bits - 1], ripple)
        result |= total << (bits + q)
    return wrap(result, 2 * bits)


def add(x: int, y: int, tables: list[int], bits: int) -> int:
    """What the adder makes of a sum and a product, `bits` bits, two's complement."""
    carry, result = 0, 0
    for p in range(bits):
        index = (x >> p & 1) + 2 * (y >> p & 1) + 4 * carry
        result |= (tables[p] >> (32 + index) & 1) << p
        carry = tables[p] >> index & 1
    return wrap(result, bits)


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the array, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64 added to the product, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64 (cycles, rows,
    cols), tables as they read with an axis for the LUTs, and "out" -> psum of all PEs,
    row-major, int64 (cycles, rows * cols).
    """
    (m, k), n = a.shape, b.shape[1]
    a, b = a.tolist(), b.tolist()
    d = [[0] * n for _ in range(m)] if d is None else d.tolist()
    array = _Array(accel, a, b, d, placed_faults(accel, table))
    out = [[0] * n for _ in range(m)]
    waves = {name: [] for name in (*array.registers, *_TABLES)}
    length = fold_cycles(accel, k)
    for fold, (m0, n0) in enumerate(array.folds):
        for c in range(length):
            array.edge(fold, c)
            if waveform:
                for name in array.registers:
                    waves[name].append([row[:] for row in getattr(array, name)])
                for name in _TABLES:
                    waves[name].append([[words[:] for words in row] for row in array.read[name]])
        for i in range(min(accel.rows, m - m0)):
            for j in range(min(accel.cols, n - n0)):
                out[m0 + i][n0 + j] = array.psum[i][j]
    if not waveform:
        return np.array(out, np.int64), None
    arrays = {name: np.array(cycles, np.int64) for name, cycles in waves.items()}
    port = arrays["psum"].reshape(len(arrays["psum"]), -1)
    return np.array(out, np.int64), arrays | {"out": port}


class _Array:
    """The registers of the machine, and its tables as stored and as read."""

    registers = ("ifmap", "filter", "psum")

    def __init__(self, accel, a, b, d, faults):
        self.accel, self.a, self.b, self.d, self.faults = accel, a, b, d, faults
        self.folds = [
            (m0, n0)
            for m0 in range(0, len(a), accel.rows)
            for n0 in range(0, len(b[0]), accel.cols)
        ]
        for name in self.registers:
            setattr(self, name, [[0] * accel.cols for _ in range(accel.rows)])
        self.ifmap, self.filter = self._moved(0, -1)
        self._scrub()
        self._strike(-1)

    def _scrub(self):
        rows, cols = range(self.accel.rows), range(self.accel.cols)
        written = {"mul_lut": luts.multiplier(self.accel.operand_bits),
                   "add_lut": luts.adder(self.accel.acc_bits)}  # fmt: skip
        self.stored = {name: [[words[:] for _ in cols] for _ in rows]
                       for name, words in written.items()}  # fmt: skip

    def _strike(self, t):
        """The faults of cycle t on registers and tables, each in the order of its rows."""
        acting = [fault for fault in self.faults if fault.active(t) and not fault.net]
        for fault in acting:
            name, i, j, word = fault.place
            if name not in _TABLES:
                register = getattr(self, name)
                register[i][j] = fault.force(register[i][j])
            elif not fault.level:
                self.stored[name][i][j][word] = fault.force(self.stored[name][i][j][word])
        self.read = {name: [[words[:] for words in row] for row in grid]
                     for name, grid in self.stored.items()}  # fmt: skip
        for fault in acting:
            name, i, j, word = fault.place
            if name in _TABLES and fault.level:
                self.read[name][i][j][word] = fault.force(self.read[name][i][j][word])

    def _word(self, matrix, i, j):
        inside = 0 <= i < len(matrix) and 0 <= j < len(matrix[0])
        return matrix[i][j] if inside else 0

    def _moved(self, fold, c):
        """ifmap and filter after edge c of a fold, before its faults."""
        length = fold_cycles(self.accel, len(self.b))
        if c == length - 1 and fold + 1 < len(self.folds):
            fold, c = fold + 1, -1
        m0, n0 = self.folds[fold]
        left = [self._word(self.a, m0 + i, c + 1 - i) for i in range(self.accel.rows)]
        top = [self._word(self.b, c + 1 - j, n0 + j) for j in range(self.accel.cols)]
        ifmap = [[left[i], *self.ifmap[i][:-1]] for i in range(self.accel.rows)]
        return ifmap, [top, *(row[:] for row in self.filter[:-1])]

    def edge(self, fold, c):
        """From S[t-1] to S[t]; c is the number of the edge in the fold."""
        accel, k = self.accel, len(self.b)
        t = fold * fold_cycles(accel, k) + c
        m0, n0 = self.folds[fold]
        psum = [row[:] for row in self.psum]
        for i in range(accel.rows):
            for j in range(accel.cols):
                step = c - i - j
                if not 0 <= step < k:
                    continue
                mul = multiply(
                    self.ifmap[i][j], self.filter[i][j], self.read["mul_lut"][i][j],
                    accel.operand_bits,
                )  # fmt: skip
                for fault in self.faults:
                    if fault.place == ("mul", i, j, 0) and fault.active(t):
                        mul = fault.force(mul)
                start = self._word(self.d, m0 + i, n0 + j) if step == 0 else self.psum[i][j]
                psum[i][j] = add(start, mul, self.read["add_lut"][i][j], accel.acc_bits)
        self.ifmap, self.filter = self._moved(fold, c)
        self.psum = psum
        scrub = accel.parameters["scrub_cycles"]
        if scrub and t % scrub == 0:
            self._scrub()
        self._strike(t)
