"""How far adSAF on whole weights is from stuck bits: laws of the change of a code.

`AdSAF` of `fault_models/statistical/weights.py` makes a weight 0 or +-max|w|; a stuck bit
changes it by a power of two. Both laws are computed, not sampled, for the codes at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from .stuck import StuckCounts, StuckFit

MOST_BITS = 10
"""Wider codes have too many changes for a histogram of them to say anything."""


@dataclass(frozen=True)
class Change:
    """A law of code read - code written over all weights, as a few numbers.

    changed   share of weights that read another code
    mean, rms of |difference| over all weights, in codes
    distance  total variation distance to what the machine did
    p         of the model that has the law; None for the machine itself
    """

    name: str
    p: float | None
    changed: float
    mean: float
    rms: float
    distance: float


def compare(counts: StuckCounts, fit: StuckFit) -> tuple[Change, ...]:
    """The machine, adSAF on bits as fitted, and adSAF on whole weights: with the same p, and
    with the p (if any) that changes as many weights. Empty for codes above MOST_BITS bits.
    """
    if counts.bits > MOST_BITS or not fit.p.estimate:
        return ()
    half = 2 << counts.bits
    machine = np.zeros(2 * half + 1)
    for difference, count in counts.differences.items():
        machine[half + difference] = count
    machine /= machine.sum()
    p, share = fit.p.estimate, fit.sa1_share.estimate

    def whole(p: float) -> np.ndarray:
        return whole_weight_law(counts.codes, p, share, half)

    found = [
        _change("machine", None, machine, machine),
        _change("adsaf-bits, as fitted", p,
                bit_law(counts.codes, counts.bits, p * (1 - share), p * share, half), machine),
        _change("adsaf, same p", p, whole(p), machine),
    ]  # fmt: skip
    changed = found[0].changed

    def beyond(p: float) -> float:
        return 1 - whole(p)[half] - changed

    if beyond(0.0) < 0 < beyond(1.0):
        same = float(optimize.brentq(beyond, 0.0, 1.0))
        found.append(_change("adsaf, as many weights changed", same, whole(same), machine))
    return tuple(found)


def _change(name: str, p: float | None, law: np.ndarray, machine: np.ndarray) -> Change:
    size = np.abs(np.arange(len(law)) - len(law) // 2)
    rms = float(np.sqrt(law @ size**2))
    distance = float(np.abs(law - machine).sum() / 2)
    return Change(name, p, 1 - float(law[len(law) // 2]), float(law @ size), rms, distance)


def _tallies(codes):
    """(largest magnitude, code, share of all words) of each layer's distinct codes."""
    total = sum(len(layer) for layer in codes)
    for layer in codes:
        most = int(np.abs(layer).max())
        for code, count in zip(*np.unique(layer, return_counts=True)):
            yield most, int(code), count / total


def whole_weight_law(codes, p: float, share: float, half: int) -> np.ndarray:
    """(2 half + 1,) probabilities of a change by -half..half under AdSAF, mode "paper"."""
    states = ((1 - p, None), (p * (1 - share), 0), (p * share, 1))
    law = np.zeros(2 * half + 1)
    for most, code, weight in _tallies(codes):
        for chance, plus in states:
            up = max(code, 0) if plus is None else plus * most
            for other, minus in states:
                down = max(-code, 0) if minus is None else minus * most
                law[half + up - down - code] += weight * chance * other
    return law


def bit_law(codes, bits: int, p0: float, p1: float, half: int) -> np.ndarray:
    """The same under AdSAFBits with two's complement cells: bits change independently."""
    law, known = np.zeros(2 * half + 1), {}
    for _, code, weight in _tallies(codes):
        if code not in known:
            own = np.zeros(2 * half + 1)
            own[half] = 1.0
            for bit in range(bits):
                worth = -(1 << bit) if bit == bits - 1 else 1 << bit
                one = code >> bit & 1
                chance, step = (p0, -worth) if one else (p1, worth)
                own = (1 - chance) * own + chance * np.roll(own, step)
            known[code] = own
        law += weight * known[code]
    return law
