"""One convolution or linear layer on its machine, with weights that change every step."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from fsim.accel_models.accel import Accel

from .. import ops
from ..batch import Batch
from ..engine import FaultHooks, clean_hooks
from ..kernels import requantise
from ..sites import Placement


@dataclass(frozen=True, eq=False)
class ArraySite:
    """A product of the network: an integer program of an input and one array operation.

    number     `layer` in the rows of the network's site space
    name       for people and for `Fault.layer`
    placement  the program on its machine, its weights zero
    """

    number: int
    name: str
    placement: Placement

    @property
    def op(self) -> ops.ArrayOp:
        return self.placement.program.ops[-1]

    @property
    def input(self) -> ops.Input:
        return self.placement.program.input

    def own(self, rows: np.ndarray, component: int) -> np.ndarray:
        """Numbers in the site's own program of rows (f,) that strike the site.

        component  number of `acts`: what the product reads is written by its
                   program's input, operation 0; a copy that it fetches for itself
                   (first > 0) belongs to the product
        """
        written = (rows["component"] == component) & (rows["first"] == 0)
        return np.where(written, 0, self.op.index)

    def holding(self, weight: np.ndarray, bias: np.ndarray) -> Placement:
        """The placement with weight codes of the operation's shape and bias (o,), int64."""
        program = self.placement.program
        op = replace(self.op, weight=weight, bias=bias)
        # Geometry, residencies and schedules are those of the template.
        twin = copy.copy(self.placement)
        fresh = {"program": replace(program, ops=(program.input, op)), "_cache": {}}
        vars(twin).update(fresh)
        return twin


def run(placement: Placement, codes: np.ndarray, scale: np.ndarray, batch: Batch | None, out):
    """A site's product of codes, as real values.

    placement  of `ArraySite.holding`
    codes      (n, *layout) input codes; those that errors strike are changed
    scale      (o,) float32: of the activations times of the weights
    batch      faults; None: none
    out        (n, *layout) float32, overwritten with what faults of sums do not change
    Returns (flat index into out, real value) of what they do, and the (2, o) ends of
    each output's range without them.
    """
    source, op = placement.program.ops
    ready = placement.program.ready(op)
    hooks = clean_hooks(placement) if batch is None else FaultHooks(placement, batch)
    seen = codes
    if hooks is not None:
        hooks.stored(source, codes)
        seen = hooks.loaded(op, 0, codes)
    sums = ready.exact(np.ascontiguousarray(seen))
    flat, limits = sums.reshape(-1, len(scale)), np.empty((2, len(scale)), np.float32)
    requantise.dequantise(
        flat, op.bias, scale, placement.accel.acc_bits, out.reshape(flat.shape), *limits
    )
    replaced = None if hooks is None else hooks.accumulated(op, (seen,), sums)
    if replaced is None:
        return None, limits
    where, value = replaced
    return (where, value.astype(np.float32) * scale[where % len(scale)]), limits


def conv_site(
    number, name, accel: Accel, shape, weight_shape, signed, stride, padding, dilation, groups
) -> ArraySite:
    """A convolution.

    shape         (c, h, w) of the input; weight_shape (o, c / groups, kh, kw)
    signed        whether activation codes are
    padding       (top and bottom, left and right)
    """
    c, h, w = shape
    o, _, kh, kw = weight_shape
    out_h = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    op = ops.Conv(
        **_common(name, (o, out_h, out_w), o, accel),
        weight=np.zeros(weight_shape, np.int64),
        weight_scale=np.ones(o),
        weight_bits=accel.operand_bits,
        stride=tuple(stride),
        padding=(padding[1], padding[1], padding[0], padding[0]),
        dilation=tuple(dilation),
        groups=groups,
    )
    return _site(number, name, accel, shape, signed, op)


def linear_site(number, name, accel: Accel, shape, outputs, signed) -> ArraySite:
    """A linear layer on inputs of shape (..., features)."""
    op = ops.Linear(
        **_common(name, (*shape[:-1], outputs), outputs, accel),
        weight=np.zeros((outputs, shape[-1]), np.int64),
        weight_scale=np.ones(outputs),
        weight_bits=accel.operand_bits,
    )
    return _site(number, name, accel, shape, signed, op)


def _common(name, shape, outputs, accel: Accel) -> dict:
    lo, hi = ops.code_range(accel.operand_bits, True)
    return dict(
        index=1, name=name, inputs=(0,), shape=tuple(shape), bits=accel.operand_bits,
        signed=True, scale=1.0, is_map=len(shape) == 3, bias=np.zeros(outputs, np.int64),
        multiplier=np.ones(outputs, np.float32), lo=lo, hi=hi,
    )  # fmt: skip


def _site(number, name, accel: Accel, shape, signed, op) -> ArraySite:
    source = ops.Input(
        index=0, name=f"{name} input", inputs=(), shape=tuple(shape), bits=accel.operand_bits,
        signed=signed, scale=1.0, is_map=isinstance(op, ops.Conv),
    )  # fmt: skip
    if not isinstance(op, ops.Conv):
        op = replace(op, is_map=False)
    program = ops.Program((source, op), accel.acc_bits)
    return ArraySite(number, name, Placement(program, accel))
