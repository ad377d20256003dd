"""accel_models/*/tile.py: the compiled simulation against the plain-Python reference,
integer arithmetic, RTL and itself (only the span faults can reach, or everything)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fsim.accel_models.accel import Accel
from fsim.errors import FaultError
from fsim.types import FOREVER, LEVEL, STATE
from tests import naive

MACHINES = (
    ("systolic", "ws"),
    ("systolic", "os"),
    ("systolic", "is"),
    ("gemmini", "os"),
    ("gemmini", "ws"),
    ("pipelined", "os"),
    ("pipelined", "ws"),
)
IDS = ["-".join(machine) for machine in MACHINES]
every_machine = pytest.mark.parametrize("family, dataflow", MACHINES, ids=IDS)
NO_FAULTS = np.zeros((0, 10), np.int64)
RTL = Path(__file__).resolve().parent.parent / "simulator" / "rtl_vectors"


def machine(family: str, dataflow: str, rows: int, cols: int, **kwargs) -> Accel:
    return Accel(
        name=family,
        family=family,
        dataflow=dataflow,
        dataflows=(dataflow,),
        rows=rows,
        cols=cols,
        **kwargs,
    )


def codes(rng, shape, bits: int) -> np.ndarray:
    """Codes of `bits` bits, the extremes more often than they would come by chance."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    values = rng.integers(low, high + 1, shape)
    extreme = rng.random(shape) < 0.2
    return np.where(extreme, rng.choice([low, high, 0], shape), values)


def operands(accel, rng, m: int, k: int, n: int, d_bits: int | None = None):
    d = None if d_bits is None else codes(rng, (m, n), d_bits)
    return codes(rng, (m, k), accel.operand_bits), codes(rng, (k, n), accel.operand_bits), d


def sites(accel) -> list[tuple[int, object]]:
    """(index, component) of every register and net."""
    return [(i, c) for i, c in enumerate(accel.components) if c.kind != "memory"]


def fault(index, row, col, kind, mask, effect, first, last) -> list[int]:
    """One row of the fault table; `kind` is flip, stuck0 or stuck1."""
    masks = {"flip": (-1, 0, mask), "stuck0": (~mask, 0, 0), "stuck1": (-1, mask, 0)}[kind]
    return [index, row, col, -1, effect, first, last, *masks]


def random_table(accel, rng, cycles: int, faults: int) -> np.ndarray:
    """Faults of all components, kinds and durations, half the time close to one another
    in cycle and column, some on the same element and cycle."""
    table = []
    close, anchor = rng.random() < 0.5, int(rng.integers(cycles))
    column = int(rng.integers(accel.cols))
    for _ in range(faults):
        index, component = sites(accel)[rng.integers(len(sites(accel)))]
        effect = LEVEL if component.kind == "net" else int(rng.integers(2))
        first = int(rng.integers(-1 if effect == LEVEL else 0, cycles))
        if close:
            first = min(anchor + int(rng.integers(0, 4)), cycles - 1)
        last = first
        if effect == LEVEL:
            last = FOREVER if rng.random() < 0.3 else first + int(rng.integers(0, 8))
        mask = int(rng.integers(1, 1 << component.bits))
        if rng.random() < 0.5:
            mask = 1 << int(rng.integers(component.bits))
        kind = ("flip", "stuck0", "stuck1")[rng.integers(3)]
        row = rng.integers(accel.rows)
        col = column if close else rng.integers(accel.cols)
        if table and rng.random() < 0.2:  # the order of rows matters only on one element
            index, row, col = table[-1][0], table[-1][1], table[-1][2]
            if accel.components[index].kind == "net":
                effect, last = LEVEL, max(last, first)
        table.append(fault(index, row, col, kind, mask, effect, first, last))
    return np.array(table, np.int64).reshape(-1, 10)


def assert_is_the_reference(accel, a, b, d, table, message=""):
    """Results and every register in every cycle; and results of the span alone."""
    out, waves = accel.cycle.run(accel, a, b, d, table, True)
    got, got_waves = accel.tile.run(accel, a, b, d, table, True)
    assert set(got_waves) == set(waves)
    for name, wave in waves.items():
        assert_array_equal(got_waves[name], wave, err_msg=f"{name} {message} {table.tolist()}")
    assert_array_equal(got, out, err_msg=f"{message} {table.tolist()}")
    span, none = accel.tile.run(accel, a, b, d, table)
    assert none is None
    assert_array_equal(span, out, err_msg=f"span only: {message} {table.tolist()}")


