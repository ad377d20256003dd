"""The LUTs of one PE: what they are connected to and what is written in them.

Every cell of the multiplier and of the adder is one LUT6 used as two LUT5 of the same
inputs (AMD/Xilinx, 7 Series FPGAs Configurable Logic Block, UG474): of its 64 configuration
bits, bit i holds output O5, here the carry, and bit 32 + i output O6, here the sum, for the
inputs I4..I0 = i. Unused inputs are tied to 0 (assumed); the entries they would select hold
the same function. No carry chain of the slice is used (assumed: designs usually use them;
then fewer LUTs do the same work).

Multiplier: the array of Baugh and Wooley (IEEE Transactions on Computers C-22 (1973) 1045,
in the form with inverted products of one sign bit), n = operand_bits. LUT j * n + i is the
cell of bit i of x and bit j of y; it adds their product to a sum and a carry of weight i + j:

    I0 = x[i], I1 = y[j], I2 = sum of cell (i + 1, j - 1), I3 = carry of cell (i, j - 1)

(0 where there is no such cell); the product is x AND y, inverted where exactly one of them
is a sign bit. The sum of cell (0, j) is bit j of the result. LUT n * n + q adds what the
last row leaves, and is bit n + q of the result:

    I0 = sum of cell (q + 1, n - 1), 1 for q = n - 1; I1 = carry of cell (q, n - 1);
    I2 = carry of LUT n * n + q - 1, 1 for q = 0

The two constants 1 are those of the method, at weights n and 2 n - 1.

Adder: LUT p adds bit p of the sum (I0), of the product with its sign extended (I1) and the
carry of LUT p - 1 (I2; 0 for p = 0). The last carry is dropped: sums wrap.
"""

from __future__ import annotations

BITS = 64
"""Configuration bits of a LUT6."""


def multiplier_luts(bits: int) -> int:
    """LUTs of a multiplier of two `bits`-bit numbers."""
    return bits * bits + bits


def _table(entry) -> int:
    """The configuration word of a LUT, two's complement; entry(i) -> (sum, carry)."""
    word = 0
    for i in range(32):
        total, carry = entry(i)
        word |= carry << i | total << (32 + i)
    return word - (1 << BITS) if word >> (BITS - 1) else word


def _cell(inverted: bool):
    def entry(i):
        product = (i & (i >> 1) & 1) ^ inverted
        count = product + (i >> 2 & 1) + (i >> 3 & 1)
        return count & 1, count >> 1

    return entry


def _full_adder(i: int) -> tuple[int, int]:
    count = (i & 1) + (i >> 1 & 1) + (i >> 2 & 1)
    return count & 1, count >> 1


def multiplier(bits: int) -> list[int]:
    """Configuration words of the multiplier, by LUT."""
    sign = bits - 1
    cells = [_table(_cell((i == sign) != (j == sign))) for j in range(bits) for i in range(bits)]
    return cells + [_table(_full_adder)] * bits


def adder(bits: int) -> list[int]:
    """Configuration words of an adder of `bits` bits, by LUT."""
    return [_table(_full_adder)] * bits
