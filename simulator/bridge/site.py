"""One product on its machine: weights that change every step, or two activations."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.errors import MappingError

from .. import ops
from ..batch import Batch
from ..engine import FaultHooks, clean_hooks
from ..kernels import requantise
from ..sites import Placement


@dataclass(frozen=True, eq=False)
class ArraySite:
    """A product of the network: an integer program of its inputs and one array operation.

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
        """What the array takes as activations."""
        return self.placement.program.input

    @property
    def inputs(self) -> tuple[ops.Input, ...]:
        """One, or two of a product of two activations."""
        return self.placement.program.ops[:-1]

    def own(self, rows: np.ndarray, component: int) -> np.ndarray:
        """Numbers in the site's own program of rows (f,) that strike the site.

        component  number of `acts`: what the product reads is written by its
                   program's input, operation 0; a copy that it fetches for itself
                   (first > 0) belongs to the product, as both of two activations do
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


class _Fetching(Placement):
    """A product of two activations, which are both its own copies.

    Residency 1 of `acts` is then the first and 2 the second, as wherever a product
    fetches its inputs (`Placement.fetch_of`). Of what stays on chip both would be
    residency 0, and nothing would tell one word of the site from the other. A word
    is exposed once either way.
    """

    def kept(self, op: ops.Op) -> bool:
        return False


def run(
    placement: Placement,
    codes: tuple[np.ndarray, ...],
    scale: np.ndarray,
    batch: Batch | None,
    out: np.ndarray,
):
    """A site's product of codes, as real values.

    placement  of `ArraySite.holding`, or the site's own of two activations
    codes      of each input, (n, *layout); those that errors strike are changed
    scale      (o,) float32: of the activations times of the weights; (1,) one for all
    batch      faults; None: none
    out        (n, *layout) float32, overwritten with what faults of sums do not change
    Returns (flat index into out, real value) of what they do, and the (2, o) ends of
    each output's range without them, (2, 1) of all outputs if they have one scale.
    """
    *sources, op = placement.program.ops
    ready = placement.program.ready(op)
    hooks = clean_hooks(placement) if batch is None else FaultHooks(placement, batch)
    if hooks is not None:
        for slot, (source, mine) in enumerate(zip(sources, codes)):
            hooks.stored(source, mine)
            seen = hooks.loaded(op, slot, mine)
            if seen is not mine:
                mine[...] = seen
    sums = ready.exact(*(np.ascontiguousarray(mine) for mine in codes))
    flat, limits = sums.reshape(-1, len(scale)), np.empty((2, len(scale)), np.float32)
    requantise.dequantise(
        flat, op.bias, scale, placement.accel.acc_bits, out.reshape(flat.shape), *limits
    )
    replaced = None if hooks is None else hooks.accumulated(op, codes, sums)
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


def matmul_site(number, name, accel: Accel, shape, other, signed) -> ArraySite:
    """A product of activations, (..., m, k) by (..., k, p).

    shape, other  of the two without the batch; axes before the last two are equal
    signed        whether codes of the first are; those of the second, which is where
                  weights are held, always are
    """
    *lead, m, _ = shape
    common = _common(name, (*lead, m, other[-1]), 1, accel)
    op = ops.MatMul(**{**common, "index": 2, "inputs": (0, 1), "is_map": False})
    sources = (
        _source(0, f"{name} input", accel, shape, signed, False),
        _source(1, f"{name} other", accel, other, True, False),
    )
    program = ops.Program((*sources, op), accel.acc_bits)
    return ArraySite(number, name, _Fetching(program, accel))


def _common(name, shape, outputs, accel: Accel) -> dict:
    if accel.kind.layers:
        raise MappingError(
            f"training on the array needs whole products, and those of {accel.name} lose low "
            f"bits in places that calibration sets ({name})"
        )
    lo, hi = ops.code_range(accel.operand_bits, True)
    return dict(
        index=1, name=name, inputs=(0,), shape=tuple(shape), bits=accel.operand_bits,
        signed=True, scale=1.0, is_map=len(shape) == 3, bias=np.zeros(outputs, np.int64),
        multiplier=np.ones(outputs, np.float32), lo=lo, hi=hi,
    )  # fmt: skip


def _site(number, name, accel: Accel, shape, signed, op) -> ArraySite:
    source = _source(0, f"{name} input", accel, shape, signed, isinstance(op, ops.Conv))
    if not isinstance(op, ops.Conv):
        op = replace(op, is_map=False)
    program = ops.Program((source, op), accel.acc_bits)
    return ArraySite(number, name, Placement(program, accel))


def _source(index, name, accel: Accel, shape, signed, is_map) -> ops.Input:
    return ops.Input(
        index=index, name=name, inputs=(), shape=tuple(shape), bits=accel.operand_bits,
        signed=signed, scale=1.0, is_map=is_map,
    )  # fmt: skip
