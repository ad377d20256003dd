"""Random faults as tensor operations on the generator's device, without waiting for it.

One 62-bit word an element decides everything about it: a word below p * 2^62 is
a fault, so that a probability is met to 2^-62 (a float32 uniform number would
round p to a multiple of 2^-24). The draws depend on the device's generator: the
same seed gives the same faults on one kind of device, not on CPU and GPU alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

WORD_BITS = 62

LEAST = 2.0**-WORD_BITS
"""The least probability that a word can meet."""


def words(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """int64 tensor of `shape`, uniform on [0, 2^62)."""
    out = torch.empty(tuple(shape), dtype=torch.int64, device=generator.device)
    return out.random_(0, 1 << WORD_BITS, generator=generator)


def threshold(p: float) -> int:
    """t such that a word is below t with probability p."""
    return round(p * (1 << WORD_BITS))


@lru_cache(maxsize=64)
def _mask_bounds(bits: int, rate: float) -> np.ndarray:
    """(2^bits - 1,) int64: the bound above which a word means mask j + 1 or later.

    Mask j has probability rate^k (1 - rate)^(bits - k), k its number of ones. Mask 0
    takes what rounding leaves over, so that the probabilities add up to 1.
    """
    ones = np.arange(bits + 1)
    shares = rate**ones * (1.0 - rate) ** (bits - ones)
    counts = np.array([threshold(float(share)) for share in shares], np.int64)
    counts = counts[np.bitwise_count(np.arange(1 << bits))]
    counts[0] = (1 << WORD_BITS) - int(counts[1:].sum())
    return np.cumsum(counts)[:-1]


def bit_masks(word: torch.Tensor, bits: int, rate: float) -> torch.Tensor:
    """int32 masks, shape of `word`: each of `bits` bits is 1 independently with `rate`."""
    bounds = torch.from_numpy(_mask_bounds(bits, rate))
    bounds = bounds.to(word.device, non_blocking=True)  # blocking would wait for the device
    return torch.searchsorted(bounds, word, right=True, out_int32=True)


def low_bits(word: torch.Tensor, bits: int) -> torch.Tensor:
    """int32: the lowest `bits` bits of each word, uniform.

    They are independent of what a comparison of the word decided to within 2^bits
    divided by the width (in words) of the interval it fell into.
    """
    return (word & ((1 << bits) - 1)).to(torch.int32)


def below(word: torch.Tensor, count: int) -> torch.Tensor:
    """int32 in 0 .. count - 1, uniform in the sense of `low_bits`."""
    if count & (count - 1) == 0:
        return low_bits(word, count.bit_length() - 1)
    return torch.remainder(word, count).to(torch.int32)
