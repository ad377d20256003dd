"""The VNNI convolution equals integer loops, and writes nothing else."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsim.simulator.exact import lanes
from fsim.simulator.kernels import requantise, vnni
from tests.test_exact import naive_convolution

pytestmark = pytest.mark.skipif(not vnni.supported(), reason="no AVX512-VNNI")

GUARD = 77


def guarded(shape, dtype):
    """(array, room) with GUARD on both sides of the array and all over it."""
    size = int(np.prod(shape))
    room = np.full(size + 128, GUARD, dtype)
    return room[64 : 64 + size].reshape(shape), room


def convolve(codes, weight, stride, padding, dilation, scaling, sums=True, out=np.uint8):
    """(sums or None, codes or None) by the kernel, guards checked."""
    left, right, top, bottom = padding
    kh, kw = weight.shape[2:]
    n, h, w, c = codes.shape
    oh = (h + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (w + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    shape = (n, oh, ow, len(weight))
    steps, sizes = vnni.geometry((h, w, c), (kh, kw, oh, ow), stride, padding, dilation)
    flip = 128 if codes.dtype == np.int8 else 0
    held, room = guarded(shape if sums else (0, *shape[1:]), np.int32)
    new, more = guarded(shape if out else (0, *shape[1:]), out or np.uint8)
    vnni.run(codes, flip, vnni.pack(weight), steps, sizes, scaling, held, new)
    for filled in (room, more):
        assert (filled[:64] == GUARD).all() and (filled[-64:] == GUARD).all()
    return held if sums else None, new if out else None


@st.composite
def cases(draw):
    stride = draw(st.tuples(*[st.integers(1, 3)] * 2))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    h = draw(st.integers(dilation[0] * (kh - 1) + 1, 9))
    w = draw(st.integers(dilation[1] * (kw - 1) + 1, 40))
    c, o = draw(st.integers(1, 37)), draw(st.integers(1, 70))
    dtype = draw(st.sampled_from([np.uint8, np.int8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    info = np.iinfo(dtype)
    if draw(st.booleans()):
        codes, weight = (
            rng.choice([info.min, info.max], (2, h, w, c)),
            rng.choice([-128, 127], (o, c, kh, kw)),
        )
    else:
        codes = rng.integers(info.min, info.max + 1, (2, h, w, c))
        weight = rng.integers(-128, 128, (o, c, kh, kw))
    return codes.astype(dtype), weight, stride, padding, dilation, rng


@settings(max_examples=120, deadline=None)
@given(cases())
def test_sums_are_those_of_loops_and_codes_are_those_of_the_sums(case):
    codes, weight, stride, padding, dilation, rng = case
    o = len(weight)
    shift = 128 if codes.dtype == np.int8 else 0
    # Every signed code is taken 128 larger, the padding's zeros as well.
    want = naive_convolution(codes, weight, stride, padding, dilation, 1)
    want += shift * weight.reshape(o, -1).sum(1)
    bias = rng.integers(-5000, 5000, o)
    multiplier = (2.0 ** rng.uniform(-14, -6, o)).astype(np.float32)
    for out, lo, hi in ((np.uint8, 0, 255), (np.int8, -128, 127)):
        scaling = lanes(o, bias, multiplier, lo, hi)
        sums, new = convolve(codes, weight, stride, padding, dilation, scaling, out=out)
        np.testing.assert_array_equal(sums, want)
        expected = np.empty(want.size, out)
        requantise.requantise_float(
            want.reshape(-1).astype(np.float32), requantise.tiled(bias.astype(np.float32)),
            requantise.tiled(multiplier), np.float32(lo), np.float32(hi), expected,
        )  # fmt: skip
        np.testing.assert_array_equal(new.reshape(-1), expected)
        alone = convolve(codes, weight, stride, padding, dilation, scaling, sums=False, out=out)
        np.testing.assert_array_equal(alone[1], new)
    only, _ = convolve(codes, weight, stride, padding, dilation, scaling, out=None)
    np.testing.assert_array_equal(only, want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_images_and_change_nothing(threads):
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("fewer threads here")
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (5, 7, 9, 6)).astype(np.uint8)
    weight = rng.integers(-128, 128, (20, 6, 3, 3))
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(threads)
        sums, _ = convolve(codes, weight, (1, 1), (1, 1, 1, 1), (1, 1), lanes(20, [0], [1], 0, 255))
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(
        sums, naive_convolution(codes, weight, (1, 1), (1, 1, 1, 1), (1, 1), 1)
    )


def test_sums_beyond_24_bits_are_exact():
    codes = np.full((1, 3, 3, 512), 255, np.uint8)
    weight = np.full((17, 512, 3, 3), -128)
    sums, _ = convolve(codes, weight, (1, 1), (0, 0, 0, 0), (1, 1), lanes(17, [0], [1], 0, 255))
    assert (sums == -128 * 255 * 512 * 9).all()


def test_rounding_is_half_to_even_after_the_clamp():
    codes = np.arange(12, dtype=np.uint8).reshape(1, 1, 12, 1)
    weight = np.ones((1, 1, 1, 1), np.int64)
    scaling = lanes(1, [0], [0.5], 1, 4)
    _, new = convolve(codes, weight, (1, 1), (0, 0, 0, 0), (1, 1), scaling)
    assert new.reshape(-1).tolist() == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4]
