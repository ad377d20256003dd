"""`make verify-rtl`: the project's own RTL, in an RTL simulator, against fsim's backends.

For each design random products on random arrays are run with random single faults: flips,
stuck bits, intermittent ones, of every register and of the product net. The RTL's results must
be those of the reference, tile and replay backends, and each of its registers in each cycle
that of the waveforms of the first two. Exit code 1 on a difference, 2 without a simulator.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.simulator.runners import RUNNERS
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

from .simulators import Build, SimulatorError, build, choose, version
from .stimulus import Design, cycles, fault_word, read_run, stimulus

DEPTH = {"os": 9, "ws": 48}
"""Folds (os) and accumulator words a column (ws) that a design keeps results of."""


def design(dataflow: str, rows: int, cols: int, *bits: int, saturate: bool = False) -> Design:
    """A design whose widths are those of operands, products and sums."""
    return Design(dataflow, rows, cols, *bits, saturate=saturate, depth=DEPTH[dataflow])


DESIGNS = {
    "os-4x4": design("os", 4, 4, 8, 16, 32),
    "os-3x5-saturating": design("os", 3, 5, 6, 12, 14, saturate=True),
    "os-1x3-narrow": design("os", 1, 3, 4, 7, 8),
    "os-8x8": design("os", 8, 8, 8, 16, 32),
    "ws-4x4": design("ws", 4, 4, 8, 16, 32),
    "ws-5x3-saturating": design("ws", 5, 3, 6, 12, 14, saturate=True),
    "ws-2x1-narrow": design("ws", 2, 1, 5, 9, 11),
    "ws-8x8": design("ws", 8, 8, 8, 16, 32),
}
"""Arrays with and without corners of their own; sums that wrap, saturate and overflow; products
cut short. Each weight-stationary one runs transposed products as well: input stationary."""

KINDS = ("flip", "stuck at 0", "stuck at 1", "intermittent stuck", "intermittent flip")
BACKENDS = ("reference", "tile", "replay")


@dataclass
class Tally:
    """What was compared.

    faults     (component, kind) -> runs with such a fault
    values     registers x cycles compared with the reference
    changed    runs whose result a fault changed
    different  runs in which something differs; first: the first difference, in words
    """

    faults: Counter = field(default_factory=Counter)
    values: int = 0
    changed: int = 0
    different: int = 0
    first: str = ""

    @property
    def runs(self) -> int:
        return self.faults.total()

    def add(self, other: Tally) -> None:
        self.faults += other.faults
        self.values += other.values
        self.changed += other.changed
        self.different += other.different
        self.first = self.first or other.first


def machine(design: Design, dataflow: str) -> Accel:
    """fsim's description of a design that runs `dataflow`."""
    return Accel(
        name="systolic",
        family="systolic",
        dataflow=dataflow,
        dataflows=(dataflow,),
        rows=design.rows,
        cols=design.cols,
        operand_bits=design.operand_bits,
        product_bits=design.product_bits,
        acc_bits=design.acc_bits,
        overflow="saturate" if design.saturate else "wrap",
    )


def registers(dataflow: str) -> dict[str, str]:
    """Register of the RTL -> its name in fsim, which is that of the tensor it holds."""
    moving, resident = ("filter", "ifmap") if dataflow == "is" else ("ifmap", "filter")
    return {"moving": moving, "resident": resident, "psum": "psum"}


