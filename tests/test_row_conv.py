"""`fsim.row_conv`: the RTL's vectors, and a model written from the text alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fsim
from fsim import Fault, row_conv
from fsim.errors import ConfigError, FaultError, MappingError

VECTORS = Path(fsim.simulator.row_conv.__file__).parent / "rtl_vectors" / "eyeriss_pe.npz"
KINDS = {"flip": "flip", "sa0": "stuck0", "sa1": "stuck1"}


def wrapped(value: int) -> int:
    return (value + 32768) % 65536 - 32768


def naive(ifmap, filters, incoming, s, q, p, stride, outputs, fault=None, truncate=0):
    """The PE as the text describes it, in MAC order, with at most one fault.

    fault  (site, word, bit, kind, output at which a flip strikes)
    """
    site, word, bit, kind, when = fault or (None,) * 5
    n = s * q

    def hit(value, here, flipped=False):
        if not here or (kind == "flip") != flipped:
            return value
        raw = value & 0xFFFF
        raw = {"flip": raw ^ 1 << (bit or 0), "stuck0": raw & ~(1 << (bit or 0)),
               "stuck1": raw | 1 << (bit or 0)}[kind]  # fmt: skip
        return wrapped(raw)

    def pad(name, index, value, flipped=False):
        return hit(value, site == name and index == word, flipped)

    filter_pad = [pad("filter_spad", i, w) for i, w in enumerate(filters)]
    cells = [pad("ifmap_spad", i, 0) for i in range(12)]
    flags = [True] * 12
    for i in range(n):
        cells[i], flags[i] = pad("ifmap_spad", i, ifmap[i]), ifmap[i] == 0
    out = []
    for f in range(outputs):
        if f:
            steps = min(stride * q, n)
            for _ in range(steps):
                for k in range(11):
                    cells[k], flags[k] = pad("ifmap_spad", k, cells[k + 1]), flags[k + 1]
            if kind == "flip" and when == f and site == "ifmap_spad":
                cells[word] = pad("ifmap_spad", word, cells[word], True)
            for k in range(steps):
                pixel = ifmap[f * stride * q + n - steps + k]
                cell = n - steps + k
                cells[cell], flags[cell] = pad("ifmap_spad", cell, pixel), pixel == 0
        if kind == "flip" and when == f and site == "filter_spad" and word < len(filter_pad):
            filter_pad[word] = pad("filter_spad", word, filter_pad[word], True)
        if kind == "flip" and when == f == 0 and site == "ifmap_spad":
            cells[word] = pad("ifmap_spad", word, cells[word], True)
        psum = [None] * p
        for i in range(n):
            for j in range(p):
                product = 0 if flags[i] else wrapped(cells[i] * filter_pad[i * p + j] >> truncate)
                product = hit(product, site == "product")
                product = hit(product, site == "product" and when == f and word == i * p + j, True)
                before = 0 if i == 0 else pad("psum_spad", j, psum[j])
                psum[j] = wrapped(before + product)
        line = []
        for j in range(p):
            value = pad("psum_spad", j, psum[j])
            value = hit(value, site == "psum_spad" and word == j and when == f, True)
            line.append(wrapped(value + incoming[f * p + j]))
        out.append(line)
    return out


def case(rng, s, q, p, stride, outputs, zeros=0.25, extreme=False):
    """Operands of the sizes given, as integer arrays."""
    n = s * q

    def words(count):
        if extreme:
            return rng.choice([-32768, 32767, -1, 0, 1, 255], count)
        return rng.integers(-32768, 32768, count)

    ifmap = words((outputs - 1) * stride * q + n)
    ifmap[rng.random(len(ifmap)) < zeros] = 0
    return ifmap, words(n * p), words(outputs * p)


SIZES = [
    (1, 1, 1, 1, 1), (1, 1, 1, 1, 4), (3, 1, 1, 1, 5), (3, 1, 2, 1, 5), (12, 1, 18, 1, 3),
    (3, 4, 18, 1, 3), (1, 12, 18, 1, 2), (1, 1, 24, 1, 3), (1, 9, 24, 1, 2), (2, 6, 18, 3, 4),
    (1, 3, 4, 2, 4), (3, 2, 5, 3, 4), (3, 2, 5, 5, 3), (2, 2, 3, 1, 1), (11, 1, 20, 4, 4),
    (5, 2, 7, 1, 6), (4, 3, 6, 2, 5), (2, 1, 1, 1, 6), (1, 12, 1, 1, 4), (6, 2, 1, 1, 4),
]  # fmt: skip
"""(s, q, p, stride, outputs): p = 1, one output, full scratchpads, strides up to the window
and beyond it."""


def check(operands, sizes, fault, truncate=0):
    """Both backends against the text's model; whether the fault changed anything."""
    s, q, p, stride, outputs = sizes
    want = np.array(naive(*(v.tolist() for v in operands), *sizes, fault, truncate))
    clean = np.array(naive(*(v.tolist() for v in operands), *sizes, None, truncate))
    faults = []
    if fault is not None:
        site, word, bit, kind, when = fault
        faults = [Fault(site, word=word, bit=bit, kind=kind, cycle=when)]
    for backend in ("reference", "replay"):
        got = row_conv(
            *operands, s=s, q=q, p=p, stride=stride, outputs=outputs, faults=faults,
            truncate=truncate, backend=backend,
        )  # fmt: skip
        np.testing.assert_array_equal(got.out, want, f"{backend} {sizes} {fault}")
        assert got.masked == (want == clean).all()
        assert got.changed == np.count_nonzero(want != clean)
        assert got.backend == backend
    return not (want == clean).all()


