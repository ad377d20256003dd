"""A random order of [0, n) whose i-th entry is had without the others.

A Feistel network over the least even number of bits that holds n, its rounds keyed by
Philox, is a bijection of a power of four; what falls beyond n goes through it again
until it does not ("cycle walking"), which leaves a bijection of [0, n). Luby and Rackoff,
SIAM Journal on Computing 17 (1988) 373; Black and Rogaway, CT-RSA 2002, 114.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

from .philox import philox4x32

ROUNDS = 8
"""Four make a pseudorandom permutation of a large domain; more cost little."""

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@kernel
def permute(size, seed, stream, index, out):
    """out[i] = where index[i] stands in the order; all int64, index in [0, size).

    size          at least 1
    seed, stream  uint64
    """
    half = 1
    while half < 31 and np.int64(1) << (2 * half) < size:
        half += 1
    mask = (np.uint64(1) << np.uint64(half)) - np.uint64(1)
    shift = np.uint64(half)
    for i in range(index.shape[0]):
        value = np.uint64(index[i])
        inside = False
        while not inside:
            left, right = value >> shift, value & mask
            for number in range(ROUNDS):
                word, _, _, _ = philox4x32(
                    right, stream, np.uint64(number), np.uint64(0), seed & _LOW, seed >> _32
                )
                left, right = right, left ^ (word & mask)
            value = (left << shift) | right
            inside = value < np.uint64(size)
        out[i] = np.int64(value)
