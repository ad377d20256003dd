"""Rates and probabilities: against decimal arithmetic of 120 digits, hand-computed values, laws."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsim.errors import ConfigError
from fsim.simulator import rates

FITS = st.floats(1e-30, 1e12)
HOURS = st.floats(1e-30, 1e12)


def exactly(compute):
    """A float from 120 digits of decimal arithmetic."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 120, -(10**6), 10**6
        return float(compute())


def d(value: float) -> Decimal:
    return Decimal(value)


# --- per bit ---


def test_a_megabit_is_a_million_bits_unless_told_otherwise():
    assert rates.fit_per_bit(600) == 600 / 1_000_000
    assert rates.fit_per_bit(600, mbit=rates.MIBIT) == 600 / 1_048_576
    assert rates.fit_per_mbit(rates.fit_per_bit(600)) == pytest.approx(600, rel=1e-15)
    # 524,288 bits (64 KiB) at 600 FIT per Mbit.
    assert rates.fit_per_bit(600) * 524_288 == pytest.approx(314.5728, rel=1e-15)


def test_cross_section_times_flux():
    """1e-14 cm2 x 13 n/cm2/h = 1.3e-13 upsets an hour = 1.3e-4 FIT a bit, 130 FIT a Mbit."""
    found = rates.fit_of_cross_section(1e-14)
    assert found == pytest.approx(1.3e-4, rel=1e-14)
    assert rates.fit_per_mbit(found) == pytest.approx(130.0, rel=1e-14)
    assert rates.fit_of_cross_section(1e-14, 26.0) == pytest.approx(2.6e-4, rel=1e-14)
    assert rates.cross_section_of_fit(found) == pytest.approx(1e-14, rel=1e-14)


def test_air_above_an_altitude_is_that_of_the_standard_atmosphere():
    """Pressures of its tables: 101325, 54019.9 and 22632.1 Pa at 0, 5 and 11 km."""
    for altitude, pascal in ((0.0, 101_325.0), (5_000.0, 54_019.9), (11_000.0, 22_632.1)):
        depth = pascal / 98.0665  # 1 Pa = 1 kg/m/s2; 1 kg/m2 = 0.1 g/cm2
        assert rates.air_depth(altitude) == pytest.approx(depth, rel=1e-5), altitude


def test_flux_rises_by_e_in_one_attenuation_length():
    sea = rates.air_depth(0.0)
    assert rates.flux_at_depth(1033.23, 130.0) == 13.0
    assert rates.flux_at_depth(1033.23 - 130.0, 130.0) == pytest.approx(13.0 * math.e, rel=1e-14)
    assert rates.flux_at_depth(sea, 130.0) == pytest.approx(13.0, rel=1e-4)
    twice = rates.flux_at_depth(800.0, 130.0, flux=rates.flux_at_depth(900.0, 130.0), reference=900)
    assert twice == pytest.approx(rates.flux_at_depth(800.0, 130.0), rel=1e-14)


# --- in time ---


@given(FITS, HOURS)
def test_probabilities_are_right_at_any_size(fit, hours):
    mean = d(fit) * d(hours) / 10**9
    expected = exactly(lambda: 1 - (-mean).exp()) if mean < 10_000 else 1.0
    assert rates.probability_in(fit, hours) == pytest.approx(expected, rel=1e-14, abs=0)


@given(st.floats(1e-30, 1e12), st.floats(1e-30, 1e10))
def test_a_bit_reads_wrong_after_an_odd_number_of_upsets(fit, seconds):
    """Against the odd terms of the Poisson law, summed."""
    mean = d(fit) * d(seconds) / (3600 * 10**9)
    found = rates.bit_error_rate(fit, seconds)
    if mean > 30:
        assert 0.5 - 1e-12 <= found <= 0.5
        return

    def odd():
        term, total = mean, Decimal(0)
        for k in range(1, 401, 2):
            total += term
            term *= mean * mean / ((k + 1) * (k + 2))
        return (-mean).exp() * total

    assert found == pytest.approx(exactly(odd), rel=1e-13, abs=0)


def test_rates_that_seu_rate_and_ber_take():
    """6e-4 FIT a bit at 1 GHz: 6e-13 an hour / 3.6e12 cycles an hour = 1.6667e-25."""
    assert rates.upset_rate_per_cycle(6e-4, 1e9) == pytest.approx(6e-13 / 3.6e12, rel=1e-13)
    # A bit that is held for 2 ms: 6e-13 x 2e-3 / 3600.
    assert rates.bit_error_rate(6e-4, 2e-3) == pytest.approx(6e-13 * 2e-3 / 3600, rel=1e-13)
    # All of 1 Mbit in one inference of 1,793 cycles.
    expected = 600e-9 * 1793 / 3.6e12
    assert rates.inference_probability(600, 1793, 1e9) == pytest.approx(expected, rel=1e-13)


@given(st.floats(1e-30, 1e6), st.floats(1.0, 1e12))
def test_conversions_have_inverses(fit, clock):
    per_cycle = rates.upset_rate_per_cycle(fit, clock)
    assert rates.fit_per_bit_of_upsets(per_cycle, clock) == pytest.approx(fit, rel=1e-12)
    assert rates.fit_per_mbit(rates.fit_per_bit(fit)) == pytest.approx(fit, rel=1e-14)
    assert rates.fit_of_hourly(rates.per_hour(fit)) == pytest.approx(fit, rel=1e-14)
    held = rates.bit_error_rate(fit, clock * 1e-3)
    if held < 0.4:
        assert rates.fit_per_bit_of_errors(held, clock * 1e-3) == pytest.approx(fit, rel=1e-12)
    within = rates.probability_in(fit, clock)
    if within < 0.9:
        assert rates.fit_of_probability(within, clock) == pytest.approx(fit, rel=1e-12)
    assert rates.cross_section_of_fit(rates.fit_of_cross_section(fit, clock), clock) == (
        pytest.approx(fit, rel=1e-14)
    )


