"""Schedule of `fpga`: the output-stationary array of `systolic`, its arithmetic in LUTs.

Cycles are those of `systolic` output stationary (SCALE-Sim v3: K + R + C - 2 a fold). What
a PE adds to it is configuration memory: the truth tables of the LUTs of its multiplier and
adder (`luts.py`), which the clock never writes. An upset there stays until the next scrub
rewrites the tables, at every cycle that is a multiple of scrub_cycles, counted from the
start of the product; without scrubbing until the end of the product.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..plan import ceil_div
from . import luts

_ALL = ("reference", "tile", "replay")


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers, nets and configuration of one PE, in fault-row order."""
    bits = accel.operand_bits
    return (
        Component("ifmap", bits, "register", "ifmap", _ALL, "activation operand"),
        Component("filter", bits, "register", "filter", _ALL, "weight operand"),
        Component("psum", accel.acc_bits, "register", "psum", _ALL, "partial sum"),
        Component("mul", 2 * bits, "net", "product", _ALL, "product into the adder"),
        Component("mul_lut", luts.BITS, "register", "product", _ALL,
                  "configuration of the multiplier; word = LUT", None, luts.multiplier_luts(bits)),
        Component("add_lut", luts.BITS, "register", "psum", _ALL,
                  "configuration of the adder; word = LUT", None, accel.acc_bits),
    )  # fmt: skip


def fold_cycles(accel: Accel, k: int) -> int:
    """Cycles of one fold: k products and the skew of the array's edges."""
    return k + accel.rows + accel.cols - 2


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM (m,k)(k,n): folds times cycles a fold."""
    return ceil_div(m, accel.rows) * ceil_div(n, accel.cols) * fold_cycles(accel, k)
