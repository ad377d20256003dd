"""Compiled cycle-level simulation: speed of the whole array and of single faults.

PE-cycles a second: a permanent fault in the first column's operand registers, so that every
PE is simulated in every cycle. Faults a second: a flip of one accumulator bit, of which only
the phases and columns it can reach are simulated. Compile (or cache load) time is told apart.
"""

from __future__ import annotations

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.types import FOREVER, LEVEL, STATE

from .figures import HIGHER, LOWER, Figure
from .timing import each, seconds

REPEATS = 5
MACHINES = (
    ("systolic", "ws", "ifmap", "psum"),
    ("systolic", "os", "ifmap", "psum"),
    ("gemmini", "ws", "a", "b"),
    ("gemmini", "os", "a", "c1"),
    ("pipelined", "ws", "x_old", "mac_out"),
    ("pipelined", "os", "x_old", "mac_out"),
)
LAYER = (1024, 576, 64)
"""m, k, n of a 3x3 convolution of 64 channels on 32 x 32 pixels."""


def machine(family: str, dataflow: str) -> Accel:
    """The 16 x 16 array that all figures are of."""
    return Accel(
        name=family, family=family, dataflow=dataflow, dataflows=(dataflow,), rows=16, cols=16
    )


def operands(m: int, k: int, n: int):
    """Seeded int8 codes as int64 and a bias."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))
    return a, b, rng.integers(-1000, 1000, (m, n))


def fault(accel, component: str, row: int, col: int, cycle: int | None) -> list[int]:
    """One table row: bit 3 flipped after `cycle`, or stuck at 1 from reset on (None)."""
    index = accel.component_index(component)
    if cycle is None:
        return [index, row, col, -1, LEVEL, -1, FOREVER, -1, 8, 0]
    return [index, row, col, -1, STATE, cycle, cycle, -1, 0, 8]


def rates(taken: list[float], work: float) -> list[float]:
    """Work a second of each round."""
    return [work / value for value in taken]


def whole_array(accel, operand: str, repeats: int) -> Figure:
    """Every PE in every cycle."""
    a, b, d = operands(128, 128, 128)
    cycles = accel.schedule.cycles(accel, 128, 128, 128)
    table = np.array([fault(accel, operand, i, 0, None) for i in range(16)], np.int64)
    first = seconds(lambda: accel.tile.run(accel, a[:16, :16], b[:16, :16], d[:16, :16], table))
    taken = each(lambda: accel.tile.run(accel, a, b, d, table), repeats)
    return Figure(
        f"{accel.family} {accel.dataflow}: whole array, GEMM 128 x 128 x 128",
        rates(taken, 256 * cycles / 1e6), "M PE-cycles/s", HIGHER,
        note=f"compiled or loaded in {first:.2f} s",
    )  # fmt: skip


def single_faults(accel, component: str, repeats: int) -> list[Figure]:
    """One flip in a tile, and in a layer with and without the fault-free result at hand."""
    label = f"{accel.family} {accel.dataflow}: one {component} flip"
    a, b, d = operands(16, 16, 16)
    cycles = accel.schedule.cycles(accel, 16, 16, 16)
    table = np.array([fault(accel, component, 5, 7, cycles // 2)], np.int64)
    tile = each(lambda: accel.tile.run(accel, a, b, d, table), repeats, 200)
    a, b, d = operands(*LAYER)
    cycles = accel.schedule.cycles(accel, *LAYER)
    table = np.array([fault(accel, component, 5, 7, cycles // 2)], np.int64)
    layer = each(lambda: accel.tile.run(accel, a, b, d, table), repeats)
    clean = accel.tile.run(accel, a, b, d, table[:0])[0]
    given = each(lambda: accel.tile.run(accel, a, b, d, table, clean=clean), repeats)
    shape = " x ".join(map(str, LAYER))
    return [
        Figure(f"{label}, GEMM 16 x 16 x 16", rates(tile, 1), "/s", HIGHER),
        Figure(f"{label}, GEMM {shape}", [1e3 * v for v in layer], "ms", LOWER),
        Figure(f"{label}, the same with the fault-free result at hand",
               [1e3 * v for v in given], "ms", LOWER),
    ]  # fmt: skip


def main(quick: bool = False) -> list[Figure]:
    """All machines."""
    repeats = 2 if quick else REPEATS
    figures = [whole_array(machine(f, flow), operand, repeats) for f, flow, operand, _ in MACHINES]
    for family, dataflow, _, psum in MACHINES:
        figures += single_faults(machine(family, dataflow), psum, repeats)
    return figures


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