def random_operands(rng, design: Design, dataflow: str):
    """a, b, d over their whole range: a whole tile, padded ones, several folds."""
    rows, cols = design.rows, design.cols
    limit = 2 * max(rows, cols) + 2
    while True:
        m, k, n = (int(x) for x in rng.integers(1, limit + 1, 3))
        if dataflow == "os":
            kept = -(-m // rows) * -(-n // cols)
        else:  # accumulator words: rows of the streamed operand for each group of columns
            streamed, groups = (n, -(-m // cols)) if dataflow == "is" else (m, -(-n // cols))
            kept = streamed * groups
        if kept <= design.depth:
            break
    top, limit = 1 << (design.operand_bits - 1), 1 << (design.acc_bits - 1)
    a, b = rng.integers(-top, top, (m, k)), rng.integers(-top, top, (k, n))
    return a, b, rng.integers(-limit, limit, (m, n))


def random_fault(rng, accel: Accel, number: int, count: int) -> tuple[np.ndarray, str, str]:
    """(table row, component, kind) of the number-th fault of a product of `count` cycles.

    Components and kinds take turns, so that all combinations come up.
    """
    names = ("ifmap", "filter", "psum", "mul")
    name = names[number % len(names)]
    kind = KINDS[number // len(names) % len(KINDS)]
    if name == "mul" and kind == "flip":
        kind = "intermittent flip"  # a net stores nothing
    bits = accel.components[accel.component_index(name)].bits
    mask = 1 << int(rng.integers(bits))
    if rng.integers(4) == 0:
        mask |= 1 << int(rng.integers(bits))
    first, last = sorted(int(x) for x in rng.integers(0, count, 2))
    effect, and_, or_, xor = LEVEL, -1, 0, 0
    if kind == "flip":
        effect, last, xor = STATE, first, mask
    elif kind == "intermittent flip":
        xor = mask
    elif kind == "stuck at 0" or (kind == "intermittent stuck" and rng.integers(2)):
        and_ = ~mask
    else:
        or_ = mask
    if kind.startswith("stuck"):
        first, last = -1, FOREVER
    row = np.empty(10, np.int64)
    row[T_COMPONENT] = accel.component_index(name)
    row[T_ROW], row[T_COL], row[T_WORD] = rng.integers(accel.rows), rng.integers(accel.cols), -1
    row[T_EFFECT], row[T_FIRST], row[T_LAST] = effect, first, last
    row[T_AND], row[T_OR], row[T_XOR] = and_, or_, xor
    return row, name, kind


def rtl_fault(row: np.ndarray, accel: Accel) -> str:
    """A row of the fault table on the port of the RTL."""
    name = accel.components[int(row[T_COMPONENT])].name
    sites = [*registers(accel.dataflow).values(), "mul"]
    return fault_word(
        sites.index(name), int(row[T_ROW]), int(row[T_COL]), level=row[T_EFFECT] == LEVEL,
        first=int(row[T_FIRST]), last=int(row[T_LAST]),
        masks=(int(row[T_AND]), int(row[T_OR]), int(row[T_XOR])),
    )  # fmt: skip


def verify(built: Build, dataflow: str, rng, products: int, faults: int) -> Tally:
    """Random products, each with and without `faults` single faults, in the RTL and in fsim."""
    tally, accel = Tally(), machine(built.design, dataflow)
    for _ in range(products):
        a, b, d = random_operands(rng, built.design, dataflow)
        flow = (b.T, a.T, d.T) if dataflow == "is" else (a, b, d)
        (m, k), n = flow[0].shape, flow[1].shape[1]
        count = cycles(built.design, m, k, n)
        drawn = [random_fault(rng, accel, i + tally.runs, count) for i in range(faults)]
        words = [fault_word(present=False)] + [rtl_fault(row, accel) for row, _, _ in drawn]
        runs = built.run(stimulus(built.design, *flow), words)
        tables = [np.empty((0, 10), np.int64)] + [row[np.newaxis] for row, _, _ in drawn]
        tally.faults.update((name, kind) for _, name, kind in drawn)
        clean = None
        for table, lines in zip(tables, runs):
            out, waves = read_run(built.design, lines, m, n, count)
            names = registers(dataflow)
            rtl = {"out": out.T if dataflow == "is" else out}
            rtl |= {names[name]: wave for name, wave in waves.items()}
            clean = rtl["out"] if clean is None else clean
            tally.changed += not np.array_equal(rtl["out"], clean)
            tally.values += sum(wave.size for wave in waves.values())
            found = difference(accel, a, b, d, table, rtl)
            tally.different += bool(found)
            tally.first = tally.first or found
    return tally


def difference(accel: Accel, a, b, d, table: np.ndarray, rtl: dict[str, np.ndarray]) -> str:
    """The first thing in which fsim differs from the RTL, in words; "" if nothing does.

    rtl  "out" -> (m, n), register -> (cycles, rows, cols)
    """
    for backend in BACKENDS:
        out, waves = RUNNERS[backend](accel, a, b, d, table, backend != "replay")
        found = []  # (cycle, words): the earliest cycle tells most
        for name in registers(accel.dataflow).values() if waves is not None else ():
            wrong = np.argwhere(rtl[name] != waves[name])
            if len(wrong):
                t, i, j = (int(x) for x in wrong[0])
                values = f"RTL {rtl[name][t, i, j]}, {backend} {waves[name][t, i, j]}"
                found.append((t, f"cycle {t}, {name} of PE ({i}, {j}): {values}"))
        wrong = np.argwhere(rtl["out"] != out)
        if len(wrong):
            i, j = (int(x) for x in wrong[0])
            values = f"RTL {rtl['out'][i, j]}, {backend} {out[i, j]}"
            found.append((FOREVER, f"result [{i}, {j}]: {values}"))
        if found:
            shape = f"m, k, n = {a.shape[0]}, {a.shape[1]}, {b.shape[1]}"
            return f"{min(found)[1]} ({accel.dataflow}, {shape}, faults {table.tolist()})"
    return ""


def verify_design(
    simulator: str, design: Design, seed: int, products: int, faults: int
) -> dict[str, Tally]:
    """Dataflow -> tally of one design."""
    with tempfile.TemporaryDirectory(prefix="fsim-rtl-") as folder:
        built = build(simulator, design, Path(folder) / "build")
        tallies = {}
        for dataflow in ("os",) if design.dataflow == "os" else ("ws", "is"):
            rng = np.random.default_rng([seed, design.rows, design.cols, len(tallies)])
            tallies[dataflow] = verify(built, dataflow, rng, products, faults)
    return tallies


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.rtl.verify_rtl", description=__doc__.split("\n")[0]
    )
    add = made.add_argument
    add("designs", metavar="DESIGN", nargs="*", help=f"of {', '.join(DESIGNS)}; default: all")
    add("--simulator", default=os.environ.get("RTL_SIM", ""), metavar="NAME",
        help="verilator or icarus (default: RTL_SIM, or the one installed)")  # fmt: skip
    add("--products", type=int, default=2, metavar="N", help="for each design and dataflow")
    add("--faults", type=int, default=20, metavar="N", help="for each product")
    add("--seed", type=int, default=0, metavar="N")
    add("--mutant", type=int, default=0, metavar="N", choices=(0, 1, 2),
        help="1 or 2: RTL that is wrong on purpose; differences are then expected")  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; 0 if all is equal, 1 on a difference, 2 if nothing could be run."""
    given = parser().parse_args(arguments)
    unknown = sorted(set(given.designs) - set(DESIGNS))
    if unknown:
        print(f"Error: a design must be one of {', '.join(DESIGNS)}, got {', '.join(unknown)}",
              file=sys.stderr)  # fmt: skip
        return 2
    total, start = Tally(), time.perf_counter()
    try:
        simulator = choose(given.simulator)
        print(f"{version(simulator)}: results against {', '.join(BACKENDS)}; "
              "registers by cycle against reference, tile")  # fmt: skip
        print(f"{'design':<20} flow  faults  changed  register values  different")
        for name in given.designs or DESIGNS:
            changed = replace(DESIGNS[name], mutant=given.mutant)
            flows = verify_design(simulator, changed, given.seed, given.products, given.faults)
            for flow, tally in flows.items():
                total.add(tally)
                print(f"{name:<20} {flow:<4} {tally.runs:>7} {tally.changed:>8} "
                      f"{tally.values:>16,} {tally.different:>10}", flush=True)  # fmt: skip
    except SimulatorError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    for component in ("ifmap", "filter", "psum", "mul"):
        counts = ", ".join(
            f"{total.faults[component, kind]} {kind}"
            for kind in KINDS
            if total.faults[component, kind]
        )
        print(f"{component:<7} {counts}")
    print(f"{total.runs} faults, {total.changed} changed the result, {total.values:,} register "
          f"values, {total.different} different; {time.perf_counter() - start:.1f} s")  # fmt: skip
    if total.different:
        print(f"first difference: {total.first}")
    return 1 if total.different else 0


if __name__ == "__main__":
    sys.exit(main())
