"""Schedule of `nvdla-small-like`: passes over kernels, stripes of pixels and channels.

A product (m, k)(k, n) is worked off with n outermost in groups of `rows` kernels
(atomic-K), then m in stripes, then k in blocks of `cols` channels (atomic-C). A pass is
one of each: a cycle a kernel to load its weights, one idle, a cycle a pixel, and eight
until the pipeline is empty. The sums of a stripe stay in the assembly buffer between
its passes. `cycle.py` beside this file says what happens in each of those cycles.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..families import Loops
from ..plan import ceil_div

_ALL = ("reference", "tile", "replay")
_CONTROL = ("reference", "tile")

DRAIN = 8
"""Cycles after the last pixel of a pass."""


def stripe(accel: Accel) -> int:
    """Pixels whose sums the assembly buffer holds."""
    return int(accel.parameters["stripe"])


def half(accel: Accel) -> int:
    """Cells (kernels) that share the registers operands enter by."""
    return ceil_div(accel.rows, 2)


def delivered_bits(accel: Accel) -> int:
    """Width of what leaves the accumulator, no wider than its sums."""
    return min(accel.acc_bits, int(accel.parameters["delivered_bits"]))


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers and nets, in fault-row order."""
    rows, cols, word = accel.rows, accel.cols, accel.operand_bits
    total = 2 * word + (cols - 1).bit_length()

    def register(name, bits, role, about, grid=None, shared=1):
        backends = _CONTROL if role == "control" else _ALL
        return Component(name, bits, "register", role, backends, about, grid, 1, shared)

    def flag(name, about, grid, shared=1):
        return register(name, 1, "control", about, grid, shared)

    one, cell = half(accel), (rows, 1)
    return (
        register("wt_pre", word, "filter", "weight on entry, one a half", shared=one),
        register("wt_sd", word, "filter", "shadow weight of the cell"),
        register("wt_actv", word, "filter", "active weight of the cell"),
        register("dat_pre", word, "ifmap", "activation on entry, one a half", shared=one),
        register("dat_actv", word, "ifmap", "the cell's copy of the activation"),
        register("sum1", total, "psum", "sum of the cell's products, stage 1", cell),
        register("sum2", total, "psum", "sum of the cell's products, stage 2", cell),
        register("sum3", total, "psum", "sum of the cell's products, stage 3", cell),
        register("calc_sum", accel.acc_bits + 1, "psum", "accumulator before saturation", cell),
        register("pout", accel.acc_bits, "psum", "sum on its way to the assembly buffer", cell),
        register("fout", delivered_bits(accel), "psum", "delivered sum", cell),
        register("abuf", accel.acc_bits, "psum", "assembly buffer, column = address",
                 (rows, stripe(accel))),
        Component("mul", accel.product_bits, "net", "product", _ALL, "product after zero gating"),
        flag("wt_pre_nz", "byte of wt_pre is not 0", (rows, cols), one),
        flag("wt_pre_sel", "cell takes wt_pre", cell),
        flag("sd_nz", "byte of wt_sd is not 0", (rows, cols)),
        flag("sd_v", "shadow weights are new", cell),
        flag("a_nz", "byte of wt_actv is not 0", (rows, cols)),
        flag("av", "cell is active", cell),
        flag("dat_pre_nz", "byte of dat_pre is not 0", (1, cols)),
        flag("dat_pre_pvld", "dat_pre is valid", (1, 1)),
        flag("dat_pre_st", "first pixel of a stripe", (1, 1)),
        flag("dat_pre_end", "last pixel of a stripe", (1, 1)),
        flag("d_nz", "byte of dat_actv is not 0", (1, cols)),
        flag("dat_actv_pvld", "dat_actv is valid", (1, 1)),
        flag("dat_actv_end", "last pixel of a stripe, one cycle on", (1, 1)),
        flag("pv1", "sum1 is valid", cell),
        flag("pv2", "sum2 is valid", cell),
        flag("pv3", "sum3 is valid", cell),
        flag("cv", "calc_sum is valid", cell),
        flag("sel", "calc_sum is final", cell),
        flag("ppv", "pout is valid", cell),
        flag("fv", "fout is valid", cell),
        flag("sat", "fout was saturated", cell),
    )  # fmt: skip


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM (m,k)(k,n): every pass takes its kernels + 1 + its pixels + 8."""
    kernels, stripes = ceil_div(n, accel.rows), ceil_div(m, stripe(accel))
    overhead = (1 + DRAIN) * kernels * stripes
    return ceil_div(k, accel.cols) * (n * stripes + m * kernels + overhead)


def loops(accel: Accel) -> Loops:
    """How a layer is cut up; sums are stored between blocks of channels.

    The convolution buffer keeps what has been fetched, for all stripes and kernels: where a
    layer's activations do not fit, software cuts it into bands of rows, and each word is
    fetched for one of them (twice at their edges, which is not counted).
    """
    return Loops(
        None, None, None, accel.cols, weights_once=True, keeps_last=False, block=accel.cols
    )


def plain_limit(accel: Accel) -> int:
    """Largest |sum| delivered as it is: none if bits are dropped.

    The bias is added outside, after the saturation to `delivered_bits`.
    """
    if accel.truncate:
        return -1
    return (1 << (delivered_bits(accel) - 1)) - 1
