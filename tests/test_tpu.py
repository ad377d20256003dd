"""`tpu-v1-like`: what its documents say, and replay = tile = reference.

The reference is compared with sums written out here from the text of the machine alone:
when a word stands in which register, and which products read it there.
"""

from __future__ import annotations

import numpy as np
import pytest

from fsim import Fault, gemm
from fsim.accel_models.load import load_accel
from fsim.fault_models.explicit import rows_of
from fsim.simulator.batch import Batch
from fsim.simulator.crosscheck import random_table
from fsim.simulator.replay import walk_outputs
from fsim.types import fault_table
from tests.naive import wrapped
from tests.test_engine import (
    Sums,
    by_cycles,
    compare,
    machine_of,
    network,
    place,
    random_register_rows,
    random_rows,
)

NARROW = {"operand_bits": 4, "product_bits": 8, "acc_bits": 12}
# (rows, cols, m, k, n): more rows of A than of PEs and fewer, tiles that are not full.
CASES = [(2, 2, 5, 5, 3), (3, 2, 2, 4, 3), (1, 3, 4, 2, 4), (3, 1, 1, 7, 2)]


def machine(rows, cols, **overrides):
    return load_accel("tpu-v1-like", None, {"rows": rows, "cols": cols, **overrides})


def operands(accel, m, k, n, seed=7):
    rng = np.random.default_rng(seed)
    half = 1 << (accel.operand_bits - 1)
    a, b = rng.integers(-half, half, (m, k)), rng.integers(-half, half, (k, n))
    return a, b, rng.integers(-20, 20, (m, n))


def flips(accel, cycles):
    for component in accel.components:
        if component.kind == "memory":
            continue
        for row in range(accel.rows):
            for col in range(accel.cols):
                for bit in range(component.bits):
                    for cycle in range(cycles):
                        yield Fault(component.name, row, col, bit, cycle=cycle)


def stuck(accel):
    for component in accel.components:
        if component.kind == "memory":
            continue
        for row in range(accel.rows):
            for col in range(accel.cols):
                for bit in range(component.bits):
                    for kind in ("stuck0", "stuck1"):
                        yield Fault(component.name, row, col, bit, kind=kind)


# The text of the machine, restated ------------------------------------------------------


def flipped(value, bit, bits):
    return wrapped(value ^ (1 << bit), bits)


def restated(accel, a, b, d, fault):
    """Sums under one flip, from the cycles in which each word stands in each register.

    Tile p starts in cycle rows + p max(m, rows). Row r of its activations is in PE (i, j)
    after edge start + r + i + j, and the next edge adds its product. A weight enters row 0
    of column j with edge load + j + (rows - 1 - i), goes down a row a cycle, rests in its
    row's shadow register and is copied by edge start + i + j; the load of the first tile
    begins in cycle 0, that of each other one with the start of the tile before.
    """
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    step, bits, t = max(m, rows), accel.operand_bits, fault.cycle
    tiles = [(n0, k0) for n0 in range(0, n, cols) for k0 in range(0, k, rows)]
    out = [[int(v) for v in row] for row in d]
    for p, (n0, k0) in enumerate(tiles):
        start = rows + p * step
        load = 0 if p == 0 else start - step
        for j in range(min(cols, n - n0)):
            for r in range(m):
                total = 0
                for i in range(rows):
                    real = k0 + i < k
                    x = int(a[r, k0 + i]) if real else 0
                    w = int(b[k0 + i, n0 + j]) if real else 0
                    seen = start + r + i
                    if fault.component == "act" and fault.row == i and fault.col <= j:
                        if t == seen + fault.col:
                            x = flipped(x, fault.bit, bits)
                    if fault.col == j and fault.component == "w_shadow" and fault.row <= i:
                        there = load + j + rows - 1 - i + fault.row
                        gone = start + i + j if fault.row == i else there + 1
                        if there <= t < gone:
                            w = flipped(w, fault.bit, bits)
                    if fault.col == j and fault.row == i:
                        if fault.component == "w_active" and start + i + j <= t <= seen + j:
                            w = flipped(w, fault.bit, bits)
                        product = x * w
                        if fault.component == "mul" and t == seen + j + 1:
                            product = flipped(product, fault.bit, accel.product_bits)
                        total = wrapped(total + product, accel.acc_bits)
                        if fault.component == "psum" and t == seen + j + 1:
                            total = flipped(total, fault.bit, accel.acc_bits)
                    else:
                        total = wrapped(total + x * w, accel.acc_bits)
                out[r][n0 + j] = wrapped(out[r][n0 + j] + total, accel.acc_bits)
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_the_text(case):
    rows, cols, m, k, n = case
    accel = machine(rows, cols)
    a, b, d = operands(accel, m, k, n)
    cycles = accel.schedule.cycles(accel, m, k, n)
    clean, seen = (a @ b + d).tolist(), set()
    for fault in flips(accel, cycles):
        if fault.bit not in (2, 6):
            continue
        expected = restated(accel, a, b, d, fault)
        table = fault_table(rows_of([fault], accel, cycles))
        assert accel.cycle.run(accel, a, b, d, table)[0].tolist() == expected, fault
        if expected != clean:
            seen.add(fault.component)
    assert len(seen) == 5


