"""Parameters of MiBB and iBF from counts, with intervals and goodness of fit.

MiBB (FTT-NAS, arXiv 2003.10375): an output of M multiply-adds is faulty with
p = 1 - (1 - p_m)^M, independently, and gets one bias, uniform over the 2 bits values
+-2^0 .. +-2^(bits-1) codes. iBF: every bit flips with probability r, independently.

Faults of a machine strike several outputs at once, so that outputs are not
independent; units (images of a trial, for which faults are drawn independently)
are. Intervals and tests are therefore widened by the design effect, the variance
between units over that of independent outputs: Rao and Scott, Annals of Statistics
12 (1984) 46, and McCullagh and Nelder, Generalized Linear Models (1989), ch. 9
(quasi-likelihood).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ..statistics import clopper_pearson

CONFIDENCE = 0.95
LEAST_EXPECTED = 5.0
"""Cells of a chi-square test with a smaller expected count are put together."""
LEAST_UNITS = 5
"""A layer has a design effect of its own if so many units were struck."""

POOR_P = 0.01
"""p-value below which the fit over layers or bits is called poor."""
POOR_DISTANCE = 0.2
"""Total variation distance, beyond that of chance, from which biases are not uniform."""
POOR_DESIGN = 2.0
"""Design effect from which struck values are not independent."""


@dataclass(frozen=True, eq=False)
class MiBBFit:
    """MiBB fitted to struck features.

    p_m, low, high  per multiply-add, with its 95 % interval
    observed, expected  (layers,) struck features, and those of the fit
    design          variance between units over that of independent outputs, >= 1
    chi2, dof, p    fit over the layers; p None where fewer than two cells can be compared
    distance        total variation distance between the biases and MiBB's uniform law;
                    None if nothing was struck
    chance          what that distance is on average if the law holds
    powers, clamped shares of the struck features (see Products); None likewise
    poor            why MiBB describes this poorly; empty: nothing speaks against it
    """

    p_m: float
    low: float
    high: float
    observed: np.ndarray
    expected: np.ndarray
    design: float
    chi2: float
    dof: int
    p: float | None
    distance: float | None
    chance: float | None
    powers: float | None
    clamped: float | None
    poor: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FlipFit:
    """iBF fitted to flipped bits.

    r, low, high   per bit and residency, with its 95 % interval (Clopper-Pearson)
    flipped, bits  bits found inverted, of how many
    expected       (tensors,) flipped bits of the fit
    chi2, dof, p   fit over tensors and bit positions; p as in MiBBFit
    poor           as in MiBBFit
    """

    r: float
    low: float
    high: float
    flipped: int
    bits: int
    expected: np.ndarray
    chi2: float
    dof: int
    p: float | None
    poor: tuple[str, ...]


def fit_mibb(
    struck: np.ndarray,
    values: np.ndarray,
    macs: np.ndarray,
    biases: np.ndarray | None = None,
    powers: int = 0,
    clamped: int = 0,
) -> MiBBFit:
    """Maximum-likelihood p_m.

    struck   (units, layers) struck output values
    values   (layers,) output values of one unit
    macs     (layers,) M
    biases   (2 bits,) struck values by bias; None: not known
    powers, clamped  struck values, all layers

    With t = -ln(1 - p_m) the likelihood is the product over layers of
    (1 - e^-tM)^k (e^-tM)^(n-k); its derivative, sum of M (k / p - n), falls with t.
    The interval is where the log-likelihood over the design effect lies within half
    the squared Student quantile (units - 1) of its maximum.
    """
    units = len(struck)
    n, macs = units * np.asarray(values, np.float64), np.asarray(macs, np.float64)
    k = struck.sum(0, dtype=np.int64)
    if not k.any():
        tail = -math.log((1 - CONFIDENCE) / 2)
        high = -math.expm1(-tail / (n @ macs)) if n @ macs else 1.0
        return MiBBFit(0.0, 0.0, high, k, np.zeros(len(k)), 1.0, 0.0, 0, None, None, None,
                       None, None, ())  # fmt: skip
    if (k == n).all():
        t = math.inf
        # The likelihood has its maximum, 1, at t = infinity; 50 / M is as good.
        low = _end(k, n, macs, 50.0 / macs.min(), 1.92, below=True)
        return MiBBFit(1.0, -math.expm1(-low), 1.0, k, n, 1.0, 0.0, 0, None,
                       *_bias_fit(biases, int(k.sum()), powers, clamped, 1.0))  # fmt: skip
    t = _solve(lambda t: _score(k, n, macs, t), 1.0 / (n @ macs))
    p = -np.expm1(-t * macs)
    information = float((n * macs**2 * (1 - p) / p).sum())
    scores = (macs * (struck - values * p) / p).sum(1)
    design = max(1.0, float(scores @ scores) / information * units / max(units - 1, 1))
    quantile = float(special.stdtrit(max(units - 1, 1), 0.5 + CONFIDENCE / 2))
    drop = design * quantile**2 / 2
    low, high = (_end(k, n, macs, t, drop, below=side) for side in (True, False))
    chi2, dof, p_value = _over_layers(struck, values, n * p, n, design)
    poor = []
    if p_value is not None and p_value < POOR_P:
        poor.append("struck values do not follow 1 - (1 - p_m)^M over the layers")
    if design > POOR_DESIGN:
        poor.append(
            f"struck values come together, MiBB's are independent (variance between images "
            f"{design:.3g} times as large)"
        )
    distance, chance, *shares, more = _bias_fit(biases, int(k.sum()), powers, clamped, design)
    return MiBBFit(
        -math.expm1(-t), -math.expm1(-low), -math.expm1(-high), k, n * p, design, chi2, dof,
        p_value, distance, chance, *shares, (*poor, *more),
    )  # fmt: skip


def _score(k, n, macs, t: float) -> float:
    return float((macs * (k / -np.expm1(-t * macs) - n)).sum())


def _likelihood(k, n, macs, t: float) -> float:
    some = k > 0
    return float((k[some] * np.log(-np.expm1(-t * macs[some]))).sum() - (t * macs * (n - k)).sum())


def _solve(falling, start: float) -> float:
    """Root of a falling function on (0, inf)."""
    low = high = start
    while falling(low) < 0:
        low /= 4
    while falling(high) > 0:
        high *= 4
    return low if low == high else float(optimize.brentq(falling, low, high, rtol=1e-12))


def _end(k, n, macs, t: float, drop: float, *, below: bool) -> float:
    """Where the log-likelihood has fallen by `drop` from its value at t."""
    level = _likelihood(k, n, macs, t) - drop
    factor = 0.5 if below else 2.0
    edge = t
    while _likelihood(k, n, macs, edge) > level:
        edge *= factor
        if not 1e-300 < edge < 1e300:
            return 0.0 if below else math.inf
    ends = sorted((edge, edge / factor))
    return float(optimize.brentq(lambda x: _likelihood(k, n, macs, x) - level, *ends, rtol=1e-10))


def _over_layers(struck, values, expected, n, design) -> tuple[float, int, float | None]:
    """(chi-square, degrees of freedom, p) of the layers, each over its design effect.

    That is the larger of its own and the common one: a fault that strikes hundreds of
    values is rare, and a layer that it happened to spare does not show that it can.
    """
    units, layers = struck.shape
    own = np.full(layers, design)
    share = struck.mean(0) / np.maximum(values, 1)
    spread = struck.var(0, ddof=1) if units > 1 else np.zeros(layers)
    known = ((struck > 0).sum(0) >= LEAST_UNITS) & (share < 1) & (units > 1)
    own[known] = np.maximum(design, spread[known] / (values * share * (1 - share))[known])
    variance = expected * (1 - expected / n) * own
    return chi_square(struck.sum(0), expected, variance, expected / own, 1)


def chi_square(observed, expected, variance, effective, parameters: int):
    """Pearson's statistic over cells; those with a small effective count are one cell."""
    small = effective < LEAST_EXPECTED
    cells = [(observed[~small], expected[~small], variance[~small])]
    if small.any():
        cells.append(
            tuple(np.array([part[small].sum()]) for part in (observed, expected, variance))
        )
    observed, expected, variance = (np.concatenate(parts) for parts in zip(*cells))
    use = variance > 0
    statistic = float(((observed - expected)[use] ** 2 / variance[use]).sum())
    dof = int(use.sum()) - parameters
    if dof < 1:
        return statistic, 0, None
    return statistic, dof, float(special.chdtrc(dof, statistic))


