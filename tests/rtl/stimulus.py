"""What the testbench puts on the ports of the RTL, edge by edge, and how its output reads.

Written from the machine's description (a skewed systolic schedule) and independent of the
simulator: nothing of fsim is imported here, so that a wrong schedule in one shows in the other.
Edge 0 of a stimulus is the one under reset; cycle t of the machine is edge t + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FOREVER = (1 << 31) - 1
"""`last` of a permanent fault on the 32-bit port."""


@dataclass(frozen=True)
class Design:
    """One set of parameters of the RTL.

    dataflow  "os" or "ws"; input stationary is "ws" on transposed operands
    depth     folds (os) or accumulator words a column (ws) that results are kept of
    mutant    0; else a machine that is wrong on purpose, see pe_os.sv and pe_ws.sv
    """

    dataflow: str
    rows: int
    cols: int
    operand_bits: int = 8
    product_bits: int = 16
    acc_bits: int = 32
    saturate: bool = False
    depth: int = 16
    mutant: int = 0

    @property
    def pes(self) -> int:
        return self.rows * self.cols

    @property
    def parameters(self) -> dict[str, int]:
        """Verilog parameters of the module `dut`."""
        bias = self.pes if self.dataflow == "os" else self.cols
        return {
            "ROWS": self.rows,
            "COLS": self.cols,
            "OPERAND_BITS": self.operand_bits,
            "PRODUCT_BITS": self.product_bits,
            "ACC_BITS": self.acc_bits,
            "SATURATE": int(self.saturate),
            "DEPTH": self.depth,
            "STIM_BITS": _whole(
                32 + (self.rows + self.cols) * self.operand_bits + bias * self.acc_bits
            ),
            "DUMP_BITS": _whole(self.pes * (2 * self.operand_bits + self.acc_bits)),
            "RESULT_BITS": _whole(bias * self.depth * self.acc_bits),
            "MUTANT": self.mutant,
        }


def _whole(bits: int) -> int:
    """A port of at least three whole 32-bit words: Verilator gives those one C++ type."""
    return max(96, 32 * (bits // 32 + 1))


def word(fields: Iterable[tuple[int, int]], bits: int) -> str:
    """(value, width) fields from the low end on, as `bits` bits of hexadecimal."""
    packed, at = 0, 0
    for value, width in fields:
        packed |= (int(value) & ((1 << width) - 1)) << at
        at += width
    return f"{packed:0{bits // 4}x}"


def fault_word(
    site: int = 0,
    row: int = 0,
    col: int = 0,
    *,
    level: bool = False,
    first: int = 0,
    last: int = 0,
    masks: tuple[int, int, int] = (-1, 0, 0),
    present: bool = True,
) -> str:
    """One line of the file of faults; masks are and, or, xor."""
    fields = [
        (site, 2), (level, 1), (present, 1), (0, 12), (row, 16), (col, 16), (0, 16),
        (first, 32), (min(last, FOREVER), 32), *((mask, 64) for mask in masks),
    ]  # fmt: skip
    return word(fields, 320)


def _at(matrix: np.ndarray, i: int, j: int) -> int:
    """matrix[i, j], and 0 outside of it."""
    inside = 0 <= i < matrix.shape[0] and 0 <= j < matrix.shape[1]
    return int(matrix[i, j]) if inside else 0


def stimulus(design: Design, a: np.ndarray, b: np.ndarray, d: np.ndarray) -> list[str]:
    """Words of the file of stimuli for d + a b: reset, every cycle, one more edge.

    a (m, k), b (k, n), d (m, n) integers. The last edge stores the sums of the last cycle.
    """
    make = _stimulus_os if design.dataflow == "os" else _stimulus_ws
    bits = design.parameters["STIM_BITS"]
    return [word(fields, bits) for fields in make(design, a, b, d)]


def cycles(design: Design, m: int, k: int, n: int) -> int:
    """Length of the schedule: folds times the cycles of a fold."""
    rows, cols = design.rows, design.cols
    if design.dataflow == "os":
        return -(-m // rows) * -(-n // cols) * (k + rows + cols - 2)
    return -(-k // rows) * -(-n // cols) * (m + 2 * rows + cols - 2)


def _stimulus_os(design: Design, a, b, d):
    rows, cols, bits = design.rows, design.cols, design.operand_bits
    (m, k), n = a.shape, b.shape[1]
    tiles = [(i, j) for i in range(0, m, rows) for j in range(0, n, cols)]
    length = k + rows + cols - 2
    for edge in range(len(tiles) * length + 2):
        # In cycle t PE (0, 0) multiplies what the edge before latched.
        fold, step = divmod(edge - 1, length)
        ahead, slot = divmod(edge, length)  # what this edge latches: one cycle ahead
        working = 0 <= fold < len(tiles)
        m0, n0 = tiles[ahead] if ahead < len(tiles) else (m, n)
        yield [
            (working and step < k, 1), (working and step == 0, 1), (edge > 1 and step == 0, 1),
            (0, 13), (max(fold - 1, 0), 16),
            *((_at(a, m0 + r, slot - r), bits) for r in range(rows)),
            *((_at(b, slot - c, n0 + c), bits) for c in range(cols)),
            *_biases(design, d, tiles[fold] if working else (m, n)),
        ]  # fmt: skip


def _biases(design: Design, d, tile):
    m0, n0 = tile
    for r in range(design.rows):
        for c in range(design.cols):
            yield _at(d, m0 + r, n0 + c), design.acc_bits


def _stimulus_ws(design: Design, a, b, d):
    rows, cols, bits = design.rows, design.cols, design.operand_bits
    (m, k), n = a.shape, b.shape[1]
    tiles = [(i, j) for j in range(0, n, cols) for i in range(0, k, rows)]  # (k0, n0)
    length = m + 2 * rows + cols - 2
    for edge in range(len(tiles) * length + 2):
        fold, c0 = divmod(edge - 1, length)
        k0, n0 = tiles[fold] if 0 <= fold < len(tiles) else (k, n)
        load = 0 <= fold < len(tiles) and c0 < rows
        # Sums of row x of A are below column 0 after cycle 2 rows - 1 + x of a fold, below
        # column c that many cycles later; the accumulators add them at the next edge.
        adding, first, address = False, False, 0
        bias = []
        for c in range(cols):
            at, step = divmod(edge - 1 - 2 * rows - c, length)
            works = 0 <= at < len(tiles) and step < m
            top_k, left_n = tiles[at] if works else (0, n)
            bias.append(_at(d, step, left_n + c) if works else 0)
            if c == 0 and works:
                adding, first = True, top_k == 0
                address = left_n // cols * m + step
        yield [
            (load, 1), (adding, 1), (first, 1), (0, 13), (address, 16),
            *((_at(a, c0 + 1 - rows - r, k0 + r), bits) for r in range(rows)),
            *((_at(b, k0 + rows - 1 - c0, n0 + c) if load else 0, bits) for c in range(cols)),
            *((value, design.acc_bits) for value in bias),
        ]  # fmt: skip


def _signed(bits: np.ndarray) -> np.ndarray:
    """(..., width) bits, least significant first, as int64 of two's complement."""
    weights = np.int64(1) << np.arange(bits.shape[-1], dtype=np.int64)
    weights[-1] = -weights[-1]
    return bits.astype(np.int64) @ weights