@every_machine
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 4), (3, 2, 9), (8, 6, 6)])
def test_without_faults_the_array_multiplies(family, dataflow, shape):
    rng = np.random.default_rng(1)
    for rows, cols in ((1, 1), (2, 2), (3, 2), (2, 4)):
        accel = machine(family, dataflow, rows, cols)
        a, b, d = operands(accel, rng, *shape, d_bits=32)
        expected = naive.matmul(a, b, d, accel.acc_bits)
        out, waves = accel.tile.run(accel, a, b, d, NO_FAULTS, True)
        assert_array_equal(out, expected)
        cycles = accel.schedule.cycles(accel, *shape)
        assert {len(wave) for wave in waves.values()} == {cycles}
        assert_array_equal(accel.tile.run(accel, a, b, d, NO_FAULTS)[0], expected)
        assert_array_equal(
            accel.tile.run(accel, a, b, None, NO_FAULTS)[0], naive.matmul(a, b, None, 32)
        )


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
def test_saturating_sums_clamp_in_machine_order(dataflow):
    rng = np.random.default_rng(2)
    accel = machine("systolic", dataflow, 3, 2, acc_bits=16, overflow="saturate")
    a, b, d = operands(accel, rng, 5, 8, 5, d_bits=16)
    d = d.astype(np.int64)
    if dataflow == "os":
        expected = naive.saturating_matmul_os(a, b, d, 16)
    elif dataflow == "ws":
        expected = naive.saturating_matmul_ws(a, b, d, 3, 16)
    else:
        expected = np.array(naive.saturating_matmul_ws(b.T, a.T, d.T, 3, 16)).T
    assert not np.array_equal(expected, naive.matmul(a, b, d, 16)), "nothing saturates"
    for waveform in (False, True):
        assert_array_equal(accel.tile.run(accel, a, b, d, NO_FAULTS, waveform)[0], expected)


@every_machine
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    narrow=st.booleans(),
    bias=st.sampled_from([None, 7, 10]),
    faults=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_faults_give_what_the_reference_gives(
    family, dataflow, rows, cols, shape, narrow, bias, faults, seed
):
    rng = np.random.default_rng(seed)
    kwargs = {"operand_bits": 4, "product_bits": 8, "acc_bits": 10} if narrow else {}
    if family == "systolic" and rng.random() < 0.4:
        kwargs["overflow"] = "saturate"
    accel = machine(family, dataflow, rows, cols, **kwargs)
    a, b, d = operands(accel, rng, *shape, d_bits=bias)
    cycles = accel.schedule.cycles(accel, *shape)
    assert_is_the_reference(accel, a, b, d, random_table(accel, rng, cycles, faults))


def single_faults(accel, cycles: int):
    """Every register, PE and cycle of the array with a sample of bits: flips, one-cycle
    stuck-ats and transients, and permanent stuck-ats."""
    for index, component in sites(accel):
        top = component.bits - 1
        for bit in sorted({0, 1, top - 1, top} & set(range(component.bits))):
            for row in range(accel.rows):
                for col in range(accel.cols):
                    site = (index, row, col)
                    for kind in ("stuck0", "stuck1"):
                        yield fault(*site, kind, 1 << bit, LEVEL, -1, FOREVER)
                    for t in range(cycles):
                        if component.kind == "register":
                            yield fault(*site, "flip", 1 << bit, STATE, t, t)
                        for kind in ("flip", "stuck0", "stuck1"):
                            yield fault(*site, kind, 1 << bit, LEVEL, t, t)


