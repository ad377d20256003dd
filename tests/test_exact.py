"""Every exact path equals int64 arithmetic, and none is used where it might not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fsim.errors import ConfigError, MappingError
from fsim.simulator import exact
from fsim.simulator.kernels import vnni
from tests.test_layout import ROOT

ENDS = {"u8": (0, 255), "s8": (-128, 127), "u4": (0, 15), "s16": (-(2**15), 2**15 - 1)}
DTYPES = {"u8": np.uint8, "s8": np.int8, "u4": np.uint8, "s16": np.int16}


def naive_convolution(codes, weight, stride, padding, dilation, groups):
    """Convolution from its definition in int64: one output position at a time."""
    left, right, top, bottom = padding
    n, h, w, c = codes.shape
    o, per_group, kh, kw = weight.shape
    wide = np.zeros((n, h + top + bottom, w + left + right, c), np.int64)
    wide[:, top : top + h, left : left + w] = codes
    oh = (wide.shape[1] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (wide.shape[2] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((n, oh, ow, o), np.int64)
    for y in range(oh):
        for x in range(ow):
            for f in range(o):
                first = f * groups // o * per_group
                for i in range(kh):
                    for j in range(kw):
                        pixel = wide[
                            :, y * stride[0] + i * dilation[0], x * stride[1] + j * dilation[1]
                        ]
                        out[:, y, x, f] += pixel[:, first : first + per_group] @ weight[f, :, i, j]
    return out


def provable(problem):
    """Paths whose proof holds and that this machine has."""
    usable = {name for name, good, _ in exact.explain() if good}
    found = []
    for name in exact.PATHS:
        try:
            prepared = exact.prepare(problem, name)
        except ConfigError:
            continue
        if name in usable:
            found.append((name, prepared))
    return found


@st.composite
def convolutions(draw):
    """(kind of code, weight, codes, stride, padding, dilation, groups), often extreme."""
    kind = draw(st.sampled_from(sorted(ENDS)))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    per_group = 1 if groups == 4 else draw(st.integers(1, 5))
    outputs = groups * draw(st.integers(1, 3))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    h = draw(st.integers(dilation[0] * (kh - 1) + 1, 7))
    w = draw(st.integers(dilation[1] * (kw - 1) + 1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lo, hi = ENDS[kind]
    w_lo, w_hi = (-(2**15), 2**15 - 1) if kind == "s16" else (-128, 127)
    shape_w, shape_a = (outputs, per_group, kh, kw), (2, h, w, groups * per_group)
    if draw(st.booleans()):
        weight, codes = rng.choice([w_lo, w_hi], shape_w), rng.choice([lo, hi], shape_a)
    else:
        weight, codes = rng.integers(w_lo, w_hi + 1, shape_w), rng.integers(lo, hi + 1, shape_a)
    return kind, weight.astype(np.int64), codes, stride, padding, dilation, groups


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(convolutions())
def test_every_provable_path_gives_the_integer_convolution(case):
    kind, weight, codes, stride, padding, dilation, groups = case
    want = naive_convolution(codes, weight, stride, padding, dilation, groups)
    problem = exact.Problem(
        "conv", ENDS[kind], weight, stride=stride, padding=padding, dilation=dilation,
        groups=groups, size=codes.shape[1:3],
    )  # fmt: skip
    paths = provable(problem)
    assert paths[-1][0] == "int64" and exact.choose(problem).name == paths[0][0]
    for name, prepared in paths:
        got = prepared(codes.astype(DTYPES[kind]))
        np.testing.assert_array_equal(got.astype(np.int64), want, err_msg=name)


@pytest.mark.parametrize(
    ("size", "shape", "stride", "padding", "groups"),
    [
        # oneDNN 3 (torch 2.13): wrong sums for one column of output with unequal strides
        ((8, 3), (3, 1, 3, 3), (1, 2), (0, 0, 0, 0), 1),
        ((8, 2), (8, 1, 1, 2), (1, 2), (0, 0, 0, 0), 4),
        ((6, 2), (8, 1, 3, 2), (1, 2), (0, 0, 1, 1), 4),
        ((3, 3), (2, 2, 3, 3), (2, 2), (0, 0, 0, 0), 1),
        # and a crash for windows that lie wholly in the padding
        ((5, 1), (3, 3, 1, 1), (1, 2), (1, 1, 1, 1), 1),
        ((8, 1), (3, 3, 3, 1), (2, 2), (1, 1, 0, 0), 1),
        ((9, 1), (2, 5, 3, 1), (2, 2), (1, 1, 1, 1), 1),
        ((4, 4), (2, 3, 1, 1), (1, 1), (2, 2, 2, 2), 1),
        ((6, 6), (4, 2, 3, 3), (2, 2), (3, 3, 4, 4), 2),
    ],
)
def test_sizes_on_which_a_library_routine_fails_take_another_path(
    size, shape, stride, padding, groups
):
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, shape)
    for lo, hi, dtype in ((0, 255, np.uint8), (-128, 127, np.int8)):
        codes = rng.integers(lo, hi + 1, (3, *size, shape[1] * groups)).astype(dtype)
        want = naive_convolution(codes, weight, stride, padding, (1, 1), groups)
        problem = exact.Problem(
            "conv", (lo, hi), weight, stride=stride, padding=padding, groups=groups, size=size
        )
        np.testing.assert_array_equal(exact.prepare(problem)(codes), want)
        if stride[0] != stride[1] or min(want.shape[1:3]) < 2:
            with pytest.raises(ConfigError, match="got 'onednn'"):
                exact.prepare(problem, "onednn")


@pytest.mark.parametrize(("padding", "framed"), [(1, False), (2, False), (3, True)])
def test_onednn_never_imagines_a_border_wider_than_a_window_reaches(monkeypatch, padding, framed):
    calls = []
    real = exact.windows.shift_and_pad
    monkeypatch.setattr(exact.windows, "shift_and_pad", lambda *a: calls.append(a[1]) or real(*a))
    weight = np.random.default_rng(0).integers(-128, 128, (4, 2, 3, 3))
    codes = np.random.default_rng(1).integers(0, 256, (2, 6, 6, 4)).astype(np.uint8)
    problem = exact.Problem("conv", (0, 255), weight, padding=(padding,) * 4, groups=2, size=(6, 6))
    prepared = exact.prepare(problem)
    np.testing.assert_array_equal(
        prepared(codes), naive_convolution(codes, weight, (1, 1), (padding,) * 4, (1, 1), 2)
    )
    if prepared.path.name == "onednn":
        assert bool(calls) == framed


def test_a_layer_that_onednn_gets_wrong_takes_another_path(monkeypatch):
    real = exact._onednn_conv

    def almost(path, problem):
        raw = real(path, problem)

        def wrong(codes):
            sums = raw(codes)
            sums[-1, -1, -1, -1] += 1
            return sums

        return wrong

    problem = exact.Problem(
        "conv", (0, 255), np.ones((2, 3, 1, 1), np.int64), groups=2, size=(4, 4)
    )
    before = exact.choose(problem)
    monkeypatch.setattr(exact, "_onednn_conv", almost)
    if before.name == "onednn":
        exact._probed("onednn")  # found right before this test broke it
        after = exact.choose(problem)
        assert after.name != "onednn" and "wrong on this layer's weights" in after.reason
    assert exact.prepare(problem)(np.full((1, 4, 4, 6), 9, np.uint8)).tolist() == [
        [[[27] * 2] * 4] * 4
    ]


def test_a_map_of_another_size_than_prepared_for_is_refused():
    problem = exact.Problem(
        "conv", (0, 255), np.ones((2, 3, 1, 1), np.int64), groups=2, size=(4, 4)
    )
    if exact.choose(problem).name == "onednn":
        with pytest.raises(MappingError, match=r"must be \(4, 4\)"):
            exact.prepare(problem)(np.zeros((1, 4, 5, 6), np.uint8))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(ENDS)),
    st.integers(1, 1100),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
@example("u8", 1024, 3, 2, 0)
@example("s8", 1025, 3, 2, 0)
def test_every_provable_path_gives_the_integer_linear_layer(kind, k, outputs, n, seed):
    rng = np.random.default_rng(seed)
    codes = rng.choice(ENDS[kind], (n, k)).astype(DTYPES[kind])
    weight = rng.choice([-128, 127], (outputs, k)).astype(np.int64)
    want = codes.astype(np.int64) @ weight.T
    for name, prepared in provable(exact.Problem("linear", ENDS[kind], weight)):
        np.testing.assert_array_equal(prepared(codes).astype(np.int64), want, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(ENDS)),
    st.sampled_from(sorted(ENDS)),
    st.tuples(*[st.integers(1, 70)] * 3),
    st.integers(0, 2**32),
)
def test_every_provable_path_gives_the_integer_product_of_activations(left, right, sizes, seed):
    m, k, p = sizes
    rng = np.random.default_rng(seed)
    a = rng.choice(ENDS[left], (2, 3, m, k)).astype(DTYPES[left])
    b = rng.choice(ENDS[right], (2, 3, k, p)).astype(DTYPES[right])
    want = a.astype(np.int64) @ b.astype(np.int64)
    problem = exact.Problem("matmul", ENDS[left], None, ENDS[right], k)
    for name, prepared in provable(problem):
        np.testing.assert_array_equal(prepared(a, b).astype(np.int64), want, err_msg=name)


def test_the_bound_is_the_largest_sum_over_any_part_of_the_products():
    weight = np.array([[3, -5, 7], [-1, -1, -1]])
    sums = []
    for chosen in range(8):
        part = [i for i in range(3) if chosen >> i & 1]
        for codes in np.stack(np.meshgrid(*[[-4, 3]] * 3), -1).reshape(-1, 3):
            sums += [abs(int(codes[part] @ row[part])) for row in weight]
    assert exact.Problem("linear", (-4, 3), weight).bound() == max(sums)


def test_a_path_is_left_one_step_beyond_its_limit():
    # One product of 2^12 x 2^12 is 2^24, which float32 still holds with any other
    # partial sum below it; adding 1 x 1 makes the bound 2^24 + 1.
    fits = exact.Problem("linear", (0, 2**12), np.array([[2**12, 0]]))
    exceeds = exact.Problem("linear", (0, 2**12), np.array([[2**12, 1]]))
    assert fits.bound() == 2**24 and exact.prepare(fits, "fp32").path.name == "fp32"
    with pytest.raises(ConfigError, match="exact here, got 'fp32'"):
        exact.prepare(exceeds, "fp32")
    wide = np.full((1, 2**11), 2**15)
    assert exact.choose(exact.Problem("linear", (0, 2**16 - 1), wide)).name == "fp64"
    with pytest.raises(ConfigError, match="fp64"):
        exact.prepare(exact.Problem("linear", (0, 2**31), wide * 2**10), "fp64")


def test_sums_beyond_64_bits_are_refused():
    with pytest.raises(MappingError, match="must fit 64 bits"):
        exact.choose(exact.Problem("matmul", (0, 2**31), None, (0, 2**31), 2**4))


def test_float32_would_be_wrong_where_it_is_not_chosen():
    """The limit matters: beyond it float32 gives other sums on this very problem."""
    weight = np.full((1, 600), 127)
    codes = np.full((1, 600), 255, np.uint8)
    codes[0, -1] = 254
    problem = exact.Problem("linear", (0, 255), weight)
    assert problem.bound() > 2**24
    float_sum = np.float32(0)
    for a in codes[0]:
        float_sum += np.float32(a) * np.float32(127)
    want = int(codes[0].astype(int).sum()) * 127
    assert int(float_sum) != want
    assert int(exact.prepare(problem)(codes)[0, 0]) == want


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_products_are_not_used_when_torch_may_shorten_them(precision):
    problem = exact.Problem("linear", (-(2**10), 2**10), np.array([[1, 2, 3]]))
    codes = np.array([[1000, -1000, 1023]], np.int16)
    before = exact.prepare(problem, "fp32")
    try:
        torch.set_float32_matmul_precision(precision)
        chosen = exact.choose(problem)
        assert chosen.name == "fp64" and f"is {precision!r}" in chosen.reason
        assert before(codes).tolist() == [[1000 - 2000 + 3069]]
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_path_that_the_probe_finds_wrong_is_not_used(monkeypatch):
    weight = np.ones((4, 4), np.int64)
    problem = exact.Problem("linear", (0, 255), weight)
    first = exact.choose(problem).name
    real = exact._probed
    monkeypatch.setattr(exact, "_probed", lambda name: (9, 3) if name == first else real(name))
    chosen = exact.choose(problem)
    assert chosen.name != first and "3 of 9 extreme products wrong" in chosen.reason


@pytest.mark.parametrize(("m", "k", "n"), [(8, 1, 8), (1, 8, 1), (1, 1, 1), (5, 1, 1), (1, 1, 7)])
def test_axes_of_one_entry_may_have_any_stride(m, k, n):
    rng = np.random.default_rng(5)
    codes = rng.integers(-128, 128, (k, m)).astype(np.int8).T  # strides of the transpose
    weight = rng.integers(-128, 128, (k, n)).T
    want = codes.astype(np.int64) @ weight.T
    for name, prepared in provable(exact.Problem("linear", (-128, 127), weight)):
        np.testing.assert_array_equal(prepared(codes).astype(np.int64), want, err_msg=name)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_probe_finds_no_wrong_product_on_usable_paths(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        usable = {name for name, good, _ in exact.explain() if good}
        rows = [row for row in exact.probe() if row[0] in usable]
    finally:
        torch.set_num_threads(before)
    want = {"fp32", "fp64", "int64"} | ({"vnni"} if vnni.supported() else set())
    if torch.cpu._is_vnni_supported() and exact.isa_limit() is None:
        want |= {"onednn", "int_mm"}
    assert usable == want
    assert all(cases >= 1000 and wrong == 0 for _, cases, wrong in rows)


RESTRICTED = """
import json
import numpy as np
from fsim.simulator import exact
from fsim.simulator.kernels import vnni

