"""Stuck and varied cells of a whole network's crossbars, and single faults in networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import stats

from fsim.accel_models.load import description_yaml, load_accel, load_description
from fsim.accel_models.rram import schedule
from fsim.errors import FaultError
from fsim.fault_models.crossbar import CrossbarStuck, CrossbarVariation, normal_cdf, thresholds
from fsim.fault_models.network import Explicit
from fsim.fault_models.stuck_cells import SA1_SHARE
from fsim.session import open_session
from fsim.simulator import program as P
from fsim.simulator.draws import Draws
from fsim.simulator.inject import golden_run, run_rows
from fsim.simulator.lower import weight_position
from fsim.simulator.sites import check_rows, select
from fsim.testing import fault_model_contract
from fsim.types import LEVEL, Fault
from tests.rates import assert_rate, seed_for

IMAGES = 6


def session_of(**overrides):
    return open_session("digits-cnn", load_accel("rram-crossbar", None, overrides), images=IMAGES)


@pytest.fixture(scope="module")
def session():
    return session_of()


@pytest.fixture(scope="module")
def space(session):
    return select(session.placement)


@pytest.fixture(scope="module")
def fine():
    """A space whose conductances have four bits of fraction."""
    return select(session_of(**{"parameters.fraction_bits": 4}).placement)


def drawn(space, model, trial=0, seed=0):
    return model.rows(space, trial, np.arange(IMAGES), Draws(seed))


# Where cells are ------------------------------------------------------------------


def weights_with(space, rows):
    """op -> weight codes that cells with the values of `rows` stand for.

    Made from the weights, not from folds: cycle -> fold -> (k, n) is undone here with the
    machine's sizes and `lower.weight_position`.
    """
    accel, count, cell = space.accel, 4, 2
    assert schedule.slices(accel) == count and accel.parameters["cell_bits"] == cell
    pos = accel.component_index("g_pos")
    found = {}
    for op in space.placement.program.array_ops:
        mine = rows[rows["layer"] == op.index]
        low = space.placement.lowered[op.index]
        digits = np.zeros((op.weight.size, count, 2), np.int64)
        codes = op.weight.reshape(-1).astype(int)
        for part in range(count):
            for sign, magnitude in enumerate((np.maximum(codes, 0), np.maximum(-codes, 0))):
                digits[:, part, sign] = magnitude // 4**part % 4
        address = {}
        for word, (group, k, n) in enumerate(zip(*weight_position(low, np.arange(len(codes))))):
            address[int(group), int(k), int(n)] = word
        fold_length = 128 + low.m * 8 + 1
        k_folds = -(-low.k // 128)
        per_group = k_folds * -(-low.n // 32) * fold_length
        for row in mine:
            assert row["effect"] == LEVEL and row["image"] == -1
            assert row["last"] - row["first"] == fold_length - 1
            group, cycle = divmod(int(row["first"]), per_group)
            fold, start = divmod(cycle, fold_length)
            assert start == 0
            tile, k_fold = divmod(fold, k_folds)
            place = group, k_fold * 128 + int(row["row"]), tile * 32 + int(row["col"])
            digits[address[place], int(row["word"]), int(row["component"] != pos)] = row["or_mask"]
        values = digits @ np.array([1, -1])
        found[op.index] = (values @ 4 ** np.arange(count)).reshape(op.weight.shape)
    return found


def test_stuck_cells_are_other_weights(space, session):
    rows = drawn(space, CrossbarStuck(3e-4, 0.3))
    # Weights beyond the operand's width are left out: the plain network has no codes for them.
    rows = rows[[not _beyond(weights_with(space, rows[i : i + 1])) for i in range(len(rows))]]
    expected = weights_with(space, rows)
    assert len(rows) > 30 and not _beyond(expected)
    golden = golden_run(session.placement, session.images, session.labels)
    got = run_rows(session.placement, golden, rows)
    changed = session.placement.with_weights(
        {i: codes.astype(np.int8) for i, codes in expected.items()}
    )
    acc = P.run(changed.program, session.images).acc
    assert_array_equal(got.acc, acc)
    assert not np.array_equal(got.acc, golden.acc)


def _beyond(weights) -> bool:
    """Whether a weight is not a code of 8 bits."""
    return any(codes.min() < -128 or codes.max() > 127 for codes in weights.values())


def test_cells_are_stuck_at_the_rate_given(space):
    p, share, trials = 0.05, 0.3, 8
    cells = 2 * 4 * sum(op.weight.size for op in space.placement.program.array_ops)
    model = CrossbarStuck(p, share)
    assert model.expected(space, 1) == pytest.approx(p * cells)
    rows = np.concatenate([drawn(space, model, t, seed_for("rram") % 2**60) for t in range(trials)])
    assert_rate(len(rows), cells * trials, p)
    assert_rate(int((rows["or_mask"] == 3).sum()), len(rows), share)
    assert set(np.unique(rows["or_mask"]).tolist()) == {0, 3}
    assert (rows["and_mask"] == 0).all() and (rows["xor_mask"] == 0).all()
    check_rows(space.placement, rows, IMAGES)
    assert CrossbarStuck(p).sa1_share == SA1_SHARE
    places = rows[rows["trial"] == 0][["component", "layer", "row", "col", "word", "first"]]
    assert len(np.unique(places)) == len(places)


# Variation ------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-9.0, -3.2, -0.5, 0.0, 0.1, 1.0, 4.0, 8.0, 13.0])
def test_the_normal_distribution(z):
    from decimal import Decimal

    assert float(normal_cdf(Decimal(z))) == pytest.approx(stats.norm.cdf(z), rel=1e-12)


@pytest.mark.parametrize(("law", "sigma"), [("lognormal", 0.3), ("normal", 0.08)])
@pytest.mark.parametrize("unit", [0, 16, 32, 48])
def test_the_table_is_the_law(law, sigma, unit):
    table = thresholds(law, sigma, unit, 48, 6)
    assert len(table) == 63 and (np.diff(table) >= 0).all()
    edges = np.arange(63) + 0.5
    if law == "normal":
        expected = stats.norm.cdf((edges - unit) / (sigma * 48))
    elif unit == 0:
        expected = np.ones(63)
    else:
        expected = stats.lognorm.cdf(edges, sigma, scale=unit)
    np.testing.assert_allclose(table / 2**53, expected, atol=1e-13)


def test_varied_cells_follow_the_law(fine):
    rows = drawn(fine, CrossbarVariation(0.3), seed=seed_for("varied") % 2**60)
    check_rows(fine.placement, rows, IMAGES)
    op = fine.placement.program.array_ops[2]
    mine = rows[rows["layer"] == op.index]
    magnitudes = np.stack([np.maximum(op.weight, 0), np.maximum(-op.weight.astype(int), 0)])
    levels = np.concatenate([(magnitudes // 4**s % 4).ravel() for s in range(4)])
    # Cells at level 0 stay; of the others, those that a step of 1/16 takes away from home.
    expected = sum(
        (levels == level).sum() * (1 - (stats.lognorm.cdf(level + 1 / 32, 0.3, scale=level)
                                        - stats.lognorm.cdf(level - 1 / 32, 0.3, scale=level)))
        for level in (1, 2, 3)
    )  # fmt: skip
    assert_rate(len(mine), int((levels > 0).sum()), expected / (levels > 0).sum())
    assert mine["or_mask"].max() <= 63 and mine["or_mask"].min() >= 0
    # The median of ln(g'/g) is 0: as many above the programmed level as below.
    ones = int((levels == 1).sum())
    below = stats.lognorm.cdf(15.5 / 16, 0.3) * ones
    low = mine[mine["or_mask"] < 16]
    assert len(low) >= 0.9 * below
    again = drawn(fine, CrossbarVariation(0.3), seed=seed_for("varied") % 2**60)
    assert_array_equal(again, rows)


def test_little_variation_changes_nothing_and_more_does(fine):
    assert not len(drawn(fine, CrossbarVariation(1e-4)))
    assert len(drawn(fine, CrossbarVariation(0.05))) < len(drawn(fine, CrossbarVariation(0.3)))


def test_variation_needs_a_fraction(space):
    with pytest.raises(FaultError, match="fraction_bits"):
        drawn(space, CrossbarVariation(0.1))
    other = select(open_session("digits-cnn", load_accel("systolic"), images=2).placement)
    for model in (CrossbarVariation(0.1), CrossbarStuck(0.1)):
        with pytest.raises(FaultError, match="family rram"):
            drawn(other, model)


def test_a_chip_read_bit_by_bit_and_all_at_once_are_the_same(fine, session):
    """One product of a varied chip on the reference, and by replay."""
    rows = drawn(fine, CrossbarVariation(0.3))
    fc = fine.placement.program.array_ops[-1].index
    rows = rows[rows["layer"] == fc]
    golden = golden_run(fine.placement, session.images[:2], session.labels[:2])
    fast = run_rows(fine.placement, golden, rows)
    slow = run_rows(fine.placement, golden, rows, backend="reference")
    assert_array_equal(fast.acc, slow.acc)
    assert not np.array_equal(fast.acc, golden.acc)


MODELS = [
    (CrossbarStuck(0.01), {}),
    (CrossbarVariation(0.2), {"parameters.fraction_bits": 4}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "overrides"), MODELS, ids=lambda x: getattr(x, "name", ""))
def test_the_contract_of_fault_models(model, overrides, tmp_path):
    path = tmp_path / "machine.yaml"
    path.write_text(description_yaml(load_description("rram-crossbar", None, overrides)))
    for check in fault_model_contract(model, str(path)):
        check()


# Single faults in networks --------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A session whose crossbar has few enough cells for the plain-Python reference."""
    return session_of(rows=24, cols=4)


