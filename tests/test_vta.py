"""`vta-like`: what its sources say, and replay = tile = reference.

The reference is compared with sums written out here from the text of the machine alone:
the pipeline of one operation, and the cycle in which each operation begins.
"""

from __future__ import annotations

import numpy as np
import pytest

from fsim import Fault, gemm
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.explicit import rows_of
from fsim.simulator import program as P
from fsim.simulator.batch import Batch, no_faults
from fsim.simulator.crosscheck import random_table
from fsim.simulator.replay import walk_outputs
from fsim.types import FAULT, fault_table
from tests.naive import wrapped
from tests.test_engine import Sums, by_cycles, compare, machine_of, network, place, random_rows

NARROW = {"operand_bits": 3, "product_bits": 6, "acc_bits": 12}
# (rows, cols, m, k, n, cycles between operations): fewer rows of A than the pipeline is long
# and more, tiles that are not full, trees with and without a level of registers inside.
CASES = [(2, 2, 4, 5, 3, 1), (3, 2, 1, 4, 3, 1), (9, 2, 2, 11, 3, 2), (1, 3, 5, 3, 2, 4)]


def machine(rows, cols, issue=1, **overrides):
    settings = {"rows": rows, "cols": cols, "parameters.issue_cycles": issue, **overrides}
    return load_accel("vta-like", None, settings)


def operands(accel, m, k, n, seed=7):
    rng = np.random.default_rng(seed)
    half = 1 << (accel.operand_bits - 1)
    a, b = rng.integers(-half, half, (m, k)), rng.integers(-half, half, (k, n))
    return a, b, rng.integers(-20, 20, (m, n))


def places(accel):
    for component in accel.components:
        if component.kind != "memory":
            for row in range(component.grid[0]):
                for col in range(component.grid[1]):
                    for bit in range(component.bits):
                        yield component, {"row": row, "col": col, "bit": bit}


def flips(accel, cycles):
    for component, where in places(accel):
        for cycle in range(cycles):
            yield Fault(component.name, cycle=cycle, **where)


def stuck(accel):
    for component, where in places(accel):
        for kind in ("stuck0", "stuck1"):
            yield Fault(component.name, kind=kind, **where)


# The text of the machine, restated ------------------------------------------------------


def flipped(value, bit, bits):
    return wrapped(value ^ (1 << bit), bits)


