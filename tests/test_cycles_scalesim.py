"""Cycles of the machines that are SCALE-Sim's, and how far the others are from it.

SCALE-Sim's figures are written down here as it has them: P output pixels, W words of a
window, F filters, folds over an array R x C, and results of its own runs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.accel_models.scalesim import scalesim_cycles


def demand_rows(dataflow, p, w, f, r, c):
    """Rows of its demand matrices: SCALE-Sim v3 (1d62b68), systolic_compute_{os,ws,is}."""
    if dataflow == "os":
        return math.ceil(p / r) * math.ceil(f / c) * (w + r + c - 2)
    if dataflow == "ws":
        return math.ceil(w / r) * math.ceil(f / c) * (r + r + c + p - 2)
    return math.ceil(w / r) * math.ceil(p / c) * (r + r + c + f - 2)


# (M, N, K, R, C): OS, WS, IS. Computed with SCALE-Sim's compute classes, without stalls.
RUNS = {
    (256, 128, 256, 32, 32): (10176, 11200, 14208),
    (16, 16, 16, 4, 4): (352, 416, 416),
    (16, 16, 16, 8, 8): (120, 152, 152),
    (100, 10, 50, 8, 8): (1664, 1708, 2912),
    (64, 64, 64, 16, 16): (1504, 1760, 1760),
    (64, 64, 64, 16, 8): (2752, 3264, 3264),
    (37, 29, 53, 8, 4): (2520, 3080, 3290),
    (1, 1000, 512, 16, 16): (34146, 94752, 33472),
    (196, 256, 256, 16, 16): (59488, 61952, 62816),
    (3025, 96, 363, 32, 32): (121125, 112284, 216600),
}


def array(name, dataflow, r, c, **overrides):
    return load_accel(name, dataflow, {"rows": r, "cols": c, **overrides})


def ours(accel, m, k, n):
    return accel.schedule.cycles(accel, m, k, n)


@pytest.mark.parametrize("size", RUNS, ids=str)
def test_the_plain_array_takes_the_cycles_of_scalesims_runs(size):
    m, n, k, r, c = size
    for dataflow, cycles in zip(("os", "ws", "is"), RUNS[size]):
        assert ours(array("systolic", dataflow, r, c), m, k, n) == cycles
        assert demand_rows(dataflow, m, k, n, r, c) == cycles


def test_random_products_on_random_arrays():
    rng = np.random.default_rng(1)
    for _ in range(300):
        m, k, n, r, c = (int(x) for x in rng.integers(1, [400, 400, 400, 40, 40]))
        for dataflow in ("os", "ws", "is"):
            want = demand_rows(dataflow, m, k, n, r, c)
            accel = array("systolic", dataflow, r, c)
            assert ours(accel, m, k, n) == want == scalesim_cycles(accel, m, k, n)


def test_alexnet_conv1_of_its_golden_trace():
    """configs/scale.cfg, 32 x 32 WS: "Total Cycles" 112283, one less than its folds take."""
    height, filter_, stride, channels, filters = 227, 11, 4, 3, 96
    side = math.ceil((height - filter_ + stride) / stride)
    assert side == 55
    folds = math.ceil(filter_**2 * channels / 32) * math.ceil(filters / 32)
    assert (folds, 2 * 32 + 32 + side**2 - 2) == (36, 3119)
    accel = array("systolic", "ws", 32, 32)
    assert ours(accel, side**2, filter_**2 * channels, filters) - 1 == 112283


def test_the_four_by_four_array_of_its_validation():
    """SCALE-Sim#125: OS, 4 x 4; its report says 9 where the RTL and its own trace have 10."""
    accel = array("systolic", "os", 4, 4)
    assert ours(accel, 4, 4, 4) == 10
    _, waves = accel.cycle.run(
        accel, np.ones((4, 4), int), np.ones((4, 4), int), None, np.zeros((0, 10), int), True
    )
    # The last PE has its last sum after edge 9, the tenth, and not before.
    assert waves["psum"][:, 3, 3].tolist() == [0] * 6 + [1, 2, 3, 4]


# Machines that take other numbers of cycles ---------------------------------------------

SHAPES = [(16, 16, 16, 16), (5, 40, 70, 8), (100, 64, 30, 16), (3, 3, 3, 4), (33, 9, 17, 4)]


@pytest.mark.parametrize(("m", "k", "n", "edge"), SHAPES)
def test_gemmini_overlaps_loads_and_drains(m, k, n, edge):
    """RTL: one preload, tiles back to back, one drain, and the depth of the mesh."""
    for dataflow, own in (("os", k), ("ws", m)):
        tiles = math.ceil((m if dataflow == "os" else k) / edge) * math.ceil(n / edge)
        accel = array("gemmini-like", dataflow, edge, edge)
        outside = edge + 2 * edge + (edge if dataflow == "os" else 0)
        assert ours(accel, m, k, n) == tiles * max(own, edge) + outside


def test_an_isolated_tile_of_gemmini():
    os, ws = (array("gemmini-like", flow, 16, 16) for flow in ("os", "ws"))
    assert (ours(os, 16, 16, 16), scalesim_cycles(os, 16, 16, 16)) == (80, 46)
    assert (ours(ws, 16, 16, 16), scalesim_cycles(ws, 16, 16, 16)) == (64, 62)


@pytest.mark.parametrize(("m", "k", "n", "edge"), SHAPES)
def test_four_register_stages_take_longer_per_tile(m, k, n, edge):
    """RTL: four cycles more in OS; in WS rows are skewed by four cycles instead of one."""
    os, ws = (array("pipelined-systolic", flow, edge, edge) for flow in ("os", "ws"))
    tiles = math.ceil(m / edge) * math.ceil(n / edge)
    assert ours(os, m, k, n) == tiles * (k + 2 * edge + 2)
    assert ours(os, m, k, n) - scalesim_cycles(os, m, k, n) == 4 * tiles
    tiles = math.ceil(k / edge) * math.ceil(n / edge)
    assert ours(ws, m, k, n) == tiles * (6 * edge + m - 1)
    assert ours(ws, m, k, n) - scalesim_cycles(ws, m, k, n) == (3 * edge + 1) * tiles


@pytest.mark.parametrize(("m", "k", "n", "edge"), SHAPES)
def test_double_buffered_weights_hide_the_loads(m, k, n, edge):
    """One tile: SCALE-Sim's cycles and one for the copy; every other one max(m, R)."""
    accel = array("tpu-v1-like", "ws", edge, edge)
    tiles = math.ceil(k / edge) * math.ceil(n / edge)
    single = scalesim_cycles(accel, m, edge, edge)
    assert ours(accel, m, k, n) == single + 1 + (tiles - 1) * max(m, edge)
    assert scalesim_cycles(accel, m, k, n) == tiles * single


def test_machines_that_are_not_systolic_have_no_such_count():
    for name in ("vta-like", "nvdla-small-like"):
        assert scalesim_cycles(load_accel(name), 4, 4, 4) is None


def test_both_counts_are_printed(fsim):
    shown = fsim("accel", "show", "gemmini-like", "--dataflow", "os", "--gemm", "16,16,16")
    assert "(16 x 16)(16 x 16): 80\nas SCALE-Sim counts a plain os array: 46\n" in shown.stdout
    assert "SCALE-Sim counts" not in fsim("accel", "show", "vta-like", "--gemm", "4,4,4").stdout
    told = fsim("accel", "show", "systolic", "--gemm", "3025,363,96", "--json").stdout
    assert '"cycles": 112284' in told and '"scalesim_cycles": 112284' in told
