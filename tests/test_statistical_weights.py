"""adSAF and variation against the paper's shares and naive arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from fsim.fault_models.statistical import (
    IBF,
    AdSAF,
    AdSAFBits,
    FixedPoint,
    LogNormalVariation,
    ReciprocalNormalVariation,
    draw_chip,
)
from tests.rates import assert_rate, assert_uniform, seed_for

NONE, SA0, SA1 = 0, 1, 2
CODES = (-127, -5, 0, 7, 100)


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(name) >> 1)


def pair(w: int, plus: int, minus: int, m: int) -> int:
    """A weight of two cells: what each holds, then what each reads."""
    held = (w if w > 0 else 0, -w if w < 0 else 0)
    read = [{NONE: cell, SA0: 0, SA1: m}[s] for cell, s in zip(held, (plus, minus))]
    return read[0] - read[1]


def one_after_the_other(w: int, plus: int, minus: int, m: int) -> int:
    """The reference implementation's order of steps (fact sheet, section 2.4)."""
    v = w
    if plus == SA1:
        v = min(v + m, m)
    elif plus == SA0 and w > 0:
        v = 0
    if minus == SA1:
        v = max(v - m, -m)
    elif minus == SA0 and w < 0:
        v += -w
    return v


@pytest.mark.parametrize(("mode", "naive"), [("paper", pair), ("awnas", one_after_the_other)])
def test_every_pair_of_cell_states_gives_what_the_definition_says(mode, naive):
    cases = list(itertools.product(CODES, (NONE, SA0, SA1), (NONE, SA0, SA1)))
    w, plus, minus = np.array(cases).T
    x = torch.tensor(w / 128.0, dtype=torch.float32, requires_grad=True)
    y = AdSAF(p=0.08, mode=mode).apply(x, torch.tensor(np.stack((plus, minus)), dtype=torch.int8))
    m = 127  # the greatest magnitude among the codes, not the end of the grid
    np.testing.assert_array_equal(y.detach().numpy() * 128, [naive(*case, m) for case in cases])
    y.sum().backward()
    struck = [SA1 in (p, q) or (w > 0 and p == SA0) or (w < 0 and q == SA0) for w, p, q in cases]
    np.testing.assert_array_equal(x.grad.numpy(), ~np.array(struck))


def test_both_modes_differ_only_for_negative_weights_with_both_cells_at_1():
    cases = itertools.product(CODES, (NONE, SA0, SA1), (NONE, SA0, SA1))
    differ = {c for c in cases if pair(*c, 127) != one_after_the_other(*c, 127)}
    assert differ == {(w, SA1, SA1) for w in CODES if w < 0}


PAPER = (0.08 * 0.837, 0.08 * 0.163)
AWNAS = (83 / 1250, 17 / 1250)


@pytest.mark.parametrize(
    ("mode", "shares", "mutant"), [("paper", PAPER, AWNAS), ("awnas", AWNAS, PAPER)]
)
def test_cells_are_stuck_at_0_and_at_1_in_the_papers_shares(mode, shares, mutant):
    states = AdSAF(p=0.08, mode=mode).draw((3_000_000,), generator=generator(mode))
    assert states.dtype == torch.int8 and states.shape == (2, 3_000_000)
    counts = np.bincount(states.flatten().numpy(), minlength=3)
    assert_uniform(
        counts,
        probabilities=[1 - sum(shares), *shares],
        mutant=[1 - sum(mutant), *mutant],
        named="17:83 instead of 16.3:83.7, or the reverse",
    )


def test_the_two_cells_of_a_weight_are_independent():
    states = AdSAF(p=0.2).draw((200_000,), generator=generator("cells"))
    both = int(((states[0] != 0) & (states[1] != 0)).sum())
    assert_rate(both, 200_000, 0.04, mutant=0.05, named="cells stuck together")


@pytest.mark.parametrize(("p", "numbers"), [(0.04, 2500), (0.06, 1666), (0.08, 1250), (0.1, 1000),
                                            (0.12, 833), (1.0, 100)])  # fmt: skip
def test_the_reference_draws_among_floor_100_over_p_numbers(p, numbers):
    assert AdSAF(p=p, mode="awnas").rates == (83 / numbers, 17 / numbers)


def read_bits(code: int, stuck: int, ones: int, bits: int) -> int:
    """Bit by bit: a cell that is stuck reads its bit of `ones`, another what was written."""
    text = ""
    for bit in reversed(range(bits)):
        source = ones if stuck >> bit & 1 else code
        text += str(source >> bit & 1)
    return int(text, 2)


def signed(value: int) -> int:
    return value - 256 if value >= 128 else value


def test_stuck_bits_of_the_code_read_their_own_value():
    cases = list(itertools.product(range(-128, 128, 5), range(0, 256, 7), (0, 0x55, 0xFF)))
    codes, stuck, ones = np.array([(-128, 0, 0), *cases]).T  # -128 fixes the step
    faults = torch.tensor(np.stack((stuck, ones & stuck))[None], dtype=torch.int32)
    x = torch.tensor(codes / 128.0, dtype=torch.float32, requires_grad=True)
    y = AdSAFBits(p=0.1).apply(x, faults)
    expected = [signed(read_bits(c % 256, s, o, 8)) for c, s, o in zip(codes, stuck, ones)]
    np.testing.assert_array_equal(y.detach().numpy() * 128, expected)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), expected == codes)


