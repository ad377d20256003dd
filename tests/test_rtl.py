"""The project's own RTL in an RTL simulator; `make verify-rtl` runs many more faults."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fsim
from tests.rtl import simulators, stimulus, verify_rtl
from tests.rtl.verify_rtl import DESIGNS
from tests.test_vcd import by_cycle, read

SIMULATORS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(
                name not in simulators.installed(), reason=f"{name}: {simulators.MISSING}"
            ),
            *([pytest.mark.slow] if name == "verilator" else []),
        ],
    )
    for name in simulators.COMMANDS
]
CASES = [("os-3x5-saturating", {"os"}), ("ws-5x3-saturating", {"ws", "is"})]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(("name", "flows"), CASES)
def test_results_and_registers_of_random_faults_are_those_of_the_rtl(simulator, name, flows):
    tallies = verify_rtl.verify_design(simulator, DESIGNS[name], seed=7, products=1, faults=20)
    assert set(tallies) == flows
    for tally in tallies.values():
        assert not tally.first
        assert (tally.different, tally.runs) == (0, 20)
        assert len(tally.faults) == 19  # all kinds of all components; a net holds no flip
        assert 0 < tally.changed <= 20 and tally.values > 1000


@pytest.mark.parametrize("simulator", SIMULATORS[1:])
@pytest.mark.parametrize("name", ["os-3x5-saturating", "ws-5x3-saturating"])
@pytest.mark.parametrize("mutant", [1, 2])
def test_wrong_rtl_is_noticed(simulator, name, mutant):
    wrong = dataclasses.replace(DESIGNS[name], mutant=mutant)
    tallies = verify_rtl.verify_design(simulator, wrong, seed=7, products=1, faults=20)
    for tally in tallies.values():
        assert tally.different > 0
        assert "RTL" in tally.first and "reference" in tally.first


@pytest.mark.parametrize("simulator", SIMULATORS[1:])
def test_another_overflow_rule_in_the_rtl_is_noticed(simulator, monkeypatch, capsys):
    monkeypatch.setattr(verify_rtl, "machine", lambda design, flow, made=verify_rtl.machine: made(
        dataclasses.replace(design, saturate=not design.saturate), flow
    ))  # fmt: skip
    status = verify_rtl.main(["os-3x5-saturating", "--simulator", simulator, "--products", "1"])
    printed = capsys.readouterr().out
    assert status == 1
    assert "first difference: cycle " in printed and "psum of PE (" in printed


@pytest.mark.parametrize("simulator", SIMULATORS[1:])
def test_the_simulators_own_waveform_has_the_values_of_ours(simulator, tmp_path):
    """Two VCD writers, one run: Icarus's of the RTL and fsim's of the same product."""
    design = dataclasses.replace(DESIGNS["os-4x4"], rows=2, cols=3)
    rng = np.random.default_rng(3)
    a, b = rng.integers(-128, 128, (2, 4)), rng.integers(-128, 128, (4, 3))
    fault = fsim.Fault("ifmap", row=1, col=1, bit=6, cycle=3)
    built = simulators.build(simulator, design, tmp_path / "build")
    word = stimulus.fault_word(0, 1, 1, first=3, last=3, masks=(-1, 0, 1 << 6))
    zeros = np.zeros((2, 3), int)
    built.run(stimulus.stimulus(design, a, b, zeros), [word], tmp_path / "rtl.vcd")
    machine = verify_rtl.machine(design, "os")
    result = fsim.gemm(a, b, accel=machine, faults=[fault], waveform=True)
    fsim.write_vcd(tmp_path / "fsim.vcd", result, machine)
    rtl, ours = (read(tmp_path / f"{name}.vcd") for name in ("rtl", "fsim"))
    for i in range(2):
        for j in range(3):
            for register in ("ifmap", "filter", "psum"):
                there = f"testbench.dut.array.row[{i}].col[{j}].pe.{register}"
                here = f"array.pe_{i}_{j}.{register}"
                width = ours[0][here]
                assert rtl[0][there] == width
                # Icarus runs the edge under reset first: its cycle t + 1 is ours t.
                wanted = by_cycle(rtl[1][there], width, result.cycles + 1)[1:]
                assert by_cycle(ours[1][here], width, result.cycles) == wanted


def test_without_a_simulator_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(simulators.shutil, "which", lambda name: None)
    assert verify_rtl.main(["os-4x4"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: no RTL simulator is installed")
    assert len(printed.err.splitlines()) == 1 and not printed.out


def test_unknown_names_are_refused(capsys):
    assert verify_rtl.main(["os-9x9"]) == 2
    assert "a design must be one of os-4x4" in capsys.readouterr().err
    assert verify_rtl.main(["--simulator", "modelsim"]) == 2
    assert "must be one of verilator, icarus" in capsys.readouterr().err
