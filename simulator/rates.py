"""Rates of faults and the probabilities they amount to: the one place where they convert.

Units are in the names. A FIT is one failure in 1e9 device hours (JESD89A). Rates
are those of a Poisson process, so that events in disjoint times and bits are independent:

    failures an hour    lambda = FIT 1e-9
    P(at least one in t hours) = 1 - exp(-lambda t)

Rates of 1e-30 and times of 1e30 are as exact as floats are: expm1 and log1p, no 1 - exp.

A megabit is 1,000,000 bits here (`MBIT`), as in data sheets and test reports of soft error
rates; where a source means 2^20 bits, say so with `mbit=MIBIT` (a difference of 4.9 %).

| from | to | function |
|---|---|---|
| FIT per Mbit | FIT per bit | `fit_per_bit` |
| cross-section (cm2 per bit) and flux (n/cm2/h) | FIT per bit | `fit_of_cross_section` |
| flux at one altitude | flux at another | `air_depth`, `flux_at_depth` |
| FIT | failures an hour | `per_hour` |
| FIT per bit and clock | upsets per bit and cycle (`--seu-rate`) | `upset_rate_per_cycle` |
| FIT per bit and seconds in memory | bit error rate (`--ber`) | `bit_error_rate` |
| FIT, cycles and clock | probability of an event in an inference | `inference_probability` |
| FIT | mean time to failure, quantiles | `mean_hours_to_failure`, `hours_to_failure` |
| critical charge | raw rate | `soft_error_rate` |
| supply voltage | factor on the raw rate | `voltage_factor` |
| beam or oven | factor on the time under test | `beam_acceleration`, `thermal_acceleration` |

Every function raises ConfigError for values outside its range, nan included.
"""

from __future__ import annotations

import math

from fsim.errors import ConfigError

FIT_HOURS = 1e9
"""Device hours of one failure at a rate of one FIT (JESD89A)."""

HOUR = 3600.0
"""Seconds of an hour."""

MBIT = 1_000_000
"""Bits of a megabit, unless a function is told otherwise."""

MIBIT = 1 << 20
"""Bits of a binary megabit (Mibit)."""

SEA_LEVEL_FLUX = 13.0
"""n/cm2/h above 10 MeV: New York City at sea level, mean solar activity (JESD89A, Annex A)."""

BOLTZMANN = 8.617333262e-5
"""eV per K (CODATA 2018; exact but for its decimals since the SI of 2019)."""

_YEARS = {"hours": 1.0, "days": 24.0, "years": 8766.0}  # a year of 365.25 days


