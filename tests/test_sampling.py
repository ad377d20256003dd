"""Random draws: the generator, the exact law, reproducibility, and bad arguments.

The naive twin below restates Philox and the draws on Python integers and exact
fractions; it shares no code with the kernels.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fsim.errors import ConfigError
from fsim.simulator import sampling
from fsim.simulator.kernels.philox import count_at, philox4x32
from tests.rates import assert_rate, assert_uniform, seed_for

# The known-answer vectors of Random123 1.14 (kat_vectors, philox 4 32 10):
# counter, key, result.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def naive_philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (b >> 32) ^ c[1] ^ k[0],
            b % 2**32,
            (a >> 32) ^ c[3] ^ k[1],
            a % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def naive_calls(purpose, seed, stream, trial):
    """The calls of one (stream, trial) as 128-bit integers, word 0 lowest."""
    for index in itertools.count():
        counter = (index, stream + purpose * 2**28, trial % 2**32, trial // 2**32)
        words = naive_philox(counter, (seed % 2**32, seed // 2**32))
        yield sum(word << 32 * i for i, word in enumerate(words))


def naive_count(n, p, call):
    """Binomial count by inversion of the exact law; word pairs are (high, low)."""
    u = (call % 2**64) * 2**64 + (call >> 64)
    cumulative = Fraction(0)
    for k in range(n):
        cumulative += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if u < math.floor(cumulative * 2**128):
            return k
    return n


def naive_bits(n_bits, p, seed, stream, trial):
    calls = naive_calls(0, seed, stream, trial)
    p = Fraction(p)
    hits = []
    for origin in range(0, n_bits, 65536):
        size = min(65536, n_bits - origin)
        count = naive_count(size, min(p, 1 - p), next(calls))
        mask = (1 << (size - 1).bit_length()) - 1
        drawn, pieces = set(), []
        while len(drawn) < count:
            if not pieces:
                call = next(calls)
                pieces = [(call >> 16 * i) % 65536 for i in range(8)]
            site = pieces.pop(0) & mask
            if site < size:
                drawn.add(site)
        chosen = set(range(size)) - drawn if p > Fraction(1, 2) else drawn
        hits += [origin + site for site in sorted(chosen)]
    return hits


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    got = philox4x32(*(np.uint64(x) for x in counter + key))
    assert tuple(int(word) for word in got) == expected
    assert naive_philox(counter, key) == expected


@pytest.mark.parametrize(
    "n, p", [(1, 0.5), (7, 0.1), (64, 0.5), (40, 1e-5), (12, 5e-324), (33, 0.3)]
)
def test_binomial_thresholds_equal_exact_fractions(n, p):
    first, thresholds = sampling.binomial_table(n, p)
    got = [(int(high) << 64) + int(low) for high, low in thresholds]
    exact = Fraction(p)
    masses = [math.comb(n, k) * exact**k * (1 - exact) ** (n - k) for k in range(n + 1)]
    floor = Fraction(1, 2**160)
    kept = [k for k in range(n + 1) if masses[k] >= floor]
    assert first == kept[0] and len(got) == len(kept) - 1
    expected = list(itertools.accumulate(masses[k] for k in kept))[:-1]
    assert got == [math.floor(c * 2**128) for c in expected]


@pytest.mark.parametrize("n, p", [(65536, 1e-5), (65536, 0.5), (65536, 0.013), (10**13, 1e-10)])
def test_large_binomial_tables_agree_with_the_incomplete_beta_function(n, p):
    from scipy import stats

    first, thresholds = sampling.binomial_table(n, p)
    got = thresholds[:, 0].astype(np.float64) * 2.0**-64
    expected = stats.binom.cdf(first + np.arange(len(thresholds)), n, p)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-17)


def test_lower_half_of_a_threshold_decides_ties_of_the_upper_half():
    table = np.array([[5, 3], [5, 9], [7, 0]], np.uint64)
    long = np.concatenate([table, np.full((70, 2), 8, np.uint64)])
    for thresholds in (table, long):
        got = [
            count_at(thresholds, np.uint64(high), np.uint64(low))
            for high, low in [(4, 9), (5, 2), (5, 3), (5, 8), (5, 9), (6, 0), (7, 0), (7, 1)]
        ]
        assert got == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "n_bits, p",
    [(1, 0.5), (40, 0.2), (64, 0.5), (63, 0.9), (90, 0.51), (500, 0.03), (129, 0.7), (300, 0.97)],
)
def test_draw_bits_equals_the_naive_twin(n_bits, p):
    for trial in (0, 1, 2**32, 2**63 - 1):
        got = sampling.draw_bits(n_bits, p, seed=2**64 - 5, stream=9, trial=trial)
        assert_array_equal(got, naive_bits(n_bits, p, 2**64 - 5, 9, trial))


def test_blocks_and_the_short_last_block_equal_the_naive_twin(monkeypatch):
    # The exact fractions of a whole block are slow; scipy's law is enough to
    # invert a 128-bit uniform that is not within 1e-12 of a threshold.
    from scipy import stats

    def inverted(n, p, call):
        u = ((call % 2**64) * 2**64 + (call >> 64)) / 2**128
        cdf = stats.binom.cdf(np.arange(n + 1), n, float(p))
        assert np.abs(cdf - u).min() > 1e-12
        return int(np.searchsorted(cdf, u, side="right"))

    monkeypatch.setitem(globals(), "naive_count", inverted)
    for n_bits, p in [(2 * 65536 + 777, 1e-4), (65536, 0.003), (65537, 0.3), (65536 + 50, 0.999)]:
        got = sampling.draw_bits(n_bits, p, seed=3, stream=1, trial=5)
        assert_array_equal(got, naive_bits(n_bits, p, 3, 1, 5))


@settings(max_examples=60, deadline=None)
@given(
    n_bits=st.integers(0, 200_000),
    p=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-5, 0.5])),
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**28 - 1),
    trials=st.lists(st.integers(0, 2**63 - 1), max_size=4),
)
def test_many_trials_are_the_concatenation_of_single_ones(n_bits, p, seed, stream, trials):
    which, where = sampling.draw_bits_many(
        n_bits, p, seed=seed, stream=stream, trials=np.array(trials, np.int64)
    )
    singles = [sampling.draw_bits(n_bits, p, seed=seed, stream=stream, trial=t) for t in trials]
    assert which.dtype == where.dtype == np.int64
    assert_array_equal(which, np.repeat(np.arange(len(trials)), [len(s) for s in singles]))
    assert_array_equal(where, np.concatenate([np.empty(0, np.int64), *singles]))
    for positions in singles:
        assert np.all(np.diff(positions) > 0)
        assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < n_bits)


def test_rates_of_zero_and_one_flip_nothing_and_everything():
    n = 70_001
    assert sampling.draw_bits(n, 0.0, seed=1, stream=0, trial=0).size == 0
    assert_array_equal(sampling.draw_bits(n, 1.0, seed=1, stream=0, trial=0), np.arange(n))
    which, where = sampling.draw_bits_many(3, 1.0, seed=1, stream=0, trials=np.arange(2))
    assert_array_equal(which, [0, 0, 0, 1, 1, 1])
    assert_array_equal(where, [0, 1, 2, 0, 1, 2])


def test_more_bits_do_not_change_the_flips_of_earlier_blocks():
    short = sampling.draw_bits(3 * 65536, 1e-3, seed=8, stream=2, trial=4)
    long = sampling.draw_bits(9 * 65536 + 11, 1e-3, seed=8, stream=2, trial=4)
    assert_array_equal(long[long < 3 * 65536], short)


@pytest.mark.parametrize("n_bits, p", [(3, 0.3), (3, 0.7), (4, 0.5)])
def test_every_subset_of_bits_has_its_exact_probability(n_bits, p):
    trials = 400_000
    which, where = sampling.draw_bits_many(
        n_bits, p, seed=seed_for("subsets"), stream=n_bits, trials=np.arange(trials)
    )
    subset = np.zeros(trials, np.int64)
    np.add.at(subset, which, 1 << where)

    def law(rate):
        hits = np.array([bin(s).count("1") for s in range(2**n_bits)])
        return rate**hits * (1 - rate) ** (n_bits - hits)

    assert_uniform(
        np.bincount(subset, minlength=2**n_bits),
        probabilities=law(p),
        mutant=law(0.95 * p),
        named="p off by 5 %",
    )


@pytest.mark.parametrize("p", [1e-5, 3.3e-3, 0.4, 0.77])
def test_flips_come_at_the_stated_rate_and_uniformly_over_positions(p):
    n_bits = 3 * 65536 + 20_000
    trials = min(40_000, int(2_000_000 / (n_bits * min(p, 1 - p))))
    _, where = sampling.draw_bits_many(
        n_bits, p, seed=seed_for(f"rate {p}"), stream=0, trials=np.arange(trials)
    )
    assert_rate(len(where), n_bits * trials, p, mutant=0.96 * p, named="p off by 4 %")
    blocks = np.bincount(where // 65536, minlength=4)
    assert_uniform(blocks, probabilities=np.array([65536, 65536, 65536, 20_000]) / n_bits)
    inside = where[where < 3 * 65536] % 65536
    # Bernoulli counts vary less than multinomial ones for large p, never more.
    assert_uniform(np.bincount(inside // 512, minlength=128), named="positions favour some bits")


def test_sites_are_uniform_and_do_not_depend_on_how_many_are_drawn():
    for n_sites in (1, 2, 5, 1000, 2**62 - 1, 2**62):
        got = sampling.draw_sites(n_sites, 50, seed=1, stream=3, trial=7)
        assert got.dtype == np.int64 and got.min() >= 0 and got.max() < n_sites
        assert_array_equal(got[:13], sampling.draw_sites(n_sites, 13, seed=1, stream=3, trial=7))
    sites = sampling.draw_sites(48, 400_000, seed=seed_for("sites"), stream=0, trial=0)
    assert_uniform(np.bincount(sites, minlength=48))
    # 3 * 2^60: taking a 62-bit number modulo n would hit the lowest third twice as often.
    n_sites = 3 << 60
    third = sampling.draw_sites(n_sites, 20_000, seed=seed_for("wide"), stream=0, trial=0)
    assert_uniform(
        np.bincount(third // (1 << 60), minlength=3), mutant=[0.5, 0.25, 0.25], named="modulo bias"
    )


def test_sites_equal_the_naive_twin():
    for n_sites in (1, 6, 64, 65, 10**12, 2**62):
        mask = (1 << (n_sites - 1).bit_length()) - 1
        expected = []
        for call in naive_calls(1, 77, 4, 2**40 + 1):
            expected += [v & mask for v in (call % 2**64, call >> 64) if v & mask < n_sites]
            if len(expected) >= 21:
                break
        got = sampling.draw_sites(n_sites, 21, seed=77, stream=4, trial=2**40 + 1)
        assert_array_equal(got, expected[:21])
        many = sampling.draw_sites_many(n_sites, 21, seed=77, stream=4, trials=[3, 2**40 + 1])
        assert_array_equal(many[1], got)


def test_uniform_numbers_equal_the_naive_twin():
    calls = itertools.islice(naive_calls(2, 5, 6, 7), 3)
    values = [v >> 11 for call in calls for v in (call % 2**64, call >> 64)]
    got = sampling.draw_uniform(5, seed=5, stream=6, trial=7)
    assert_array_equal(got, np.array(values[:5]) / 2.0**53)
    many = sampling.draw_uniform_many(5, seed=5, stream=6, trials=[1, 7])
    assert_array_equal(many[1], got)
    assert_uniform(
        np.bincount((sampling.draw_uniform(200_000, seed=1, stream=0, trial=0) * 64).astype(int))
    )


def test_counts_equal_the_naive_twin():
    for n, p in [(1, 0.5), (30, 0.2), (25, 0.8), (40, 1e-3)]:
        exact = Fraction(p)
        for trial in range(12):
            call = next(naive_calls(3, 9, 1, trial))
            expected = naive_count(n, min(exact, 1 - exact), call)
            got = sampling.draw_count(n, p, seed=9, stream=1, trial=trial)
            assert got == (n - expected if p > 0.5 else expected)


@pytest.mark.parametrize(
    "n, p", [(10**13, 1e-10), (2**62, 1e-15), (200_001, 0.5), (10**7 + 3, 0.9996), (10**14, 1e-17)]
)
def test_counts_over_huge_site_spaces_follow_the_binomial_law(n, p):
    from scipy import stats

    trials = np.arange(60_000)
    counts = sampling.draw_count_many(n, p, seed=seed_for(f"{n} {p}"), stream=0, trials=trials)
    if n * p < 1:
        assert_rate(int(counts.sum()), 60_000 * n, p, mutant=3 * p, named="p off by a factor 3")
        return
    # Cells between quantiles of scipy's law, which shares nothing with the tables.
    edges = np.unique(stats.binom.ppf(np.linspace(0.05, 0.95, 19), n, p))
    cells = np.diff(stats.binom.cdf(np.concatenate([[-1], edges, [n]]), n, p))
    # For p near 1 the mutant shifts the misses.
    wrong = p * 1.005 if p < 0.5 else 1 - 1.005 * (1 - p)
    shifted = np.diff(stats.binom.cdf(np.concatenate([[-1], edges, [n]]), n, wrong))
    got = np.histogram(counts, np.concatenate([[-1], edges, [n]]) + 0.5)[0]
    assert got.sum() == 60_000
    assert_uniform(got, probabilities=cells, mutant=shifted, named="p off by 0.5 %")


def test_counts_of_certain_events_are_exact():
    assert sampling.draw_count(10**15, 0.0, seed=1, stream=0, trial=0) == 0
    assert sampling.draw_count(10**15, 1.0, seed=1, stream=0, trial=0) == 10**15
    assert sampling.draw_count(0, 0.3, seed=1, stream=0, trial=0) == 0


def test_draws_differ_between_seeds_streams_trials_and_purposes():
    def draw(**changed):
        where = dict(seed=1, stream=2, trial=3) | changed
        return tuple(sampling.draw_sites(2**62, 4, **where))

    drawn = {draw(), draw(seed=2), draw(stream=3), draw(trial=4), draw(trial=3 + 2**32)}
    drawn |= {draw(seed=1 + 2**32)}
    assert len(drawn) == 6
    uniform = sampling.draw_uniform(4, seed=1, stream=2, trial=3)
    assert not np.array_equal(uniform, np.array(draw()) / 2.0**62)


@pytest.mark.parametrize("p", [-1e-9, 1.0000001, float("nan"), float("inf"), "x", None])
def test_a_rate_outside_zero_to_one_is_refused(p):
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        sampling.draw_bits(10, p, seed=1, stream=0, trial=0)
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        sampling.draw_count(10, p, seed=1, stream=0, trial=0)


@pytest.mark.parametrize(
    "changed",
    [
        dict(seed=-1),
        dict(seed=2**64),
        dict(stream=2**28),
        dict(trial=-1),
        dict(trial=2**63),
        dict(seed=1.0),
    ],
)
def test_arguments_outside_the_counter_are_refused(changed):
    where = dict(seed=1, stream=0, trial=0) | changed
    for draw in (
        lambda: sampling.draw_bits(10, 0.5, **where),
        lambda: sampling.draw_sites(10, 1, **where),
        lambda: sampling.draw_uniform(1, **where),
        lambda: sampling.draw_count(10, 0.5, **where),
    ):
        with pytest.raises(ConfigError):
            draw()


@pytest.mark.parametrize("trials", [[-1, 2], [0.5], [[1]], np.array([2**63], np.uint64)])
def test_trial_arrays_outside_the_counter_are_refused(trials):
    with pytest.raises(ConfigError, match="trial"):
        sampling.draw_bits_many(10, 0.5, seed=1, stream=0, trials=trials)
