"""Uniform numbers for distributions that are not uniform over sites."""

from __future__ import annotations

import numpy as np


def uniform(draws, count: int, stream: int, trial: int, images) -> np.ndarray:
    """(images, count) float64 in [0, 1): multiples of 2^-53, a larger count only appends.

    draws, stream, trial, images  as of a fault model's `rows`. P(number < p) is p to 2^-53.
    """
    return draws.sites(1 << 53, count, stream, trial, images) * 2.0**-53


def choose(u: np.ndarray, shares) -> np.ndarray:
    """Index of the share that each uniform number falls into; shares sum to 1."""
    bounds = np.cumsum(np.asarray(shares, np.float64))[:-1]
    return np.searchsorted(bounds, u, "right")
