"""Essential bits: configuration bits whose upset can be seen at a PE's output at all.

Tools of FPGA makers count configuration bits that a design uses at all; here a bit counts only
if some operands make it visible, alone, in one multiply-add. The others hold entries that the
connections never select, or feed a carry that is dropped.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import ConfigError

from . import luts

MAX_BITS = 10
"""Operand width up to which all pairs of operands are tried."""


def essential_bits(accel) -> dict[str, np.ndarray]:
    """Component -> (LUTs, 64) bool: an upset of that bit alone changes some result.

    Multiplier: every pair of operands; the entries that its LUTs then select. All LUTs are
    exact adders of what they are given, so that an output which is inverted changes the sum
    of all by its weight: every selected bit of the result and of every carry counts, but for
    the last carry, whose weight is beyond the result. Adder: all sums and products occur,
    so that every LUT sees all its inputs, the first one no carry.

    ConfigError for operands of more than MAX_BITS bits.
    """
    bits = accel.operand_bits
    if bits > MAX_BITS:
        raise ConfigError(
            f"essential bits are counted for operands of at most {MAX_BITS} bits, got {bits}"
        )
    found = np.zeros((luts.multiplier_luts(bits), luts.BITS), bool)
    for lut, index in _selected(bits):
        entries = np.unique(index)
        found[lut, 32 + entries] = True
        found[lut, entries] = lut < len(found) - 1
    adder = np.zeros((accel.acc_bits, luts.BITS), bool)
    adder[:, 32:40] = adder[:, :8] = True
    adder[0, 36:40] = adder[0, 4:8] = False
    adder[-1, :8] = False
    return {"mul_lut": found, "add_lut": adder}


def essential_share(accel) -> float:
    """Share of a PE's configuration bits that are essential."""
    found = essential_bits(accel).values()
    return sum(int(bits.sum()) for bits in found) / sum(bits.size for bits in found)


def _selected(bits: int):
    """(LUT, (pairs,) int64 entry that each pair of operands selects) of the multiplier."""
    codes = np.arange(1 << bits)
    x, y = (np.ravel(grid) for grid in np.meshgrid(codes, codes))
    none = np.zeros(len(x), np.int64)
    sums, carries = [none] * (bits + 1), [none] * bits
    for j in range(bits):
        new_sums, new_carries = [], []
        for i in range(bits):
            digits = (x >> i) & 1, (y >> j) & 1
            inverted = (i == bits - 1) != (j == bits - 1)
            count = (digits[0] & digits[1] ^ inverted) + sums[i + 1] + carries[i]
            yield j * bits + i, digits[0] + 2 * digits[1] + 4 * sums[i + 1] + 8 * carries[i]
            new_sums.append(count & 1)
            new_carries.append(count >> 1)
        sums, carries = [*new_sums, none], new_carries
    sums[bits] = ripple = none + 1
    for q in range(bits):
        yield bits * bits + q, sums[q + 1] + 2 * carries[q] + 4 * ripple
        ripple = (sums[q + 1] + carries[q] + ripple) >> 1
