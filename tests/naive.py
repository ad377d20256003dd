"""Plain restatements that tests compare the simulator with. Imports nothing of fsim."""

from __future__ import annotations


def wrapped(value: int, bits: int) -> int:
    """Two's complement by shifting the range: [-2^(bits-1), 2^(bits-1))."""
    half = 2 ** (bits - 1)
    return (value + half) % (2 * half) - half


def matmul(a, b, d=None, bits: int = 32) -> list[list[int]]:
    """d + a b in Python ints by three loops, reduced once to `bits` bits at the end.

    a (m, k), b (k, n), d (m, n) or None: nested sequences of integers.
    """
    rows, inner, cols = len(a), len(b), len(b[0])
    out = []
    for i in range(rows):
        line = []
        for j in range(cols):
            total = 0 if d is None else int(d[i][j])
            for p in range(inner):
                total += int(a[i][p]) * int(b[p][j])
            line.append(wrapped(total, bits))
        out.append(line)
    return out


def saturating_matmul_os(a, b, d, bits: int) -> list[list[int]]:
    """d + a b where every sum, in the order of k, is held at the ends of `bits` bits."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    out = []
    for i in range(len(a)):
        line = []
        for j in range(len(b[0])):
            total = int(d[i][j])
            for p in range(len(b)):
                total = min(max(total + int(a[i][p]) * int(b[p][j]), low), high)
            line.append(total)
        out.append(line)
    return out


def saturating_matmul_ws(a, b, d, rows: int, bits: int) -> list[list[int]]:
    """The same where each fold of `rows` steps of k sums from 0, and folds are then added."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    out = []
    for i in range(len(a)):
        line = []
        for j in range(len(b[0])):
            total = int(d[i][j])
            for k0 in range(0, len(b), rows):
                fold = 0
                for p in range(k0, min(k0 + rows, len(b))):
                    fold = min(max(fold + int(a[i][p]) * int(b[p][j]), low), high)
                total = min(max(total + fold, low), high)
            line.append(total)
        out.append(line)
    return out
