"""Replay = tile = reference: every single fault of small arrays, several faults on larger ones.

The exhaustive machines have narrow words (4-bit operands, 8-bit products, 12-bit
sums), so that every bit of every register in every cycle is within reach; full
widths are covered by the RTL vectors and by the random tests below.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsim import Fault, FaultError, gemm
from fsim.accel_models.load import load_accel
from fsim.accel_models.plan import S_EVEN, S_ODD, Plan
from fsim.fault_models.explicit import rows_of
from fsim.simulator.replay import walk_outputs
from fsim.types import FAULT, fault_table

MACHINES = [
    ("systolic", "ws"),
    ("systolic", "os"),
    ("systolic", "is"),
    ("gemmini-like", "os"),
    ("gemmini-like", "ws"),
    ("pipelined-systolic", "os"),
    ("pipelined-systolic", "ws"),
]
NARROW = {"operand_bits": 4, "product_bits": 8, "acc_bits": 12}
# (rows, cols, m, k, n): sizes that are no multiples; odd and even numbers of tiles and folds.
CASES = [(2, 2, 3, 3, 3), (2, 2, 3, 5, 1), (3, 2, 4, 4, 3)]


def operands(accel, m, k, n, seed):
    rng = np.random.default_rng(seed)
    half = 1 << (accel.operand_bits - 1)
    a = rng.integers(-half, half, (m, k))
    b = rng.integers(-half, half, (k, n))
    return a, b, rng.integers(-20, 20, (m, n))


def every_fault(accel, cycles):
    for component in accel.components:
        if component.kind == "memory":
            continue
        for row in range(accel.rows):
            for col in range(accel.cols):
                for bit in range(component.bits):
                    where = {"row": row, "col": col, "bit": bit}
                    yield component, Fault(component.name, kind="stuck0", **where)
                    yield component, Fault(component.name, kind="stuck1", **where)
                    for cycle in range(cycles):
                        yield component, Fault(component.name, cycle=cycle, **where)


def replayed(accel, a, b, d, table, golden):
    out = golden.copy()
    walk_outputs(accel, a, b, d, table, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("name", "dataflow"), MACHINES)
def test_every_single_fault_replay_equals_tile_equals_reference(name, dataflow, case):
    rows, cols, m, k, n = case
    accel = load_accel(name, dataflow, {"rows": rows, "cols": cols, **NARROW})
    a, b, d = operands(accel, m, k, n, 7)
    cycles = accel.schedule.cycles(accel, m, k, n)
    golden = gemm(a, b, d, accel=accel).out
    visible = 0
    for component, fault in every_fault(accel, cycles):
        table = fault_table(rows_of([fault], accel, cycles))
        expected = accel.cycle.run(accel, a, b, d, table)[0]
        got = accel.tile.run(accel, a, b, d, table)[0]
        np.testing.assert_array_equal(got, expected, str(fault))
        if "replay" in component.backends:
            got = replayed(accel, a, b, d, table, golden)
            np.testing.assert_array_equal(got, expected, str(fault))
        visible += not np.array_equal(expected, golden)
    assert visible > 100


@st.composite
def machines_and_faults(draw):
    name, dataflow = draw(st.sampled_from(MACHINES))
    rows, cols = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    if name == "gemmini-like":
        cols = rows
    overrides = {"rows": rows, "cols": cols}
    if name == "systolic" and draw(st.booleans()):
        overrides |= {"acc_bits": 17, "overflow": draw(st.sampled_from(["wrap", "saturate"]))}
    accel = load_accel(name, dataflow, overrides)
    m, k, n = (draw(st.integers(1, 20)) for _ in range(3))
    cycles = accel.schedule.cycles(accel, m, k, n)
    served = [c for c in accel.components if "replay" in c.backends]
    faults = []
    # Two places only, so that faults meet on one register.
    places = [(draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))) for _ in range(2)]
    for _ in range(draw(st.integers(1, 5))):
        component = draw(st.sampled_from(served))
        row, col = draw(st.sampled_from(places))
        bit = draw(st.integers(0, component.bits - 1))
        kind = draw(st.sampled_from(["flip", "stuck0", "stuck1"]))
        cycle = draw(st.integers(0, cycles - 1))
        last = draw(st.none() | st.integers(cycle, cycles - 1))
        if kind != "flip" and draw(st.booleans()):
            cycle = last = None
        faults.append(Fault(component.name, row, col, bit, kind=kind, cycle=cycle, last=last))
    return accel, (m, k, n), faults, draw(st.integers(0, 2**31))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(machines_and_faults())
def test_several_faults_on_larger_arrays(case):
    accel, (m, k, n), faults, seed = case
    a, b, d = operands(accel, m, k, n, seed)
    expected = gemm(a, b, d, accel=accel, faults=faults, backend="reference").out
    got = gemm(a, b, d, accel=accel, faults=faults, backend="replay").out
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("name", "dataflow"), MACHINES)
def test_mutants_of_a_fault_are_told_apart(name, dataflow):
    """A replay that is off by one cycle, or swaps rows and columns, does not pass."""
    accel = load_accel(name, dataflow, {"rows": 3, "cols": 3})
    a, b, d = operands(accel, 5, 7, 5, 3)
    cycles = accel.schedule.cycles(accel, 5, 7, 5)
    golden = gemm(a, b, d, accel=accel).out
    caught = {"cycle": 0, "swap": 0}
    for component in accel.components:
        if "replay" not in component.backends:
            continue
        for cycle in range(0, cycles - 1):
            rows = rows_of([Fault(component.name, 0, 1, 3, cycle=cycle)], accel, cycles)
            expected = accel.cycle.run(accel, a, b, d, fault_table(rows))[0]
            for kind in caught:
                mutant = rows.copy()
                if kind == "cycle":
                    mutant["first"] += 1
                    mutant["last"] += 1
                else:
                    mutant["row"], mutant["col"] = rows["col"], rows["row"]
                got = replayed(accel, a, b, d, fault_table(mutant), golden)
                caught[kind] += not np.array_equal(got, expected)
    assert min(caught.values()) > 20, caught


@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_swapped_accumulators_are_told_apart(dataflow):
    accel = load_accel("gemmini-like", dataflow, {"rows": 2, "cols": 2})
    a, b, d = operands(accel, 4, 4, 4, 5)
    cycles = accel.schedule.cycles(accel, 4, 4, 4)
    golden = gemm(a, b, d, accel=accel).out
    caught = 0
    for cycle in range(cycles):
        table = fault_table(rows_of([Fault("c1", 1, 1, 2, cycle=cycle)], accel, cycles))
        swapped = fault_table(rows_of([Fault("c2", 1, 1, 2, cycle=cycle)], accel, cycles))
        expected = accel.cycle.run(accel, a, b, d, table)[0]
        caught += not np.array_equal(replayed(accel, a, b, d, swapped, golden), expected)
    assert caught > 5


@pytest.mark.parametrize(
    ("name", "component"),
    [("gemmini-like", "valid"), ("gemmini-like", "prop"), ("pipelined-systolic", "v1")],
)
def test_replay_refuses_control(name, component):
    with pytest.raises(FaultError, match="does not serve"):
        gemm([[1]], [[1]], accel=name, faults=[Fault(component, bit=0, cycle=1)], backend="replay")


def test_unsigned_activations_flip_as_unsigned_words():
    accel = load_accel("systolic", "ws", {"rows": 1, "cols": 1})
    a, b = np.array([[200]], np.uint8), np.array([[3]])
    for backend in ("reference", "tile", "replay"):
        result = gemm(a, b, accel=accel, faults=[Fault("ifmap", bit=7, cycle=0)], backend=backend)
        assert result.out.tolist() == [[72 * 3]], backend


def test_stored_sums_act_between_folds():
    """A flip of a stored partial sum is carried by the later folds, all dataflows alike."""
    for dataflow in ("ws", "is"):
        accel = load_accel("systolic", dataflow, {"rows": 2, "cols": 2})
        a, b, d = operands(accel, 3, 5, 3, 2)
        rows = np.zeros(1, FAULT)
        rows["component"] = accel.component_index("psums")
        rows["row"] = rows["col"] = -1
        rows["word"], rows["first"], rows["last"] = 1 * 3 + 2, 1, 1
        rows["and_mask"], rows["xor_mask"] = -1, 1 << 4
        out = a @ b + d
        walk_outputs(accel, a, b, d, fault_table(rows), out)
        after_two = int(a[1, :4] @ b[:4, 2] + d[1, 2])
        expected = a @ b + d
        expected[1, 2] += (after_two ^ 16) - after_two
        np.testing.assert_array_equal(out, expected)


def test_narrow_wrapping_sums_without_faults():
    accel = replace(load_accel("systolic", "os", {"rows": 2, "cols": 2}), acc_bits=17)
    a = np.full((2, 40), 127)
    out = gemm(a, a.T.copy(), accel=accel).out
    total = (40 * 127 * 127 + (1 << 16)) % (1 << 17) - (1 << 16)
    np.testing.assert_array_equal(out, np.full((2, 2), total))


@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_a_replay_with_its_double_buffers_swapped_does_not_pass(dataflow, monkeypatch):
    """c1 and c2 of gemmini change roles every tile or fold; a plan that has them the wrong
    way round gives the right answer for no fault that can be seen at all."""
    accel = load_accel("gemmini-like", dataflow, {"rows": 3, "cols": 3})
    a, b, d = operands(accel, 5, 7, 5, 3)
    cycles = accel.schedule.cycles(accel, 5, 7, 5)
    golden = gemm(a, b, d, accel=accel).out
    real = Plan.table

    def swapped(plan):
        table = real(plan)
        table[:, [S_EVEN, S_ODD]] = table[:, [S_ODD, S_EVEN]]
        return table

    caught = seen = 0
    for name in ("c1", "c2"):
        for cycle in range(cycles - 1):
            table = fault_table(rows_of([Fault(name, 0, 1, 3, cycle=cycle)], accel, cycles))
            expected = accel.cycle.run(accel, a, b, d, table)[0]
            np.testing.assert_array_equal(replayed(accel, a, b, d, table, golden), expected)
            with monkeypatch.context() as patch:
                patch.setattr(Plan, "table", swapped)
                wrong = replayed(accel, a, b, d, table, golden)
            seen += not np.array_equal(expected, golden)
            caught += not np.array_equal(wrong, expected)
    assert seen > 20 and caught >= seen
