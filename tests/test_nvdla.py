"""`nvdla-small-like`: what its hardware does to sums and to faults; backends against one another.

That the cycle-level reference is the machine's RTL is tested in test_verify.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsim.accel_models.load import load_accel
from fsim.errors import FaultError, MappingError
from fsim.fault_models.explicit import rows_of
from fsim.simulator.crosscheck import random_table
from fsim.simulator.gemm import gemm
from fsim.simulator.reference import NO_FAULTS
from fsim.simulator.replay import walk_outputs
from fsim.types import T_FIRST, T_LAST, T_ROW, Fault, fault_table

STRIPE = 16


def machine(rows=8, cols=8, truncate=0, stripe=STRIPE, delivered=32, **widths):
    preset = load_accel("nvdla-small-like", overrides={"rows": rows, "cols": cols})
    parameters = {"stripe": stripe, "delivered_bits": delivered}
    return dataclasses.replace(preset, truncate=truncate, parameters=parameters, **widths)


def naive(a, b, cols, truncate, acc_bits, delivered):
    """The machine's sums: blocks of channels, held at acc_bits; dropped bits, rounded; held."""

    def held(value, bits):
        return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, value))

    out = []
    for row in a.tolist():
        line = []
        for column in b.T.tolist():
            total = 0
            for k0 in range(0, len(row), cols):
                pairs = zip(row[k0 : k0 + cols], column[k0 : k0 + cols])
                total = held(total + sum(x * y for x, y in pairs), acc_bits)
            # 16 bits below the point are left to round by.
            value = Fraction(total * 2**16 // 2**truncate, 2**16)
            rounded = int(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)
            line.append(held(rounded, delivered))
        out.append(line)
    return np.array(out, np.int64)


def codes(rng, shape, bits=8, zeros=0.2):
    top = 1 << (bits - 1)
    ends = rng.random() < 0.3
    found = rng.choice([-top, top - 1], shape) if ends else rng.integers(-top, top, shape)
    return (found * (rng.random(shape) >= zeros)).astype(np.int64)


# Without faults ------------------------------------------------------------------------------


@pytest.mark.parametrize("truncate", range(32))
def test_sums_are_held_rounded_and_held_again(truncate):
    rng = np.random.default_rng(truncate)
    for _ in range(4):
        acc_bits, delivered = int(rng.integers(18, 35)), int(rng.integers(8, 18))
        accel = machine(3, 2, truncate, 4, delivered, acc_bits=acc_bits)
        a, b = codes(rng, (6, 9)), codes(rng, (9, 5))
        wanted = naive(a, b, 2, truncate, acc_bits, delivered)
        for run in (accel.cycle.run, accel.tile.run):
            np.testing.assert_array_equal(run(accel, a, b, None, NO_FAULTS)[0], wanted)
        out = np.zeros_like(wanted)
        walk_outputs(accel, a, b, np.zeros_like(out), NO_FAULTS, out, everything=True)
        np.testing.assert_array_equal(out, wanted)
        np.testing.assert_array_equal(gemm(a, b, accel=accel).out, wanted)


@pytest.mark.parametrize(
    ("total", "truncate", "wanted"),
    [
        (8, 4, 1), (-8, 4, -1), (7, 4, 0), (-7, 4, 0), (24, 4, 2), (-24, 4, -2), (23, 4, 1),
        (65535, 16, 1), (-65535, 16, -1), (32768, 16, 1), (-32768, 16, -1), (-32767, 16, 0),
        # One bit more than rounding looks at is lost: -0.49999 is taken for a tie.
        (65535, 17, 0), (-65535, 17, -1), (65536, 17, 1), (-65536, 17, -1),
        (65535, 31, 0), (-65535, 31, 0),
    ],
)  # fmt: skip
def test_ties_are_rounded_away_from_zero(total, truncate, wanted):
    left, a, b = abs(total), [], []
    while left:
        x = min(128, left)
        y = min(128, left // x)
        a.append(-x)
        b.append(-y if total > 0 else min(y, 127))
        left -= x * abs(b[-1])
    result = gemm([a], [[y] for y in b], accel="nvdla-small-like", truncate=truncate)
    assert sum(x * y for x, y in zip(a, b)) == total
    assert result.out.tolist() == [[wanted]]


def test_a_bias_is_added_to_what_is_delivered():
    accel = machine(2, 2, delivered=8)
    result = gemm([[100, 100]], [[100], [100]], [[1000]], accel=accel)
    assert result.out.tolist() == [[127 + 1000]]


def test_other_machines_have_no_truncation():
    with pytest.raises(MappingError, match="has no output truncation, got 3"):
        gemm([[1]], [[1]], accel="systolic", truncate=3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 8, 8), (17, 9, 9), (20, 24, 11), (40, 3, 20)])
