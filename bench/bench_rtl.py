"""Injections against RTL: one register fault in a 16 x 16 output-stationary tile, k = 16.

What stands beside fsim is a compiled loop around the project's own array in SystemVerilog
(tests/rtl), Verilated without the fault port at -O3 -march=native: reset, run the tile's 46
cycles, flip one bit of one register on the way, compare the result. Registers, PEs, bits and
cycles are drawn uniformly; all three get the same faults and must count the same changed
outputs. One thread each, operands in memory.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.simulator.each import gemm_each
from fsim.simulator.gemm import clean, gemm
from fsim.simulator.runners import table_rows
from fsim.types import STATE
from tests.rtl.simulators import FOLDER, MISSING, SimulatorError, installed, verilate

from .figures import HIGHER, Figure
from .timing import seconds

SIZE = 16
ROUNDS, QUICK_ROUNDS = 7, 2
FAULTS = 200_000
"""Injections a round of replay; the others get the first of them."""
FEW = {"rtl": 4_000, "tile": 100_000, "calls": 400}
REGISTERS = ("ifmap", "filter", "psum")
SOURCE = "injections against the project's own RTL"
NOTES = (
    "Bound: a flip of a psum needs the sum up to its cycle, at most 16 multiply-adds; one of an "
    "operand, one product in each of at most 16 outputs; and 54% of these faults strike a value "
    "that nobody reads any more. That is a few nanoseconds. The RTL evaluates 256 PEs in 47 "
    "cycles, 12,032 PE-cycles.",
)


def machine() -> Accel:
    """The array, as its RTL is compiled."""
    return Accel(
        name="systolic", family="systolic", dataflow="os", dataflows=("os",), rows=SIZE, cols=SIZE
    )


def operands():
    """Seeded int8 codes as int64 and no bias."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (2, SIZE, SIZE))
    return a, b, np.zeros((SIZE, SIZE), np.int64)


def draw(count: int) -> np.ndarray:
    """(count, 5) int64: register, row, col, bit, cycle, uniform over registers, then bits."""
    rng = np.random.default_rng(1)
    cycles = machine().schedule.cycles(machine(), SIZE, SIZE, SIZE)
    faults = np.empty((count, 5), np.int64)
    faults[:, 0] = rng.integers(len(REGISTERS), size=count)
    faults[:, 1:3] = rng.integers(SIZE, size=(count, 2))
    faults[:, 3] = rng.integers(0, np.where(faults[:, 0] == 2, 32, 8))
    faults[:, 4] = rng.integers(cycles, size=count)
    return faults


def table(faults: np.ndarray) -> np.ndarray:
    """The same as fsim's fault table."""
    accel = machine()
    component = np.array([accel.component_index(name) for name in REGISTERS])
    rows = np.zeros((len(faults), 10), np.int64)
    rows[:, 0] = component[faults[:, 0]]
    rows[:, 1:3] = faults[:, 1:3]
    rows[:, 3], rows[:, 4], rows[:, 7] = -1, STATE, -1
    rows[:, 5] = rows[:, 6] = faults[:, 4]
    rows[:, 9] = np.int64(1) << faults[:, 3]
    return rows


class Rtl:
    """The compiled loop, in a temporary folder."""

    def __init__(self, folder: Path, faults: np.ndarray):
        sources = [FOLDER / name for name in ("os_array.sv", "pe_os.sv")]
        sizes = [f"-GROWS={SIZE}", f"-GCOLS={SIZE}", "-GVERIFY=0"]
        flags = ("-O3", "-march=native")
        self.program = verilate("os_array", sources, sizes, FOLDER / "speed.cpp", folder, flags)
        self.files = [folder / name for name in ("tile.txt", "faults.txt", "out.txt")]
        a, b, _ = operands()
        numbers = [SIZE, SIZE, SIZE, *a.ravel().tolist(), *b.ravel().tolist()]
        self.files[0].write_text(" ".join(map(str, numbers)))
        lines = [" ".join(map(str, row)) for row in faults.tolist()]
        self.files[1].write_text("\n".join([str(len(faults)), *lines]))

    def round(self) -> float:
        """Seconds for all faults once."""
        tile, faults, out = self.files
        done = subprocess.run(
            [self.program, tile, faults, "1", out], capture_output=True, text=True
        )
        if done.returncode:
            raise SimulatorError(f"the compiled loop failed: {done.stderr.strip()}")
        return float(done.stdout)

    def changed(self) -> np.ndarray:
        """(f, 2) int64: outputs each fault changed, and their weighted sum of differences."""
        return np.loadtxt(self.files[2], np.int64, ndmin=2)


def effects(found, golden: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) of `Rtl.changed` from what `gemm_each` returned."""
    run, output, value = found
    effect = np.zeros((count, 2), np.int64)
    np.add.at(effect[:, 0], run, 1)
    np.add.at(effect[:, 1], run, (output + 1) * (value - golden.ravel()[output]))
    return effect


def main(quick: bool = False) -> list[Figure]:
    """Rounds of all three in turn, after they were seen to agree."""
    accel, (a, b, d) = machine(), operands()
    golden = clean(accel, a, b, d)
    faults = draw(FAULTS)
    tables = table(faults)
    rows = table_rows(tables)

    def replayed():
        return gemm_each(a, b, d, accel=accel, faults=tables)

    def simulated():
        return gemm_each(a, b, d, accel=accel, faults=tables[: FEW["tile"]], backend="tile")

    found = replayed()
    effect = effects(found, golden, len(faults))
    if not np.array_equal(effects(simulated(), golden, FEW["tile"]), effect[: FEW["tile"]]):
        raise AssertionError("tile and replay differ")
    for number, one in enumerate(tables[: FEW["calls"]]):
        out = accel.tile.run(accel, a, b, d, one[np.newaxis], clean=golden)[0]
        if np.count_nonzero(out != golden) != effect[number, 0]:
            raise AssertionError(f"tile and replay differ in fault {one.tolist()}")
    with tempfile.TemporaryDirectory(prefix="fsim-rtl-") as folder:
        rtl = None
        if "verilator" in installed():
            rtl = Rtl(Path(folder) / "build", faults[: FEW["rtl"]])
            rtl.round()
            if not np.array_equal(rtl.changed(), effect[: FEW["rtl"]]):
                raise AssertionError("the RTL and replay differ")
        taken = {"replay": [], "tile": [], "rtl": [], "single": []}
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            taken["replay"].append(FAULTS / seconds(replayed))
            taken["tile"].append(FEW["tile"] / seconds(simulated))
            taken["single"].append(
                100
                / seconds(
                    lambda: [
                        gemm(a, b, d, accel=accel, faults=rows[i : i + 1], backend="replay")
                        for i in range(100)
                    ]
                )
            )
            if rtl:
                taken["rtl"].append(FEW["rtl"] / rtl.round())
    against = {"against": "Verilated RTL", "others": taken["rtl"]} if rtl else {}
    missing = "" if rtl else f"nothing to compare with: {MISSING}"
    limits = [{"floor": low, "aim": high, "source": SOURCE} if rtl else {} for low, high in
              ((100, 1000), (10, 100))]  # fmt: skip
    return [
        Figure("injections, replay, one call for all", taken["replay"], "/s", HIGHER,
               note=missing, **against, **limits[0]),
        Figure("injections, tile simulation, one call for all", taken["tile"], "/s", HIGHER,
               note=missing, **against, **limits[1]),
        Figure("injections, replay, gemm called for each", taken["single"], "/s", HIGHER),
    ]  # fmt: skip


if __name__ == "__main__":
    from .figures import table as printed

    print(printed(main()))
