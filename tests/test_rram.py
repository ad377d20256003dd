"""The crossbar: integer arithmetic, an oracle of its own, and all backends alike.

`columns` below restates the machine bit by bit without registers or cycles, for cells and
ADCs that are what they are during a whole fold. Faults in time are compared between the
three backends, of which the reference is the specification, and with consequences worked
out by hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fsim import Fault, gemm
from fsim.accel_models.load import load_accel
from fsim.accel_models.rram import schedule
from fsim.errors import FaultError
from fsim.fault_models.explicit import rows_of
from fsim.simulator import reference
from fsim.simulator.crosscheck import random_table
from fsim.simulator.gemm import clean
from fsim.simulator.reference import NO_FAULTS
from fsim.simulator.replay import walk_outputs
from fsim.types import STATE, fault_table
from tests import naive


def crossbar(rows=3, cols=2, *, bits=4, cell=2, adc=0, fraction=0, acc=20):
    return replace(
        load_accel("rram-crossbar"), rows=rows, cols=cols, operand_bits=bits,
        product_bits=2 * bits, acc_bits=acc,
        parameters={"cell_bits": cell, "adc_bits": adc, "fraction_bits": fraction},
    )  # fmt: skip


def operands(rng, accel, m, k, n):
    half = 1 << (accel.operand_bits - 1)
    return (rng.integers(-half, half, (m, k)), rng.integers(-half, half, (k, n)),
            rng.integers(-50, 50, (m, n)))  # fmt: skip


def columns(accel, a, b, d, changed=None):
    """d + a b through cells, currents and ADC codes, as nested loops over Python ints.

    changed  (sign, k, n, slice) -> conductance in units instead of the programmed one
    """
    cell, fraction = accel.parameters["cell_bits"], accel.parameters["fraction_bits"]
    bits, unit = accel.operand_bits, 2 ** accel.parameters["fraction_bits"]
    top = 2 ** accel.parameters["adc_bits"] - 1 if accel.parameters["adc_bits"] else None
    out = [[int(value) for value in row] for row in d]
    for m in range(len(a)):
        for n in range(len(b[0])):
            for k0 in range(0, len(b), accel.rows):
                inputs = range(k0, min(k0 + accel.rows, len(b)))
                for position in range(bits):
                    place = -(2**position) if position == bits - 1 else 2**position
                    for part in range(-(-bits // cell)):
                        for sign in (1, -1):
                            current = 0
                            for k in inputs:
                                if int(a[m][k]) // 2**position % 2:
                                    magnitude = max(sign * int(b[k][n]), 0)
                                    level = magnitude // 2 ** (part * cell) % 2**cell
                                    key = (sign, k, n, part)
                                    current += (changed or {}).get(key, level * unit)
                            code = (current + unit // 2) // unit if fraction else current
                            code = code if top is None else min(code, top)
                            out[m][n] += sign * place * 2 ** (part * cell) * code
            out[m][n] = naive.wrapped(out[m][n], accel.acc_bits)
    return np.array(out)


# Without faults -------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 6)),
    bits=st.integers(2, 8), cell=st.integers(1, 4), fraction=st.integers(0, 3),
    acc=st.sampled_from([16, 19, 32]), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_without_faults_it_is_integer_arithmetic(size, shape, bits, cell, fraction, acc, seed):
    accel = crossbar(*size, bits=bits, cell=cell, fraction=fraction, acc=acc)
    a, b, d = operands(np.random.default_rng(seed), accel, *shape)
    got = reference.run(accel, a, b, d)[0]
    assert_array_equal(got, naive.matmul(a, b, d, acc))
    assert_array_equal(accel.tile.run(accel, a, b, d, NO_FAULTS)[0], got)
    assert accel.plain_limit() is None


def test_the_ends_of_the_operand_range_are_weights_too():
    accel = crossbar(2, 2, bits=8, cell=2, acc=32)
    a, b = np.array([[-128, 127], [127, -128]]), np.array([[-128, 127], [-128, -127]])
    assert_array_equal(gemm(a, b, accel=accel).out, a @ b)
    assert_array_equal(reference.run(accel, a, b)[0], a @ b)


@settings(max_examples=40, deadline=None)
@given(
    adc=st.integers(1, 4), cell=st.integers(1, 3), rows=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_a_narrow_adc_cuts_off(adc, cell, rows, seed):
    accel = crossbar(rows, 2, cell=cell, adc=adc)
    a, b, d = operands(np.random.default_rng(seed), accel, 3, 7, 3)
    expected = columns(accel, a, b, d)
    assert_array_equal(reference.run(accel, a, b, d)[0], expected)
    assert_array_equal(clean(accel, a, b, d), expected)  # what networks without faults get
    if accel.plain_limit() is None:
        assert_array_equal(expected, naive.matmul(a, b, d, accel.acc_bits))


def test_a_narrow_adc_by_hand():
    # Eight rows of weight 1 and input 1: current 8 in one bit line, codes up to 3.
    accel = crossbar(8, 1, cell=2, adc=2)
    a, b = np.ones((1, 8), int), np.ones((8, 1), int)
    assert gemm(a, b, accel=accel).out.tolist() == [[3]]
    assert gemm(a, b, accel=crossbar(8, 1, cell=2)).out.tolist() == [[8]]


# Faults that last -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    cell=st.integers(1, 4), fraction=st.integers(0, 2), adc=st.sampled_from([0, 0, 3]),
    full=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_a_stuck_cell_is_that_cell_in_every_fold(cell, fraction, adc, full, seed):
    accel = crossbar(3, 2, cell=cell, adc=adc, fraction=fraction)
    rng = np.random.default_rng(seed)
    a, b, d = operands(rng, accel, 2, 7, 3)
    sign = int(rng.choice([1, -1]))
    row, col = int(rng.integers(3)), int(rng.integers(2))
    part = int(rng.integers(schedule.slices(accel)))
    mask = schedule.full_level(accel) << fraction
    fault = Fault(
        "g_pos" if sign > 0 else "g_neg", row, col, mask=mask, word=part if cell < 4 else None,
        kind="stuck1" if full else "stuck0",
    )  # fmt: skip
    changed = {
        (sign, k, n, part): mask * full
        for k in range(row, 7, 3) for n in range(col, 3, 2)
    }  # fmt: skip
    expected = columns(accel, a, b, d, changed)
    cycles = accel.schedule.cycles(accel, 2, 7, 3)
    table = fault_table(rows_of([fault], accel, cycles))
    assert_array_equal(reference.run(accel, a, b, d, table)[0], expected)
    assert_array_equal(accel.tile.run(accel, a, b, d, table)[0], expected)
    assert_array_equal(gemm(a, b, d, accel=accel, faults=[fault]).out, expected)


# Faults in time -------------------------------------------------------------------


def all_backends(accel, a, b, d, table):
    """The result, the same of all backends, registers included."""
    expected, waves = reference.run(accel, a, b, d, table, True)
    got, found = accel.tile.run(accel, a, b, d, table, True)
    assert_array_equal(got, expected, str(table.tolist()))
    assert waves.keys() == found.keys()
    for name, values in waves.items():
        assert_array_equal(found[name], values, f"{name} {table.tolist()}")
    golden = clean(accel, a, b, d)
    out = golden.copy()
    touched = walk_outputs(accel, a, b, d, table, out)
    assert_array_equal(out, expected, str(table.tolist()))
    assert touched[expected != golden].all()
    return expected, golden


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"cell": 2}, {"cell": 1, "adc": 1}, {"cell": 3, "fraction": 1}], ids=str
)
def test_every_single_fault(options):
    accel = crossbar(2, 2, bits=3, acc=8, **options)
    a, b, d = operands(np.random.default_rng(3), accel, 2, 3, 3)
    cycles = accel.schedule.cycles(accel, 2, 3, 3)
    visible, component_seen = 0, set()
    for component in accel.components[:8]:
        rows, cols, words = accel.grid(component)
        for place in np.ndindex(rows, cols, words, component.bits):
            row, col, word, bit = place
            where = {"row": row, "col": col, "bit": bit, "word": word if words > 1 else None}
            faults = [Fault(component.name, kind=kind, **where) for kind in ("stuck0", "stuck1")]
            faults += [Fault(component.name, cycle=cycle, **where) for cycle in range(cycles)]
            for fault in faults:
                table = fault_table(rows_of([fault], accel, cycles))
                expected = reference.run(accel, a, b, d, table)[0]
                assert_array_equal(accel.tile.run(accel, a, b, d, table)[0], expected, str(fault))
                golden = clean(accel, a, b, d)
                out = golden.copy()
                walk_outputs(accel, a, b, d, table, out)
                assert_array_equal(out, expected, str(fault))
                if not np.array_equal(expected, golden):
                    visible += 1
                    component_seen.add(component.name)
    assert visible > 500
    assert component_seen == {component.name for component in accel.components[:8]}


@pytest.mark.parametrize("seed", range(120))
def test_several_faults_at_once(seed):
    rng = np.random.default_rng([11, seed])
    accel = crossbar(
        int(rng.integers(1, 5)), int(rng.integers(1, 4)), bits=int(rng.integers(2, 7)),
        cell=int(rng.integers(1, 5)), adc=int(rng.choice([0, 0, 3, 5])),
        fraction=int(rng.choice([0, 0, 2])), acc=int(rng.integers(14, 33)),
    )  # fmt: skip
    a, b, d = operands(rng, accel, *(int(x) for x in rng.integers(1, 6, 3)))
    cycles = accel.schedule.cycles(accel, *a.shape, b.shape[1])
    table = random_table(rng, accel, list(range(8)), cycles, int(rng.integers(1, 6)))
    all_backends(accel, a, b, d, table)


@pytest.mark.parametrize("seed", range(30))
def test_faults_that_meet_in_one_cell(seed):
    """Windows, permanent ones and inversions of the same cell, whose order matters."""
    rng = np.random.default_rng([12, seed])
    accel = crossbar(2, 1, cell=2, fraction=int(rng.integers(2)))
    a, b, d = operands(rng, accel, 2, 3, 1)
    cycles = accel.schedule.cycles(accel, 2, 3, 1)
    table = random_table(rng, accel, [2], cycles, 4)
    table[:, 1:4] = 0  # row, column and slice
    all_backends(accel, a, b, d, table)


def test_an_upset_of_a_cell_ends_when_the_cell_is_programmed_again():
    accel = crossbar(2, 1, bits=4, cell=2)
    a, b = np.ones((1, 4), int), np.zeros((4, 1), int)
    length = schedule.fold_cycles(accel, 1)
    assert length == 2 + 4 + 1
    for cycle in range(2 * length):
        fault = Fault("g_pos", row=0, bit=0, word=0, cycle=cycle)
        out = gemm(a, b, accel=accel, faults=[fault]).out
        # Programmed at edge 0 of each fold; input bit 0 is read by edge 2, S[1] at the latest.
        seen = cycle % length in (0, 1)
        assert out.tolist() == [[1 if seen else 0]], cycle


def test_a_partial_sum_in_memory_is_struck_between_folds():
    accel = crossbar(2, 2, bits=4)
    rng = np.random.default_rng(5)
    a, b, d = operands(rng, accel, 3, 5, 3)
    table = np.zeros((1, 10), np.int64)
    word, fold = 1 * 3 + 2, 1
    table[0] = [accel.component_index("psums"), -1, -1, word, STATE, fold, fold, -1, 0, 0]
    table[0, 7:] = ~8, 16, 4
    expected = naive.matmul(a, b, d, 20)
    total = int(d[1, 2]) + int(a[1, :4] @ b[:4, 2])
    total = ((total & ~8) | 16) ^ 4
    expected[1][2] = naive.wrapped(total + int(a[1, 4] * b[4, 2]), 20)
    out = clean(accel, a, b, d)
    touched = walk_outputs(accel, a, b, d, table, out)
    assert_array_equal(out, expected)
    assert touched[1, 2]


def test_faults_outside_are_refused():
    accel = crossbar(2, 2)
    for place in ({"row": 2}, {"col": 2}, {"word": 2}, {"bit": 2}):
        with pytest.raises(FaultError):
            gemm(np.eye(2, dtype=int), np.eye(2, dtype=int), accel=accel,
                 faults=[Fault("g_pos", kind="stuck1", **({"bit": 0} | place))])  # fmt: skip
    table = np.array([[2, 2, 0, 0, STATE, 0, 0, -1, 0, 1]])
    for run in (reference.run, accel.tile.run):
        with pytest.raises(FaultError, match="inside"):
            run(accel, np.eye(2, dtype=int), np.eye(2, dtype=int), None, table)


def test_the_command_line_says_what_it_is(fsim):
    listed = fsim("accel", "list").stdout
    line = next(line for line in listed.splitlines() if line.startswith("rram-crossbar"))
    assert "not checked against RTL" in line
    shown = fsim("accel", "show", "rram-crossbar", "--gemm", "2,129,33").stdout
    assert "cycles of (2 x 129)(129 x 33): 580" in shown  # 4 folds of 128 + 2 * 8 + 1
    for key in ("cell_bits", "adc_bits", "fraction_bits"):
        assert f"parameters.{key}" in shown
    bad = fsim("accel", "show", "rram-crossbar", "--set", "parameters.cell_bits=5")
    assert bad.exit_code == 2 and "1..4" in bad.stderr


def test_a_word_can_be_named_at_the_command_line(fsim, tmp_path):
    a, b = np.array([[1, 2, -3]]), np.array([[5], [-7], [6]])
    for name, value in (("a", a), ("b", b)):
        np.save(tmp_path / f"{name}.npy", value)
    fault = "component=g_neg,row=1,col=0,word=1,mask=3,kind=stuck1"
    done = fsim("gemm", "--accel", "rram-crossbar", "--set", "rows=3", "--set", "cols=1",
                "--a", tmp_path / "a.npy", "--b", tmp_path / "b.npy", "--out", tmp_path / "c.npy",
                "--waveform", tmp_path / "w.npz", "--fault", fault)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    # -7 is 3 + 1 * 4: the stuck slice makes it -(3 + 3 * 4), two codes of 4 more.
    assert np.load(tmp_path / "c.npy").tolist() == [[5 - 14 - 18 - 2 * 8]]
    with np.load(tmp_path / "w.npz") as waves:
        cells = waves["g_neg"]
    assert cells.shape == (3 + 8 + 1, 3, 1, 4)
    assert cells[-1, :, 0].tolist() == [[0] * 4, [3, 3, 0, 0], [0] * 4]