def vectors():
    with np.load(VECTORS) as file:
        return dict(file), json.loads(str(file["meta"]))


def test_all_300_vectors_of_the_rtl():
    z, meta = vectors()
    assert meta["n_vectors"] == 300
    for v in range(300):
        c = int(z["f_case"][v])
        size = meta["cases"][c]
        kind = meta["kinds"][z["f_kind"][v]]
        fault = Fault(
            meta["sites"][z["f_site"][v]], word=int(z["f_idx"][v]), bit=int(z["f_bit"][v]),
            kind=KINDS[kind], cycle=int(z["f_fstart"][v]) if kind == "flip" else None,
        )  # fmt: skip
        shape = size["F"], size["p"]
        want = z["f_out"][z["f_off"][v] :][: np.prod(shape)].reshape(shape)
        for backend in ("reference", "replay"):
            got = row_conv(
                z[f"ifm{c}"], z[f"fil{c}"], z[f"ips{c}"], s=size["S"], q=size["q"], p=size["p"],
                stride=size["U"], outputs=size["F"], faults=[fault], backend=backend,
            )  # fmt: skip
            np.testing.assert_array_equal(got.out, want, f"vector {v}: {fault}, {backend}")
            assert got.masked == z["f_masked"][v], f"vector {v}"


def test_results_and_cycles_without_faults():
    z, meta = vectors()
    for c, size in enumerate(meta["cases"]):
        for backend in ("reference", "replay"):
            got = row_conv(
                z[f"ifm{c}"], z[f"fil{c}"], z[f"ips{c}"], s=size["S"], q=size["q"], p=size["p"],
                stride=size["U"], outputs=size["F"], backend=backend,
            )  # fmt: skip
            np.testing.assert_array_equal(got.out, z[f"C{c}"])
            assert got.cycles == size["cycles"]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("extreme", [False, True])
