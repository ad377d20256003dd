"""The rate at which accuracy falls: a decreasing fit, its crossing, its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import BitErrors
from fsim.session import open_session
from fsim.simulator import curve
from fsim.simulator.inject import run_trials
from fsim.simulator.sites import select


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_fit_is_the_least_squares_one_among_those_that_decrease(points):
    values, weights = (np.array(column, float) for column in zip(*points))
    got = np.array(curve._decreasing(list(values), list(weights.astype(int))))
    assert (np.diff(got) <= 1e-12).all()
    # f = base - sum of drops >= 0, by a solver that knows nothing of pools.
    n = len(values)
    matrix = np.column_stack([np.ones(n), -np.tril(np.ones((n, n)))[:, 1:]])
    root = np.sqrt(weights)
    low = np.r_[-np.inf, np.zeros(n - 1)]
    best = lsq_linear(root[:, None] * matrix, root * values, (low, np.full(n, np.inf)), tol=1e-14)
    np.testing.assert_allclose(got, matrix @ best.x, atol=1e-5)


def test_the_crossing_is_on_the_logarithm_of_the_rate():
    points = {1e-4: [0.99], 1e-3: [0.99], 1e-2: [0.97], 1e-1: [0.5]}
    assert curve._crossing(points, 0.98) == pytest.approx(10**-2.5)
    assert curve._crossing(points, 0.4) is None
    # A lucky point beyond the fall is pooled with its neighbours, not believed.
    assert curve._crossing(points | {2e-2: [0.985]}, 0.98) < 2e-2


def test_the_interval_holds_what_many_trials_find():
    session = open_session("digits-cnn", load_accel("systolic"), images=200)
    space, golden = select(session.placement), session.golden()
    model = BitErrors(weights=1e-5)
    found = curve.quick_curve(space, golden, model, seed=3)
    assert found.low <= found.ber_at_drop <= found.high < 3 * found.low
    assert list(found.ber) == sorted(found.ber) and max(found.trials) >= 3

    def fall(ber):
        trials = run_trials(space, golden, BitErrors(weights=ber), seed=99, trials=range(25))
        right = np.mean([np.mean(t.top1 == golden.labels) for t in trials])
        return 100 * (golden.accuracy - right)

    assert fall(found.low / 1.5) < 1 < fall(found.high * 1.5)
    again = curve.quick_curve(space, golden, model, seed=3)
    assert again == found


def test_rates_that_cost_too_much_are_left_out():
    session = open_session("digits-cnn", load_accel("systolic"), images=20)
    space, golden = select(session.placement), session.golden()
    found = curve.quick_curve(space, golden, BitErrors(acts=1.0), seed=0, most_faults=50)
    exposed = sum(b.exposed_bits for b in space.blocks if b.component == "acts")
    assert found.ber[-1] * exposed * 20 <= 50 and found.ber_at_drop is None
