"""Schedule of `pipelined-systolic`: operand, product, sum in four register stages.

Operands are latched twice: s1_* feeds the local multiplier, *_old the
neighbour, so that a flip hits either the local product or the PEs beyond it.
"""

from __future__ import annotations

from fsim.types import Component

from ..accel import Accel
from ..plan import ACC_IN, ACC_OUT, MOVING, PRODUCT, WEIGHT, Plan, Segment, ceil_div

_DATA = ("reference", "tile", "replay")
_CONTROL = ("reference", "tile")


def components(accel: Accel) -> tuple[Component, ...]:
    """Registers and nets of one PE, in fault-row order."""
    word, product, acc = accel.operand_bits, accel.product_bits, accel.acc_bits
    weight_stationary = accel.dataflow == "ws"

    def register(name, bits, role, about):
        backends = _CONTROL if role == "control" else _DATA
        return Component(name, bits, "register", role, backends, about)

    s1_x = register("s1_x", word, "ifmap", "activation at the local multiplier")
    s1_w = register("s1_w", word, "filter", "weight at the local multiplier")
    x_old = register("x_old", word, "ifmap", "activation on its way to the right")
    w_old = register("w_old", word, "filter", "weight on its way down")
    s2_p = register("s2_p", product, "product", "product, stage 2")
    s3_p = register("s3_p", product, "product", "product, stage 3")
    mac_out = register("mac_out", acc, "psum", "sum, stage 4")
    tail = (
        mac_out,
        register("v1", 1, "control", "stage 1 valid"),
        register("v3", 1, "control", "stage 3 valid"),
        register("en_out", 1, "control", "enable on its way to the right"),
        Component("mul", product, "net", "product", _DATA, "product into stage 2"),
    )
    if not weight_stationary:
        return (s1_x, s1_w, x_old, w_old, s2_p, s3_p, *tail)
    return (
        register("w_reg", word, "filter", "stationary weight"),
        s1_x,
        s1_w,
        register("s1_psum", acc, "psum", "partial sum, stage 1"),
        x_old,
        w_old,
        s2_p,
        register("s2_psum", acc, "psum", "partial sum, stage 2"),
        s3_p,
        register("s3_psum", acc, "psum", "partial sum, stage 3"),
        *tail,
    )


def _passes(accel: Accel, m: int, k: int, n: int) -> tuple[int, int]:
    """(number of passes, cycles of each)."""
    rows, cols = accel.rows, accel.cols
    if accel.dataflow == "os":
        return ceil_div(m, rows) * ceil_div(n, cols), k + rows + cols + 2
    return ceil_div(k, rows) * ceil_div(n, cols), 5 * rows + m + cols - 1


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """Cycles of one GEMM: passes follow one another immediately."""
    passes, pass_cycles = _passes(accel, m, k, n)
    return passes * pass_cycles


def plan(accel: Accel, m: int, k: int, n: int) -> Plan:
    """The accumulation plan of one GEMM."""
    rows = accel.rows
    index = {component.name: (i, i) for i, component in enumerate(components(accel))}
    _, pass_cycles = _passes(accel, m, k, n)
    output_stationary = accel.dataflow == "os"

    def stage1(delay: int) -> tuple[int, int, int, int, int]:
        """Time `delay` cycles after the operands reach s1 of the slot's PE."""
        if output_stationary:
            return (1 + delay, 1, 1, 1, 0)
        return (rows + 1 + delay, 4, 1, 1, 0)  # rows are skewed by the pipeline's depth

    product = (
        Segment(index["mul"], PRODUCT, stage1(1)),
        Segment(index["s2_p"], PRODUCT, stage1(1)),
        Segment(index["s3_p"], PRODUCT, stage1(2)),
    )
    operands = (
        Segment(index["s1_x"], MOVING, stage1(0)),
        Segment(index["s1_w"], WEIGHT, stage1(0)),
    )
    if output_stationary:
        segments = (
            Segment(index["x_old"], MOVING, (1, 1, 1, 0, 1), "col", hi=(-1, 0, 1)),
            Segment(index["w_old"], WEIGHT, (1, 1, 0, 1, 1), "row", hi=(-1, 1, 0)),
            *operands,
            *product,
            Segment(index["mac_out"], ACC_OUT, stage1(3), last_hold=pass_cycles - 1),
        )
    else:
        segments = (
            Segment(index["x_old"], MOVING, (rows + 1, 4, 1, 0, 1), "col", hi=(-1, 0, 1)),
            Segment(index["w_old"], WEIGHT, (rows - 1, -1, 0, 0, 1), "row", hi=(-1, 1, 0)),
            # Loaded by the last load cycle, read for the last time one edge before s1_w.
            Segment(index["w_reg"], WEIGHT, (rows - 1, 0, 0, 0, 0), hold=(rows, 4, 1, 1)),
            *operands,
            *product,
            Segment(index["s1_psum"], ACC_IN, stage1(0)),
            Segment(index["s2_psum"], ACC_IN, stage1(1)),
            Segment(index["s3_psum"], ACC_IN, stage1(2)),
            Segment(index["mac_out"], ACC_OUT, stage1(3)),
        )
    return Plan(
        m=m,
        k=k,
        n=n,
        rows=rows,
        cols=accel.cols,
        output_stationary=output_stationary,
        folds=1 if output_stationary else ceil_div(k, rows),
        slots=k if output_stationary else rows,
        base0=0,
        phase_cycles=pass_cycles,
        init_d=not output_stationary,  # the OS array loads the first product: D is added outside
        chain=not output_stationary,
        product_bits=accel.product_bits,
        acc_bits=accel.acc_bits,
        saturate=False,
        transposed=False,
        segments=segments,
    )
