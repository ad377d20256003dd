"""Schedule of `vta-like`: one row of activations against one tile of weights an operation.

The tiles of weights (rows x cols, n outer, k inner) follow one another; for each, the core
works off the m rows, `issue_cycles` apart. A sum goes back to the accumulator memory two
edges after its operands were latched, so the operation that adds to it again comes three
cycles later at the earliest: a tile takes at least `LATENCY` cycles. `cycle.py` beside this
file says what happens in each cycle.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..plan import ceil_div

_ALL = ("reference", "tile", "replay")
RA, RB, MUL, MAC, TREE, DOT, ACC0, ACC1 = range(8)

LATENCY = 3
"""Cycles an operation takes: operands, tree, write."""


def levels(accel: Accel) -> int:
    """Levels of adders that reduce `rows` products to one."""
    return (accel.rows - 1).bit_length()


def group(accel: Accel) -> int:
    """Products that one register inside the tree is the sum of.

    The generator of the core (DotProduct in TensorGemm.scala) registers the inputs of the
    first level of adders where there are fewer than four levels, else those of the last
    but one: four words of four products each for 16.
    """
    return 1 if levels(accel) < 4 else 1 << (levels(accel) - 2)


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers and nets of the core, column = lane = output channel, in fault-row order."""
    rows, cols = accel.rows, accel.cols
    mac = accel.product_bits + 1  # a multiply-add whose addend is tied to 0
    nodes = ceil_div(rows, group(accel))
    tree = mac + group(accel).bit_length() - 1
    acc = accel.acc_bits

    def register(name, bits, role, height, about):
        return Component(name, bits, "register", role, _ALL, about, grid=(height, cols))

    def net(name, bits, role, height, about):
        return Component(name, bits, "net", role, _ALL, about, grid=(height, cols))

    return (
        register("rA", accel.operand_bits, "ifmap", rows, "activation k of a lane"),
        register("rB", accel.operand_bits, "filter", rows, "weight k of a lane"),
        net("mul", accel.product_bits, "product", rows, "product k of a lane"),
        net("mac", mac, "product", rows, "product k into the tree"),
        register("tree", tree, "psum", nodes, "sum inside a lane's adder tree"),
        net("dot", mac + levels(accel), "psum", 1, "dot product of a lane"),
        register("acc0", acc, "psum", 1, "sum so far of a lane, first delay"),
        register("acc1", acc, "psum", 1, "sum so far of a lane, second delay"),
    )


def tiles(accel: Accel, m: int, k: int, n: int) -> tuple[int, int]:
    """(number of weight tiles, cycles from the start of one to that of the next)."""
    count = ceil_div(k, accel.rows) * ceil_div(n, accel.cols)
    return count, max(m * int(accel.parameters["issue_cycles"]), LATENCY)


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM: to the write of the last sum."""
    count, step = tiles(accel, m, k, n)
    return (count - 1) * step + (m - 1) * int(accel.parameters["issue_cycles"]) + LATENCY
