"""Faults that a chip keeps: bit errors by voltage, lost bits by temperature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

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


def cell_by_hand(buffer, half, place, bits, bit):
    """(bank, row, column) of a bit: the arrangement that docs state, restated."""
    per = buffer.word_bits // bits
    line, slot = divmod(place, per)
    address = line % buffer.memory_words + half * buffer.memory_words * buffer.double_buffered
    local, bank = divmod(address, buffer.banks)
    row, w = divmod(local, buffer.row_words)
    group, lane = divmod(w, buffer.interleave)
    wide = buffer.word_bits + buffer.check_bits
    return bank, row, (group * wide + slot * bits + bit) * buffer.interleave + lane


LAYOUTS = {
    "plain": {},
    "interleaved": {"buffers.weights.interleave": 4, "buffers.weights.banks": 2},
    "small": {"buffers.weights.kib": 64 / 1024, "buffers.weights.word_bits": 32},
    "halves": {"buffers.weights.double_buffered": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_meet_the_cells_at_their_place(layout):
    """Word by word: a cell fails for all words that come to lie in it, or for none."""
    placement = place(network()[0], rows=4, cols=3, **LAYOUTS[layout])
    space = select(placement)
    buffer = placement.accel.buffers["weights"]
    rows = drawn(space, LowVoltage(0.5, 0.5, 0.05))
    state, words = {}, {}
    for c in cells_of(rows):
        words[c[1], c[2], c[4]] = c[5]
    met = 0
    for number, op in enumerate(placement.program.array_ops):
        for word in range(op.weight.size):
            for bit in range(8):
                cell = cell_by_hand(buffer, number % 2, word, 8, bit)
                told = words.get((op.index, word, bit))
                met += cell in state
                assert state.setdefault(cell, told) == told
    assert met > 100 and set(state.values()) == {None, True, False}
    if layout == "small":
        large = max(op.weight.size for op in placement.program.array_ops)
        assert large > 8 * buffer.memory_words // 2 and met > large
    # One event is one cell.
    by_event = {}
    index = {op.index: n for n, op in enumerate(placement.program.array_ops)}
    for row in rows:
        forced = row["or_mask"] if row["or_mask"] else ~row["and_mask"]
        bit = int(forced & -forced).bit_length() - 1
        cell = cell_by_hand(buffer, index[int(row["layer"])] % 2, int(row["word"]), 8, bit)
        assert by_event.setdefault(int(row["event"]), cell) == cell
    assert len(set(by_event.values())) == len(by_event)


def test_check_bits_are_cells_too():
    placement = place(network()[0], **{"buffers.weights.protection": "secded"})
    rows = drawn(select(placement), LowVoltage(0.5, 0.5, 0.05))
    check = rows["component"] == placement.accel.component_index("weights_check")
    assert check.any() and (~check).any()
    assert (rows["layer"][check] >= 0).all()


def test_rows_last_as_their_memory_needs(space):
    rows = drawn(space, LowVoltage(0.55, 0.5, 0.05, memories="weights+acts+psums"))
    weights = rows["component"] == space.accel.component_index("weights")
    assert (rows["effect"][weights] == LEVEL).all() and (rows["last"][weights] == FOREVER).all()
    assert (rows["effect"][~weights] == STATE).all() and (rows["image"] == -1).all()
    psums = rows["component"] == space.accel.component_index("psums")
    for layer in np.unique(rows["layer"][psums]).tolist():
        folds = space.placement.folds(layer)
        mine = rows[psums & (rows["layer"] == layer)]
        here = [{(int(r["word"]), int(r["and_mask"]), int(r["or_mask"])) for r in mine
                 if r["first"] == fold} for fold in range(folds)]  # fmt: skip
        assert all(here)
        # The halves of a double buffer take turns: every second fold meets the same cells.
        assert space.accel.buffers["psums"].double_buffered
        assert all(a == b for a, b in zip(here, here[2:]))
        assert folds < 2 or here[0] != here[1]


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
