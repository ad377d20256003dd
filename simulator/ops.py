"""The operations of the integer network, as data (`program.py` runs them).

A `Program` is data. Each operation makes one tensor of codes; operation 0 is the
input. Between operations codes are C-contiguous numpy arrays: feature maps
(n, h, w, c); anything that is not (c, h, w) in the network's own terms keeps its
order, (n, f) or (n, t, f). Where an operation states its `shape` it is the
network's, without the batch: (c, h, w) or (f,).

The last operation is as a rule on the array. Then its accumulators, bias
included, are the result of the network: "the last integer tensor". Multiplied by
the dequantising scale of each class they are the logits. A network that ends
elsewhere, on a pool say, gives that operation's codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from fsim.errors import ConfigError

from . import exact
from .kernels.requantise import tiled


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code of a width."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def code_dtype(bits: int, signed: bool) -> np.dtype:
    """Narrowest numpy type that holds codes of a width."""
    return np.dtype(f"{'' if signed else 'u'}int{8 if bits <= 8 else 16}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """What every operation has.

    index   position in the program; 0 is the input
    name    the module's name in the network, `#1`, `#2` added for later calls
    inputs  indices of the operations whose codes it reads, one per slot
    shape   of its output in the network's terms, without the batch
    bits, signed, scale
            of its output codes: real value = code * scale (of a last operation on
            the array, which makes no codes: 1)
    is_map  a three-axis output is a feature map, held channels last; False for
            stacks of matrices (attention heads), held in the network's order
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    bits: int
    signed: bool
    scale: float
    is_map: bool = True

    is_array: ClassVar[bool] = False
    """Runs on the MAC array."""
    stores: ClassVar[bool] = True
    """Its output is written to on-chip memory; False for views."""

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest code its output memory can hold."""
        return code_range(self.bits, self.signed)

    @property
    def dtype(self) -> np.dtype:
        return code_dtype(self.bits, self.signed)

    @property
    def layout(self) -> tuple[int, ...]:
        """Shape of its codes as held, without the batch: maps are channels last."""
        return (*self.shape[1:], self.shape[0]) if self.channels_last else self.shape

    @property
    def channels_last(self) -> bool:
        """Whether the codes are held in another order than the network's."""
        return self.is_map and len(self.shape) == 3


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Op):
    """The network's input: codes = clamp(round_half_even(x * float32(1 / scale)))."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrayOp(Op):
    """Accumulators, then one float32 multiplication, round half to even, clamp.

    bias        (o,) int64 in accumulator units, preloaded
    multiplier  (o,) float32: s_in * s_weight / s_out; for the last operation of
                a program s_in * s_weight, which gives real values
    lo, hi      the clamp; lo = 0 is a fused ReLU, hi below the largest code a ReLU6
    truncate    low bits that each product loses before it is added; bias and multiplier
                are of sums in units of 2^truncate products
    """

    bias: np.ndarray
    multiplier: np.ndarray
    lo: int
    hi: int
    truncate: int = 0

    is_array: ClassVar[bool] = True


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(ArrayOp):
    """weight (o, c / groups, kh, kw) int64 codes; padding left, right, top, bottom.

    weight_scale  (o,) float64
    """

    weight: np.ndarray
    weight_scale: np.ndarray
    weight_bits: int = 8
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(ArrayOp):
    """weight (o, f) int64 codes, applied to the last axis.

    weight_scale  (o,) float64
    """

    weight: np.ndarray
    weight_scale: np.ndarray
    weight_bits: int = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class MatMul(ArrayOp):
    """Product of two activations, (..., m, k) by (..., k, p); p outputs channels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Op):
    """clamp(round_half_even((m0 a + m1 b) / 2^shift)); m0, m1 integers."""

    m0: int
    m1: int
    shift: int
    lo: int
    hi: int


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool(Op):
    """clamp(round_half_even(sum of the window * m0 / 2^shift)); padding left, top."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    m0: int
    shift: int


@dataclass(frozen=True, eq=False, kw_only=True)
class GlobalAvgPool(AvgPool):
    """An AvgPool whose window is the whole map."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Op):
    """Largest code of the window, same scale; padding left, top."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Relu(Op):
    """clamp(code, lo, hi), same scale: a ReLU that no operation could take in."""

    lo: int
    hi: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Op):
    """(c, h, w) to (c h w) in the network's order."""

    stores: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Op):
    """Zeros around: (before, after) per axis of the network's shape."""

    amount: tuple[tuple[int, int], ...]

    stores: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(Op):
    """slice(start, stop, step) per axis of the network's shape."""

    slices: tuple[slice, ...]

    stores: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Op):
    """Inputs side by side along `axis` of the network's shape.

    m0, shift  an input whose scale is not the output's is rescaled by m0 / 2^shift,
               round half to even; m0 is None where the codes are taken as they are
    """

    axis: int
    m0: tuple[int | None, ...]
    shift: int

    @property
    def stores(self) -> bool:
        """Nothing new is stored unless some input is rescaled."""
        return any(m is not None for m in self.m0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Host(Op):
    """A float operation that the array cannot run: dequantise, `function`, quantise.

    function  takes one float32 tensor per input, (1, *shape), returns the output;
              called image by image, so that nothing depends on the batch
    what      its name, for the list of what is not covered
    in_scales of the inputs
    moves     it only moves values: the codes are moved as they are
    """

    function: Callable
    what: str
    in_scales: tuple[float, ...]
    moves: bool = False

    @property
    def stores(self) -> bool:
        return not self.moves


@dataclass(frozen=True, eq=False)
class Program:
    """A quantised network.

    ops       in the order in which they run; ops[i].index == i
    acc_bits  width of the array's accumulators, which wrap
    notes     what was left out or replaced on the way, one line each
    """

    ops: tuple[Op, ...]
    acc_bits: int = 32
    notes: tuple[str, ...] = ()

    @property
    def input(self) -> Input:
        return self.ops[0]

    @property
    def truncated(self) -> bool:
        """Whether products of some operation lose low bits before they are added."""
        return any(op.truncate for op in self.array_ops)

    @property
    def array_ops(self) -> tuple[ArrayOp, ...]:
        return tuple(op for op in self.ops if op.is_array)

    @property
    def host_ops(self) -> tuple[Host, ...]:
        """What the array cannot run."""
        return tuple(op for op in self.ops if isinstance(op, Host) and not op.moves)

    def op(self, name: str) -> Op:
        """The operation called `name`; KeyError if there is none."""
        for op in self.ops:
            if op.name == name:
                return op
        raise KeyError(name)

    @cached_property
    def _ready(self) -> dict[int, Ready]:
        return {}

    def ready(self, op: ArrayOp) -> Ready:
        """The packed form of an array operation, made at first use."""
        if op.index not in self._ready:
            self._ready[op.index] = make_ready(self, op)
        return self._ready[op.index]

    def problem(self, op: ArrayOp) -> exact.Problem:
        """The integer product behind an array operation, over every possible code."""
        sources = [self.ops[i] for i in op.inputs]
        if isinstance(op, MatMul):
            return exact.Problem(
                "matmul", sources[0].range, None, sources[1].range, sources[0].shape[-1],
                truncate=op.truncate,
            )  # fmt: skip
        if isinstance(op, Linear):
            return exact.Problem("linear", sources[0].range, op.weight, truncate=op.truncate)
        return exact.Problem(
            "conv", sources[0].range, op.weight, stride=op.stride, padding=op.padding,
            dilation=op.dilation, groups=op.groups, size=sources[0].shape[1:],
            truncate=op.truncate,
        )  # fmt: skip

    def paths(self) -> list[tuple[str, exact.Path]]:
        """(operation, exact path chosen) for every array operation."""
        return [(op.name, self.ready(op).exact.path) for op in self.array_ops]

    def live(self, index: int) -> tuple[int, ...]:
        """Tensors that operations from `index` on read and earlier ones make."""
        later = self.ops[index:]
        return tuple(sorted({i for op in later for i in op.inputs if i < index}))

    @cached_property
    def release(self) -> tuple[tuple[int, ...], ...]:
        """For each operation, the tensors that nothing reads after it.

        A slice or a flattened map shares memory with its source, so a source
        lives as long as what was cut from it.
        """
        last = list(range(len(self.ops)))
        for op in reversed(self.ops):
            for i in op.inputs:
                shares = not op.stores
                last[i] = max(last[i], last[op.index] if shares else op.index)
        groups: list[list[int]] = [[] for _ in self.ops]
        for i, at in enumerate(last):
            groups[at].append(i)
        return tuple(tuple(group) for group in groups)


@dataclass(frozen=True, eq=False)
class Ready:
    """An array operation with its weights packed.

    exact       the product
    fast        float32 holds accumulator plus bias exactly, short of any wrap
    bias, multiplier
                tiled float32 for the fast kernel; the bias also undoes the
                product's offset
    lo, hi      the clamp in float32
    scaling     the same for a product that requantises itself; None if it does not
    """

    exact: exact.Exact
    fast: bool
    bias: np.ndarray
    multiplier: np.ndarray
    lo: np.float32
    hi: np.float32
    scaling: tuple | None = None


def make_ready(program: Program, op: ArrayOp) -> Ready:
    """Choose the exact path of an array operation and pack its weights."""
    product = exact.prepare(program.problem(op))
    bias = op.bias if product.offset is None else op.bias - product.offset
    most = product.path.bound + max(int(np.abs(b).max(initial=0)) for b in (op.bias, bias))
    fast = product.path.name in ("vnni", "onednn", "fp32") and most <= min(
        2**24, 2 ** (program.acc_bits - 1) - 1
    )
    scaling = None
    if fast and product.fused is not None and op.dtype.itemsize == 1:
        outputs = len(op.weight)
        vectors = (np.broadcast_to(v, outputs) for v in (bias, op.multiplier))
        scaling = exact.lanes(outputs, *vectors, op.lo, op.hi)
    return Ready(
        product,
        fast,
        tiled(bias.astype(np.float32)),
        tiled(op.multiplier),
        np.float32(op.lo),
        np.float32(op.hi),
        scaling,
    )


def with_weights(program: Program, weights: dict[int, np.ndarray]) -> Program:
    """The same network with other weight codes in some array operations.

    weights  operation index -> codes of the same shape. Everything already packed
             for the other operations is shared. Raises ConfigError for an
             operation without weights, another shape or a code beyond its width.
    """
    ops = list(program.ops)
    for index, codes in weights.items():
        op = ops[index] if 0 <= index < len(ops) else None
        if not isinstance(op, (Conv, Linear)):
            raise ConfigError(
                f"weights belong to a convolution or linear layer, got operation {index}"
            )
        lo, hi = code_range(op.weight_bits, True)
        if codes.shape != op.weight.shape or codes.min() < lo or codes.max() > hi:
            raise ConfigError(
                f"weight codes of {op.name} must be {op.weight.shape} in [{lo}, {hi}], got "
                f"{codes.shape} in [{codes.min()}, {codes.max()}]"
            )
        ops[index] = dataclasses.replace(op, weight=codes.astype(np.int64))
    changed = dataclasses.replace(program, ops=tuple(ops))
    changed._ready.update({i: r for i, r in program._ready.items() if i not in weights})
    return changed


def fixed_point(ratios: list[float], bits: int = 15) -> tuple[list[int], int]:
    """Integers m and one shift >= 1 with m / 2^shift close to each ratio.

    The largest m uses `bits` bits; a ratio is off by at most half of 2^-shift.
    """
    largest = max(abs(r) for r in ratios)
    shift = bits - math.frexp(largest)[1] if largest > 0 else 1
    shift = min(max(shift, 1), 46)
    return [round(r * 2**shift) for r in ratios], shift
