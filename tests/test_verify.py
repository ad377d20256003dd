"""The references are the RTL, and the check that says so can fail.

The quick tests take a sample of each file of vectors, the slow one takes all.
"""

import dataclasses
import json

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError
from fsim.simulator.crosscheck import MACHINES
from fsim.simulator.vectors import read_vectors, vector_table
from fsim.simulator.verify import (
    RUNNERS,
    Mismatch,
    accel_for,
    builtin_vectors,
    kernel_checks,
    sample,
    verify_vectors,
)
from fsim.types import LEVEL, STATE, T_COL, T_COMPONENT, T_EFFECT, T_FIRST, T_LAST, T_ROW

FILES = {path.stem: path for path in builtin_vectors()}
reference = RUNNERS["reference"]


def test_vectors_of_each_checked_machine_are_shipped():
    assert sorted(FILES) == [
        "gemmini_os_4x4",
        "gemmini_os_8x8",
        "gemmini_ws_4x4",
        "nvdla_small_8x8",
        "st_os_4x4",
        "st_os_8x8",
        "st_ws_4x4",
        "st_ws_8x8",
    ]
    assert sum(len(read_vectors(path).vectors) for path in FILES.values()) == 5435


# The vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_reference_is_the_rtl_on_a_sample(name):
    """One in 4 vectors of the 4 x 4 arrays, one in 12 of the 8 x 8 ones."""
    report = verify_vectors(FILES[name], every=4 if name.endswith("4x4") else 12)
    assert report.mismatches == ()
    assert report.failed == report.skipped == 0
    checks = {tally.check: tally.passed for tally in report.tallies}
    cases = len(read_vectors(FILES[name]).cases)
    assert checks["cycles"] == checks["fault-free result"] == cases
    assert checks["fault-free waveform"] == cases
    kinds = sorted({vector.kind for vector in read_vectors(FILES[name]).vectors})
    # NVDLA's file has no stuck-at-1 faults.
    assert kinds == (["flip", "sa0"] if name.startswith("nvdla") else ["flip", "sa0", "sa1"])
    assert all(checks[f"{kind} result"] >= 5 for kind in kinds)
    assert checks["masked flag"] == sum(checks[f"{kind} result"] for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_reference_is_the_rtl_on_every_vector(name):
    report = verify_vectors(FILES[name])
    assert report.mismatches == ()
    assert report.failed == report.skipped == 0
    file = read_vectors(FILES[name])
    traces = sum(vector.trace is not None for vector in file.vectors)
    assert report.passed == 3 * len(file.cases) + 2 * len(file.vectors) + traces


@pytest.mark.parametrize("name", FILES)
def test_replay_is_the_rtl_on_every_vector_of_its_components(name):
    report = verify_vectors(FILES[name], backend="replay")
    assert report.mismatches == ()
    assert report.failed == 0
    assert report.passed > 800


def test_sums_of_idle_columns_are_fed_back_as_in_the_rtl():
    """A weight upset in a column beyond N never reaches the result, but in the next
    k-tile the port shows its sum: vector 24, the only one of its kind, cycle 367."""
    file = read_vectors(FILES["st_ws_8x8"])
    fault, accel = file.vectors[24], accel_for(file)
    case = file.cases[fault.case]
    assert (fault.masked, fault.col, case.b.shape[1] % 8) == (True, 7, 3)
    out, waves = reference(accel, case.a, case.b, case.d, vector_table(accel, fault), True)
    np.testing.assert_array_equal(waves["out"], fault.trace)
    np.testing.assert_array_equal(out, case.out)
    assert waves["out"][367, 7] == -736


# Machines that are nearly right must fail -----------------------------------------------


def changed(change):
    """The reference with its fault table changed: what a subtly wrong model computes."""

    def run(accel, a, b, d, table, waveform=False):
        table = table.copy()
        if len(table):
            change(accel, table)
        return reference(accel, a, b, d, table, waveform)

    return run


def a_cycle_later(accel, table):
    table[table[:, T_EFFECT] == STATE, T_FIRST] += 1


def rows_and_columns_swapped(accel, table):
    table[:, [T_ROW, T_COL]] = table[:, [T_COL, T_ROW]]


def upset_read_as_stuck(accel, table):
    state = table[:, T_EFFECT] == STATE
    table[state, T_EFFECT], table[state, T_LAST] = LEVEL, 10**9


def stuck_read_as_upset(accel, table):
    """Forced once, at the first edge, instead of in every cycle."""
    register = np.array([component.kind == "register" for component in accel.components])
    level = (table[:, T_EFFECT] == LEVEL) & register[table[:, T_COMPONENT]]
    table[level, T_EFFECT], table[level, T_FIRST] = STATE, 0


def swapped(*names):
    def change(accel, table):
        one, other = (accel.component_index(name) for name in names)
        table[:, T_COMPONENT] = [{one: other, other: one}.get(c, c) for c in table[:, T_COMPONENT]]

    return change


MUTANTS = {
    "cycle": a_cycle_later,
    "transposed": rows_and_columns_swapped,
    "upset as stuck": upset_read_as_stuck,
    "stuck as upset": stuck_read_as_upset,
}
SWAPS = {
    "gemmini_os": ("c1", "c2"),
    "gemmini_ws": ("c1", "c2"),
    "st_os": ("s1_x", "x_old"),
    "st_ws": ("w_reg", "w_old"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("4x4")])
def test_a_wrong_reading_of_faults_is_found(name, mutant):
    report = verify_vectors(FILES[name], runner=changed(MUTANTS[mutant]), every=5)
    assert report.failed > 10
    assert {m.check for m in report.mismatches} >= {"masked flag"}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("4x4")])