def test_cycles_are_those_of_the_last_sum():
    """The waveform ends with the sum of the last row in the last column."""
    for rows, cols, m, k, n in CASES:
        accel = machine(rows, cols)
        a, b, d = operands(accel, m, k, n)
        cycles = accel.schedule.cycles(accel, m, k, n)
        _, waves = accel.cycle.run(accel, a, b, d, np.zeros((0, 10), np.int64), True)
        assert {len(wave) for wave in waves.values()} == {cycles}
        tail = (k - 1) // rows * rows
        last = int(a[-1, tail:] @ b[tail:, -1]) if n % cols == 0 else 0
        assert waves["out"][-1, -1] == last


@pytest.mark.parametrize("m", [3, 4, 9])
def test_double_buffering_hides_all_loads_but_the_first(m):
    accel = machine(4, 4)
    one, many = (accel.schedule.cycles(accel, m, 4 * tiles, 4) for tiles in (1, 11))
    assert many - one == 10 * max(m, 4)
    assert one == 4 + m + 4 + 4 - 1


def test_a_shadow_weight_strikes_the_next_tile_alone():
    accel = machine(2, 2)
    a, b, d = operands(accel, 6, 6, 2)
    cycles = accel.schedule.cycles(accel, 6, 6, 2)
    # Tile 1 starts in cycle 8: after edge 10 its weights are copied, tile 2's are loaded.
    fault = Fault("w_shadow", 1, 1, 3, cycle=12)
    table = fault_table(rows_of([fault], accel, cycles))
    wrong = accel.cycle.run(accel, a, b, d, table)[0] - (a @ b + d)
    change = flipped(int(b[5, 1]), 3, 8) - int(b[5, 1])
    np.testing.assert_array_equal(wrong[:, 1], a[:, 5] * change)
    assert not wrong[:, 0].any() and wrong.any()


# Replay = tile = reference --------------------------------------------------------------


def check(accel, a, b, d, table, golden):
    expected = accel.cycle.run(accel, a, b, d, table)[0]
    np.testing.assert_array_equal(accel.tile.run(accel, a, b, d, table)[0], expected)
    out = golden.copy()
    touched = walk_outputs(accel, a, b, d, table, out)
    np.testing.assert_array_equal(out, expected)
    assert touched[out != golden].all()
    return (expected != golden).any()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_single_fault(case):
    rows, cols, m, k, n = case
    accel = machine(rows, cols, **NARROW)
    a, b, d = operands(accel, m, k, n)
    cycles = accel.schedule.cycles(accel, m, k, n)
    golden = gemm(a, b, d, accel=accel).out
    visible = 0
    for fault in [*flips(accel, cycles), *stuck(accel)]:
        visible += check(accel, a, b, d, fault_table(rows_of([fault], accel, cycles)), golden)
    assert visible > 200


def test_several_faults_on_larger_arrays():
    rng = np.random.default_rng(3)
    visible = 0
    for _ in range(150):
        accel = machine(int(rng.integers(1, 9)), int(rng.integers(1, 9)))
        m, k, n = (int(x) for x in rng.integers(1, 24, 3))
        a, b, d = operands(accel, m, k, n, int(rng.integers(1 << 30)))
        cycles = accel.schedule.cycles(accel, m, k, n)
        parts = [i for i, c in enumerate(accel.components) if c.kind != "memory"]
        table = random_table(rng, accel, parts, cycles, int(rng.integers(1, 7)))
        if rng.integers(2):  # on one place, so that faults meet
            table[:, 1], table[:, 2] = table[0, 1], table[0, 2]
        visible += check(accel, a, b, d, table, gemm(a, b, d, accel=accel).out)
    assert visible > 60


