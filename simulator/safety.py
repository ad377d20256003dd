"""Hardware architectural metrics of ISO 26262-5: fault classes, SPFM, LFM and PMHF.

Every hardware element has a failure rate lambda, in FIT. A share p of it would violate the
safety goal if nothing prevented that; the rest is safe. A safety mechanism with diagnostic
coverage DC of an element prevents the share DC of those violations. With r the share of
what it prevents that it also reports (or that the driver perceives):

| class | of an element without mechanism | with one | of a mechanism itself |
|---|---|---|---|
| safe | lambda (1 - p) | lambda (1 - p) | |
| single-point | lambda p | | |
| residual | | lambda p (1 - DC) | |
| multiple-point detected | | lambda p DC r | lambda_m s |
| multiple-point latent | | lambda p DC (1 - r) | lambda_m (1 - s) |

lambda_m is the mechanism's own rate and s the share of it that a test of the mechanism finds: a
mechanism that fails violates nothing until an element does. An upset that was corrected is
gone and needs no report: r = 1. A defect that is corrected silently stays: r < 1.

    SPFM = 1 - sum(lambda_SPF + lambda_RF) / sum(lambda)                       (Annex C)
    LFM  = 1 - sum(lambda_MPF,latent) / sum(lambda - lambda_SPF - lambda_RF)   (Annex C)
    PMHF = sum(lambda_SPF + lambda_RF) + dual-point term, per hour             (clause 9)

The dual-point term counts, over a lifetime T, a latent fault of the mechanism followed by one
of what it covers, and a latent fault of what it covers followed by one of the mechanism:

    T / 2 (lambda_m,latent lambda p DC + lambda p DC (1 - r) lambda_m)   each mechanism

It is the first order of P(one before the other within T) / T for exponential lifetimes, and
never below it: P = int_0^T a exp(-a t) (1 - exp(-b t)) dt <= a b T^2 / 2. Faults that are
detected count as repaired at once. ISO 26262-10 has terms of this kind in its PMHF.

Which failures of a network violate the safety goal is the user's to say; so are coverages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsim.errors import ConfigError

from .rates import FIT_HOURS

TARGETS = {
    "B": {"spfm": 0.90, "lfm": 0.60, "pmhf": 1e-7},
    "C": {"spfm": 0.97, "lfm": 0.80, "pmhf": 1e-7},
    "D": {"spfm": 0.99, "lfm": 0.90, "pmhf": 1e-8},
}
"""ASIL -> least SPFM and LFM, most PMHF per hour: ISO 26262-5:2018, clauses 8 and 9. They
are of a whole item with a safety goal; ASIL A has none, those of B are recommended."""

COVERAGES = {"low": 0.60, "medium": 0.90, "high": 0.99}
"""Words for a diagnostic coverage: ISO 26262-5, Annex D."""


@dataclass(frozen=True)
class Element:
    """A hardware element.

    rate       FIT, all of its faults, at least 0
    dangerous  share of them, in [0, 1], that violates the safety goal if nothing prevents it
    """

    name: str
    rate: float
    dangerous: float


@dataclass(frozen=True)
class Mechanism:
    """A safety mechanism, as its user declares it.

    elements       names of what it covers
    coverage       share of dangerous faults that it prevents (DC)
    rate           FIT of the mechanism itself
    self_coverage  share of its own faults that a test finds before they matter
    reported       share of the faults it prevents that it reports
    """

    name: str
    elements: tuple[str, ...]
    coverage: float
    rate: float = 0.0
    self_coverage: float = 0.0
    reported: float = 1.0

    def __post_init__(self):
        for what in ("coverage", "self_coverage", "reported"):
            value = getattr(self, what)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{what} of {self.name} must be in [0, 1], got {value!r}")
        if not 0.0 <= self.rate < math.inf:
            raise ConfigError(
                f"FIT of {self.name} must be a finite number of at least 0, got {self.rate!r}"
            )
        if not self.elements or len(set(self.elements)) < len(self.elements):
            raise ConfigError(
                f"{self.name} must cover components, each named once, "
                f"got {', '.join(self.elements) or 'none'}"
            )


@dataclass(frozen=True)
class Classes:
    """The rate of one element or mechanism by fault class, in FIT; they sum to `rate`."""

    name: str
    mechanism: str
    rate: float
    safe: float = 0.0
    single_point: float = 0.0
    residual: float = 0.0
    detected: float = 0.0
    latent: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """SPFM and LFM in [0, 1] (NaN where nothing is left to divide by), PMHF per hour.

    pmhf is the sum of pmhf_single (single-point and residual) and pmhf_dual.
    """

    spfm: float
    lfm: float
    pmhf_single: float
    pmhf_dual: float

    @property
    def pmhf(self) -> float:
        return self.pmhf_single + self.pmhf_dual


def check_mechanisms(elements: Sequence[str], mechanisms: Sequence[Mechanism]) -> None:
    """ConfigError unless every mechanism covers elements there are, and none is covered twice."""
    names = [mechanism.name for mechanism in mechanisms]
    if len(set(names)) < len(names):
        raise ConfigError(f"safety mechanisms must have different names, got {', '.join(names)}")
    seen: dict[str, str] = {}
    for mechanism in mechanisms:
        for name in mechanism.elements:
            if name not in elements:
                raise ConfigError(
                    f"{mechanism.name} must cover some of {', '.join(elements)}, got {name!r}"
                )
            if name in seen:
                raise ConfigError(
                    f"a component must have one safety mechanism, got {seen[name]} and "
                    f"{mechanism.name} for {name}: state their coverage together"
                )
            seen[name] = mechanism.name


def classify(elements: Sequence[Element], mechanisms: Sequence[Mechanism]) -> list[Classes]:
    """Fault classes of every element, then of every mechanism; ConfigError as above."""
    check_mechanisms([element.name for element in elements], mechanisms)
    covers = {name: m for m in mechanisms for name in m.elements}
    found = []
    for element in elements:
        danger = element.rate * element.dangerous
        safe = element.rate * (1.0 - element.dangerous)
        by = covers.get(element.name)
        if by is None:
            found.append(Classes(element.name, "", element.rate, safe, single_point=danger))
            continue
        kept = danger * by.coverage
        found.append(
            Classes(element.name, by.name, element.rate, safe, residual=danger * (1 - by.coverage),
                    detected=kept * by.reported, latent=kept * (1 - by.reported))
        )  # fmt: skip
    for by in mechanisms:
        found.append(
            Classes(by.name, "", by.rate, detected=by.rate * by.self_coverage,
                    latent=by.rate * (1 - by.self_coverage))
        )  # fmt: skip
    return found


def dual_point_weight(mechanism: Mechanism | None, lifetime: float) -> float:
    """What a FIT of dangerous faults adds to PMHF by the dual-point term, in FIT.

    lifetime in hours; 0 without a mechanism.
    """
    if mechanism is None:
        return 0.0
    latent = mechanism.rate * (1.0 - mechanism.self_coverage)
    silent = (1.0 - mechanism.reported) * mechanism.rate
    return mechanism.coverage * (latent + silent) / FIT_HOURS * lifetime / 2.0


def metrics(
    elements: Sequence[Element], mechanisms: Sequence[Mechanism], *, lifetime: float
) -> Metrics:
    """The three metrics; lifetime in hours, of the dual-point term."""
    if not 0.0 <= lifetime < math.inf:
        raise ConfigError(f"lifetime must be hours of at least 0, got {lifetime!r}")
    rows = classify(elements, mechanisms)
    whole = sum(row.rate for row in rows)
    single = sum(row.single_point + row.residual for row in rows)
    latent = sum(row.latent for row in rows)
    rest = whole - single
    covers = {name: m for m in mechanisms for name in m.elements}
    dual = sum(
        e.rate * e.dangerous * dual_point_weight(covers.get(e.name), lifetime) for e in elements
    )
    return Metrics(
        spfm=1.0 - single / whole if whole > 0 else math.nan,
        lfm=1.0 - latent / rest if rest > 0 else math.nan,
        pmhf_single=single / FIT_HOURS,
        pmhf_dual=dual / FIT_HOURS,
    )