rng = np.random.default_rng(7)
wrong = {}
for lo, hi, dtype in ((0, 255, np.uint8), (-128, 127, np.int8)):
    for k in (1, 7, 16):
        weight = rng.choice([-128, 127], (8, k, 3, 3)).astype(np.int64)
        codes = rng.choice([lo, hi], (2, 6, 6, k)).astype(dtype)
        padding, size = (1, 1, 1, 1), (6, 6)
        problem = exact.Problem("conv", (lo, hi), weight, padding=padding, size=size)
        prepared = exact.prepare(problem)
        wide = np.zeros((2, 8, 8, k), np.int64)
        wide[:, 1:7, 1:7] = codes
        want = np.zeros((2, 6, 6, 8), np.int64)
        for i in range(3):
            for j in range(3):
                want += wide[:, i : i + 6, j : j + 6] @ weight[:, :, i, j].T
        name = prepared.path.name
        wrong[name] = wrong.get(name, 0) + int((prepared(codes) != want).sum())
print(json.dumps({"wrong": wrong, "usable": [n for n, good, _ in exact.explain() if good],
                  "probe": {n: w for n, _, w in exact.probe()}}))
"""


def restricted(**settings):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RESTRICTED],
        env=environment | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_on_a_cpu_without_vnni_only_float_and_loops_are_used_and_they_are_right(tmp_path):
    found = restricted(
        NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", FSIM_CACHE=str(tmp_path / "cache")
    )
    assert found["wrong"] == {"fp32": 0}
    assert found["usable"] == ["fp32", "fp64", "int64"]


def test_with_onednn_held_below_vnni_its_routines_are_not_used():
    found = restricted()
    own = ["vnni"] if vnni.supported() else []
    assert found["wrong"] == {(own or ["fp32"])[0]: 0}
    assert found["usable"] == [*own, "fp32", "fp64", "int64"]
    if torch.cpu._is_vnni_supported():
        # The reason for the rule: the int8 routines are silently wrong there.
        assert found["probe"]["int_mm"] > 0 and found["probe"]["onednn"] > 0


@pytest.mark.parametrize(
    ("value", "limited"),
    [("AVX2", True), ("avx512_core", True), ("SSE41", True), ("AVX2_VNNI", True), ("ALL", False),
     ("DEFAULT", False), ("AVX512_CORE_VNNI", False), ("AVX512_CORE_AMX", False), ("", False)],
)  # fmt: skip
def test_isa_limits_below_vnni_are_recognised(monkeypatch, value, limited):
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
    assert (exact.isa_limit() is not None) == limited