@given(st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_survival_in_two_times_multiplies(fit, first, second):
    both = 1 - rates.probability_in(fit, first + second)
    apart = (1 - rates.probability_in(fit, first)) * (1 - rates.probability_in(fit, second))
    assert both == pytest.approx(apart, rel=1e-9, abs=1e-15)


@given(st.floats(1e-12, 1e12), st.floats(1e-12, 0.999))
def test_times_to_failure_are_quantiles(fit, share):
    hours = rates.hours_to_failure(fit, share)
    assert rates.probability_in(fit, hours) == pytest.approx(share, rel=1e-12)
    median = rates.hours_to_failure(fit, 0.5)
    assert median == pytest.approx(math.log(2) * rates.mean_hours_to_failure(fit), rel=1e-14)


def test_limits():
    assert rates.probability_in(0, 1e12) == 0 and rates.probability_in(1e12, 0) == 0
    assert rates.probability_in(1e12, 1e12) == 1
    assert rates.bit_error_rate(1e30, 1e30) == 0.5
    assert rates.mean_hours_to_failure(0) == math.inf
    assert rates.mean_hours_to_failure(1) == 1e9
    assert rates.hours_to_failure(0, 0.5) == math.inf == rates.hours_to_failure(5, 1.0)
    assert rates.hours_to_failure(0, 0.0) == 0.0
    assert [rates.hours_of(2, unit) for unit in ("hours", "days", "years")] == [2, 48, 17_532]


# --- voltage, tests ---


def test_the_law_of_hazucha_and_svensson():
    """K F A 1e9 exp(-10 / 5) FIT with K = 2e-5, 50 n/cm2/h and 1e-9 cm2."""
    found = rates.soft_error_rate(2e-5, 50.0, 1e-9, 10.0, 5.0)
    assert found == pytest.approx(2e-5 * 50 * 1e-9 * 1e9 / math.e**2, rel=1e-14)
    assert rates.soft_error_rate(1.0, 1.0, 1e-9, 0.0, 5.0) == pytest.approx(1.0, rel=1e-15)


@settings(max_examples=50)
@given(st.floats(0.3, 1.2), st.floats(0.3, 1.2), st.floats(0.1, 10), st.floats(0.5, 20))
def test_a_voltage_changes_the_rate_as_its_charge_does(volt, reference, capacitance, slope):
    above = rates.soft_error_rate(1.0, 13.0, 1e-9, capacitance * volt, slope)
    below = rates.soft_error_rate(1.0, 13.0, 1e-9, capacitance * reference, slope)
    factor = rates.voltage_factor(volt, reference, capacitance, slope)
    assert factor == pytest.approx(above / below, rel=1e-12)
    assert (factor > 1) == (volt < reference) or factor == 1


def test_beams_and_ovens():
    """0.7 eV from 55 to 125 degrees: exp(0.7 / k (1 / 328.15 - 1 / 398.15)) = 77.6."""
    assert rates.beam_acceleration(1.3e7) == pytest.approx(1e6, rel=1e-15)
    found = rates.thermal_acceleration(0.7, 55.0, 125.0)
    expected = exactly(
        lambda: (
            d(0.7) / Decimal("8.617333262e-5") * (1 / Decimal("328.15") - 1 / Decimal("398.15"))
        ).exp()
    )
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(77.6, abs=0.1)
    assert rates.thermal_acceleration(0.0, 55.0, 125.0) == 1.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rates.fit_per_bit(-1), "FIT per Mbit must be a finite number of at least 0"),
        (lambda: rates.fit_per_bit(math.nan), "got nan"),
        (lambda: rates.fit_per_bit(1, mbit=0), "bits of a Mbit must be a finite number above 0"),
        (lambda: rates.fit_of_cross_section("x"), "must be a number, got 'x'"),
        (lambda: rates.cross_section_of_fit(1, 0), "flux must be a finite number above 0"),
        (lambda: rates.air_depth(11_001), "at most 11000 m"),
        (lambda: rates.flux_at_depth(500, 0), "attenuation length must be"),
        (lambda: rates.probability_in(1, math.inf), "hours must be a finite number"),
        (lambda: rates.fit_of_probability(1.0, 1), "below 1"),
        (lambda: rates.fit_of_probability(1.5, 1), r"in \[0, 1\]"),
        (lambda: rates.upset_rate_per_cycle(1, 0), "clock must be a finite number above 0"),
        (lambda: rates.fit_per_bit_of_errors(0.5, 1), "below 1/2"),
        (lambda: rates.hours_of(1, "weeks"), "one of hours, days, years"),
        (lambda: rates.soft_error_rate(1, 1, 1, 1, 0), "collection slope"),
        (lambda: rates.voltage_factor(0.0, 1e4, 1e4, 1e-3), "e.700"),
        (lambda: rates.thermal_acceleration(1.0, -300, 20), "above -273.15"),
        (lambda: rates.thermal_acceleration(50.0, -200, 500), "e.700"),
    ],
)
def test_values_out_of_range_are_named(call, said):
    with pytest.raises(ConfigError, match=said):
        call()