@pytest.mark.parametrize(("gradient", "value"), [("identity", 1.0), ("none", 0.0)])
def test_stuck_bits_can_pass_the_gradient_or_stop_it(gradient, value):
    x = torch.linspace(-1, 1, 100, requires_grad=True)
    AdSAFBits(p=0.3, gradient=gradient)(x, generator=generator("g")).sum().backward()
    assert (x.grad == value).all()


def test_differential_cells_hold_seven_bits_of_magnitude_each():
    codes = np.repeat([-128, -127, -3, 0, 64, 127], 128)
    plus, minus = np.tile(np.arange(128), 6), np.tile(np.arange(128)[::-1], 6)
    faults = np.stack((np.stack((plus, plus & 0x2A)), np.stack((minus, minus & 0x51))))
    model = AdSAFBits(p=0.1, cells="differential")
    y = model.apply(torch.tensor(codes / 128.0), torch.tensor(faults, dtype=torch.int32))
    expected = []
    for code, s, t in zip(codes.tolist(), plus.tolist(), minus.tolist()):
        # The eighth bit, of magnitude 128, has no cell and is never stuck.
        expected.append(read_bits(max(code, 0), s, 0x2A, 8) - read_bits(max(-code, 0), t, 0x51, 8))
    np.testing.assert_array_equal(y.numpy() * 128, expected)


@pytest.mark.parametrize(("cells", "arrays", "bits"), [("twos-complement", 1, 8),
                                                       ("differential", 2, 7)])  # fmt: skip
def test_each_bit_is_stuck_at_its_rate_and_at_1_in_its_share(cells, arrays, bits):
    n, p = 300_000, 0.05
    faults = AdSAFBits(p=p, cells=cells).draw((n,), generator=generator(cells)).numpy()
    assert faults.shape == (arrays, 2, n)
    assert faults.max() < 2**bits and not (faults[:, 1] & ~faults[:, 0]).any()
    for bit in range(bits):
        stuck = faults[:, 0] >> bit & 1
        assert_rate(int(stuck.sum()), arrays * n, p)
    ones, cells_stuck = (int(np.bitwise_count(faults[:, i]).sum()) for i in (1, 0))
    assert_rate(ones, cells_stuck, 0.163, mutant=0.18, named="0.18 stuck at 1")


def test_ibf_on_weights_is_the_same_model():
    x = torch.randn(50, 20, generator=generator("w"))
    assert IBF(r=0.1, target="weights").target == "weights"
    a, b = (IBF(r=0.1, target=t)(x, generator=generator("m")) for t in ("weights", "features"))
    np.testing.assert_array_equal(a.numpy(), b.numpy())


def bins(values, law, cells=20):
    edges = law.ppf(np.arange(1, cells) / cells)
    return np.bincount(np.searchsorted(edges, values), minlength=cells)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_log_normal_factors_have_a_normal_logarithm(sigma):
    factors = LogNormalVariation(sigma=sigma).draw((100_000,), generator=generator("log"))
    assert_uniform(bins(factors.double().numpy(), stats.lognorm(sigma)))


@pytest.mark.parametrize(("sigma", "least"), [(0.1, 0.1), (0.5, 0.2)])
def test_reciprocal_normal_factors_have_a_normal_reciprocal(sigma, least):
    model = ReciprocalNormalVariation(sigma=sigma, least_resistance=least)
    factors = model.draw((100_000,), generator=generator("reciprocal")).double().numpy()
    assert factors.min() > 0 and factors.max() <= 1 / least + 1e-6
    law = stats.truncnorm((least - 1) / sigma, np.inf, loc=1, scale=sigma)
    assert_uniform(bins(1 / factors, law))


@pytest.mark.parametrize("kind", [LogNormalVariation, ReciprocalNormalVariation])
def test_variation_multiplies_the_quantised_weight_and_its_gradient(kind):
    x = torch.randn(300, generator=generator("v"), requires_grad=True)
    model = kind(sigma=0.3)
    factors = model.draw((300,), generator=generator("f"))
    y = model.apply(x, factors)
    expected = FixedPoint().quantise(x).value.detach() * factors
    np.testing.assert_allclose(y.detach().numpy(), expected.numpy(), rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), factors.numpy())
    assert (kind(sigma=0.0).draw((5,), generator=generator("0")) == 1).all()


def test_a_chip_is_drawn_once_and_meets_every_weight_it_is_applied_to():
    weights = {"b": torch.randn(8, 3, 3, 3), "a": torch.randn(20, 8)}
    model = AdSAF(p=0.3)
    chip = draw_chip(model, weights, generator=generator("chip"))
    turned = dict(reversed(weights.items()))
    again = draw_chip(model, turned, generator=generator("chip"))
    assert {name: m.shape for name, m in chip.items()} == {"a": (2, 20, 8), "b": (2, 8, 3, 3, 3)}
    for name in weights:
        np.testing.assert_array_equal(chip[name].numpy(), again[name].numpy())
        y = model.apply(weights[name], chip[name])
        np.testing.assert_array_equal(y.numpy(), model.apply(weights[name], chip[name]).numpy())
        trained = model.apply(weights[name] + 1, chip[name])
        dead = (chip[name] == SA0).all(0)
        assert dead.any() and (y[dead] == 0).all() and (trained[dead] == 0).all()