def _bits(lines: list[str]) -> np.ndarray:
    """Lines of hexadecimal of one length as (lines, bits) uint8, least significant first."""
    data = np.frombuffer(bytes.fromhex("".join(lines)), np.uint8).reshape(len(lines), -1)
    return np.unpackbits(data[:, ::-1], axis=1, bitorder="little")


def read_run(design: Design, lines: list[str], m: int, n: int, count: int):
    """What one run wrote: (out (m, n) int64, waves).

    lines   of this run: a dump after each edge, then the result
    count   cycles of the schedule
    waves   "moving", "resident" and "psum" -> int64 (cycles, rows, cols): what the port
            calls ifmap and filter in the output-stationary design

    ValueError where a line holds anything but 0 and 1 bits (x of a simulator).
    """
    rows, cols = design.rows, design.cols
    bits = _bits(lines[1 : count + 1])
    waves, at = {}, 0
    widths = (
        ("moving", design.operand_bits),
        ("resident", design.operand_bits),
        ("psum", design.acc_bits),
    )
    for name, width in widths:
        part = bits[:, at : at + design.pes * width]
        waves[name] = _signed(part.reshape(count, rows, cols, width))
        at += design.pes * width
    wide = -(-n // cols)
    if design.dataflow == "os":
        tall = -(-m // rows)
        sums = _result(lines[-1], tall * wide * design.pes, design.acc_bits)
        tiles = sums.reshape(tall, wide, rows, cols)
        out = tiles.transpose(0, 2, 1, 3).reshape(tall * rows, wide * cols)
    else:
        words = [
            _result(lines[-1], wide * m, design.acc_bits, c * design.depth) for c in range(cols)
        ]
        out = np.reshape(words, (cols, wide, m)).transpose(2, 1, 0).reshape(m, wide * cols)
    return out[:m, :n], waves


def _result(line: str, count: int, width: int, first: int = 0) -> np.ndarray:
    """`count` words from word `first` of a result on, int64."""
    value = int(line, 16) >> (first * width)
    words = [value >> (index * width) & ((1 << width) - 1) for index in range(count)]
    return np.array([word - (word >> (width - 1) << width) for word in words], np.int64)