def test_any_single_fault_is_what_the_text_says(sizes, extreme):
    s, q, p, stride, outputs = sizes
    rng = np.random.default_rng(sum(sizes) + extreme)
    operands = case(rng, *sizes, extreme=extreme)
    check(operands, sizes, None)
    visible = 0
    for site, words in (("ifmap_spad", 12), ("filter_spad", 224), ("psum_spad", 24),
                        ("product", s * q * p)):  # fmt: skip
        for kind in ("flip", "stuck0", "stuck1"):
            for _ in range(3):
                used = min(words, {"ifmap_spad": s * q, "psum_spad": p}.get(site, s * q * p))
                word = int(rng.integers(used if rng.random() < 0.7 else words))
                when = int(rng.integers(outputs)) if kind == "flip" else None
                fault = site, word, int(rng.integers(16)), kind, when
                visible += check(operands, sizes, fault, int(rng.integers(17)))
    assert visible


def test_flips_that_are_rewritten():
    """A cell that the next window writes anew forgets its flip; so do cells beyond it."""
    rng = np.random.default_rng(0)
    sizes = 3, 2, 4, 1, 4
    operands = case(rng, *sizes, zeros=0)
    seen = [check(operands, sizes, ("ifmap_spad", cell, 3, "flip", 2)) for cell in range(12)]
    assert seen == [True] * 4 + [False] * 8
    whole = 3, 2, 4, 3, 4
    operands = case(rng, *whole, zeros=0)
    seen = [check(operands, whole, ("ifmap_spad", cell, 3, "flip", 2)) for cell in range(12)]
    assert seen == [False] * 12
    assert not check(operands, whole, ("filter_spad", 24, 3, "flip", 2))
    assert check(operands, whole, ("filter_spad", 23, 3, "flip", 2))


def test_a_stuck_cell_corrupts_what_shifts_through_it():
    """Cell 3 of four is written by every new pixel; below it only what it passed on."""
    ifmap, filters = np.arange(1, 8) * 4, np.array([1, 0, 0, 0])
    out = row_conv(
        ifmap, filters, None, s=4, q=1, p=1, stride=1, outputs=4,
        faults=[Fault("ifmap_spad", word=3, bit=0, kind="stuck1")],
    ).out  # fmt: skip
    assert out.ravel().tolist() == [4, 8, 12, 17]  # the fourth pixel came through cell 3


def test_the_zero_flag_is_not_faulted():
    """A stuck bit of a cell that holds a zero pixel changes nothing; of the product it does."""
    zeros = np.zeros(5, int)
    filters = np.array([7, 7, 7])
    size = dict(s=3, q=1, p=1, stride=1, outputs=3)
    spad = Fault("ifmap_spad", word=1, bit=2, kind="stuck1")
    assert row_conv(zeros, filters, None, **size, faults=[spad]).masked
    product = Fault("product", bit=2, kind="stuck1")
    assert row_conv(zeros, filters, None, **size, faults=[product]).out.ravel().tolist() == [12] * 3


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_faults_is_the_same_compiled(seed):
    rng = np.random.default_rng(seed)
    seen = 0
    for _ in range(25):
        sizes = SIZES[rng.integers(len(SIZES))]
        s, q, p, stride, outputs = sizes
        operands = case(rng, *sizes)
        faults = []
        for _ in range(int(rng.integers(1, 8))):
            site, words = [("ifmap_spad", s * q), ("filter_spad", s * q * p), ("psum_spad", p),
                           ("product", s * q * p)][rng.integers(4)]  # fmt: skip
            kind = ("flip", "stuck0", "stuck1")[rng.integers(3)]
            when = sorted(int(x) for x in rng.integers(0, outputs, 2))
            window = kind != "flip" and rng.random() < 0.5
            faults.append(
                Fault(
                    site, word=int(rng.integers(words)), mask=int(rng.integers(1, 1 << 16)),
                    kind=kind, cycle=when[0] if kind == "flip" or window else None,
                    last=when[1] if window else None,
                )
            )  # fmt: skip
        size = dict(s=s, q=q, p=p, stride=stride, outputs=outputs, faults=faults)
        want = row_conv(*operands, **size, backend="reference")
        got = row_conv(*operands, **size)
        np.testing.assert_array_equal(got.out, want.out, str((sizes, faults)))
        seen += not want.masked
    assert seen > 12


