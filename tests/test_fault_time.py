"""Intermittent faults by cycles, and timing errors by voltage and age."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fsim.errors import FaultError
from fsim.fault_models.intermittent import Intermittent
from fsim.fault_models.timing import TimingErrors, alpha_power_delay, bti_shift
from fsim.simulator.draws import Draws
from fsim.simulator.sites import select
from fsim.types import LEVEL
from tests.rates import assert_rate, assert_uniform, seed_for
from tests.test_engine import network, place


@pytest.fixture(scope="module")
def space():
    return select(place(network()[0], rows=4, cols=3))


def drawn(space, model, images=1, trial=0, seed=5):
    return model.rows(space, trial, np.arange(images), Draws(seed))


def active_cycles(space, rows):
    """(cycles of the inference,) bool: where the windows of one event act."""
    cycles = {s.layer: s.cycles for s in space.registers}
    begin = dict(zip(cycles, np.concatenate([[0], np.cumsum(list(cycles.values()))])))
    found = np.zeros(sum(cycles.values()), int)
    for row in rows:
        at = begin[int(row["layer"])]
        assert 0 <= row["first"] <= row["last"] < cycles[int(row["layer"])]
        found[at + row["first"] : at + row["last"] + 1] += 1
    assert found.max(initial=0) <= 1  # windows do not overlap
    return found.astype(bool)


@pytest.mark.parametrize(("period", "burst", "phase"), [(40, 7, 3), (13, 13, 0), (500, 1, 499),
                                                         (7, 5, 6)])  # fmt: skip
def test_bursts_come_back_with_their_period(period, burst, phase, space):
    rows = drawn(space, Intermittent(period, burst, phase=phase))
    found = active_cycles(space, rows)
    cycle = np.arange(len(found))
    np.testing.assert_array_equal(found, (cycle - phase) % period < burst)
    assert len(np.unique(rows[["event", "component", "row", "col"]])) == 1
    assert (rows["effect"] == LEVEL).all()


def test_random_phases_and_inactive_periods(space):
    """The share of active cycles is the duty, in every cycle of the inference alike."""
    model = Intermittent(50, 20, active=0.6)
    count = 1000
    rows = drawn(space, model, count, seed=seed_for("duty") >> 1)
    every = np.array([active_cycles(space, rows[rows["image"] == i]) for i in range(count)])
    assert model.duty == pytest.approx(0.24)
    # Cycles of one image hang together: take one of each image, spread over the inference.
    at = np.arange(count) * every.shape[1] // count
    assert_rate(int(every[np.arange(count), at].sum()), count, model.duty, mutant=0.4)
    phases = [np.flatnonzero(np.diff(row.astype(int)) == 1) for row in every]
    first = np.array([(p[0] + 1) % 50 for p in phases if len(p)])
    assert_uniform(np.bincount(first // 10, minlength=5), mutant=[1, 3, 1, 3, 1])


def test_bursts_hold_or_flip_the_bit(space):
    for value, column in (("stuck1", "or_mask"), ("stuck0", "and_mask"), ("flip", "xor_mask")):
        rows = drawn(space, Intermittent(30, 9, value=value), 20)
        for name, nothing in (("or_mask", 0), ("and_mask", -1), ("xor_mask", 0)):
            assert ((rows[name] != nothing) == (name == column)).all()


def test_sites_of_intermittent_faults_are_bits_of_registers_and_nets(space):
    count = 3000
    rows = drawn(space, Intermittent(10**6, 10**6, phase=0), count, seed=seed_for("bits") >> 1)
    once = rows[np.unique(rows["image"], return_index=True)[1]]
    parts = [c for c in space.accel.components if c.kind != "memory"]
    shares = np.array([c.bits for c in parts], float)
    found = np.bincount(once["component"], minlength=len(parts))
    assert_uniform(found, probabilities=shares / shares.sum(), mutant=np.ones(len(parts)))


def test_too_many_windows_are_refused():
    from types import SimpleNamespace

    site = SimpleNamespace(layer=0, cycles=1 << 24, component=0, bits=8, pes=4)
    with pytest.raises(FaultError, match="at most"):
        Intermittent(2, 1).rows(SimpleNamespace(registers=(site,)), 0, np.arange(1), Draws(0))


# --- timing ---

NEW = {"threshold": 0.3, "nominal": 0.9, "slack": 0.1, "spread": 0.05}


def test_delay_follows_the_alpha_power_law():
    for volt in (0.6, 0.75, 0.9):
        want = (volt / (volt - 0.3) ** 1.3) / (0.9 / 0.6**1.3)
        assert TimingErrors(volt, **NEW).factor == pytest.approx(want, rel=1e-12)
    assert alpha_power_delay(0.8, 0.3, 2.0) == pytest.approx(0.8 / 0.25)


def test_aging_shifts_the_threshold_by_the_power_law():
    full = {"shift": 0.05, "energy": 0.1}
    assert bti_shift(10, 125, 1.0, **full) == pytest.approx(0.05)
    ratio = bti_shift(8, 125, 0.5, **full) / bti_shift(4, 125, 1.0, **full)
    assert ratio == pytest.approx(1.0)  # duty counts as time under stress
    ratio = bti_shift(6.4, 125, 1.0, **full) / bti_shift(0.1, 125, 1.0, **full)
    assert ratio == pytest.approx(2.0)  # 64 times the age, exponent 1/6
    cold = bti_shift(10, 25, 1.0, **full)
    kelvin = 1 / 298.15 - 1 / 398.15
    assert cold == pytest.approx(0.05 * np.exp(-0.1 / 8.617333262e-5 * kelvin))
    assert bti_shift(0, 125, 0.5, **full) == 0.0
    old = TimingErrors(0.8, **NEW, years=10, celsius=125, duty=1.0, shift=0.05)
    moved = (0.8 / (0.8 - 0.35) ** 1.3) / (0.9 / 0.6**1.3)
    assert old.factor == pytest.approx(moved)


def test_late_bits_are_the_tail_of_the_path_delay():
    model = TimingErrors(0.78, **NEW, depth=0.6, toggle=0.5)
    found = model.probabilities(16)
    for bit in range(16):
        delay = 0.9 * (0.4 + 0.6 * bit / 15) * model.factor
        # delay (1 + spread Z) > 1 clock period
        want = 0.5 * stats.norm(delay, 0.05 * delay).sf(1.0)
        assert found[bit] == pytest.approx(want, rel=1e-9, abs=1e-300)
    assert (np.diff(found) > 0).all()


def test_lower_voltage_and_higher_age_make_more_errors():
    by_volt = [TimingErrors(v, **NEW).probabilities(16)[-1] for v in (0.9, 0.85, 0.8, 0.7)]
    aged = [
        TimingErrors(0.85, **NEW, years=y, shift=0.05).probabilities(16)[-1] for y in (0, 1, 5, 20)
    ]
    assert (np.diff(by_volt) > 0).all() and (np.diff(aged) > 0).all()


def test_bits_are_late_at_their_probability(space):
    model = TimingErrors(0.72, **NEW, toggle=0.4)
    p = model.probabilities(16)
    images = 40
    rows = drawn(space, model, images, seed=seed_for("late") >> 1)
    net = space.accel.component_index("mul")
    sites = [s for s in space.registers if s.component == net]
    cells = images * sum(s.pes * s.cycles for s in sites)
    assert (rows["component"] == net).all() and (rows["first"] == rows["last"]).all()
    mask = rows["xor_mask"] & 0xFFFF
    bit = np.log2(mask.astype(float)).astype(int)
    np.testing.assert_array_equal(1 << bit, mask)
    for at in (15, 14, 13):
        assert_rate(int((bit == at).sum()), cells, p[at], mutant=1.1 * p[at])
    assert model.expected(space, images) == pytest.approx(cells * p.sum())
    pes = np.bincount(rows["row"] * 3 + rows["col"], minlength=12)
    assert_uniform(pes)
    at = rows[rows["layer"] == sites[0].layer]
    assert_uniform(np.bincount(at["first"] % 5, minlength=5),
                   probabilities=[len(range(r, sites[0].cycles, 5)) / sites[0].cycles
                                  for r in range(5)])  # fmt: skip
