"""The fast backends against the cycle-level reference, on random GEMMs with random faults."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.load import load_accel
from fsim.errors import FsimError
from fsim.simulator.reference import first_difference
from fsim.simulator.runners import RUNNERS, Runner
from fsim.types import (
    FOREVER,
    LEVEL,
    STATE,
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
)

PRESETS = {
    "gemmini": "gemmini-like",
    "pipelined": "pipelined-systolic",
    "systolic": "systolic",
    "nvdla": "nvdla-small-like",
    "tpu": "tpu-v1-like",
    "vta": "vta-like",
    "rram": "rram-crossbar",
    "fpga": "fpga-lut",
}
"""Family -> the preset from which its machines are resized."""


@dataclass(frozen=True)
class KernelCheck:
    """One machine and backend: random GEMMs with random faults against the reference.

    first  the first difference or error, in words; "" if there is none
    """

    machine: str
    backend: str
    passed: int
    failed: int
    first: str


MACHINES = (
    ("gemmini", "os"),
    ("gemmini", "ws"),
    ("pipelined", "os"),
    ("pipelined", "ws"),
    ("systolic", "os"),
    ("systolic", "ws"),
    ("systolic", "is"),
    ("nvdla", "dc"),
    ("tpu", "ws"),
    ("vta", "ws"),
    ("rram", "ws"),
    ("fpga", "os"),
)


def kernel_checks(
    seconds: float,
    runners: Mapping[str, Runner] | None = None,
    seed: int = 0,
    rounds: int = 1,
) -> list[KernelCheck]:
    """Compare backends with the reference until `seconds` have passed.

    runners  backend name -> what runs it; None takes "tile" and "replay"
    seed     of the machines, operands and faults
    rounds   runs of each machine that are done however long they take

    Arrays, widths, shapes and operands are small and random; each run has none
    to three faults in components that the backend claims. Results are compared
    and, where the backend has registers, every register in every cycle. Time to
    compile kernels counts.
    """
    runners = {name: RUNNERS[name] for name in ("tile", "replay")} if runners is None else runners
    counts = {(*machine, name): [0, 0, ""] for machine in MACHINES for name in runners}
    end = time.perf_counter() + seconds
    round_ = 0
    while round_ < rounds or time.perf_counter() < end:
        for index, (family, dataflow) in enumerate(MACHINES):
            if round_ >= rounds and time.perf_counter() >= end:
                break
            rng = np.random.default_rng([seed, index, round_])
            accel = _random_accel(rng, family, dataflow)
            a, b, d = _random_operands(rng, accel)
            cycles = accel.schedule.cycles(accel, *a.shape, b.shape[1])
            for name, runner in runners.items():
                count = counts[family, dataflow, name]
                claims = [i for i, c in enumerate(accel.components) if name in c.backends]
                table = random_table(rng, accel, claims, cycles, int(rng.integers(0, 4)))
                problem = _compare_run(accel, runner, a, b, d, table)
                count[bool(problem)] += 1
                count[2] = count[2] or problem
        round_ += 1
    return [
        KernelCheck(f"{family} {dataflow}", name, *count)
        for (family, dataflow, name), count in counts.items()
    ]


def _random_accel(rng, family: str, dataflow: str) -> Accel:
    bits = int(rng.integers(2, 9))
    preset = load_accel(PRESETS[family])
    return dataclasses.replace(
        preset,
        dataflow=dataflow,
        rows=int(rng.integers(1, 5)),
        cols=int(rng.integers(1, 5)),
        operand_bits=bits,
        product_bits=2 * bits,
        acc_bits=int(rng.integers(2 * bits, 33)),
        overflow=str(rng.choice(preset.kind.overflow)),
        truncate=int(rng.choice([0, 1, 4, 17, 31])) if preset.kind.truncates else 0,
        parameters={
            name: rng.integers(least, min(most, least + 9)).item() if rng.integers(2) else default
            for name, (default, least, most) in preset.kind.parameters.items()
        },
    )


def _random_operands(rng, accel: Accel):
    """Codes over the whole range, at times its ends only; d at times absent."""
    m, k, n = (int(x) for x in rng.integers(1, 10, 3))
    top = 1 << (accel.operand_bits - 1)
    if rng.integers(4) == 0:
        a, b = (rng.choice([-top, top - 1], size) for size in ((m, k), (k, n)))
    else:
        a, b = (rng.integers(-top, top, size) for size in ((m, k), (k, n)))
    if rng.integers(3) == 0:  # zeros, which some machines gate
        a, b = (codes * rng.integers(0, 2, codes.shape) for codes in (a, b))
    limit = 1 << (accel.acc_bits - 1)
    d = rng.integers(-limit, limit, (m, n)) if rng.integers(3) else None
    return a.astype(np.int64), b.astype(np.int64), d


def random_table(rng, accel: Accel, components: list[int], cycles: int, count: int) -> np.ndarray:
    """`count` random faults in the given components, as an int64 (count, 10) table.

    Flips of one or several bits, permanent and intermittent stuck-at faults; on
    nets flips for a window of cycles.
    """
    table = np.zeros((count, 10), np.int64)
    for row in table:
        component = accel.components[int(rng.choice(components))]
        first, last = sorted(int(x) for x in rng.integers(0, cycles, 2))
        mask = 1 << int(rng.integers(component.bits))
        if rng.integers(4) == 0:
            mask |= 1 << int(rng.integers(component.bits))
        mask -= (mask >> 63) << 64  # the top bit of a 64-bit word is the sign of its int64
        kind = int(rng.integers(4))  # flip, stuck at 0, stuck at 1, permanent stuck at 0 or 1
        level = kind > 0 or component.kind == "net"
        if kind == 3:
            first, last = -1, FOREVER
        row[T_COMPONENT] = accel.component_index(component.name)
        height, width, words = accel.grid(component)
        row[T_ROW], row[T_COL] = rng.integers(height), rng.integers(width)
        row[T_WORD], row[T_AND] = -1 if words == 1 else rng.integers(words), -1
        row[T_EFFECT] = LEVEL if level else STATE
        row[T_FIRST], row[T_LAST] = first, last if level else first
        if kind == 0:
            row[T_XOR] = mask
        elif kind == 1 or (kind == 3 and rng.integers(2)):
            row[T_AND] = ~mask
        else:
            row[T_OR] = mask
    return table


def _compare_run(accel: Accel, runner: Runner, a, b, d, table) -> str:
    """What differs from the reference in one run, in words; "" if nothing does."""
    setting = (
        f"{accel.rows}x{accel.cols}, {accel.operand_bits}/{accel.acc_bits} bits, "
        f"m,k,n = {a.shape[0]},{a.shape[1]},{b.shape[1]}, faults {table.tolist()}"
    )
    try:
        out, waves = runner(accel, a, b, d, table, True)
    except FsimError as error:
        return f"{setting}: {error}"
    expected, registers = accel.cycle.run(accel, a, b, d, table, True)
    pairs = [("C", expected, out)]
    if waves is not None:
        pairs += [(name, values, waves[name]) for name, values in registers.items()]
        # Without a waveform a backend may simulate only what the faults can touch.
        pairs.append(("C without waveform", expected, runner(accel, a, b, d, table, False)[0]))
    for name, wanted, got in pairs:
        difference = first_difference(wanted, got)
        if difference:
            index, value, had = difference
            return f"{setting}: {name}{list(index)}: expected {value}, got {had}"
    return ""