def check_single_faults(family, dataflow, stride: int) -> int:
    """Every `stride`-th of them on a product with two tiles in each direction."""
    accel = machine(family, dataflow, 2, 2)
    a, b, d = operands(accel, np.random.default_rng(3), 3, 3, 3, d_bits=9)
    cycles = accel.schedule.cycles(accel, 3, 3, 3)
    golden = accel.cycle.run(accel, a, b, d, NO_FAULTS, False)[0]
    visible = 0
    for number, row in enumerate(single_faults(accel, cycles)):
        if number % stride:
            continue
        table = np.array([row], np.int64)
        expected = accel.cycle.run(accel, a, b, d, table, False)[0]
        visible += not np.array_equal(expected, golden)
        name = accel.components[row[0]].name
        out = accel.tile.run(accel, a, b, d, table)[0]
        assert_array_equal(out, expected, err_msg=f"{name} {row}")
    return visible


@every_machine
def test_a_sample_of_single_faults_of_a_2x2_array(family, dataflow):
    assert check_single_faults(family, dataflow, 29) > 20


@pytest.mark.slow
@every_machine
def test_every_single_fault_of_a_2x2_array(family, dataflow):
    assert check_single_faults(family, dataflow, 1) > 1000


@every_machine
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 6),
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24)),
    faults=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_span_of_a_fault_is_enough(family, dataflow, rows, cols, shape, faults, seed):
    rng = np.random.default_rng(seed)
    overflow = "saturate" if family == "systolic" and rng.random() < 0.4 else "wrap"
    accel = machine(family, dataflow, rows, cols, acc_bits=24, overflow=overflow)
    a, b, d = operands(accel, rng, *shape, d_bits=12)
    cycles = accel.schedule.cycles(accel, *shape)
    table = random_table(accel, rng, cycles, faults)
    everything = accel.tile.run(accel, a, b, d, table, True)[0]
    assert_array_equal(accel.tile.run(accel, a, b, d, table)[0], everything)
    clean = accel.tile.run(accel, a, b, d, NO_FAULTS)[0]
    given = accel.tile.run(accel, a, b, d, table, clean=clean)[0]
    assert_array_equal(given, everything)
    assert not np.shares_memory(given, clean)


