"""The only judges of random results in the test suite, with one shared budget.

A statistical check fails by chance with probability alpha. Each call here
registers its alpha, and a call that takes the sum of the session beyond
BUDGET fails, so a red suite means a defect and not bad luck.

A check that cannot fail is worth nothing either: each call names the mutant it
must catch, and fails if its sample is too small to catch that mutant with
probability POWER. Use fixed seeds from `seed_for`.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from scipy import stats

BUDGET = 1e-6
POWER = 0.999

_spent: list[float] = []


def seed_for(name: str) -> int:
    """A 64-bit seed from a test's name; FSIM_TEST_SEED gives every test a fresh one."""
    text = f"{name}/{os.environ.get('FSIM_TEST_SEED', '')}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def spent() -> float:
    """False-positive probability registered so far in this session."""
    return sum(_spent)


def _register(alpha: float) -> None:
    _spent.append(alpha)
    assert spent() <= BUDGET, (
        f"statistical checks of this session add up to alpha = {spent():.3g}, "
        f"more than the budget of {BUDGET:g}: use fewer or stricter ones"
    )


def _region(n: int, p: float, alpha: float) -> tuple[int, int]:
    """[low, high] such that k < low and k > high each have probability <= alpha / 2."""
    # ppf and isf are quantiles of a discrete law; the loops settle the last unit.
    low, high = int(stats.binom.ppf(alpha / 2, n, p)), int(stats.binom.isf(alpha / 2, n, p))
    while low > 0 and stats.binom.cdf(low - 1, n, p) > alpha / 2:
        low -= 1
    while high < n and stats.binom.sf(high, n, p) > alpha / 2:
        high += 1
    return low, high


def assert_rate(
    k: int,
    n: int,
    p: float,
    alpha: float = 1e-9,
    *,
    mutant: float | None = None,
    named: str = "p off by 10 %",
) -> None:
    """k of n independent trials agree with probability p: exact binomial, two-sided.

    mutant  the rate that the defect `named` would give; 1.1 p by default
    """
    _register(alpha)
    if mutant is None:
        mutant = 1.1 * p if 1.1 * p < 1 else 0.9 * p
    low, high = _region(n, p, alpha)
    power = stats.binom.cdf(low - 1, n, mutant) + stats.binom.sf(high, n, mutant)
    assert power > POWER, (
        f"{n} trials catch the mutant '{named}' (rate {mutant:.6g} instead of {p:.6g}) "
        f"only with probability {power:.4f}: take more"
    )
    assert low <= k <= high, (
        f"{k} of {n} trials, expected {n * p:.6g}: outside [{low}, {high}] at alpha = {alpha:g}"
    )


def assert_at_least(
    k: int, n: int, p: float, alpha: float = 1e-9, *, mutant: float, named: str
) -> None:
    """k of n independent trials agree with a probability of p or more: exact, one-sided.

    mutant  the lower rate that the defect `named` would give
    """
    _register(alpha)
    low = int(stats.binom.ppf(alpha, n, p))
    while low > 0 and stats.binom.cdf(low - 1, n, p) > alpha:
        low -= 1
    power = stats.binom.cdf(low - 1, n, mutant)
    assert power > POWER, (
        f"{n} trials catch the mutant '{named}' (rate {mutant:.6g}, at least {p:.6g} wanted) "
        f"only with probability {power:.4f}: take more"
    )
    assert k >= low, f"{k} of {n} trials, at least {low} expected at alpha = {alpha:g}"


def assert_uniform(
    counts,
    alpha: float = 1e-9,
    *,
    probabilities=None,
    mutant=None,
    named: str = "half of the cells 10 % too likely",
) -> None:
    """Counts per cell agree with equal probabilities (or with `probabilities`): chi-square.

    mutant  cell probabilities under the defect `named`; by default every second
            cell is 10 % too likely and the others are too rare by as much
    """
    _register(alpha)
    counts = np.asarray(counts)
    n, cells = int(counts.sum()), counts.size
    p = np.full(cells, 1.0 / cells) if probabilities is None else np.asarray(probabilities, float)
    assert abs(p.sum() - 1) < 1e-9 and p.shape == counts.shape and cells > 1
    assert n * p.min() >= 10, "cells must expect at least ten counts each for a chi-square test"
    if mutant is None:
        mutant = p * np.where(np.arange(cells) % 2, 0.9, 1.1)
    mutant = np.asarray(mutant, float) / np.sum(mutant)
    limit = stats.chi2.isf(alpha, cells - 1)
    noncentrality = n * float(((mutant - p) ** 2 / p).sum())
    power = stats.ncx2.sf(limit, cells - 1, noncentrality)
    assert power > POWER, (
        f"{n} counts catch the mutant '{named}' only with probability {power:.4f}: take more"
    )
    statistic = float(((counts - n * p) ** 2 / (n * p)).sum())
    assert statistic <= limit, (
        f"chi-square {statistic:.1f} of {cells} cells exceeds {limit:.1f} at alpha = {alpha:g}"
    )