def _bias_fit(biases, struck: int, powers: int, clamped: int, design: float):
    """(distance, chance, share of powers, share clamped, reasons)."""
    if biases is None or not biases.sum():
        return None, None, None, None, ()
    cells = len(biases)
    distance = float(np.abs(biases / biases.sum() - 1 / cells).sum() / 2)
    # Mean of |share - 1/cells| of a binomial share, normal approximation.
    effective = max(struck / design, 1.0)
    chance = cells / 2 * math.sqrt(2 * (1 / cells) * (1 - 1 / cells) / (math.pi * effective))
    poor = ()
    if distance - chance > POOR_DISTANCE:
        poor = (
            f"biases are not uniform over +-2^0..2^{cells // 2 - 1} (total variation distance "
            f"{distance:.2f})",
        )
    return distance, min(chance, 1.0), powers / struck, clamped / struck, poor


def fit_flips(exposed: np.ndarray, flipped: np.ndarray) -> FlipFit:
    """Rate per bit and residency.

    exposed  (tensors,) words times residencies
    flipped  (tensors, bits) bits found inverted
    """
    cells = np.repeat(np.asarray(exposed, np.int64), flipped.shape[1]).astype(np.float64)
    k, n = int(flipped.sum()), int(cells.sum())
    found = clopper_pearson(k, n)
    r = k / n if n else 0.0
    expected = cells * r
    chi2, dof, p = chi_square(flipped.reshape(-1), expected, expected * (1 - r), expected, 1)
    poor = ()
    if p is not None and p < POOR_P:
        poor = ("flips are not equally likely over tensors and bits",)
    by_tensor = expected.reshape(flipped.shape).sum(1)
    return FlipFit(r, found.low, found.high, k, n, by_tensor, chi2, dof, p, poor)
