"""The codes against matrix arithmetic over GF(2): every one- and two-bit error, and more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fsim.accel_models.accel import Buffer
from fsim.errors import ConfigError
from fsim.simulator.protection import CLEAN, CORRECTED, DETECTED, code_of

SIZES = [8, 16, 32, 57, 64]


def made(protection, word_bits):
    return code_of(protection, word_bits, Buffer(1, False, protection, word_bits).check_bits)


def parity_check_matrix(word_bits: int, check_bits: int) -> np.ndarray:
    """H = [P I] (check bits, word bits + check bits) of 0 and 1, as the module's text has it.

    Columns of data bits are written down by hand: combinations of 3, then 5, ... rows, those
    of one size sorted by the number that they stand for.
    """
    columns = []
    for ones in range(3, check_bits + 1, 2):
        some = [sum(1 << i for i in c) for c in itertools.combinations(range(check_bits), ones)]
        columns += sorted(some)
    columns = columns[:word_bits] + [1 << j for j in range(check_bits)]
    return np.array([[c >> j & 1 for c in columns] for j in range(check_bits)])


def bits_of(values, count) -> np.ndarray:
    """(n, count) of 0 and 1, the lowest bit first."""
    return np.array([[int(v) >> b & 1 for b in range(count)] for v in values])


def words_of(bits) -> np.ndarray:
    return np.array([sum(int(b) << i for i, b in enumerate(row)) for row in bits], np.uint64)


class Oracle:
    """Syndromes by matrix products; a decoder that looks the syndrome up among the columns."""

    def __init__(self, word_bits, check_bits):
        self.k, self.r = word_bits, check_bits
        self.h = parity_check_matrix(word_bits, check_bits)

    def check(self, data_bits):
        return data_bits @ self.h[:, : self.k].T % 2

    def decode(self, stored):
        """(stored words after correction, status) of (n, k + r) bits."""
        out, status = stored.copy(), []
        for row, syndrome in zip(out, stored @ self.h.T % 2):
            if not syndrome.any():
                status.append(CLEAN)
                continue
            matches = np.flatnonzero((self.h == syndrome[:, None]).all(axis=0))
            if len(matches):
                row[matches[0]] ^= 1
            status.append(CORRECTED if len(matches) else DETECTED)
        return out, np.array(status)


def compared(code, oracle, stored):
    """Decoder and oracle on (n, k + r) bits; the oracle's answer."""
    data, check = words_of(stored[:, : oracle.k]), words_of(stored[:, oracle.k :])
    data, check, status = code.decode(data, check)
    wanted, wanted_status = oracle.decode(stored)
    assert np.array_equal(status, wanted_status)
    assert np.array_equal(data, words_of(wanted[:, : oracle.k]))
    assert np.array_equal(check, words_of(wanted[:, oracle.k :]))
    return wanted, wanted_status


def test_check_bits_are_those_of_the_codes_that_books_name():
    sizes = {8: 5, 16: 6, 32: 7, 64: 8}
    for word_bits, check_bits in sizes.items():
        assert Buffer(1, False, "secded", word_bits).check_bits == check_bits
    assert Buffer(1, False, "parity", 64).check_bits == 1
    assert Buffer(1).check_bits == 0


@pytest.mark.parametrize("word_bits", SIZES)
def test_columns_are_distinct_and_odd(word_bits):
    code = made("secded", word_bits)
    ones = [int(c).bit_count() for c in code.columns]
    assert len(set(code.columns.tolist())) == word_bits
    assert all(n % 2 == 1 and n >= 3 for n in ones)
    oracle = Oracle(word_bits, code.check_bits)
    assert np.array_equal(words_of(oracle.h.T[:word_bits]), code.columns)


@pytest.mark.parametrize("word_bits", SIZES)
def test_every_error_of_one_and_two_bits(word_bits):
    code = made("secded", word_bits)
    oracle = Oracle(word_bits, code.check_bits)
    rng = np.random.default_rng(word_bits)
    data = rng.integers(0, 2, (1, word_bits))
    sent = np.concatenate([data, oracle.check(data)], axis=1)
    assert np.array_equal(code.encode(words_of(data)), words_of(oracle.check(data)))
    n = word_bits + code.check_bits
    ones = np.eye(n, dtype=np.int64)
    wanted, status = compared(code, oracle, sent ^ ones)
    assert (status == CORRECTED).all() and (wanted == sent).all()
    pairs = np.array([ones[a] ^ ones[b] for a, b in itertools.combinations(range(n), 2)])
    wanted, status = compared(code, oracle, sent ^ pairs)
    assert (status == DETECTED).all() and len(pairs) == n * (n - 1) // 2
    assert np.array_equal(wanted, sent ^ pairs)  # what is detected is not touched
    _, status = compared(code, oracle, sent)
    assert (status == CLEAN).all()


@pytest.mark.parametrize("word_bits", [8, 32, 64])
def test_random_errors_of_three_and_more_bits(word_bits):
    code = made("secded", word_bits)
    oracle = Oracle(word_bits, code.check_bits)
    rng = np.random.default_rng(7 + word_bits)
    n = word_bits + code.check_bits
    seen = {}
    for weight in range(3, 9):
        errors = np.zeros((300, n), np.int64)
        for row in errors:
            row[rng.choice(n, weight, replace=False)] = 1
        data = rng.integers(0, 2, (300, word_bits))
        sent = np.concatenate([data, oracle.check(data)], axis=1)
        wanted, status = compared(code, oracle, sent ^ errors)
        seen[weight] = set(status.tolist())
        right = (wanted == sent).all(axis=1)
        assert not right.any()  # nothing of three and more is repaired
        # An odd error is never taken for none, an even one never for a single one.
        assert (CLEAN if weight % 2 else CORRECTED) not in seen[weight]
    assert CORRECTED in seen[3]  # miscorrection: one more wrong bit, without a sign
    assert CLEAN in seen[4] or word_bits == 64


def test_words_that_are_code_words_are_not_noticed():
    code = made("secded", 8)
    every = np.arange(256, dtype=np.uint64)
    check = code.encode(every)
    assert (code.decode(every, check)[2] == CLEAN).all()
    weights = [int(d).bit_count() + int(c).bit_count() for d, c in zip(every, check)]
    assert sorted(weights)[1] == 4  # the distance of the code


@pytest.mark.parametrize("word_bits", SIZES)
def test_parity_sees_odd_numbers_of_wrong_bits_only(word_bits):
    code = made("parity", word_bits)
    rng = np.random.default_rng(word_bits)
    stored = rng.integers(0, 2, (500, word_bits + 1))
    data, check = words_of(stored[:, :-1]), words_of(stored[:, -1:])
    after, check_after, status = code.decode(data, check)
    odd = stored.sum(axis=1) % 2 == 1
    assert np.array_equal(status, np.where(odd, DETECTED, CLEAN))
    assert np.array_equal(after, data) and np.array_equal(check_after, check)
    assert np.array_equal(code.encode(data), data_parity(stored[:, :-1]))


def data_parity(bits):
    return (bits.sum(axis=1) % 2).astype(np.uint64)


def test_a_code_too_small_is_refused():
    with pytest.raises(ConfigError, match="enough check bits"):
        code_of("secded", 64, 7)