def test_a_run_is_as_long_as_its_schedule(shape):
    m, k, n = shape
    accel = machine()
    a, b = np.ones((m, k), np.int64), np.ones((k, n), np.int64)
    _, waves = accel.cycle.run(accel, a, b, None, NO_FAULTS, True)
    assert len(waves["out"]) == accel.schedule.cycles(accel, m, k, n)


# What a fault means --------------------------------------------------------------------------

A, B = np.arange(1, 25).reshape(3, 8), np.arange(8, 40).reshape(8, 4) - 60
LOADS, ENTERS = 4, 5  # of one pass over A and B: cycles of weights, cycle of the first pixel


def changed(*faults, a=A, b=B, **options):
    """Result and the places that differ, by every backend that serves the faults."""
    golden = gemm(a, b, accel="nvdla-small-like", **options).out
    found = None
    for backend in ("reference", "tile", "replay"):
        try:
            out = gemm(
                a, b, accel="nvdla-small-like", faults=faults, backend=backend, **options
            ).out  # fmt: skip
        except FaultError:
            assert backend == "replay"
            continue
        assert found is None or np.array_equal(out, found)
        found = out
    return found, set(map(tuple, np.argwhere(found != golden).tolist()))


def test_what_flips_corrupt():
    def places(component, row, col, cycle):
        return changed(Fault(component, row=row, col=col, bit=3, cycle=cycle))[1]

    everything = set(itertools.product(range(3), range(4)))
    kernel = {(m, 2) for m in range(3)}
    # On entry the weights of a half are replaced by those of the next kernel in each cycle.
    assert places("wt_pre", 0, 1, 2) == places("wt_pre", 3, 1, 2) == kernel
    assert places("wt_pre", 4, 1, 2) == set()
    assert places("wt_sd", 2, 1, 3) == places("wt_sd", 2, 1, ENTERS) == kernel
    assert places("wt_sd", 2, 1, 2) == places("wt_sd", 2, 1, ENTERS + 1) == set()
    for pixel in range(3):
        cycle = ENTERS + pixel
        assert places("wt_actv", 2, 1, cycle + 1) == {(m, 2) for m in range(pixel, 3)}
        assert places("dat_pre", 1, 1, cycle) == {(pixel, n) for n in range(4)}
        assert places("dat_pre", 5, 1, cycle) == set()  # kernels 4 to 7: there are none
        assert places("dat_actv", 2, 1, cycle + 1) == {(pixel, 2)}
        assert places("mul", 2, 1, cycle + 2) == {(pixel, 2)}
        for delay, component in ((2, "sum1"), (3, "sum2"), (4, "sum3"), (5, "calc_sum")):
            assert places(component, 2, 0, cycle + delay) == {(pixel, 2)}
        assert places("fout", 2, 0, cycle + 6) == {(pixel, 2)}
    assert places("pout", 2, 0, ENTERS + 6) == set()  # there is one block of channels only
    both = changed(Fault("dat_pre", row=0, col=1, bit=3, kind="stuck1"))[1]
    assert both <= everything and len(both) > 3


def test_an_upset_in_the_assembly_buffer_waits_for_the_next_block():
    a, b = np.ones((3, 24), int), np.ones((24, 4), int)
    length = LOADS + 1 + 3 + 8
    for block in range(3):
        entry = block * length + ENTERS
        for pixel in range(3):
            written = entry + pixel + 7
            for cycle, lives in (
                (written - 1, False),  # overwritten at the next edge
                (written, block < 2),
                (written + length - 3, block < 2),
                (written + length - 2, False),  # it has been read
            ):
                if cycle >= 3 * length:
                    continue
                fault = Fault("abuf", row=1, col=pixel, bit=6, cycle=cycle)
                out, where = changed(fault, a=a, b=b)
                # Before the write the value of the block before may still be wanted.
                assert where == ({(pixel, 1)} if lives else set()), (block, pixel, cycle)
                assert not lives or out[pixel, 1] == 24 + 64


