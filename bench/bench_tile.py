"""Compiled cycle-level simulation: speed of the whole array and of single faults.

PE-cycles per second: a permanent fault in the first column's operand registers, so
that every PE is simulated in every cycle. Faults per second: a flip of one
accumulator bit, of which only the phases and columns it can reach are simulated.
Compile (or cache load) time is told apart.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.types import FOREVER, LEVEL, STATE

REPEATS = 5
MACHINES = (
    ("systolic", "ws", "ifmap", "psum"),
    ("systolic", "os", "ifmap", "psum"),
    ("gemmini", "ws", "a", "b"),
    ("gemmini", "os", "a", "c1"),
    ("pipelined", "ws", "x_old", "mac_out"),
    ("pipelined", "os", "x_old", "mac_out"),
)


def machine(family: str, dataflow: str) -> Accel:
    """The 16 x 16 array that all figures are of."""
    return Accel(
        name=family, family=family, dataflow=dataflow, dataflows=(dataflow,), rows=16, cols=16
    )


def median_seconds(call, calls: int = 1) -> float:
    """Median of REPEATS timings of `calls` calls, per call."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


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


def whole_array(accel, operand: str) -> None:
    a, b, d = operands(128, 128, 128)
    cycles = accel.schedule.cycles(accel, 128, 128, 128)
    table = np.array([fault(accel, operand, i, 0, None) for i in range(16)], np.int64)
    start = time.perf_counter()
    accel.tile.run(accel, a[:16, :16], b[:16, :16], d[:16, :16], table)
    first = time.perf_counter() - start
    seconds = median_seconds(lambda: accel.tile.run(accel, a, b, d, table))
    print(
        f"{accel.family:9} {accel.dataflow}  16x16, GEMM 128x128x128: "
        f"{cycles / seconds / 1e6:6.2f} M cycles/s, "
        f"{256 * cycles / seconds / 1e6:6.0f} M PE-cycles/s  (compile or load {first:.2f} s)"
    )


def single_faults(accel, component: str) -> None:
    a, b, d = operands(16, 16, 16)
    cycles = accel.schedule.cycles(accel, 16, 16, 16)
    table = np.array([fault(accel, component, 5, 7, cycles // 2)], np.int64)
    tile = median_seconds(lambda: accel.tile.run(accel, a, b, d, table), 200)
    shape = (1024, 576, 64)  # a 3x3 convolution of 64 channels on 32x32 pixels
    a, b, d = operands(*shape)
    cycles = accel.schedule.cycles(accel, *shape)
    table = np.array([fault(accel, component, 5, 7, cycles // 2)], np.int64)
    layer = median_seconds(lambda: accel.tile.run(accel, a, b, d, table), 3)
    clean = accel.tile.run(accel, a, b, d, table[:0])[0]
    given = median_seconds(lambda: accel.tile.run(accel, a, b, d, table, clean=clean), 3)
    print(
        f"{accel.family:9} {accel.dataflow}  one {component} flip: {1 / tile:7.0f} tiles/s "
        f"of 16x16x16; GEMM {'x'.join(map(str, shape))} {1e3 * layer:.1f} ms, "
        f"{1e3 * given:.1f} ms with the fault-free result at hand"
    )


def main():
    for family, dataflow, operand, _ in MACHINES:
        whole_array(machine(family, dataflow), operand)
    for family, dataflow, _, psum in MACHINES:
        single_faults(machine(family, dataflow), psum)


if __name__ == "__main__":
    main()
