"""Parity and SECDED of memory words: encoding, decoding, and what a struck word is read as.

A code is two tables. `columns` (data bits,) uint64 is the column of each data bit in the
parity-check matrix [P I]; check bit j has the unit vector 1 << j. `fixes` (2^check bits,)
int64 says what the decoder does with a syndrome: NOTHING (it is 0), DETECT, or invert a data
bit b or the check bit j, written data bits + j.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

NOTHING, DETECT = -1, -2
CLEAN, CORRECTED, DETECTED = range(3)

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def check_of(data, columns):
    """Check bits of one data word, uint64: the sum over GF(2) of the columns of its ones."""
    check = _ZERO
    b = 0
    while data != _ZERO:
        if data & _ONE:
            check ^= columns[b]
        data >>= _ONE
        b += 1
    return check


@kernel
def decoded(data, check, columns, fixes):
    """(data, check, CLEAN, CORRECTED or DETECTED) of one stored word, as it leaves the decoder.

    Nothing is changed in a word whose error is detected only.
    """
    fix = fixes[np.int64(check_of(data, columns) ^ check)]
    if fix == NOTHING:
        return data, check, CLEAN
    if fix == DETECT:
        return data, check, DETECTED
    if fix < len(columns):
        return data ^ (_ONE << np.uint64(fix)), check, CORRECTED
    return data, check ^ (_ONE << np.uint64(fix - len(columns))), CORRECTED


@kernel
def encode(data, columns, check):
    """Check bits of words: data (n,) uint64, check (n,) uint64 to fill."""
    for i in range(len(data)):
        check[i] = check_of(data[i], columns)


@kernel
def decode(data, check, columns, fixes, status):
    """Words through the decoder, in place; status (n,) uint8 to fill."""
    for i in range(len(data)):
        data[i], check[i], found = decoded(data[i], check[i], columns, fixes)
        status[i] = found


@kernel
def read_words(rows, order, begins, at, bits, old, columns, fixes, error, repaired, detected):
    """What struck memory words are read as.

    rows     FAULT records of one memory; order (f,) int64: of the same memory word, residency
             and inference one after another, by scrub interval, then as they act
    begins   (words + 1,) int64 where each word's rows begin in `order`
    at       (f,) int64 place of each row's tensor word in the memory word, -1: check bits
    bits     (f,) int64 width of a tensor word
    old      (words,) uint64 data that was written
    error    (words,) uint64 to fill: data bits in which what is read differs from `old`
    repaired, detected  (words,) bool to fill: the decoder changed something and what is read
             is right; the decoder, at a scrub or at the read, found an error it cannot correct

    A row's scrub interval is its column `col`; none (-1) is the last one. Between two
    intervals the word goes through the decoder and is written back.
    """
    for word in range(len(old)):
        data, check = old[word], check_of(old[word], columns)
        changed, found = False, False
        interval = rows[order[begins[word]]].col
        for i in range(begins[word], begins[word + 1]):
            number = order[i]
            row = rows[number]
            if row.col != interval:
                interval = row.col
                data, check, status = decoded(data, check, columns, fixes)
                changed |= status == CORRECTED
                found |= status == DETECTED
            keep, put, turn = (
                np.uint64(row.and_mask),
                np.uint64(row.or_mask),
                np.uint64(row.xor_mask),
            )
            if at[number] < 0:
                full = (_ONE << np.uint64(bits[number])) - _ONE
                check = (((check & keep) | put) ^ turn) & full
            else:
                shift = np.uint64(at[number] * bits[number])
                full = (_ONE << np.uint64(bits[number])) - _ONE
                value = (data >> shift) & full
                new = (((value & keep) | put) ^ turn) & full
                data ^= (value ^ new) << shift
        data, check, status = decoded(data, check, columns, fixes)
        changed |= status == CORRECTED
        found |= status == DETECTED
        error[word] = data ^ old[word]
        repaired[word] = changed and error[word] == _ZERO
        detected[word] = found
