"""ISO 26262-5 metrics: an example by hand, the dual-point term by integration, laws."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from fsim.errors import ConfigError
from fsim.simulator.safety import (
    COVERAGES,
    TARGETS,
    Element,
    Mechanism,
    classify,
    dual_point_weight,
    metrics,
)

ELEMENTS = [Element("psum", 100.0, 0.2), Element("weights", 400.0, 0.5), Element("fsm", 10.0, 0.9)]
ECC = Mechanism("ecc", ("weights",), 0.99, rate=5.0, self_coverage=0.8, reported=0.75)


def test_an_example_by_hand():
    """psum 100 FIT, 20 % dangerous, unprotected; weights 400 FIT, 50 %, ECC; fsm 10 FIT, 90 %.

    Single-point: 100 x 0.2 + 10 x 0.9 = 29. Residual: 400 x 0.5 x 0.01 = 2. Prevented: 198, of
    which 148.5 reported and 49.5 not. ECC itself: 5, of which 4 found and 1 not.
    Sum 515. SPFM = 1 - 31/515. LFM = 1 - 50.5/484. Dual-point over 10,000 h:
    T/2 (1e-9 198e-9 + 49.5e-9 5e-9) = 5000 x 445.5e-18.
    """
    rows = {row.name: row for row in classify(ELEMENTS, [ECC])}
    psum, weights, ecc = rows["psum"], rows["weights"], rows["ecc"]
    assert (psum.safe, psum.single_point, psum.residual) == pytest.approx((80, 20, 0))
    assert (weights.safe, weights.single_point) == pytest.approx((200, 0))
    assert (weights.residual, weights.detected, weights.latent) == pytest.approx((2, 148.5, 49.5))
    assert (ecc.rate, ecc.detected, ecc.latent) == pytest.approx((5, 4, 1))
    found = metrics(ELEMENTS, [ECC], lifetime=10_000)
    assert found.spfm == pytest.approx(float(1 - Fraction(31, 515)), rel=1e-14)
    assert found.lfm == pytest.approx(float(1 - Fraction(505, 4840)), rel=1e-14)
    assert found.pmhf_single == pytest.approx(31e-9, rel=1e-14)
    assert found.pmhf_dual == pytest.approx(5000 * 445.5e-18, rel=1e-14)
    assert found.pmhf == found.pmhf_single + found.pmhf_dual


def test_targets_are_those_of_the_standard():
    rows = [[level, *(100 * TARGETS[level][name] for name in ("spfm", "lfm")),
             TARGETS[level]["pmhf"]] for level in "BCD"]  # fmt: skip
    assert rows == [["B", 90, 60, 1e-7], ["C", 97, 80, 1e-7], ["D", 99, 90, 1e-8]]
    assert COVERAGES == {"low": 0.6, "medium": 0.9, "high": 0.99}


@pytest.mark.parametrize(("rate", "hours"), [(100.0, 1e4), (1e5, 1e4), (1e8, 1e3)])
def test_the_dual_point_term_bounds_what_happens(rate, hours):
    """P(latent fault of the mechanism, then one of the element) / T, by integration."""
    mechanism = Mechanism("m", ("e",), 1.0, rate=rate / 2, self_coverage=0.0)
    term = rate * dual_point_weight(mechanism, hours) / 1e9
    a, b = rate * 1e-9 * hours, rate / 2 * 1e-9 * hours
    happens, _ = integrate.quad(lambda u: a * math.exp(-a * u) * -math.expm1(-b * u), 0, 1)
    assert happens / hours <= term
    assert happens / hours >= term * (1 - a - b)


SHARES = st.floats(0, 1)
RATES = st.floats(0, 1e6)


@given(RATES, SHARES, SHARES, SHARES, SHARES, RATES)
def test_classes_sum_to_the_rate(rate, dangerous, coverage, reported, tested, own):
    mechanism = Mechanism("m", ("e",), coverage, own, tested, reported)
    for row in classify([Element("e", rate, dangerous), Element("f", rate, dangerous)],
                        [mechanism]):  # fmt: skip
        parts = (row.safe, row.single_point, row.residual, row.detected, row.latent)
        assert all(part >= 0 for part in parts)
        assert sum(parts) == pytest.approx(row.rate, rel=1e-12, abs=1e-12)


@given(st.floats(1, 1e6), SHARES, SHARES, SHARES)
def test_more_coverage_never_hurts(rate, dangerous, low, high):
    low, high = sorted((low, high))
    found = [
        metrics([Element("e", rate, dangerous)], [Mechanism("m", ("e",), c)], lifetime=1e4)
        for c in (low, high)
    ]
    assert found[0].spfm <= found[1].spfm and found[0].pmhf >= found[1].pmhf


def test_extremes():
    nothing = metrics([Element("e", 0.0, 0.0)], [], lifetime=0)
    assert math.isnan(nothing.spfm) and math.isnan(nothing.lfm) and nothing.pmhf == 0
    all_bad = metrics([Element("e", 7.0, 1.0)], [], lifetime=1e4)
    assert all_bad.spfm == 0 and math.isnan(all_bad.lfm) and all_bad.pmhf == 7e-9
    safe = metrics([Element("e", 7.0, 0.0)], [], lifetime=1e4)
    assert (safe.spfm, safe.lfm, safe.pmhf) == (1, 1, 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mechanism("m", ("e",), 1.1), r"coverage of m must be in \[0, 1\], got 1.1"),
        (lambda: Mechanism("m", ("e",), 0.5, reported=math.nan), "reported of m"),
        (lambda: Mechanism("m", ("e",), 0.5, rate=-1), "FIT of m must be"),
        (lambda: Mechanism("m", (), 0.5), "must cover components, each named once, got none"),
        (lambda: Mechanism("m", ("e", "e"), 0.5), "each named once"),
        (lambda: classify(ELEMENTS, [Mechanism("m", ("x",), 0.5)]), "got 'x'"),
        (lambda: classify(ELEMENTS, [ECC, Mechanism("ecc", ("fsm",), 0.5)]), "different names"),
        (lambda: classify(ELEMENTS, [ECC, Mechanism("m", ("weights",), 0.5)]),
         "one safety mechanism, got ecc and m"),
        (lambda: metrics(ELEMENTS, [], lifetime=-1), "lifetime must be hours"),
    ],
)  # fmt: skip
def test_what_is_not_valid_is_named(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