@pytest.mark.parametrize("component", ["ifmap", "g_pos", "g_neg", "adc_pos", "sum", "acc"])
def test_a_fault_in_a_network_is_that_of_the_reference(small, component):
    accel = small.placement.accel
    height, width, words = accel.grid(accel.components[accel.component_index(component)])
    fault = Fault(component, row=min(5, height - 1), col=min(3, width - 1), bit=1, kind="stuck1",
                  word=2 if words > 1 else None, layer="fc")  # fmt: skip
    golden = golden_run(small.placement, small.images[:2], small.labels[:2])
    rows = Explicit((fault,)).rows(select(small.placement), 0, np.arange(2), Draws(0))
    assert rows["word"].tolist() == [2 if words > 1 else -1]
    results = {
        backend: run_rows(small.placement, golden, rows, backend=backend).acc
        for backend in ("auto", "tile", "reference")
    }
    assert_array_equal(results["auto"], results["reference"])
    assert_array_equal(results["tile"], results["reference"])
    assert not np.array_equal(results["auto"], golden.acc)


def test_a_narrow_adc_runs_networks(session):
    accel = session.placement.accel
    narrow = replace(accel, parameters=accel.parameters | {"adc_bits": 5})
    placed = replace(session.placement, accel=narrow, _cache={})
    clean = golden_run(session.placement, session.images, session.labels)
    cut = golden_run(placed, session.images, session.labels)
    assert not np.array_equal(clean.acc, cut.acc)
    assert math.isfinite(cut.accuracy)


@pytest.mark.parametrize(
    "faults",
    [
        ("--ber", "1e-4", "--no-curve"),
        ("--fault", "stuck1"),
        ("--fault", "crossbar-stuck,p=0.01"),
        ("--seu-rate", "1e-8", "--sites", "g_pos,acc"),
    ],
    ids=str,
)
def test_fsim_inject(fsim, faults):
    done = fsim("inject", "--accel", "rram-crossbar", "--images", 8, "--trials", 2, "--quiet",
                "--json", "--threads", 1, *faults)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert sum(report["outcomes"][name]["count"] for name in report["outcomes"]) == 16