@pytest.mark.parametrize(
    ("component", "bit", "delay", "above", "below"),
    [
        ("calc_sum", 33, 5, 2**31 - 1, -(2**31)),  # 34 bits hold less
        ("calc_sum", 34, 5, -(2**31), 2**31 - 1),
        ("calc_sum", 31, 5, 2**31 - 1, -(2**31)),  # 34 bits hold it, 32 do not
        ("calc_sum", 30, 5, 100 + 2**30, -100 - 2**30),
        ("fout", 31, 6, 100 - 2**31, -100 + 2**31),  # after the last limit
        ("sum3", 18, 4, 100 - 2**18, -100 + 2**18),
    ],
)
def test_sums_that_are_hit_are_held_and_do_not_wrap(component, bit, delay, above, below):
    fault = Fault(component, row=0, col=0, bit=bit, cycle=2 + delay)
    assert changed(fault, a=[[10]], b=[[10]])[0].tolist() == [[above]]
    assert changed(fault, a=[[-10]], b=[[10]])[0].tolist() == [[below]]


def test_faults_may_be_named_by_integers_of_numpy():
    """As they come from a file of vectors: 32 bits, and a register of 35."""
    numbers = {name: np.int32(x) for name, x in (("row", 0), ("col", 0), ("bit", 34))}
    fault = Fault("calc_sum", **numbers, kind="flip", cycle=np.int32(7))
    assert changed(fault, a=[[10]], b=[[10]])[0].tolist() == [[-(2**31)]]


def test_zeros_are_gated():
    a, b = A.copy(), B.copy()
    a[1, 3], b[5, 2] = 0, 0
    for component in ("dat_pre", "dat_actv"):
        fault = Fault(component, row=2, col=3, bit=6, kind="stuck1")
        places = changed(fault, a=a, b=b)[1]
        assert places and not any(m == 1 for m, _ in places)
    for component in ("wt_pre", "wt_sd", "wt_actv"):
        fault = Fault(component, row=2, col=5, bit=0, kind="stuck1")
        assert not any(n == 2 for _, n in changed(fault, a=a, b=b)[1])
        assert changed(dataclasses.replace(fault, col=4), a=a, b=b)[1]
    # The product is 0, and stuck after that.
    fault = Fault("mul", row=2, col=3, bit=15, kind="stuck1")
    assert (1, 2) in changed(fault, a=a, b=b)[1]


def test_stale_bytes_show_when_their_mask_is_wrong():
    """A 0 is not latched: with its mask stuck, the byte of the pixel before is multiplied."""
    a = np.array([[5, 1], [0, 1]])
    b = np.array([[7], [1]])
    masks = [Fault(name, row=0, col=0, bit=0, kind="stuck1") for name in ("dat_pre_nz", "d_nz")]
    assert gemm(a, b, accel="nvdla-small-like").out.tolist() == [[36], [1]]
    for backend in ("reference", "tile"):
        result = gemm(a, b, accel="nvdla-small-like", faults=masks, backend=backend)
        assert result.out.tolist() == [[36], [36]]
    with pytest.raises(FaultError, match="backend replay does not serve control component"):
        gemm(a, b, accel="nvdla-small-like", faults=masks, backend="replay")


def test_the_registers_of_a_half_are_one_for_its_kernels():
    accel = machine(5, 3)
    assert {accel.elements(c) for c in accel.components if c.name in ("wt_pre", "dat_pre")} == {6}
    rng = np.random.default_rng(3)
    a, b = codes(rng, (4, 7), zeros=0), codes(rng, (7, 5), zeros=0)
    for component in ("wt_pre", "dat_pre"):
        outs = []
        for row in range(5):
            faults = [Fault(component, row=row, col=2, bit=5, kind="stuck1")]
            outs.append(gemm(a, b, accel=accel, faults=faults, backend="reference").out)
            replayed = gemm(a, b, accel=accel, faults=faults, backend="replay").out
            tiled = gemm(a, b, accel=accel, faults=faults, backend="tile").out
            assert np.array_equal(outs[-1], replayed) and np.array_equal(outs[-1], tiled)
        assert np.array_equal(outs[0], outs[2]) and np.array_equal(outs[3], outs[4])
        assert not np.array_equal(outs[2], outs[3])


