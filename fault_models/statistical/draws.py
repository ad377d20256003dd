"""Random faults as tensor operations on the generator's device, without waiting for it.

Whether an element is faulty is decided by a 62-bit word or, where faults are rare,
by the gaps between them; float32 uniform numbers would round a probability to a
multiple of 2^-24. The same seed gives the same faults on one kind of device, not
on CPU and GPU alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

WORD_BITS = 62

LEAST = 2.0**-WORD_BITS
"""The least probability that is told from 0."""

RARE = 0.125
"""Up to this probability gaps are drawn (about 60 ns a fault on a CPU), above it a word
an element (about 8 ns); measured on one core."""


def words(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """int64 tensor of `shape`, uniform on [0, 2^62)."""
    return below(1 << WORD_BITS, shape, generator, torch.int64)


def below(
    limit: int, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.int32
) -> torch.Tensor:
    """Tensor of `shape` and an integer dtype, uniform on 0 .. limit - 1.

    limit  a power of two, or far below 2^32: torch takes a random word modulo the limit,
           which is not uniform for a large one (test_ibf_bits_are_independent sees it)
    """
    out = torch.empty(tuple(shape), dtype=dtype, device=generator.device)
    return out.random_(0, limit, generator=generator)


def uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """float64 tensor of `shape`, uniform on (0, 1): never 0 and never 1."""
    # (k + 1/2) / 2^52 is exact and lies strictly between 0 and 1.
    return below(1 << 52, shape, generator, torch.int64).double().add_(0.5).mul_(2.0**-52)


def threshold(p: float) -> int:
    """t such that a word is below t with probability p."""
    return round(p * (1 << WORD_BITS))


def at_random(
    shape: Sequence[int], p: float, generator: torch.Generator, value: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """int32 tensor of `shape`: a random value where an element is hit, else 0.

    p      probability of each element to be hit, independently
    value  count -> (count,) int32, the values of that many hits, drawn independently
    """
    count = math.prod(shape)
    if p > RARE:
        hit = words((count,), generator) < threshold(p)
        return (value(count) * hit).view(tuple(shape))
    out = torch.zeros(count + 1, dtype=torch.int32, device=generator.device)
    if p > LEAST and count:
        # How many elements are hit would have to be read from the device. So many are
        # drawn that more hits have a probability below 1e-15; those past the end all
        # go to one element more, which is dropped.
        mean = count * p
        most = min(count, math.ceil(mean + 8 * math.sqrt(mean) + 30))
        gaps = uniform((most,), generator).log_().div_(math.log1p(-p))
        gaps = gaps.clamp_max_(float(count)).long()  # elements passed over before the next hit
        place = gaps.add_(1).cumsum(0).sub_(1).clamp_max_(count)
        out.scatter_(0, place, value(most))
    return out[:count].view(tuple(shape))


def _any_bit(bits: int, rate: float) -> float:
    """Probability that a mask is not 0."""
    return -math.expm1(bits * math.log1p(-rate)) if rate < 1.0 else 1.0


@lru_cache(maxsize=64)
def _mask_bounds(bits: int, rate: float, given_any: bool) -> np.ndarray:
    """(2^bits - 1,) int64: mask j is drawn by the words from bound j - 1 up to bound j.

    Mask j has probability rate^k (1 - rate)^(bits - k), k its number of ones; with
    `given_any` mask 0 has none and the others share it. What rounding leaves over
    falls to the first mask that is possible, so that the probabilities add up to 1.
    """
    ones = np.arange(bits + 1)
    shares = rate**ones * (1.0 - rate) ** (bits - ones)
    if given_any:
        shares[0] = 0.0
        shares /= _any_bit(bits, rate)
    counts = np.array([threshold(float(share)) for share in shares], np.int64)
    counts = counts[np.bitwise_count(np.arange(1 << bits))]
    counts[int(given_any)] += (1 << WORD_BITS) - int(counts.sum())
    return np.cumsum(counts)[:-1]


def bit_masks(
    shape: Sequence[int],
    bits: int,
    rate: float,
    generator: torch.Generator,
    then: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """int32 masks: each of `bits` bits is 1 independently with `rate`.

    then  masks -> int32 values of the same shape to take in their place; of 0 it is 0
    """

    def values(count: int, given_any: bool) -> torch.Tensor:
        bounds = torch.from_numpy(_mask_bounds(bits, rate, given_any))
        # A blocking copy would wait for the device.
        bounds = bounds.to(generator.device, non_blocking=True)
        masks = torch.searchsorted(bounds, words((count,), generator), right=True, out_int32=True)
        return then(masks) if then else masks

    any_bit = _any_bit(bits, rate)
    if any_bit > RARE:
        return values(math.prod(shape), False).view(tuple(shape))
    return at_random(shape, any_bit, generator, lambda count: values(count, True))