def restated(rows, cols, issue, a, b, d, fault, group):
    """Sums under one flip (16-bit products, 32-bit sums).

    Tile p of weights begins in cycle p max(m issue, 3), its row r of activations issue r
    later: operands after that edge, products of them and the sums of `group` of them at the
    next, their sum and the addition at the one after.
    """
    (m, k), n = a.shape, b.shape[1]
    depth = (rows - 1).bit_length()
    out = [[int(v) for v in row] for row in d]
    tiles = [(n0, k0) for n0 in range(0, n, cols) for k0 in range(0, k, rows)]
    for p, (n0, k0) in enumerate(tiles):
        for r in range(m):
            t = p * max(m * issue, 3) + r * issue

            def hit(name, row, at, value, bits):
                mine = (fault.component, fault.row, fault.cycle) == (name, row, at)
                return flipped(value, fault.bit, bits) if mine else value

            for j in range(min(cols, n - n0)):
                if j != fault.col:
                    out[r][n0 + j] += int(a[r, k0 : k0 + rows] @ b[k0 : k0 + rows, n0 + j])
                    out[r][n0 + j] = wrapped(out[r][n0 + j], 32)
                    continue
                dot = 0
                for node in range(-(-rows // group)):
                    total = 0
                    for i in range(node * group, min((node + 1) * group, rows)):
                        real = k0 + i < k
                        x = hit("rA", i, t, int(a[r, k0 + i]) if real else 0, 8)
                        w = hit("rB", i, t, int(b[k0 + i, n0 + j]) if real else 0, 8)
                        product = hit("mul", i, t + 1, x * w, 16)
                        total += hit("mac", i, t + 1, product, 17)
                    dot += hit("tree", node, t + 1, total, 17 + (group - 1).bit_length())
                dot = hit("dot", 0, t + 2, dot, 17 + depth)
                so_far = hit("acc0", 0, t, out[r][n0 + j], 32)
                so_far = hit("acc1", 0, t + 1, so_far, 32)
                out[r][n0 + j] = wrapped(so_far + dot, 32)
    return out


# Products a register of the tree sums up, by rows: the preset's four words for 16.
TREES = [(2, 1), (8, 1), (9, 4), (16, 4), (32, 8)]


@pytest.mark.parametrize(("rows", "group"), TREES)
def test_the_reference_is_the_text(rows, group):
    issue = 1 + rows % 2
    accel = machine(rows, 2, issue)
    m, k, n = 2, rows + 3, 3
    a, b, d = operands(accel, m, k, n)
    cycles = accel.schedule.cycles(accel, m, k, n)
    clean, seen = (a @ b + d).tolist(), set()
    for fault in flips(accel, cycles):
        if fault.bit not in (3, 15) or (rows > 8 and fault.row % 5):
            continue
        expected = restated(rows, 2, issue, a, b, d, fault, group)
        table = fault_table(rows_of([fault], accel, cycles))
        assert accel.cycle.run(accel, a, b, d, table)[0].tolist() == expected, fault
        if expected != clean:
            seen.add(fault.component)
    assert len(seen) == 8


def test_widths_and_places_of_the_preset():
    """16 + 16 operand registers a lane, four 19-bit words of the tree, 21-bit dot products."""
    accel = load_accel("vta-like")
    found = {c.name: (c.bits, *c.grid) for c in accel.components if c.kind != "memory"}
    assert found == {
        "rA": (8, 16, 16),
        "rB": (8, 16, 16),
        "mul": (16, 16, 16),
        "mac": (17, 16, 16),
        "tree": (19, 4, 16),
        "dot": (21, 1, 16),
        "acc0": (32, 1, 16),
        "acc1": (32, 1, 16),
    }
    assert accel.schedule.cycles(accel, 100, 64, 32) == 2 * 4 * 100 + 2


def test_the_widest_sums_fit_the_tree():
    """No adder but the last one wraps: 16 products of -128 x -128, and stuck top bits."""
    accel = load_accel("vta-like")
    a, b = np.full((1, 16), -128), np.full((16, 16), -128)
    assert (gemm(a, b, accel=accel).out == 16 << 14).all()
    faults = [Fault("mac", row, 0, 16, kind="stuck1") for row in range(16)]
    for backend in ("reference", "tile", "replay"):
        out = gemm(a, b, accel=accel, faults=faults, backend=backend).out
        assert out[0, 0] == 16 * ((1 << 14) - (1 << 16)), backend
        assert (out[0, 1:] == 16 << 14).all()


def test_cycles_between_operations_are_a_parameter_of_the_family():
    assert machine(4, 4, 4).schedule.cycles(machine(4, 4, 4), 5, 4, 4) == 4 * 4 + 3
    with pytest.raises(ConfigError, match="issue_cycles must be a whole number in 1..16, got 0"):
        machine(4, 4, 0)


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
    rows, cols, m, k, n, issue = case
    accel = machine(rows, cols, issue, **NARROW)
    a, b, d = operands(accel, m, k, n)
    cycles = accel.schedule.cycles(accel, m, k, n)
    golden = gemm(a, b, d, accel=accel).out
    visible = 0
    for fault in [*flips(accel, cycles), *stuck(accel)]:
        visible += check(accel, a, b, d, fault_table(rows_of([fault], accel, cycles)), golden)
    assert visible > 200


def test_several_faults_on_larger_cores():
    rng = np.random.default_rng(3)
    visible = 0
    for _ in range(150):
        rows, cols, issue = (int(x) for x in rng.integers(1, [20, 7, 5]))
        accel = machine(rows, cols, issue)
        m, k, n = (int(x) for x in rng.integers(1, [12, 50, 15]))
        a, b, d = operands(accel, m, k, n, int(rng.integers(1 << 30)))
        cycles = accel.schedule.cycles(accel, m, k, n)
        parts = [i for i, c in enumerate(accel.components) if c.kind != "memory"]
        table = random_table(rng, accel, parts, cycles, int(rng.integers(1, 7)))
        if rng.integers(2):  # in one lane and row, so that faults meet
            table[:, 1], table[:, 2] = 0, table[0, 2]
        visible += check(accel, a, b, d, table, gemm(a, b, d, accel=accel).out)
    assert visible > 60


def test_waveforms_of_the_compiled_simulation():
    rng = np.random.default_rng(4)
    for rows, cols, m, k, n, issue in [*CASES, (16, 5, 3, 20, 7, 1)]:
        accel = machine(rows, cols, issue)
        a, b, d = operands(accel, m, k, n)
        cycles = accel.schedule.cycles(accel, m, k, n)
        table = random_table(rng, accel, list(range(8)), cycles, 5)
        out, waves = accel.cycle.run(accel, a, b, d, table, True)
        got, registers = accel.tile.run(accel, a, b, d, table, True)
        np.testing.assert_array_equal(got, out)
        assert set(registers) == set(waves) and len(waves["out"]) == cycles
        for name, wave in waves.items():
            np.testing.assert_array_equal(registers[name], wave, name)


def test_a_replay_that_is_off_by_a_cycle_or_a_lane_does_not_pass():
    accel = machine(9, 3)
    a, b, d = operands(accel, 5, 20, 5)
    cycles = accel.schedule.cycles(accel, 5, 20, 5)
    golden = gemm(a, b, d, accel=accel).out
    caught = {"cycle": 0, "lane": 0}
    for component in accel.components[:8]:
        for cycle in range(cycles - 1):
            rows = rows_of([Fault(component.name, 0, 1, 3, cycle=cycle)], accel, cycles)
            expected = accel.cycle.run(accel, a, b, d, fault_table(rows))[0]
            for kind in caught:
                mutant = rows.copy()
                if kind == "cycle":
                    mutant["first"] += 1
                    mutant["last"] += 1
                else:
                    mutant["col"] += 1
                out = golden.copy()
                walk_outputs(accel, a, b, d, fault_table(mutant), out)
                caught[kind] += not np.array_equal(out, expected)
    assert min(caught.values()) > 100, caught


def test_stored_sums_act_between_tiles_of_k():
    accel = machine(2, 2)
    a, b, d = operands(accel, 3, 5, 3, 2)
    rows = np.zeros(1, FAULT)
    rows["component"] = accel.component_index("psums")
    rows["row"] = rows["col"] = -1
    rows["word"], rows["first"], rows["last"] = 1 * 3 + 2, 1, 1
    rows["and_mask"], rows["xor_mask"] = -1, 1 << 4
    out = a @ b + d
    touched = walk_outputs(accel, a, b, d, fault_table(rows), out)
    after_two = int(a[1, :4] @ b[:4, 2] + d[1, 2])
    expected = a @ b + d
    expected[1, 2] += (after_two ^ 16) - after_two
    np.testing.assert_array_equal(out, expected)
    assert touched.sum() == 1


def test_places_outside_a_grid_are_refused():
    for row, backend in ((4, "reference"), (4, "tile"), (4, "replay")):
        with pytest.raises(FaultError, match="row must be in 0..3, got 4"):
            fault = Fault("tree", row, 0, 0, cycle=0)
            gemm([[1]], [[1]], accel="vta-like", faults=[fault], backend=backend)


# Networks -------------------------------------------------------------------------------


def test_wrong_stored_words_of_a_network():
    program, codes = network(unsigned=False)
    placement = place(program, "vta-like")
    rng = np.random.default_rng(1)
    for count in (3, 60):
        rows, slot = random_rows(placement, rng, count, kinds=("flip", "stuck0", "stuck1"))
        compare(placement, machine_of(placement), codes, rows, slot, differs=count > 3)


def random_register_rows(placement, layer, rng, count):
    """Rows of one layer anywhere in the core, cycles counted over all its groups."""
    accel, low = placement.accel, placement.lowered[layer]
    cycles, found = placement.group_cycles(layer), []
    parts = [c for c in accel.components if c.kind != "memory"]
    for _ in range(count):
        part = parts[rng.integers(len(parts))]
        row, col = (int(rng.integers(size)) for size in part.grid)
        stuck = rng.random() < 0.2
        fault = Fault(
            part.name, row, col, bit=int(rng.integers(part.bits)),
            kind="stuck1" if stuck else "flip", cycle=None if stuck else int(rng.integers(cycles)),
        )  # fmt: skip
        rows = rows_of([fault], accel, cycles)
        rows["layer"] = layer
        if not stuck:
            shift = int(rng.integers(low.groups)) * cycles
            rows["first"] += shift
            rows["last"] += shift
        found.append(rows)
    return np.concatenate(found)


def test_register_faults_of_a_network_are_those_of_the_reference():
    program, codes = network(unsigned=False)
    placement = place(program, "vta-like", rows=9)
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
    shown = fsim("accel", "show", "vta-like", "--gemm", "100,64,32").stdout
    assert "not checked against RTL" in shown and ": 802" in shown
    for faults in (["--seu-rate", "1e-6"], ["--fault", "stuck1"], ["--ber", "1e-4"]):
        result = fsim("inject", "--accel", "vta-like", "--images", "8", *faults)
        assert result.exit_code == 0, result.stderr
