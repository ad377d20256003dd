"""Faults struck alone, many in one call, against `gemm` called once for each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fsim import ConfigError, FaultError, load_accel
from fsim.simulator.crosscheck import random_table
from fsim.simulator.each import direct, gemm_each
from fsim.simulator.gemm import gemm
from fsim.simulator.runners import table_rows
from fsim.types import STATE, T_EFFECT

MACHINES = [
    ("systolic", "ws"), ("systolic", "os"), ("systolic", "is"),
    ("gemmini-like", "ws"), ("gemmini-like", "os"), ("pipelined-systolic", "os"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dataflow"), MACHINES)
def test_each_run_changes_what_gemm_changes(name, dataflow):
    machine = load_accel(name, dataflow=dataflow, overrides={"rows": 3, "cols": 4})
    rng = np.random.default_rng(4)
    a, b = rng.integers(-128, 128, (5, 7)), rng.integers(-128, 128, (7, 9))
    d = rng.integers(-(10**6), 10**6, (5, 9))
    served = [i for i, c in enumerate(machine.components) if "replay" in c.backends]
    cycles = machine.schedule.cycles(machine, 5, 7, 9)
    rows = table_rows(random_table(rng, machine, served, cycles, 300))
    run, output, value = gemm_each(a, b, d, accel=machine, faults=rows)
    golden = gemm(a, b, d, accel=machine).out
    changed = 0
    for number in range(len(rows)):
        faults = rows[number : number + 1]
        wanted = gemm(a, b, d, accel=machine, faults=faults, backend="reference").out
        got = golden.copy()
        got.reshape(-1)[output[run == number]] = value[run == number]
        np.testing.assert_array_equal(got, wanted)
        changed += int((wanted != golden).sum())
    assert changed == len(run) > 300
    assert (np.diff(run) >= 0).all() and (value != golden.reshape(-1)[output]).all()


@pytest.mark.parametrize("bits", [(8, 16, 32), (5, 9, 12)])
def test_flips_of_an_output_stationary_array_go_the_short_way_to_the_same_bits(bits):
    machine = dataclasses.replace(
        load_accel("systolic", dataflow="os", overrides={"rows": 3, "cols": 4}),
        operand_bits=bits[0], product_bits=bits[1], acc_bits=bits[2],
    )  # fmt: skip
    rng = np.random.default_rng(4)
    top, limit = 1 << (bits[0] - 1), 1 << (bits[2] - 1)
    a, b = rng.integers(1 - top, top, (5, 7)), rng.integers(1 - top, top, (7, 9))
    d = rng.integers(-limit, limit, (5, 9))
    cycles = machine.schedule.cycles(machine, 5, 7, 9)
    assert direct(machine.schedule.plan(machine, 5, 7, 9))
    table = random_table(rng, machine, [0, 1, 2], cycles, 3000)
    table = table[table[:, T_EFFECT] == STATE]
    assert len(table) > 500
    run, output, value = gemm_each(a, b, d, accel=machine, faults=table)
    golden = gemm(a, b, d, accel=machine).out
    for number in range(len(table)):
        wanted = gemm(
            a, b, d, accel=machine, faults=table_rows(table[number : number + 1]), backend="tile"
        ).out
        got = golden.copy()
        got.reshape(-1)[output[run == number]] = value[run == number]
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(golden.reshape(-1)[output] != value, True)


def test_a_pe_outside_the_array_is_refused():
    machine = load_accel("systolic", dataflow="os", overrides={"rows": 3, "cols": 4})
    table = np.array([[0, 3, 0, -1, STATE, 0, 0, -1, 0, 1]])
    with pytest.raises(FaultError, match="row must be in 0..2"):
        gemm_each([[1]], [[1]], accel=machine, faults=table)


def test_what_is_not_served_is_refused():
    saturating = load_accel("systolic", overrides={"acc_bits": 18, "overflow": "saturate"})
    full = np.full((2, 9), -128)
    with pytest.raises(FaultError, match="gemm takes them one at a time"):
        gemm_each(full, full.T, accel=saturating, faults=[])
    gemmini = load_accel("gemmini-like")
    rows = table_rows(np.zeros((1, 10), np.int64))
    rows["component"] = gemmini.component_index("valid")
    with pytest.raises(FaultError, match="backend replay does not serve"):
        gemm_each(full, full.T, accel=gemmini, faults=rows)


@pytest.mark.parametrize("bits", [(8, 16, 32), (5, 9, 12)])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_many_simulations_in_one_call_are_those_made_one_by_one(bits, overflow):
    machine = dataclasses.replace(
        load_accel("systolic", dataflow="os", overrides={"rows": 3, "cols": 4}),
        operand_bits=bits[0], product_bits=bits[1], acc_bits=bits[2], overflow=overflow,
    )  # fmt: skip
    rng = np.random.default_rng(8)
    top = 1 << (bits[0] - 1)
    for shape in ((5, 7, 9), (1, 1, 1), (3, 2, 4), (7, 3, 2)):
        m, k, n = shape
        peak = top if overflow == "wrap" else 4
        a, b = rng.integers(-peak, peak, (m, k)), rng.integers(-peak, peak, (k, n))
        d = rng.integers(-20, 20, (m, n))
        cycles = machine.schedule.cycles(machine, m, k, n)
        table = random_table(rng, machine, [0, 1, 2, 3], cycles, 400)
        run, output, value = gemm_each(a, b, d, accel=machine, faults=table, backend="tile")
        golden = gemm(a, b, d, accel=machine).out
        for number in range(len(table)):
            wanted = machine.cycle.run(machine, a, b, d, table[number : number + 1])[0]
            got = golden.copy()
            got.reshape(-1)[output[run == number]] = value[run == number]
            np.testing.assert_array_equal(got, wanted, str(table[number]))
        assert (np.diff(run) >= 0).all()


@pytest.mark.parametrize("name", ["systolic", "gemmini-like", "nvdla-small-like"])
def test_simulations_one_call_each_where_there_is_no_other_way(name):
    machine = load_accel(name, overrides={"rows": 2, "cols": 2})
    rng = np.random.default_rng(9)
    a, b = rng.integers(-9, 9, (3, 4)), rng.integers(-9, 9, (4, 3))
    claims = [i for i, c in enumerate(machine.components) if "tile" in c.backends]
    table = random_table(rng, machine, claims, machine.schedule.cycles(machine, 3, 4, 3), 60)
    run, output, value = gemm_each(a, b, accel=machine, faults=table, backend="tile")
    golden = gemm(a, b, accel=machine).out
    for number in range(len(table)):
        wanted = machine.cycle.run(machine, a, b, None, table[number : number + 1])[0]
        got = golden.copy()
        got.reshape(-1)[output[run == number]] = value[run == number]
        np.testing.assert_array_equal(got, wanted, str(table[number]))


def test_bad_tables_are_refused_by_the_simulation_too():
    machine = load_accel("systolic", dataflow="os", overrides={"rows": 3, "cols": 4})
    good = [0, 1, 1, -1, STATE, 0, 0, -1, 0, 1]
    for column, bad in ((1, 3), (2, -1), (0, 99), (0, 5), (4, 7)):
        row = good[:column] + [bad] + good[column + 1 :]
        with pytest.raises(FaultError):
            gemm_each([[1]], [[1]], accel=machine, faults=np.array([row]), backend="tile")
    with pytest.raises(ConfigError, match="backend must be replay or tile"):
        gemm_each([[1]], [[1]], accel=machine, faults=[], backend="magic")
