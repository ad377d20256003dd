"""The paper's dynamic fixed point, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsim.errors import ConfigError
from fsim.fault_models.statistical import FixedPoint

FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def exponent_of(values) -> int:
    """The least S with 2^S >= max(max|x|, 1e-5), by trial."""
    largest = max([Fraction(1, 10**5), *(abs(Fraction(v)) for v in values)])
    s = -40
    while Fraction(2) ** s < largest:
        s += 1
    return s


def naive(values, bits, top):
    """(values on the grid, S), with Python's exact round half to even."""
    s = exponent_of(values)
    step = Fraction(2) ** (s - (bits - 1))
    codes = [min(max(round(Fraction(v) / step), -(2 ** (bits - 1))), top) for v in values]
    return [float(code * step) for code in codes], s


@settings(max_examples=200, deadline=None)
@given(
    st.lists(FLOATS, min_size=1, max_size=8),
    st.integers(2, 16),
    st.sampled_from(["paper", "hardware"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_values_and_exponent_equal_exact_fractions(values, bits, grid, dtype):
    top = 2 ** (bits - 1) - (grid == "hardware")
    expected, s = naive(values, bits, top)
    got = FixedPoint(bits=bits, grid=grid).quantise(torch.tensor(values, dtype=dtype))
    assert int(got.exponent) == s
    assert float(got.step) == 2.0 ** (s - bits + 1)
    np.testing.assert_array_equal(got.value.double().numpy(), expected)
    np.testing.assert_array_equal(
        got.codes.numpy(), np.array(expected) / 2.0 ** (s - bits + 1)
    )


@pytest.mark.parametrize("power", range(-16, 100, 3))
def test_exact_powers_of_two_end_the_grid_and_their_successors_do_not(power):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([2.0**power], dtype=dtype)
        above = torch.nextafter(x, torch.full_like(x, torch.inf))
        assert int(FixedPoint().quantise(x).exponent) == power
        assert int(FixedPoint().quantise(-x).exponent) == power
        assert int(FixedPoint().quantise(above).exponent) == power + 1


def test_the_papers_grid_has_257_codes_and_the_hardware_one_256():
    x = torch.linspace(-1, 1, 4001)
    paper = FixedPoint().quantise(x)
    hardware = FixedPoint(grid="hardware").quantise(x)
    assert paper.codes.unique().tolist() == list(range(-128, 129))
    assert hardware.codes.unique().tolist() == list(range(-128, 128))
    assert FixedPoint().codes == 257 and FixedPoint(grid="hardware").codes == 256


def test_ties_go_to_the_even_code():
    # max|x| = 1 makes a step of 1/128.
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 128.0]) / 128
    assert FixedPoint().quantise(x).codes.tolist() == [0, 2, 2, 0, -2, -2, 128]


def test_zeros_and_empty_tensors_have_the_floor_of_1e_5():
    assert int(FixedPoint().quantise(torch.zeros(3)).exponent) == -16
    empty = FixedPoint().quantise(torch.zeros(0, 4))
    assert empty.value.shape == (0, 4) and int(empty.exponent) == -16


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_tensor_that_is_not_finite_stays_visibly_broken(bad):
    assert FixedPoint().quantise(torch.tensor([1.0, bad])).value.isnan().all()


@pytest.mark.parametrize("grid", ["paper", "hardware"])
def test_the_gradient_is_the_identity_everywhere(grid):
    x = torch.linspace(-1, 1, 401, requires_grad=True)
    weight = torch.arange(401.0)
    (FixedPoint(grid=grid).quantise(x).value * weight).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), weight.numpy())


def test_quantising_twice_changes_nothing():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    once = FixedPoint().quantise(x)
    again = FixedPoint().quantise(once.value)
    np.testing.assert_array_equal(again.value.numpy(), once.value.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_the_codes(dtype):
    x = torch.linspace(-3, 3, 97).to(dtype)
    got = FixedPoint().quantise(x)
    assert got.value.dtype == dtype
    expected, _ = naive(x.double().tolist(), 8, 128)
    np.testing.assert_array_equal(got.value.double().numpy(), expected)


@pytest.mark.parametrize(
    ("bits", "dtype"), [(16, torch.float16), (10, torch.bfloat16), (8, torch.int32)]
)
def test_a_dtype_that_cannot_hold_the_codes_is_refused(bits, dtype):
    with pytest.raises(ConfigError, match="must have a floating dtype"):
        FixedPoint(bits=bits).quantise(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("values", [{"bits": 1}, {"bits": 17}, {"bits": 8.0}, {"grid": "int8"}])
def test_bad_parameters_are_refused(values):
    with pytest.raises(ConfigError, match="must be .* got "):
        FixedPoint(**values)