def _checked(value: float, what: str, low: float = 0.0, strict: bool = False) -> float:
    """`value` as a finite float of at least (strictly: above) `low`."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{what} must be a number, got {str(value)[:60]!r}") from None
    if not math.isfinite(value) or value < low or (strict and value == low):
        bound = "above" if strict else "of at least"
        raise ConfigError(f"{what} must be a finite number {bound} {low:g}, got {value!r}")
    return value


def _probability(value: float, what: str) -> float:
    value = _checked(value, what)
    if value > 1.0:
        raise ConfigError(f"{what} must be in [0, 1], got {value!r}")
    return value


# --- rates per bit ---


def fit_per_bit(fit_per_mbit: float, *, mbit: int = MBIT) -> float:
    """FIT of one bit, from FIT per Mbit of `mbit` bits: MBIT (default) or MIBIT."""
    return _checked(fit_per_mbit, "FIT per Mbit") / _checked(mbit, "bits of a Mbit", strict=True)


def fit_per_mbit(fit_per_bit: float, *, mbit: int = MBIT) -> float:
    """FIT per Mbit of `mbit` bits; the inverse of `fit_per_bit`."""
    return _checked(fit_per_bit, "FIT per bit") * _checked(mbit, "bits of a Mbit", strict=True)


def fit_of_cross_section(cross_section: float, flux: float = SEA_LEVEL_FLUX) -> float:
    """FIT per bit = cross-section x flux x 1e9 h (JESD89A: rate = cross-section x flux).

    cross_section  cm2 per bit, upsets per fluence; flux  n/cm2/h in the same energy range
    """
    return _checked(cross_section, "cross-section") * _checked(flux, "flux") * FIT_HOURS


def cross_section_of_fit(fit_per_bit: float, flux: float = SEA_LEVEL_FLUX) -> float:
    """cm2 per bit; the inverse of `fit_of_cross_section`. flux must not be 0."""
    return _checked(fit_per_bit, "FIT per bit") / (_checked(flux, "flux", strict=True) * FIT_HOURS)


def air_depth(altitude: float) -> float:
    """g/cm2 of air above an altitude in metres, from 0 to 11,000 (the troposphere).

    Pressure of the U.S. Standard Atmosphere 1976, p = 101325 Pa (1 - 0.0065 h / 288.15)^e
    with e = g0 M / (R L) = 5.25588 and h the geopotential altitude, over g0 = 9.80665 m/s2:
    1033.23 g/cm2 at sea level.
    """
    altitude = _checked(altitude, "altitude")
    if altitude > 11_000.0:
        raise ConfigError(
            f"altitude must be at most 11000 m, the top of the formula's layer, got {altitude!r}"
        )
    pascal = 101_325.0 * (1.0 - 0.0065 * altitude / 288.15) ** 5.25588
    return pascal / 9.80665 / 10.0  # kg/m2 to g/cm2


def flux_at_depth(
    depth: float, attenuation: float, *, flux: float = SEA_LEVEL_FLUX, reference: float = 1033.23
) -> float:
    """n/cm2/h under `depth` g/cm2 of air: flux exp((reference - depth) / attenuation).

    attenuation  length in g/cm2 in which the flux falls by e, of your source: it differs
                 with the energy range, and JESD89A, Annex A gives one with its formula
    flux         at the depth `reference` (default: sea level)

    The exponential law holds in the lower atmosphere, below the maximum of the flux (about
    16 to 20 km). What the earth's magnetic field and the sun add is not in it: multiply by
    the factor of the place (JESD89A, Annex A).
    """
    exponent = (_checked(reference, "reference depth") - _checked(depth, "depth")) / _checked(
        attenuation, "attenuation length", strict=True
    )
    return _checked(flux, "flux") * math.exp(exponent)


# --- rates in time ---


def per_hour(fit: float) -> float:
    """Failures an hour: FIT 1e-9."""
    return _checked(fit, "FIT") / FIT_HOURS


def fit_of_hourly(rate: float) -> float:
    """FIT of a rate per hour; the inverse of `per_hour`."""
    return _checked(rate, "rate per hour") * FIT_HOURS


def probability_in(fit: float, hours: float) -> float:
    """P(at least one event in `hours`) = 1 - exp(-FIT 1e-9 hours), of a Poisson process."""
    return -math.expm1(-per_hour(fit) * _checked(hours, "hours"))


def fit_of_probability(probability: float, hours: float) -> float:
    """FIT at which `probability_in(fit, hours)` is `probability`, which must be below 1."""
    probability = _probability(probability, "probability")
    if probability == 1.0:
        raise ConfigError("probability must be below 1 to come from a finite rate, got 1")
    return -math.log1p(-probability) / _checked(hours, "hours", strict=True) * FIT_HOURS


def upset_rate_per_cycle(fit_per_bit: float, clock: float) -> float:
    """Probability that a bit is upset in a cycle, what `--seu-rate` takes.

    1 - exp(-FIT 1e-9 / (3600 clock)), clock in Hz. A second upset of the same bit in the
    same cycle, which would undo the first, has the square of that probability: no matter.
    """
    return probability_in(fit_per_bit, 1.0 / (HOUR * _checked(clock, "clock", strict=True)))


def fit_per_bit_of_upsets(rate: float, clock: float) -> float:
    """FIT per bit of a probability per bit and cycle; the inverse of `upset_rate_per_cycle`."""
    return fit_of_probability(rate, 1.0 / (HOUR * _checked(clock, "clock", strict=True)))


def bit_error_rate(fit_per_bit: float, seconds: float) -> float:
    """Probability that a stored bit reads wrong after `seconds`, what `--ber` takes.

    An odd number of upsets in a Poisson process of mean x: exp(-x) sinh(x), that is
    (1 - exp(-2 x)) / 2. It tends to 1/2, not to 1.
    """
    mean = per_hour(fit_per_bit) * _checked(seconds, "seconds") / HOUR
    return -math.expm1(-2.0 * mean) / 2.0


def fit_per_bit_of_errors(rate: float, seconds: float) -> float:
    """FIT per bit of a bit error rate below 1/2; the inverse of `bit_error_rate`."""
    rate = _probability(rate, "bit error rate")
    if rate >= 0.5:
        raise ConfigError(f"bit error rate must be below 1/2 to come from a rate, got {rate!r}")
    hours = _checked(seconds, "seconds", strict=True) / HOUR
    return -math.log1p(-2.0 * rate) / (2.0 * hours) * FIT_HOURS


def inference_probability(fit: float, cycles: float, clock: float) -> float:
    """P(at least one event in `cycles` at `clock` Hz), for a rate of all bits together."""
    seconds = _checked(cycles, "cycles") / _checked(clock, "clock", strict=True)
    return probability_in(fit, seconds / HOUR)


def mean_hours_to_failure(fit: float) -> float:
    """1e9 / FIT; infinite for a rate of 0."""
    fit = _checked(fit, "FIT")
    return math.inf if fit == 0.0 else FIT_HOURS / fit


def hours_to_failure(fit: float, probability: float) -> float:
    """Hours after which `probability` of all devices have failed: -log(1 - p) / lambda.

    Infinite at a probability of 1 and, above a probability of 0, at a rate of 0.
    """
    probability = _probability(probability, "probability")
    rate = per_hour(fit)
    if probability == 0.0:
        return 0.0
    if probability == 1.0 or rate == 0.0:
        return math.inf
    return -math.log1p(-probability) / rate


def hours_of(value: float, unit: str) -> float:
    """Hours of a time in hours, days or years (of 8766 hours: 365.25 days)."""
    if unit not in _YEARS:
        raise ConfigError(f"unit of time must be one of {', '.join(_YEARS)}, got {unit!r}")
    return _checked(value, "time") * _YEARS[unit]


# --- voltage, and what tests accelerate ---


def soft_error_rate(k: float, flux: float, area: float, q_crit: float, q_s: float) -> float:
    """FIT = K F A exp(-Qcrit / Qs) x 1e9 h.

    Hazucha and Svensson, "Impact of CMOS technology scaling on the atmospheric neutron soft
    error rate", IEEE Trans. Nucl. Sci. 47(6), 2000. All parameters are yours: the fit holds
    for the process they were taken from.

    k      dimensionless, of the process
    flux   n/cm2/h in the energy range that k was fitted for
    area   cm2 that is sensitive: the drains of the bit
    q_crit, q_s  fC: critical charge, and slope of the charge that is collected
    """
    exponent = -_checked(q_crit, "critical charge") / _checked(q_s, "collection slope", strict=True)
    raw = _checked(k, "K") * _checked(flux, "flux") * _checked(area, "area") * FIT_HOURS
    return raw * math.exp(exponent)


def voltage_factor(volt: float, reference: float, capacitance: float, q_s: float) -> float:
    """Raw rate at a supply voltage over the rate at `reference` volts.

    exp(-(Qcrit(V) - Qcrit(Vref)) / Qs), the ratio of two `soft_error_rate`s, with Qcrit = C V:
    the charge that upsets a node of C fF in proportion to its voltage. Near the threshold
    voltage Qcrit is not linear: take `soft_error_rate` with charges of your own.

    capacitance  fF, so that C V is in fC; q_s  fC
    """
    change = _checked(volt, "voltage") - _checked(reference, "reference voltage")
    charge = _checked(capacitance, "capacitance") * change
    exponent = -charge / _checked(q_s, "collection slope", strict=True)
    if exponent > 700.0:
        raise ConfigError(f"the rate must stay below e^700 times the reference, got e^{exponent:g}")
    return math.exp(exponent)


def beam_acceleration(beam_flux: float, flux: float = SEA_LEVEL_FLUX) -> float:
    """Hours in the field that an hour in the beam stands for: the ratio of fluxes (JESD89A).

    Both in n/cm2/h, in one energy range and with spectra of one shape.
    """
    return _checked(beam_flux, "flux of the beam") / _checked(flux, "flux", strict=True)


def thermal_acceleration(energy: float, use: float, stress: float) -> float:
    """Arrhenius factor exp(Ea / k (1 / T_use - 1 / T_stress)) of lasting defects (JEP122).

    energy  activation energy in eV; use, stress  degrees Celsius. Soft errors have none.
    """
    kelvin = [_checked(t, "temperature", -273.15, strict=True) + 273.15 for t in (use, stress)]
    exponent = _checked(energy, "activation energy") / BOLTZMANN * (1 / kelvin[0] - 1 / kelvin[1])
    if exponent > 700.0:
        raise ConfigError(f"the factor must stay below e^700, got e^{exponent:g}")
    return math.exp(exponent)