@every_machine
def test_the_simulation_stops_when_the_state_is_golden(family, dataflow, monkeypatch):
    accel = machine(family, dataflow, 4, 4)
    name = "_output_stationary" if dataflow == "os" else "_weight_stationary"
    simulate, stops = getattr(accel.tile, name), []

    def recorded(*args):
        stops.append(simulate(*args))
        return stops[-1]

    monkeypatch.setattr(accel.tile, name, recorded)
    a, b, d = operands(accel, np.random.default_rng(4), 16, 16, 16, d_bits=9)
    cycles = accel.schedule.cycles(accel, 16, 16, 16)
    tiles = 16
    psum = next(i for i, c in sites(accel) if c.role == "psum")
    flip = np.array([fault(psum, 1, 2, "flip", 8, STATE, cycles // 2, cycles // 2)], np.int64)
    accel.tile.run(accel, a, b, d, flip)
    stuck = np.array([fault(psum, 1, 2, "stuck1", 8, LEVEL, -1, FOREVER)], np.int64)
    accel.tile.run(accel, a, b, d, stuck)
    assert tiles // 2 < stops[0] <= tiles // 2 + 4
    assert stops[1] >= tiles


SCALE_SIM = {  # ScaleSim's compute cycles: (m, n, k, rows, cols) -> os, ws, is
    (16, 16, 16, 4, 4): (352, 416, 416),
    (16, 16, 16, 8, 8): (120, 152, 152),
    (100, 10, 50, 8, 8): (1664, 1708, 2912),
    (37, 29, 53, 8, 4): (2520, 3080, 3290),
}


@pytest.mark.parametrize("sizes", SCALE_SIM)
@pytest.mark.parametrize("index, dataflow", [(0, "os"), (1, "ws"), (2, "is")])
def test_systolic_takes_the_cycles_of_scale_sim(sizes, index, dataflow):
    m, n, k, rows, cols = sizes
    accel = machine("systolic", dataflow, rows, cols)
    a, b, d = operands(accel, np.random.default_rng(5), m, k, n)
    out, waves = accel.tile.run(accel, a, b, d, NO_FAULTS, True)
    assert len(waves["psum"]) == SCALE_SIM[sizes][index]
    assert_array_equal(out, a @ b)


@every_machine
def test_a_fault_after_the_schedule_changes_nothing(family, dataflow):
    accel = machine(family, dataflow, 2, 3)
    a, b, d = operands(accel, np.random.default_rng(6), 5, 5, 5, d_bits=9)
    cycles = accel.schedule.cycles(accel, 5, 5, 5)
    for index, _ in sites(accel):
        table = np.array([fault(index, 1, 1, "flip", 1, LEVEL, cycles, FOREVER)], np.int64)
        assert_array_equal(accel.tile.run(accel, a, b, d, table)[0], naive.matmul(a, b, d))


@every_machine
@pytest.mark.parametrize(
    "change, words",
    [
        ({0: "memory"}, "registers and nets"),
        ({0: 99}, "component must be in"),
        ({1: 2}, "must lie in the 2x3 array"),
        ({2: -1}, "must lie in the 2x3 array"),
        ({0: "net", 4: STATE}, "net takes level faults"),
    ],
)
def test_a_fault_outside_the_array_is_refused(family, dataflow, change, words):
    accel = machine(family, dataflow, 2, 3)
    row = fault(0, 0, 0, "flip", 1, LEVEL, 0, 0)
    for column, value in change.items():
        if isinstance(value, str):
            value = next(i for i, c in enumerate(accel.components) if c.kind == value)
        row[column] = value
    a, b, _ = operands(accel, np.random.default_rng(7), 2, 2, 2)
    with pytest.raises(FaultError, match=words):
        accel.tile.run(accel, a, b, None, np.array([row], np.int64))


RTL_FILES = {
    "gemmini_os_4x4": ("gemmini", "os"),
    "gemmini_os_8x8": ("gemmini", "os"),
    "gemmini_ws_4x4": ("gemmini", "ws"),
    "st_os_4x4": ("pipelined", "os"),
    "st_os_8x8": ("pipelined", "os"),
    "st_ws_4x4": ("pipelined", "ws"),
    "st_ws_8x8": ("pipelined", "ws"),
}


@pytest.mark.parametrize("name", RTL_FILES)
def test_every_rtl_vector(name):
    """Results of all single faults, and the output port by cycle where it was recorded."""
    with np.load(RTL / f"{name}.npz") as archive:
        z = dict(archive)
    meta = json.loads(str(z["meta"]))
    accel = machine(*RTL_FILES[name], meta["rows"], meta["cols"])
    cases = []
    for c in range(len(meta["cases"])):
        d = z[f"D{c}"].astype(np.int64) if f"D{c}" in z else None
        cases.append((z[f"A{c}"].astype(np.int64), z[f"B{c}"].astype(np.int64), d))
        out, waves = accel.tile.run(accel, *cases[c], NO_FAULTS, True)
        assert_array_equal(out, z[f"C{c}"])
        trace = z[f"trace_golden{c}"]
        assert_array_equal(waves["out"], trace.reshape(len(trace), -1))
    traces = {int(v): f"trace{i}" for i, v in enumerate(z["trace_idx"])}
    kinds = {"flip": ("flip", STATE), "sa0": ("stuck0", LEVEL), "sa1": ("stuck1", LEVEL)}
    for v, c in enumerate(z["f_case"]):
        kind, effect = kinds[meta["kinds"][z["f_kind"][v]]]
        site = (accel.component_index(meta["sites"][z["f_site"][v]]), z["f_row"][v], z["f_col"][v])
        cycle = int(z["f_cycle"][v])
        last = cycle if effect == STATE else FOREVER
        row = fault(*site, kind, 1 << int(z["f_bit"][v]), effect, cycle, last)
        table = np.array([row], np.int64)
        a, b, _ = cases[c]
        offset = int(z["f_off"][v])
        expected = z["f_out"][offset : offset + len(a) * b.shape[1]].reshape(len(a), -1)
        assert_array_equal(accel.tile.run(accel, *cases[c], table)[0], expected, err_msg=f"{v}")
        if v in traces:
            out, waves = accel.tile.run(accel, *cases[c], table, True)
            assert_array_equal(out, expected)
            trace = z[traces[v]]
            assert_array_equal(waves["out"], trace.reshape(len(trace), -1), err_msg=f"{v}")
