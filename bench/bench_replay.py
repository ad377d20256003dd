"""Replay: how many outputs and whole products under a fault it gives a second.

Outputs: the compiled kernel alone, every output of the product walked (k = 576, as in a 3x3
convolution of 64 channels), under one partial-sum flip and under one stuck bit of a
partial-sum register. Products: `walk_outputs` with the fault-free result at hand, as a
network's fault engine calls it, and `gemm` whole, which checks operands and computes the
fault-free product as well.
"""

from __future__ import annotations

import numpy as np

from fsim.simulator.gemm import clean, gemm
from fsim.simulator.kernels import replay as kernels
from fsim.simulator.replay import component_bits, walk_outputs
from fsim.simulator.runners import table_rows

from .bench_tile import LAYER, fault, machine, operands, rates
from .figures import HIGHER, Figure
from .timing import each

REPEATS = 5
SMALL = (64, LAYER[1], 64)
MACHINES = (("systolic", "ws", "psum"), ("systolic", "os", "psum"))


def outputs(accel, table, repeats: int) -> list[float]:
    """Outputs that the kernel walks in a second, round by round."""
    a, b, d = operands(*SMALL)
    plan = accel.schedule.plan(accel, *SMALL)
    vector, segments = plan.vector(), plan.table()
    touched = np.ones((SMALL[0], SMALL[2]), np.uint8)
    b_t, bits, out = np.ascontiguousarray(b.T), component_bits(accel), np.zeros(touched.shape, int)

    def call():
        kernels.replay(a, b_t, d, vector, segments, table, bits, touched, out)

    call()
    return rates(each(call, repeats), touched.size)


def products(accel, table, repeats: int) -> tuple[list[float], list[float], int]:
    """(patched, whole) products a second, and the outputs that the fault touches."""
    a, b, d = operands(*LAYER)
    plain = clean(accel, a, b, d)
    rows = table_rows(table)
    touched = int(walk_outputs(accel, a, b, d, table, plain.copy()).sum())
    gemm(a, b, d, accel=accel, faults=rows, backend="replay")
    patched = each(lambda: walk_outputs(accel, a, b, d, table, plain.copy()), repeats)
    whole = each(lambda: gemm(a, b, d, accel=accel, faults=rows, backend="replay"), repeats)
    return rates(patched, 1), rates(whole, 1), touched


def live_cycle(accel, register) -> int:
    """A cycle near the middle in which the register holds a sum that is still needed."""
    plan = accel.schedule.plan(accel, *LAYER)
    touched = np.zeros((LAYER[0], LAYER[2]), np.uint8)
    cycle = accel.schedule.cycles(accel, *LAYER) // 2
    while not touched.any():
        cycle += 1
        table = np.array([fault(accel, register, 5, 7, cycle)], np.int64)
        kernels.mark(plan.vector(), plan.table(), table, touched)
    return cycle


def main(quick: bool = False) -> list[Figure]:
    """Every machine and kind of fault."""
    repeats = 2 if quick else REPEATS
    figures = []
    for family, dataflow, register in MACHINES:
        accel = machine(family, dataflow)
        kinds = {"one psum flip": live_cycle(accel, register), "one stuck psum bit": None}
        for name, cycle in kinds.items():
            table = np.array([fault(accel, register, 5, 7, cycle)], np.int64)
            label = f"{family} {dataflow}: {name}"
            walked = [value / 1e6 for value in outputs(accel, table, repeats)]
            patched, whole, touched = products(accel, table, repeats)
            shape, reach = " x ".join(map(str, LAYER)), f"{touched} outputs touched"
            figures += [
                Figure(f"{label}, outputs of k = {SMALL[1]}", walked, "M/s", HIGHER),
                Figure(f"{label}, GEMM {shape} patched", patched, "/s", HIGHER, note=reach),
                Figure(f"{label}, GEMM {shape} whole", whole, "/s", HIGHER, note=reach),
            ]
    return figures


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