def test_a_stuck_window_begins_and_ends_with_its_outputs():
    ifmap, filters = np.array([0, 2, 2, 2, 2]), np.array([1])
    fault = Fault("psum_spad", word=0, bit=0, kind="stuck1", cycle=1, last=3)
    out = row_conv(ifmap, filters, None, s=1, q=1, p=1, stride=1, outputs=5, faults=[fault]).out
    assert out.ravel().tolist() == [0, 3, 3, 3, 2]


BASE = dict(ifmap=np.zeros(6, int), filters=np.zeros(12, int), psum_in=np.zeros(8, int),
            s=3, q=1, p=4, stride=1, outputs=2)  # fmt: skip
GOOD = BASE | {"ifmap": np.zeros(4, int)}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": 5}, MappingError, "S x q must be at most 12, .* got 15"),
        ({"s": 12, "p": 19}, MappingError, "p x q x S must be at most 224, .* got 228"),
        ({"s": 1, "p": 25}, MappingError, "p must be at most 24, .* got 25"),
        ({"ifmap": np.zeros(5, int)}, ConfigError, "ifmap must have .* = 4 entries"),
        ({"filters": np.zeros(11, int)}, ConfigError, "filters must have s q p = 12 entries"),
        ({"psum_in": np.zeros(7, int)}, ConfigError, "psum_in must have outputs p = 8 entries"),
        ({"ifmap": np.array([0, 0, 0, 40000])}, ConfigError, "ifmap must lie in -32768..32767"),
        ({"ifmap": np.zeros(4)}, ConfigError, "ifmap must hold integers, got dtype float64"),
        ({"outputs": 0}, ConfigError, "outputs must be an integer >= 1, got 0"),
        ({"stride": 1.5}, ConfigError, "stride must be an integer >= 1, got 1.5"),
        ({"truncate": 17}, ConfigError, "truncate must be in 0..16, got 17"),
        ({"backend": "tile"}, ConfigError, "backend must be one of auto, reference, replay"),
        ({"accel": "systolic"}, MappingError, "row_conv needs a row-stationary machine"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, error, says):
    arguments = GOOD | change
    operands = [arguments.pop(name) for name in ("ifmap", "filters", "psum_in")]
    with pytest.raises(error, match=says) as caught:
        row_conv(*operands, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("ifmap_spad", word=12, bit=0, cycle=1), "word must be in 0..11, got 12"),
        (Fault("product", word=12, bit=0, cycle=1), "word must be in 0..11, got 12"),
        (Fault("psum_spad", word=0, bit=16, cycle=1), "bit must be in 0..15"),
        (Fault("psum_spad", bit=0), "a flip needs cycle=, the output it strikes at"),
        (Fault("psum_spad", bit=0, cycle=2), "cycle is an output and must be in 0..1, got 2"),
        (Fault("psum_spad", bit=0, row=1, cycle=0), "a single PE has row=0 and col=0"),
        (Fault("psum_spad", bit=0, cycle=0, last=1), "a flip happens once and takes no last="),
        (Fault("psum_spad", bit=0, kind="stuck0", last=1), "last= needs cycle="),
        (Fault("psum", bit=0, cycle=0), "did you mean 'psums'"),
        (Fault("ifmap_bus", bit=0, cycle=0), "component of a single PE must be one of"),
        (Fault("acts", bit=0, cycle=0), "component of a single PE must be one of"),
    ],
)
def test_faults_outside_the_pe_are_refused(fault, says):
    arguments = dict(GOOD)
    operands = [arguments.pop(name) for name in ("ifmap", "filters", "psum_in")]
    with pytest.raises(FaultError, match=says):
        row_conv(*operands, **arguments, faults=[fault])