def test_swapped_registers_are_found(name):
    registers = SWAPS[name.removesuffix("_4x4")]
    report = verify_vectors(FILES[name], runner=changed(swapped(*registers)), every=3)
    # Only vectors of these two registers can tell.
    assert report.failed > 5
    for mismatch in report.mismatches:
        assert any(f" of {register}(" in mismatch.fault for register in registers)


def test_a_model_without_faults_fails_each_visible_vector_and_no_other():
    def run(accel, a, b, d, table, waveform=False):
        return reference(accel, a, b, d, table[:0], waveform)

    path = FILES["gemmini_ws_4x4"]
    report = verify_vectors(path, runner=run)
    visible = sum(not vector.masked for vector in read_vectors(path).vectors)
    counts = {tally.check: tally.failed for tally in report.tallies}
    assert sum(counts[f"{kind} result"] for kind in ("flip", "sa0", "sa1")) == visible
    assert counts["masked flag"] == visible
    assert counts["fault-free result"] == counts["fault-free waveform"] == 0


# What a report says ------------------------------------------------------------------------


def test_the_first_difference_is_named_by_cycle_register_and_values():
    """One wrong number in one cycle of the fault-free port."""

    def run(accel, a, b, d, table, waveform=False):
        out, waves = reference(accel, a, b, d, table, waveform)
        if waves is not None and a.shape == (9, 10) and not len(table):
            waves["out"][33, 6] += 5
            waves["out"][50, 0] += 1
        return out, waves

    report = verify_vectors(FILES["st_os_4x4"], runner=run, every=40)
    golden = read_vectors(FILES["st_os_4x4"]).cases[3].trace
    expected = int(golden[33, 6])
    assert report.failed == 1
    assert report.first == Mismatch(
        check="fault-free waveform",
        case=3,
        vector=None,
        fault="no fault",
        cycle=33,
        register="mac_out",
        row=1,
        col=2,
        expected=expected,
        got=expected + 5,
    )
    assert str(report.first) == (
        f"case 3, no fault: cycle 33, mac_out(1,2): expected {expected}, got {expected + 5}"
    )


def test_a_wrong_result_names_its_element_and_the_fault():
    def run(accel, a, b, d, table, waveform=False):
        out, waves = reference(accel, a, b, d, table, waveform)
        if len(table):
            out[-1, -1] += 1
        return out, waves

    file = read_vectors(FILES["gemmini_os_4x4"])
    report = verify_vectors(file.path, runner=run, every=100)
    first = report.first
    v = sample(len(file.vectors), 100)[0]
    assert (first.vector, first.register, first.cycle) == (v, "C", None)
    out = file.vectors[v].out
    assert (first.row, first.col) == (out.shape[0] - 1, out.shape[1] - 1)
    assert (first.expected, first.got) == (int(out[-1, -1]), int(out[-1, -1]) + 1)
    assert first.fault == str(file.vectors[v])


def test_a_run_of_another_length_is_a_mismatch_of_t():
    def run(accel, a, b, d, table, waveform=False):
        out, waves = reference(accel, a, b, d, table, waveform)
        return out, waves and {name: values[:-1] for name, values in waves.items()}

    report = verify_vectors(FILES["gemmini_ws_4x4"], runner=run, every=1000)
    assert (report.first.register, report.first.expected, report.first.got) == ("T", 16, 15)


def test_a_runner_without_waves_skips_waveforms_and_nothing_else():
    def run(accel, a, b, d, table, waveform=False):
        return reference(accel, a, b, d, table, False)

    report = verify_vectors(FILES["gemmini_ws_4x4"], runner=run, every=10)
    for tally in report.tallies:
        assert (tally.skipped > 0) == tally.check.endswith("waveform")
        assert (tally.passed > 0) != tally.check.endswith("waveform")


def test_components_a_backend_does_not_claim_are_skipped():
    report = verify_vectors(FILES["gemmini_os_4x4"], backend="replay", runner=reference)
    accel = accel_for(read_vectors(FILES["gemmini_os_4x4"]))
    control = {c.name for c in accel.components if "replay" not in c.backends}
    vectors = read_vectors(FILES["gemmini_os_4x4"]).vectors
    skipped = [vector for vector in vectors if vector.site in control]
    traced = sum(vector.trace is not None for vector in skipped)
    assert len(skipped) > 0
    assert report.skipped == 2 * len(skipped) + traced


