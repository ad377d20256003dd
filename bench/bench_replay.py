"""Replay: how many outputs and whole products under a fault it gives per second.

Outputs: the compiled kernel alone, every output of the product walked (k = 576, as
in a 3x3 convolution of 64 channels), under one partial-sum flip and under one stuck
bit of a partial-sum register. Products: `walk_outputs` with the fault-free result at
hand, as a network's fault engine calls it, and `gemm` whole, which checks operands
and computes the fault-free product as well.
"""

from __future__ import annotations

import numpy as np

from fsim.simulator.gemm import clean, gemm
from fsim.simulator.kernels import replay as kernels
from fsim.simulator.replay import component_bits, walk_outputs
from fsim.simulator.runners import table_rows

from .bench_tile import fault, machine, median_seconds, operands

K = 576
MACHINES = (("systolic", "ws", "psum"), ("systolic", "os", "psum"))


def outputs_per_second(accel, table, shape) -> float:
    """Outputs that the kernel walks in a second."""
    a, b, d = operands(*shape)
    plan = accel.schedule.plan(accel, *shape)
    vector, segments = plan.vector(), plan.table()
    touched = np.ones((shape[0], shape[2]), np.uint8)
    b_t, bits, out = np.ascontiguousarray(b.T), component_bits(accel), np.zeros(touched.shape, int)

    def call():
        kernels.replay(a, b_t, d, vector, segments, table, bits, touched, out)

    call()
    return touched.size / median_seconds(call)


def products_per_second(accel, table, shape) -> tuple[float, float, int]:
    """(patched, whole) products in a second, and the outputs that the fault touches."""
    a, b, d = operands(*shape)
    plan = accel.schedule.plan(accel, *shape)
    plain = clean(accel, a, b, d)
    rows = table_rows(table)
    touched = int(walk_outputs(accel, plan, a, b, d, table, plain.copy()).sum())
    gemm(a, b, d, accel=accel, faults=rows, backend="replay")
    patched = median_seconds(lambda: walk_outputs(accel, plan, a, b, d, table, plain.copy()))
    whole = median_seconds(lambda: gemm(a, b, d, accel=accel, faults=rows, backend="replay"))
    return 1 / patched, 1 / whole, touched


def live_cycle(accel, register, shape) -> int:
    """A cycle near the middle in which the register holds a sum that is still needed."""
    plan = accel.schedule.plan(accel, *shape)
    touched = np.zeros((shape[0], shape[2]), np.uint8)
    cycle = accel.schedule.cycles(accel, *shape) // 2
    while not touched.any():
        cycle += 1
        table = np.array([fault(accel, register, 5, 7, cycle)], np.int64)
        kernels.mark(plan.vector(), plan.table(), table, touched)
    return cycle


def main() -> None:
    """Print the figures of every machine and kind of fault."""
    for family, dataflow, register in MACHINES:
        accel = machine(family, dataflow)
        small, layer = (64, K, 64), (1024, K, 64)
        kinds = {"one psum flip": live_cycle(accel, register, layer), "one stuck psum bit": None}
        for name, cycle in kinds.items():
            table = np.array([fault(accel, register, 5, 7, cycle)], np.int64)
            speed = outputs_per_second(accel, table, small)
            patched, whole, touched = products_per_second(accel, table, layer)
            print(
                f"{family:9} {dataflow}  {name:18}: {speed / 1e6:6.3f} M outputs/s of k = {K}; "
                f"GEMM {'x'.join(map(str, layer))}, {touched} outputs touched: "
                f"{patched:6.0f} patched/s, {whole:5.1f} whole/s"
            )


if __name__ == "__main__":
    main()
