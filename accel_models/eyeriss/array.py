"""A layer on the array of `eyeriss-like`, PE by PE, in plain Python: the specification.

Every PE of every pass is run by `cycle.run_pe`; a column's sums go from PE row to PE row,
each of which adds its own. Slow: for small layers.
"""

from __future__ import annotations

from collections.abc import Callable

from fsim.types import (
    LEVEL,
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
    wrap,
)

from .cycle import SpadStrike, run_pe
from .mapping import place

Operands = Callable[[int, int, int], tuple]
"""(group, filter pass, strip) -> (codes [y][x][c], weights [o][c][ky][kx]) of the group: what
the global buffer delivers to these passes."""


def run_layer(accel, low, operands: Operands, bias, table, truncate: int = 0) -> dict:
    """Final sums of one image, {(group, position, filter): integer of acc_bits}.

    low       `fsim.simulator.lower.Lowered`
    bias      [group][filter] integers; a first pass starts from them
    table     fault table, columns T_*: registers in cycles of the layer; words of the
              memory `psums`, as `lower.psum_word` numbers them, struck after the pass over
              channels `first` has stored them
    """
    mapping = place(accel, low)
    row, stored = mapping.row, {}
    strikes = [_Struck(accel, entry) for entry in table.tolist()]
    for number in range(mapping.passes):
        group, block, strip, channel = mapping.position(number)
        codes, weights = operands(group, block, strip)
        start = number * row.cycles
        now = [strike.shifted(start, row.cycles) for strike in strikes]
        now = [strike for strike in now if strike is not None]
        for col in range(mapping.height(strip)):
            for first in range(0, mapping.chain * mapping.filter_sets, mapping.chain):
                top = mapping.place(number, first, col)
                keys = [
                    [(group, top.output_row * low.out_w + f, top.filter + j) for j in range(row.p)]
                    for f in range(row.outputs)
                ]
                sums = [
                    [stored.get(key, bias[group][key[2]]) if key[2] < low.n else 0 for key in line]
                    for line in keys
                ]
                for r in range(first, first + mapping.chain):
                    sums = _pe(accel, low, mapping, number, r, col, codes, weights, sums, now,
                               truncate)  # fmt: skip
                for line, values in zip(keys, sums):
                    stored |= {key: v for key, v in zip(line, values) if key[2] < low.n}
        for strike in strikes:
            if strike.name == "psums" and strike.entry[T_FIRST] == channel:
                key = _sum_of(low, strike.entry[T_WORD])
                if key[0] == group and _in(mapping, low, key, block, strip):
                    stored[key] = strike.force(stored[key])
    return stored


def _in(mapping, low, key, block, strip) -> bool:
    """Whether a sum is one of a pass's."""
    rows = key[1] // low.out_w // mapping.cols == strip
    return rows and key[2] // (mapping.row.p * mapping.filter_sets) == block


def _sum_of(low, word: int) -> tuple[int, int, int]:
    """(group, position, filter) of a partial-sum word."""
    if low.outputs == low.groups * low.n:
        position, output = divmod(word, low.outputs)
        group, n = divmod(output, low.n)
        return group, position, n
    rest, n = divmod(word, low.n)
    return *divmod(rest, low.m), n


def _pe(accel, low, mapping, number, r, col, codes, weights, sums, now, truncate):
    """What leaves PE (r, col) in a pass, bus and scratchpad faults included."""
    row, at = mapping.row, mapping.place(number, r, col)
    channels = low.k // (low.kernel_h * low.kernel_w)
    y = at.output_row * low.stride[0] + at.kernel_row - low.padding[0]
    pixels = []
    for index in range(row.row):
        x, c = index // row.q - low.padding[1], at.channel + index % row.q
        inside = 0 <= y < low.h and 0 <= x < low.w and c < channels
        pixels.append(int(codes[y][x][c]) if inside else 0)
    words = []
    for s in range(row.s):
        for c in range(at.channel, at.channel + row.q):
            for o in range(at.filter, at.filter + row.p):
                inside = c < channels and o < low.n
                words.append(int(weights[o][c][at.kernel_row][s]) if inside else 0)
    for strike in now:
        if strike.name == "ifmap_bus" and strike.place == mapping.entry(r, col):
            for cycle, pixel in row.arrivals.items():
                if strike.active(cycle):
                    pixels[pixel] = strike.force(pixels[pixel])
        if strike.name == "filter_bus" and strike.place[0] == r:
            for word in range(len(words)):
                if strike.active(word):
                    words[word] = strike.force(words[word])
    mine = [strike.spad() for strike in now if strike.place == (r, col) and strike.in_pe]
    return run_pe(accel, row, pixels, words, sums, mine, truncate)


class _Struck:
    """One row of the fault table."""

    def __init__(self, accel, entry):
        component = accel.components[entry[T_COMPONENT]]
        self.name, self.bits, self.entry = component.name, component.bits, list(entry)
        self.memory = component.kind == "memory"
        self.place = (entry[T_ROW], entry[T_COL])
        self.in_pe = self.name in ("ifmap_spad", "filter_spad", "psum_spad", "product")

    def shifted(self, start: int, cycles: int):
        """The same fault in cycles of a pass; None if it does nothing there.

        A fault that lasts from before the pass forces the state the pass starts from.
        """
        first, last = self.entry[T_FIRST], self.entry[T_LAST]
        level = self.entry[T_EFFECT] == LEVEL
        last = last if level else first
        if self.memory or last < start or first >= start + cycles:
            return None
        moved = object.__new__(_Struck)
        moved.__dict__ |= self.__dict__
        moved.entry = list(self.entry)
        moved.entry[T_FIRST] = max(first - start, -1)
        moved.entry[T_LAST] = last - start
        return moved

    def active(self, cycle: int) -> bool:
        if self.entry[T_EFFECT] == LEVEL:
            return self.entry[T_FIRST] <= cycle <= self.entry[T_LAST]
        return self.entry[T_FIRST] == cycle

    def force(self, value: int) -> int:
        kept = (value & self.entry[T_AND]) | self.entry[T_OR]
        return wrap(kept ^ self.entry[T_XOR], self.bits)

    def spad(self) -> SpadStrike:
        entry = self.entry
        return SpadStrike(
            self.name, entry[T_WORD], self.bits, entry[T_EFFECT] == LEVEL, entry[T_FIRST],
            entry[T_LAST], entry[T_AND], entry[T_OR], entry[T_XOR],
        )  # fmt: skip