@pytest.mark.parametrize("backend", ["reference", "tile"])
def test_faults_outside_the_machine_are_refused(backend):
    for fault in (
        Fault("abuf", row=0, col=16, bit=0, cycle=0),
        Fault("sum1", row=0, col=1, bit=0, cycle=0),
        Fault("wt_pre", row=8, bit=0, cycle=0),
    ):
        with pytest.raises(FaultError, match="must be in 0.."):
            gemm(A, B, accel="nvdla-small-like", faults=[fault], backend=backend)


# Backends against the reference -----------------------------------------------------------------

SMALL = {"operand_bits": 3, "product_bits": 7, "acc_bits": 9}


def every_fault(accel, cycles):
    """(component, fault) of every bit: an upset in each cycle, stuck at 0 and at 1."""
    for component in accel.components:
        if component.kind == "memory":
            continue
        rows, cols, _ = accel.grid(component)
        for row, col, bit in itertools.product(range(rows), range(cols), range(component.bits)):
            place = {"row": row, "col": col, "bit": bit}
            for cycle in range(cycles):
                yield component, Fault(component.name, **place, cycle=cycle)
            for kind in ("stuck0", "stuck1"):
                yield component, Fault(component.name, **place, kind=kind)


def compare(accel, a, b, table, golden, replay, waves=False):
    """The reference's result, which tile and replay must have as well."""
    wanted, registers = accel.cycle.run(accel, a, b, None, table, waves)
    got, found = accel.tile.run(accel, a, b, None, table, waves)
    np.testing.assert_array_equal(got, wanted, str(table))
    got = accel.tile.run(accel, a, b, None, table, False, clean=golden)[0]
    np.testing.assert_array_equal(got, wanted, str(table))
    if waves:
        assert found.keys() == registers.keys()
        for name in registers:
            np.testing.assert_array_equal(found[name], registers[name], f"{name} {table}")
    if replay:
        out = golden.copy()
        touched = walk_outputs(accel, a, b, np.zeros_like(out), table, out)
        np.testing.assert_array_equal(out, wanted, str(table))
        assert not (out != golden)[~touched].any()
        walk_outputs(accel, a, b, np.zeros_like(out), table, out, everything=True)
        np.testing.assert_array_equal(out, wanted, str(table))
    return wanted


@pytest.mark.parametrize(
    "share", [31, pytest.param(1, marks=pytest.mark.slow, id="all")]
)  # fmt: skip
def test_every_single_fault_of_a_small_machine(share):
    """2 x 2, two stripes, kernels that do not fill the rows, sums that reach their limits."""
    accel = machine(2, 2, 1, 2, 6, **SMALL)
    rng = np.random.default_rng(1)
    a, b = codes(rng, (3, 3), 3), codes(rng, (3, 3), 3)
    cycles = accel.schedule.cycles(accel, 3, 3, 3)
    golden = accel.cycle.run(accel, a, b, None, NO_FAULTS)[0]
    visible = {c.name: 0 for c in accel.components if c.kind != "memory"}
    for number, (component, fault) in enumerate(every_fault(accel, cycles)):
        if number % share:
            continue
        table = fault_table(rows_of([fault], accel, cycles))
        wanted = compare(accel, a, b, table, golden, "replay" in component.backends)
        visible[component.name] += not np.array_equal(wanted, golden)
    shown = {name for name, count in visible.items() if count}
    served = {c.name for c in accel.components if "replay" in c.backends}
    assert shown >= served if share == 1 else len(shown & served) > 9
    # What is only shown to the outside, and the flag that is written over as it is read.
    assert "fv" not in shown and "sat" not in shown


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), waves=st.booleans(), control=st.booleans())
def test_several_faults_at_once(seed, waves, control):
    rng = np.random.default_rng(seed)
    rows, cols, stripe = (int(x) for x in rng.integers(1, (7, 7, 5)))
    bits = int(rng.integers(2, 9))
    acc = int(rng.integers(2 * bits, 35))
    accel = machine(
        rows, cols, int(rng.choice([0, 0, 1, 3, 17, 31])), stripe, int(rng.integers(8, 33)),
        operand_bits=bits, product_bits=2 * bits + int(rng.integers(3)), acc_bits=acc,
    )  # fmt: skip
    m, k, n = (int(x) for x in rng.integers(1, (13, 21, 13)))
    a, b = codes(rng, (m, k), bits), codes(rng, (k, n), bits)
    claims = [
        i for i, c in enumerate(accel.components)
        if c.kind != "memory" and (control or c.role != "control")
    ]  # fmt: skip
    # Two components and two rows only, so that faults meet.
    claims = rng.choice(claims, 2).tolist() if rng.integers(2) else claims
    cycles = accel.schedule.cycles(accel, m, k, n)
    table = random_table(rng, accel, claims, cycles, int(rng.integers(1, 7)))
    if rng.integers(2):
        table[:, T_ROW] %= 2
    golden = accel.cycle.run(accel, a, b, None, NO_FAULTS)[0]
    compare(accel, a, b, table, golden, not control, waves)