def test_waveforms_of_the_compiled_simulation():
    rng = np.random.default_rng(4)
    for rows, cols, m, k, n in [*CASES, (4, 5, 9, 11, 7)]:
        accel = machine(rows, cols)
        a, b, d = operands(accel, m, k, n)
        cycles = accel.schedule.cycles(accel, m, k, n)
        table = random_table(rng, accel, [0, 1, 2, 3, 4], cycles, 4)
        out, waves = accel.cycle.run(accel, a, b, d, table, True)
        got, registers = accel.tile.run(accel, a, b, d, table, True)
        np.testing.assert_array_equal(got, out)
        assert set(registers) == set(waves)
        for name, wave in waves.items():
            np.testing.assert_array_equal(registers[name], wave, name)


def test_a_replay_that_is_off_by_a_cycle_or_a_register_does_not_pass():
    accel = machine(3, 3)
    a, b, d = operands(accel, 5, 8, 5)
    cycles = accel.schedule.cycles(accel, 5, 8, 5)
    golden = gemm(a, b, d, accel=accel).out
    caught = {"cycle": 0, "register": 0}
    for name in ("act", "w_shadow", "w_active", "psum", "mul"):
        for cycle in range(cycles - 1):
            rows = rows_of([Fault(name, 1, 1, 3, cycle=cycle)], accel, cycles)
            expected = accel.cycle.run(accel, a, b, d, fault_table(rows))[0]
            for kind in caught:
                mutant = rows.copy()
                if kind == "cycle":
                    mutant["first"] += 1
                    mutant["last"] += 1
                elif name.startswith("w_"):
                    mutant["component"] = 3 - mutant["component"]
                out = golden.copy()
                walk_outputs(accel, a, b, d, fault_table(mutant), out)
                caught[kind] += not np.array_equal(out, expected)
    assert caught["cycle"] > 20 and caught["register"] > 20, caught


def test_unsigned_activations_flip_as_unsigned_words():
    a, b = np.array([[200], [3]], np.uint8), np.array([[3]])
    for backend in ("reference", "tile", "replay"):
        fault = Fault("act", bit=7, cycle=1)  # the only tile starts in cycle 1
        result = gemm(a, b, accel="tpu-v1-like", rows=1, cols=1, faults=[fault], backend=backend)
        assert result.out.tolist() == [[72 * 3], [9]], backend


# Networks -------------------------------------------------------------------------------


def test_wrong_stored_words_of_a_network():
    program, codes = network()
    placement = place(program, "tpu-v1-like")
    rng = np.random.default_rng(1)
    for count in (3, 60):
        rows, slot = random_rows(placement, rng, count, kinds=("flip", "stuck0", "stuck1"))
        compare(placement, machine_of(placement), codes, rows, slot, differs=count > 3)


def test_register_faults_of_a_network_are_those_of_the_reference():
    from fsim.simulator import program as P
    from fsim.simulator.batch import no_faults

    program, codes = network()
    placement = place(program, "tpu-v1-like")
    rng = np.random.default_rng(23)
    changed = 0
    for layer in (1, 4, 7):
        clean = Sums(layer, placement, no_faults())
        P.run(program, codes, hooks=clean)
        rows = random_register_rows(placement, layer, rng, 12)
        slot = rng.integers(-1, 2, 12)
        hooks = Sums(layer, placement, Batch(rows, slot))
        P.run(program, codes, hooks=hooks)
        for image in range(2):
            mine = rows[(slot == -1) | (slot == image)]
            want = by_cycles(placement, layer, hooks.inputs[0][image], mine)
            np.testing.assert_array_equal(hooks.final[image].reshape(want.shape), want)
            changed += (want != clean.final[image].reshape(want.shape)).any()
    assert changed > 1


def test_the_command_line_knows_the_machine(fsim):
    shown = fsim("accel", "show", "tpu-v1-like", "--gemm", "300,512,256").stdout
    assert "not checked against RTL" in shown
    assert "65536" in shown  # shadow weights of 256 x 256 PEs
    assert f": {256 + 300 + 300 + 256 + 256 - 1}" in shown
    small = ("--set", "rows=8", "--set", "cols=8", "--images", "8")
    for faults in (["--seu-rate", "1e-6"], ["--fault", "stuck1"], ["--ber", "1e-4"]):
        result = fsim("inject", "--accel", "tpu-v1-like", *small, *faults)
        assert result.exit_code == 0, result.stderr