# The user's own vectors and machines ---------------------------------------------------------


def systolic_file(path, **meta):
    """Vectors of a 2 x 2 weight-stationary systolic array, worked out by hand.

    psum(1, 0) holds the sum 13 after edge 2 + 0 + 1 + 0 = 3, where bit 5 flips.
    """
    meta = {
        "design": "mine",
        "dataflow": "WS",
        "rows": 2,
        "cols": 2,
        "sites": ["psum"],
        "site_bits": [32],
        "kinds": ["flip"],
        "cases": [{"M": 1, "K": 2, "N": 2}],
        "n_vectors": 1,
    } | meta
    np.savez_compressed(
        path,
        meta=json.dumps(meta),
        A0=[[1, 2]],
        B0=[[3, 4], [5, 6]],
        C0=[[13, 16]],
        T0=5,
        f_case=[0],
        f_kind=[0],
        f_site=[0],
        f_row=[1],
        f_col=[0],
        f_bit=[5],
        f_cycle=[3],
        f_off=[0],
        f_out=[45, 16],
        f_masked=[False],
    )
    return path


def test_the_machine_takes_size_and_dataflow_of_the_file(tmp_path):
    path = systolic_file(tmp_path / "mine.npz")
    report = verify_vectors(path, load_accel("systolic", dataflow="os"))
    assert (report.machine, report.passed, report.failed) == ("systolic ws 2x2", 4, 0)


@pytest.mark.parametrize(
    ("meta", "accel", "words"),
    [
        ({}, None, "design must begin with gemmini_, st_, systolic_, nvdla_ where"),
        ({"design": "gemmini_x"}, "systolic", "of a gemmini machine, got accelerator 'systolic'"),
        ({"dataflow": "IS"}, "gemmini-like", "dataflow must be one of gemmini-like's"),
        ({}, "gemmini-like", "got 'psum'"),
        ({"site_bits": [20]}, "systolic", "psum has 32 bits on systolic, got 20"),
    ],
)
def test_vectors_of_another_machine_are_refused(tmp_path, meta, accel, words):
    path = systolic_file(tmp_path / "mine.npz", **meta)
    with pytest.raises(ConfigError, match=words) as caught:
        verify_vectors(path, accel and load_accel(accel))
    assert str(path) in str(caught.value)


def test_operands_wider_than_the_machine_are_refused(tmp_path):
    narrow = dataclasses.replace(load_accel("systolic"), operand_bits=3)
    path = systolic_file(tmp_path / "mine.npz")
    with pytest.raises(ConfigError, match=r"B0 must lie in \[-4, 3\], got \[3, 6\]"):
        verify_vectors(path, narrow)


def test_a_sample_is_a_fixed_part_of_all_kinds_of_vectors():
    assert sample(10, 1) == list(range(10))
    assert sample(0, 3) == []
    assert len(sample(11, 5)) == 3
    assert sample(660, 7) == sample(660, 7)
    # Files are sorted with a period; a sample must not fall in step with it.
    for period in range(2, 11):
        assert {v % period for v in sample(660, 10)} == set(range(period))


def test_an_unknown_backend_or_share_is_refused():
    path = FILES["st_ws_4x4"]
    with pytest.raises(ConfigError, match="backend must be one of reference, tile, replay"):
        verify_vectors(path, backend="gpu")
    with pytest.raises(ConfigError, match="every must be >= 1, got 0"):
        verify_vectors(path, every=0)


# Backends against the reference ----------------------------------------------------------------


def test_the_reference_agrees_with_itself_on_every_machine():
    rows = kernel_checks(0, {"reference": reference})
    assert len(rows) == len(MACHINES)
    assert all((row.passed, row.failed, row.first) == (1, 0, "") for row in rows)


def test_replay_agrees_with_the_reference():
    rows = kernel_checks(0, {"replay": RUNNERS["replay"]}, seed=1, rounds=20)
    assert [row.first for row in rows] == [""] * len(MACHINES)
    assert all(row.passed == 20 for row in rows)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_backend_is_found_on_every_machine(mutant):
    runner = changed(MUTANTS[mutant]) if mutant != "transposed" else changed(moved)
    rows = kernel_checks(0, {"reference": runner}, rounds=24)
    assert all(row.failed > 0 and "expected" in row.first for row in rows)


def moved(accel, table):
    """One column too far; the last column takes the place of the first."""
    widths = [accel.grid(component)[1] for component in accel.components]
    table[:, T_COL] = (table[:, T_COL] + 1) % np.array(widths)[table[:, T_COMPONENT]]


def test_an_error_of_a_backend_counts_as_a_failure():
    def run(accel, a, b, d, table, waveform=False):
        raise ConfigError("cannot do that")

    rows = kernel_checks(0, {"tile": run})
    assert all(row.failed == 1 and row.first.endswith("cannot do that") for row in rows)
