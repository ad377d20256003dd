"""The accumulation plan: how one output of a machine comes about, as data.

An output is made by a walk: `folds` times, an accumulator is initialised and
`slots` multiply-adds are performed on it, padding and idle PEs included. On its
way every value - moving operand, stationary or moving weight, product,
accumulator - passes registers at known cycles. A `Segment` names one such
stretch of registers with affine formulas, so that the question "which outputs
does this fault touch, and where in their walk" has the same answer for every
machine and one kernel (`simulator/kernels/replay.py`) serves all of them.

Coordinates of a walk (all from 0):

u  slot within the fold            j  PE column of the output
p  output stationary: PE row of the output; otherwise the row m of the output
q  PE row of the slot: p if output stationary, u otherwise
l  hop: which register of the stretch
base  base0 + phase * phase_cycles, phase being the tile (output stationary, m
      outer, n inner) or the fold (otherwise, n outer, k inner)

Valid only while control (valid, propagate, enables) is as scheduled; faults in
control are the business of the tile simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Stages of a walk at which a register stretch acts, in the order of a slot.
MOVING, WEIGHT, PRODUCT, PRELOAD, ACC_IN, ACC_OUT, DRAIN = range(7)
STAGES = ("moving", "weight", "product", "preload", "acc-in", "acc-out", "drain")

# Columns of the integer table that kernels read; see Segment.
(
    S_EVEN,
    S_ODD,
    S_STAGE,
    S_ROW_HOPS,
    S_COL_HOPS,
    S_LO,
    S_LO_Q,
    S_LO_J,
    S_HI,
    S_HI_Q,
    S_HI_J,
    S_T,
    S_T_U,
    S_T_P,
    S_T_J,
    S_T_L,
    S_HOLDS,
    S_E,
    S_E_U,
    S_E_P,
    S_E_J,
    S_LAST_HOLDS,
    S_LAST_E,
    S_PHASES,
) = range(24)

# Phases a segment has a part in: the first one of a machine with double buffers may be
# prepared at another distance than those that follow.
EVERY, FIRST, LATER = range(3)


@dataclass(frozen=True)
class Segment:
    """A stretch of like registers (or a net) that a value passes.

    components  index in even and in odd phases (double buffers swap every phase)
    stage       one of the stage numbers above
    hops        "row": hop l is PE row l; "col": hop l is PE column l; "": one
                element, at (q, j)
    lo, hi      (const, per q, per j): first and last hop
    time        (const, per u, p, j, l): the value is in hop l after clock edge
                base + time; on a net, it is evaluated for that edge
    hold        (const, per u, p, j) or None: last cycle the value stays, base +
                hold; None: one cycle
    last_hold   const or None: in the last slot the value stays until base +
                last_hold (a sum waiting to be read)
    phases      EVERY phase, the FIRST alone, or those LATER
    """

    components: tuple[int, int]
    stage: int
    time: tuple[int, int, int, int, int]
    hops: str = ""
    lo: tuple[int, int, int] = (0, 0, 0)
    hi: tuple[int, int, int] = (0, 0, 0)
    hold: tuple[int, int, int, int] | None = None
    last_hold: int | None = None
    phases: int = EVERY

    def row(self) -> list[int]:
        """The segment as one row of the integer table (columns S_*)."""
        return [
            *self.components,
            self.stage,
            self.hops == "row",
            self.hops == "col",
            *self.lo,
            *self.hi,
            *self.time,
            self.hold is not None,
            *(self.hold or (0, 0, 0, 0)),
            self.last_hold is not None,
            self.last_hold or 0,
            self.phases,
        ]


# Columns of the plan's integer vector for kernels.
(
    P_M,
    P_K,
    P_N,
    P_ROWS,
    P_COLS,
    P_OUTPUT_STATIONARY,
    P_FOLDS,
    P_SLOTS,
    P_N_TILES,
    P_BASE0,
    P_PHASE_CYCLES,
    P_INIT_D,
    P_CHAIN,
    P_PRODUCT_BITS,
    P_ACC_BITS,
    P_SATURATE,
) = range(16)


@dataclass(frozen=True)
class Plan:
    """The walks of all outputs of one GEMM (m,k)(k,n) on one machine.

    output_stationary  see the module's coordinates
    folds, slots       walk length: folds * slots multiply-adds
    init_d             the first fold starts from D (else from 0 and D is added outside)
    chain              a fold starts from the result of the one before; else the
                       results are added outside the array
    saturate           adders saturate at acc_bits instead of wrapping
    transposed         the walk is that of C^T = B^T A^T (input stationary)
    """

    m: int
    k: int
    n: int
    rows: int
    cols: int
    output_stationary: bool
    folds: int
    slots: int
    base0: int
    phase_cycles: int
    init_d: bool
    chain: bool
    product_bits: int
    acc_bits: int
    saturate: bool
    transposed: bool
    segments: tuple[Segment, ...]

    def vector(self) -> np.ndarray:
        """The plan's numbers as int64 for kernels (columns P_*)."""
        return np.array(
            [
                self.m,
                self.k,
                self.n,
                self.rows,
                self.cols,
                self.output_stationary,
                self.folds,
                self.slots,
                -(-self.n // self.cols),
                self.base0,
                self.phase_cycles,
                self.init_d,
                self.chain,
                self.product_bits,
                self.acc_bits,
                self.saturate,
            ],
            np.int64,
        )

    def table(self) -> np.ndarray:
        """The segments as an int64 table (columns S_*)."""
        return np.array([segment.row() for segment in self.segments], np.int64)


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below a / b."""
    return -(-a // b)
