"""The crossbar, cell by cell and cycle by cycle, in integers: the specification.

S[t] is the state after clock edge t. Conductances are counted in units of 2^-fraction_bits
of a level, so that a level L is L << fraction_bits units; level 0 conducts nothing
(assumed: an unlimited ratio of on to off current) and wires have no resistance (assumed).

In edge c of a fold, m positions, B = operand_bits:

* c < rows: row c of g_pos and g_neg is programmed. Cells hold otherwise.
* c = rows - 1 + x * B: ifmap takes the codes of position x. At every other edge it shifts
  one bit down, its sign staying.
* word_line of a row is the lowest bit of its ifmap.
* rows <= c < rows + m * B: each ADC takes the current of its bit line, the sum of the
  conductances whose word_line is 1, rounded to the nearest level (halves up) and cut off
  at the largest code. ADCs hold otherwise.
* rows < c <= rows + m * B: acc takes the input bit x of the ADCs' codes; bit 0 starts
  from 0, and bit B - 1 counts negative (two's complement):

      sum  = sum over slices s of (adc_pos[s] - adc_neg[s]) << (s * cell_bits)
      acc' = wrap((x == 0 ? 0 : acc) +- (sum << x))

The sum of position x is what acc shows after edge rows + (x + 1) * B; the memory of
partial sums outside adds it to the position's folds before, wrapped to acc_bits.
Conductances and ADC codes are unsigned; a fault's result is reduced to their width.
"""

from __future__ import annotations

import numpy as np

from fsim.types import wrap

from ..placed_faults import placed_faults
from .schedule import UNSIGNED, adc_width, fold_cycles, slices, sum_width


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the crossbar, with faults.

    a, b      (m, k) and (k, n) int64 codes
    d         (m, n) int64 added to the product, or None for zeros
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64 (cycles, rows,
    cols), with an axis for the words of those that have several, and "out" -> acc, int64
    (cycles, cols).
    """
    crossbar = _Crossbar(accel, placed_faults(accel, table, UNSIGNED))
    (m, k), n = a.shape, b.shape[1]
    a, b = a.tolist(), b.tolist()
    out = [[0] * n for _ in range(m)] if d is None else d.tolist()
    waves = {name: [] for name in crossbar.state}
    t = 0
    for n0 in range(0, n, accel.cols):
        for k0 in range(0, k, accel.rows):
            for c in range(fold_cycles(accel, m)):
                crossbar.edge(a, b, n0, k0, c, t)
                if waveform:
                    for name, elements in crossbar.state.items():
                        waves[name].append([[words[:] for words in row] for row in elements])
                t += 1
                x, left = divmod(c - accel.rows, accel.operand_bits)
                if x > 0 and left == 0:
                    for j in range(min(accel.cols, n - n0)):
                        total = out[x - 1][n0 + j] + crossbar.state["acc"][0][j][0]
                        out[x - 1][n0 + j] = wrap(total, accel.acc_bits)
    if not waveform:
        return np.array(out, np.int64), None
    arrays = {name: np.array(cycles, np.int64) for name, cycles in waves.items()}
    arrays = {name: w[..., 0] if w.shape[-1] == 1 else w for name, w in arrays.items()}
    return np.array(out, np.int64), arrays | {"out": arrays["acc"][:, 0, :]}


class _Crossbar:
    """The registers of the machine: state[name][row][column][word]."""

    def __init__(self, accel, faults):
        self.accel, self.faults = accel, faults
        self.state = {}
        for component in accel.components:
            if component.kind == "register":
                rows, cols, words = accel.grid(component)
                self.state[component.name] = [[[0] * words for _ in range(cols)]
                                              for _ in range(rows)]  # fmt: skip
        self.strike(-1)

    def strike(self, t):
        """The faults of cycle t, in the order of their rows."""
        for fault in self.faults:
            if not fault.net and fault.active(t):
                name, row, col, word = fault.place
                words = self.state[name][row][col]
                words[word] = fault.force(words[word])

    def on_net(self, name, row, col, t, value):
        """What clock edge t captures of a net that carries `value`."""
        for fault in self.faults:
            if fault.place == (name, row, col, 0) and fault.active(t):
                value = fault.force(value)
        return value

    def edge(self, a, b, n0, k0, c, t):
        """From S[t-1] to S[t]; c counts the edges of the fold that starts at (k0, n0)."""
        accel, old = self.accel, self.state
        rows, cols, bits = accel.rows, accel.cols, accel.operand_bits
        cell_bits, fraction = accel.parameters["cell_bits"], accel.parameters["fraction_bits"]
        new = {name: [[words[:] for words in row] for row in elements]
               for name, elements in old.items()}  # fmt: skip

        position, left = divmod(c - (rows - 1), bits)
        for i in range(rows):
            if left == 0 and 0 <= position < len(a):
                new["ifmap"][i][0][0] = a[position][k0 + i] if k0 + i < len(b) else 0
            else:
                new["ifmap"][i][0][0] = old["ifmap"][i][0][0] >> 1

        if c < rows:
            for j in range(cols):
                inside = k0 + c < len(b) and n0 + j < len(b[0])
                weight = b[k0 + c][n0 + j] if inside else 0
                for s in range(slices(accel)):
                    for name, magnitude in (("g_pos", max(weight, 0)), ("g_neg", max(-weight, 0))):
                        level = (magnitude >> (s * cell_bits)) % (1 << cell_bits)
                        new[name][c][j][s] = level << fraction

        if rows <= c < rows + len(a) * bits:
            lines = [self.on_net("word_line", i, 0, t, old["ifmap"][i][0][0] & 1)
                     for i in range(rows)]  # fmt: skip
            top = (1 << adc_width(accel)) - 1
            for adc, cells in (("adc_pos", "g_pos"), ("adc_neg", "g_neg")):
                for j in range(cols):
                    for s in range(slices(accel)):
                        current = sum(old[cells][i][j][s] for i in range(rows) if lines[i])
                        code = (2 * current + (1 << fraction)) // (2 << fraction)
                        new[adc][0][j][s] = min(code, top)

        if rows < c <= rows + len(a) * bits:
            x = (c - rows - 1) % bits
            for j in range(cols):
                codes = zip(old["adc_pos"][0][j], old["adc_neg"][0][j])
                total = sum((p - q) << (s * cell_bits) for s, (p, q) in enumerate(codes))
                total = self.on_net("sum", 0, j, t, wrap(total, sum_width(accel)))
                before = 0 if x == 0 else old["acc"][0][j][0]
                step = -(total << x) if x == bits - 1 else total << x
                new["acc"][0][j][0] = wrap(before + step, accel.acc_bits)

        self.state = new
        self.strike(t)