@pytest.mark.parametrize("seed", range(6))
def test_the_full_size_at_the_ends_of_its_range(seed):
    """8 x 8 with its own widths; extreme codes, first and last cycles, pass boundaries."""
    rng = np.random.default_rng(seed)
    m, k, n = [(17, 9, 9), (33, 8, 16), (16, 25, 8), (1, 40, 3), (5, 7, 12), (20, 17, 10)][seed]
    accel = machine(truncate=int(rng.choice([0, 2, 9])))
    top = np.array([-128, 127, 0, 1])
    a, b = rng.choice(top, (m, k)), rng.choice(top, (k, n))
    cycles = accel.schedule.cycles(accel, m, k, n)
    first_pass = min(8, n) + min(16, m) + 9
    edges = [0, 1, first_pass - 1, first_pass, cycles - 2, cycles - 1]
    golden = accel.cycle.run(accel, a, b, None, NO_FAULTS)[0]
    for component in accel.components:
        if component.kind == "memory":
            continue
        rows, cols, _ = accel.grid(component)
        for _ in range(2):
            row, col = int(rng.integers(rows)), int(rng.integers(cols))
            bit = int(rng.choice([0, component.bits - 1, rng.integers(component.bits)]))
            cycle = int(rng.choice([*edges, *rng.integers(0, cycles, 6)]))
            kind = str(rng.choice(["flip", "stuck0", "stuck1"]))
            last = None if rng.integers(2) else min(cycle + int(rng.integers(40)), cycles - 1)
            fault = Fault(component.name, row, col, bit, kind=kind, cycle=cycle, last=last)
            table = fault_table(rows_of([fault], accel, cycles))
            compare(accel, a, b, table, golden, "replay" in component.backends)


def test_wrong_readings_of_a_fault_are_told_apart():
    """Replay must not be a cycle late, or in the next row, or touch one output less."""
    accel = machine(4, 2, 0, 2)
    rng = np.random.default_rng(2)
    a, b = codes(rng, (3, 4), zeros=0), codes(rng, (4, 4), zeros=0)
    cycles = accel.schedule.cycles(accel, 3, 4, 4)
    golden = gemm(a, b, accel=accel).out
    for component in accel.components:
        if "replay" not in component.backends:
            continue
        caught = {"late": 0, "row": 0}
        for cycle in range(cycles - 1):
            fault = Fault(component.name, 1, 0, component.bits - 2, cycle=cycle)
            table = fault_table(rows_of([fault], accel, cycles))
            wanted = accel.cycle.run(accel, a, b, None, table)[0]
            for name, columns, step in (("late", (T_FIRST, T_LAST), 1), ("row", (T_ROW,), 2)):
                other = table.copy()
                other[:, columns] += step
                out = golden.copy()
                walk_outputs(accel, a, b, np.zeros_like(out), other, out)
                caught[name] += not np.array_equal(out, wanted)
        assert min(caught.values()) > 2, component.name


def test_cost_follows_what_a_fault_touches():
    """One upset of a cell's sum walks one output, whatever the size of the product."""
    accel = machine()
    rng = np.random.default_rng(0)
    a, b = codes(rng, (400, 72), zeros=0), codes(rng, (72, 64), zeros=0)
    cycles = accel.schedule.cycles(accel, 400, 72, 64)
    out = gemm(a, b, accel=accel).out
    for component, most in (("sum2", 1), ("dat_actv", 1), ("dat_pre", 4), ("wt_actv", 16)):
        for cycle in rng.integers(0, cycles, 50).tolist():
            fault = Fault(component, row=1, bit=1, cycle=cycle)
            table = fault_table(rows_of([fault], accel, cycles))
            touched = walk_outputs(accel, a, b, np.zeros_like(out), table, out.copy())
            assert touched.sum() <= most
