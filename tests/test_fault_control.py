"""Faults of the sequencer: counters of steps and folds, and products that never end."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from fsim.accel_models.load import load_accel
from fsim.cli import main
from fsim.errors import FaultError, FsimError, HangError, MappingError
from fsim.fault_models.control import ControlFault
from fsim.session import open_session
from fsim.simulator.draws import Draws
from fsim.simulator.gemm import gemm
from fsim.simulator.inject import golden_run, run_rows
from fsim.simulator.sites import select
from fsim.simulator.statistics import Outcome
from fsim.types import Fault
from tests.rates import seed_for

FLOWS = ("ws", "os", "is")


def machine(flow, rows=3, cols=4, **more):
    return load_accel(
        "systolic", flow, {"rows": rows, "cols": cols, "parameters.sequencer": 1, **more}
    )


def operands(rng, m, k, n):
    return rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))


def answer(accel, a, b, d, faults, backend, waveform=False):
    """(result or None for a hang, waveform)."""
    try:
        found = gemm(a, b, d, accel=accel, faults=faults, backend=backend, waveform=waveform)
    except HangError:
        return None, None
    return found.out, found.waveform


@pytest.mark.parametrize("flow", FLOWS)
def test_without_control_faults_it_is_the_machine_without_counters(flow):
    rng = np.random.default_rng(seed_for(f"plain {flow}"))
    plain = load_accel("systolic", flow, {"rows": 3, "cols": 4})
    for shape in ((7, 8, 6), (1, 1, 1), (2, 5, 9)):
        a, b = operands(rng, *shape)
        d = rng.integers(-1000, 1000, (shape[0], shape[2]))
        cycles = plain.schedule.cycles(plain, *shape)
        faults = [Fault("psum", row=1, col=2, bit=9, cycle=int(rng.integers(cycles))),
                  Fault("mul", row=0, col=1, bit=3, kind="stuck1")]  # fmt: skip
        for some in ((), faults):
            want = gemm(a, b, d, accel=plain, faults=some, backend="reference", waveform=True)
            for backend in ("reference", "tile"):
                got = gemm(a, b, d, accel=machine(flow), faults=some, backend=backend,
                           waveform=True)  # fmt: skip
                np.testing.assert_array_equal(got.out, want.out)
                for name, values in want.waveform.items():
                    np.testing.assert_array_equal(got.waveform[name], values)
                fold, step = (got.waveform[name][:, 0, 0] for name in ("fold", "step"))
                length = step.max() + 1
                clock = np.arange(1, len(step) + 1)
                np.testing.assert_array_equal(step, clock % length)
                np.testing.assert_array_equal(fold, clock // length)
            replayed = gemm(a, b, d, accel=machine(flow), faults=some, backend="replay")
            np.testing.assert_array_equal(replayed.out, want.out)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("flow", FLOWS)
def test_the_compiled_simulation_is_the_specification(flow, saturate):
    """Random faults of counters, alone and with others: results, waveforms and hangs."""
    rng = np.random.default_rng(seed_for(f"tile {flow} {saturate}"))
    more = {"acc_bits": 18, "overflow": "saturate"} if saturate else {}
    accel, hangs, changed = machine(flow, **more), 0, 0
    parts = [c for c in accel.components if c.kind != "memory"]
    for _ in range(60):
        shape = tuple(int(x) for x in rng.integers(1, 9, 3))
        a, b = operands(rng, *shape)
        d = rng.integers(-1000, 1000, (shape[0], shape[2]))
        cycles = accel.schedule.cycles(accel, *shape)
        faults = []
        for number in range(int(rng.integers(1, 3))):
            part = parts[rng.integers(len(parts))] if number else parts[-1 - rng.integers(2)]
            rows, cols, _ = accel.grid(part)
            kind = ("flip", "flip", "stuck0", "stuck1")[rng.integers(4)]
            faults.append(
                Fault(part.name, int(rng.integers(rows)), int(rng.integers(cols)),
                      bit=int(rng.integers(5 if part.role == "control" else part.bits)), kind=kind,
                      cycle=int(rng.integers(cycles)))
            )  # fmt: skip
        want, waves = answer(accel, a, b, d, faults, "reference", True)
        got, others = answer(accel, a, b, d, faults, "tile", True)
        if want is None:
            hangs += 1
            assert got is None
            continue
        np.testing.assert_array_equal(got, want)
        for name in waves:
            np.testing.assert_array_equal(others[name], waves[name])
        changed += bool((want != gemm(a, b, d, accel=accel).out).any())
    assert hangs > 5 and changed > 10


def test_a_step_that_jumps_fetches_from_another_address():
    """Weight stationary, one fold: the rows of A that follow are those the counter names."""
    rng = np.random.default_rng(3)
    accel = machine("ws", rows=1, cols=1)
    a, b = operands(rng, 12, 1, 1)
    # 1 PE: edge c loads the weight at c = 0 and feeds row c; the sum of row r is read at c = r + 1.
    # Bit 1 of 5 makes 7: rows 5 and 6 are never fetched, and nothing is read for rows 4 and 5.
    out = gemm(a, b, accel=accel, faults=[Fault("step", bit=1, cycle=4)], backend="reference").out
    product = (a @ b)[:, 0]
    fetched = [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    read = {r: r for r in fetched[:4]}
    # From the jump on, the sum at edge c is of the row fed at the edge before.
    read |= {6: 4} | {r: r for r in range(7, 12)}
    want = [product[read[r]] if r in read else 0 for r in range(12)]
    np.testing.assert_array_equal(out[:, 0], want)


@pytest.mark.parametrize("backend", ["reference", "tile"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_counter_that_never_arrives_is_a_hang(flow, backend):
    rng = np.random.default_rng(1)
    a, b = operands(rng, 4, 5, 6)
    accel = machine(flow)
    cycles = accel.schedule.cycles(accel, 4, 5, 6)
    for fault in (Fault("fold", bit=14, cycle=3), Fault("step", bit=0, kind="stuck0"),
                  Fault("step", bit=15, cycle=cycles - 2)):  # fmt: skip
        with pytest.raises(HangError, match=f"within {2 * cycles} cycles"):
            gemm(a, b, accel=accel, faults=[fault], backend=backend)
    with pytest.raises(FaultError):
        gemm(a, b, accel=accel, faults=[Fault("fold", bit=1, cycle=3)], backend="replay")
    with pytest.raises(FaultError, match="row must be in 0..0"):
        gemm(a, b, accel=accel, faults=[Fault("fold", row=1, bit=1, cycle=3)], backend=backend)


def test_products_too_long_for_the_counters_are_refused():
    accel = machine("ws", rows=1, cols=1)
    a, b = np.ones((1, 300), int), np.ones((300, 300), int)
    with pytest.raises(MappingError, match="at most 65535 folds"):
        gemm(a, b, accel=accel, faults=[Fault("step", bit=0, cycle=3)], backend="tile")


# --- networks ---


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", machine("ws", 16, 16), images=16)


def test_a_hang_is_an_outcome_of_its_own(session):
    golden = golden_run(session.placement, session.images, session.labels)
    space = select(session.placement)
    rows = ControlFault().rows(space, 0, np.arange(16), Draws(4))
    found = run_rows(session.placement, golden, rows)
    assert {Outcome.HANG} < set(found.outcome.tolist())
    hung = found.outcome == Outcome.HANG
    assert (found.top1[hung] == -1).all() and (found.top1[~hung] >= 0).all()
    one = run_rows(session.placement, golden, rows, batch=3)
    np.testing.assert_array_equal(one.outcome, found.outcome)
    np.testing.assert_array_equal(one.acc, found.acc)
    # Whether an image hangs is a matter of its row alone: its layer's product, by itself.
    for image in np.flatnonzero(hung)[:2].tolist():
        mine = rows[rows["image"] == image]
        alone = run_rows(
            session.placement, golden, mine, backend="reference", first=image, count=1
        )
        assert alone.outcome.tolist() == [Outcome.HANG]


def test_campaigns_count_hangs_and_replay_them(tmp_path):
    out = tmp_path / "c.h5"
    common = ["--set", "parameters.sequencer=1", "--set", "rows=16", "--set", "cols=16"]
    words = ["campaign", "--fault", "control", *common, "--images", "10", "--trials", "60",
             "--out", str(out), "--json"]  # fmt: skip
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    counts = json.loads(result.output)["outcomes"]
    assert counts["hang"]["count"] > 5 and counts["sdc_critical"]["count"] > 0
    result = CliRunner().invoke(main, ["replay", str(out), "--json"])
    assert result.exit_code == 0 and json.loads(result.output)["differences"] == 0
    words = ["inject", "--fault", "control", *common, "--images", "10", "--trials", "2", "--json"]
    result = CliRunner().invoke(main, words)
    assert json.loads(result.output)["outcomes"]["hang"]["count"] > 0


def test_a_machine_without_counters_has_no_control_to_strike():
    placement = open_session("digits-cnn", load_accel("systolic"), images=2).placement
    with pytest.raises(FsimError, match="has none"):
        ControlFault().rows(select(placement), 0, np.arange(2), Draws(0))
