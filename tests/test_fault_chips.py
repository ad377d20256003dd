"""Faults that a chip keeps: bit errors by voltage, lost bits by temperature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fsim.fault_models.chip_map import words_that_fit
from fsim.fault_models.retention import Retention, retention_factor
from fsim.fault_models.voltage import LowVoltage, exponential_ber, normal_ber
from fsim.simulator.draws import Draws
from fsim.simulator.inject import run_trials
from fsim.simulator.sites import select
from fsim.types import FOREVER, LEVEL, STATE
from tests.rates import assert_rate, assert_uniform, seed_for
from tests.test_engine import compare, machine_of, network, place


@pytest.fixture(scope="module")
def space():
    return select(place(network()[0], rows=4, cols=3))


def drawn(space, model, trial=0, seed=5):
    return model.rows(space, trial, np.arange(2), Draws(seed))


def cells_of(rows):
    """(component, layer, word, residency, bit, value) of each row, which forces one bit."""
    found = set()
    for row in rows:
        forced = row["or_mask"] if row["or_mask"] else ~row["and_mask"]
        bit = int(forced & -forced).bit_length() - 1
        first = int(row["first"])
        found.add((int(row["component"]), int(row["layer"]), int(row["word"]), first, bit,
                   bool(row["or_mask"])))  # fmt: skip
    assert len(found) == len(rows)
    return found


# --- laws ---


def test_failure_by_voltage_is_the_tail_of_a_normal_distribution():
    for volt in (0.3, 0.45, 0.5, 0.62, 0.9):
        want = stats.norm(0.5, 0.04).sf(volt)
        assert normal_ber(volt, 0.5, 0.04) == pytest.approx(want, rel=1e-12)
        assert LowVoltage(volt, 0.5, 0.04).p == normal_ber(volt, 0.5, 0.04)


def test_the_exponential_law_has_a_decade_in_its_voltage():
    assert exponential_ber(0.5, 0.5, 0.03) == 1.0 and exponential_ber(0.2, 0.5, 0.03) == 1.0
    values = [exponential_ber(0.5 + 0.03 * n, 0.5, 0.03) for n in range(6)]
    np.testing.assert_allclose(values, [10.0**-n for n in range(6)], rtol=1e-9)
    assert LowVoltage(0.56, 0.5, 0.03, "exponential").p == pytest.approx(1e-2)


def test_retention_times_are_lognormal_and_shrink_by_arrhenius():
    # A median that halves every 10 degrees has about this activation energy at 85 C.
    energy = 8.617333262e-5 * np.log(2) / (1 / 358.15 - 1 / 368.15)
    assert retention_factor(95.0, 85.0, energy) == pytest.approx(0.5, rel=1e-12)
    for celsius in (25.0, 85.0, 110.0):
        factor = np.exp(0.6 / 8.617333262e-5 * (1 / (celsius + 273.15) - 1 / 358.15))
        want = stats.lognorm(1.3, scale=2.0 * factor).cdf(0.064)
        assert Retention(0.064, celsius, 2.0, 1.3, 0.6).p == pytest.approx(want, rel=1e-9)
    assert Retention(0.064, -200.0, 2.0, 1.3, 5.0).p == 0.0  # no overflow


# --- the map ---


@pytest.mark.parametrize("memories", ["weights", "weights+acts+psums"])
def test_what_fails_at_a_voltage_fails_at_every_lower_one(memories, space):
    for trial in range(3):
        below: set = set()
        for volt in (0.58, 0.55, 0.52, 0.5):
            cells = cells_of(drawn(space, LowVoltage(volt, 0.5, 0.05, memories=memories), trial))
            assert below < cells
            below = cells


def test_what_is_lost_stays_lost_when_it_is_hotter_or_refreshed_less(space):
    def lost(refresh, celsius):
        return cells_of(drawn(space, Retention(refresh, celsius, 0.5, 1.0, 0.6)))

    assert lost(0.064, 85) < lost(0.064, 95) < lost(0.128, 95)


def test_cells_fail_at_the_rate_and_read_what_they_should():
    placement = place(network()[0], rows=4, cols=3, **{"buffers.weights.kib": 64})
    space, share = select(placement, ["grouped", "fc"]), 0.3
    model = LowVoltage(0.56, 0.5, 0.05, sa1_share=share)
    cells = sum(op.weight.size * 8 for op in placement.program.array_ops if op.name in
                ("grouped", "fc"))  # fmt: skip
    rows = np.concatenate(
        [drawn(space, model, t, seed_for("volt") >> 1) for t in range(300)]
    )  # fmt: skip
    # grouped and fc meet the same cells: count those of the larger one, which covers both.
    large = max((op for op in placement.program.array_ops if op.name in ("grouped", "fc")),
                key=lambda op: op.weight.size)  # fmt: skip
    mine = rows[rows["layer"] == large.index]
    assert_rate(len(mine), 300 * large.weight.size * 8, model.p, mutant=1.25 * model.p)
    assert_rate(int((mine["or_mask"] != 0).sum()), len(mine), share, mutant=0.5)
    assert model.expected(space, 1) == pytest.approx(cells * model.p)
    forced = np.where(mine["or_mask"] != 0, mine["or_mask"], ~mine["and_mask"])
    bit = np.log2(np.abs(forced).astype(float)).astype(int)
    assert_uniform(np.bincount(bit, minlength=8), mutant=np.arange(8) % 2 + 1.0)


def test_tensors_meet_the_cells_that_are_at_their_place(space):
    rows = drawn(space, LowVoltage(0.5, 0.5, 0.05))
    layers = np.unique(rows["layer"])
    sizes = {op.index: op.weight.size for op in space.placement.program.array_ops}
    small = min(layers.tolist(), key=sizes.get)
    here = {c[2:] for c in cells_of(rows[rows["layer"] == small])}
    for layer in layers.tolist():
        there = {c[2:] for c in cells_of(rows[rows["layer"] == layer]) if c[2] < sizes[small]}
        assert there == here


def test_a_tensor_that_does_not_fit_meets_each_cell_again():
    placement = place(network()[0], rows=4, cols=3, **{"buffers.weights.kib": 20 / 1024})
    space = select(placement)
    block = next(b for b in space.blocks if b.component == "weights" and b.words > 60)
    fit = words_that_fit(space, block)
    assert fit == placement.accel.buffers["weights"].usable_bits // 8 < block.words
    rows = drawn(space, LowVoltage(0.5, 0.5, 0.05))
    mine = cells_of(rows[rows["layer"] == block.layer])
    for _, _, word, _, bit, one in mine:
        for other in range(word % fit, block.words, fit):
            assert any(c[2] == other and c[4] == bit and c[5] == one for c in mine)
    events = rows["event"][rows["layer"] == block.layer]
    assert len(np.unique(events)) < len(events)


def test_rows_last_as_their_memory_needs(space):
    rows = drawn(space, LowVoltage(0.55, 0.5, 0.05, memories="weights+acts+psums"))
    weights = rows["component"] == space.accel.component_index("weights")
    assert (rows["effect"][weights] == LEVEL).all() and (rows["last"][weights] == FOREVER).all()
    assert (rows["effect"][~weights] == STATE).all() and (rows["image"] == -1).all()
    psums = rows["component"] == space.accel.component_index("psums")
    for layer in np.unique(rows["layer"][psums]).tolist():
        folds = space.placement.folds(layer)
        mine = rows[psums & (rows["layer"] == layer)]
        assert np.bincount(mine["first"], minlength=folds).tolist() == [len(mine) // folds] * folds


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_the_network_reads_what_weak_cells_give(flow):
    """Against the plain restatement of a network with stored words, row by row."""
    program, codes = network()
    placement = place(program, flow=flow)
    model = LowVoltage(0.58, 0.5, 0.05, memories="weights+acts+psums")
    rows = drawn(select(placement), model)
    assert len(np.unique(rows["component"])) == 3
    compare(placement, machine_of(placement), codes, rows, np.full(len(rows), -1))


def test_a_chip_is_the_same_for_all_images_and_batches(space):
    from fsim.simulator.inject import golden_run

    rng = np.random.default_rng(8)
    images = rng.normal(size=(9, *space.placement.program.input.shape)).astype(np.float32)
    golden = golden_run(space.placement, images, np.zeros(9, int))
    model = LowVoltage(0.58, 0.5, 0.05)
    runs = [
        list(run_trials(space, golden, model, seed=2, trials=range(3), batch=batch))
        for batch in (2, 9)
    ]
    for one, other in zip(*runs):
        np.testing.assert_array_equal(one.acc, other.acc)
        np.testing.assert_array_equal(one.rows, other.rows)
