"""One integer program on the array: made, run under faults, and counted.

`attach` makes a whole network one such program, `attach_layers` each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fsim.accel_models.accel import Accel

from . import program as P
from .batch import Batch
from .capture import Graph
from .engine import FaultHooks, clean_hooks
from .inject import slots_of
from .quantise import quantise
from .sites import Placement, SiteSpace, select
from .struck import settled

UNCOUNTED = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}
"""Kinds of layers whose multiply-adds torch does not count."""


@dataclass(frozen=True)
class Covered:
    """One operation of the network.

    name  of the operation (calls after a module's first: `name#1`, ...)
    what  it is
    macs  multiply-adds of one image; of float operations those torch counts, None where it
          cannot (recurrent layers)
    why   it does not run on the array; None where it does
    """

    name: str
    what: str
    macs: int | None
    why: str | None = None


@dataclass(frozen=True)
class Coverage:
    """What the array runs and what it does not.

    array  operations on the array, in order
    other  everything that runs in float instead, in order
    notes  what was left out or replaced, one line each
    """

    array: tuple[Covered, ...]
    other: tuple[Covered, ...]
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the network's multiply-adds that the array does, of those that can be
        counted; 0 where there are none."""
        done = sum(entry.macs for entry in self.array)
        total = done + sum(entry.macs or 0 for entry in self.other)
        return done / total if total else 0.0

    @property
    def share_text(self) -> str:
        """`share` in words."""
        unknown = [entry.name for entry in self.other if entry.macs is None]
        if unknown:
            return (
                f"{self.share:.1%} of the multiply-adds that can be counted; those of "
                f"{', '.join(unknown)} cannot"
            )
        return f"{self.share:.1%} of the multiply-adds"


def place(graph: Graph, accel: Accel, images: np.ndarray, params=None) -> Placement:
    """A graph quantised for a machine.

    images  (n, c, h, w) float32 calibration images
    params  as `quantise` takes them
    Raises ConfigError for wrong images or params and where the codes do not fit.
    """
    program = quantise(
        graph,
        images,
        accel_bits=accel.operand_bits,
        acc_bits=accel.acc_bits,
        unsigned=accel.unsigned_acts,
        truncates=accel.kind.layers,
        params=params,
    )
    return Placement(program, accel)


def run(placement: Placement, images: np.ndarray, rows, hw_batch: int | None) -> np.ndarray:
    """(n, values) float32 logits of (n, ...) float32 images, n >= 1.

    rows      FAULT rows, their images numbered as here; None: no faults
    hw_batch  images that one row of weights strikes, from its own on
    """
    if rows is not None:
        placement, rows = settled(placement, rows)
    hooks = clean_hooks(placement)
    if rows is not None and len(rows):
        weights = placement.accel.component_index("weights")
        hooks = FaultHooks(placement, Batch(*slots_of(rows, 0, len(images), weights, hw_batch)))
    return P.run(placement.program, images, hooks=hooks).logits


def on_array(placement: Placement, op: P.ArrayOp, name: str) -> Covered:
    """The entry of an array operation that the user knows as `name`."""
    return Covered(name, type(op).__name__, placement.lowered[op.index].macs)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as its products: torch's fast path in evaluation is one operation, which
    hides the layers in it and is counted as nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def count_macs(function, *inputs: Tensor) -> tuple[int, FlopCounterMode]:
    """Multiply-adds that torch counts in a call, and the counter."""
    counter = FlopCounterMode(display=False)
    # Of the other ways to compute attention not all are counted.
    with torch.no_grad(), plain_attention(), sdpa_kernel(SDPBackend.MATH), counter:
        function(*inputs)
    return counter.get_total_flops() // 2, counter


class Whole:
    """A traceable network as one integer program.

    shape, out_shape  of an input and of its logits, without the batch
    names             that `Fault.layer` may have
    """

    mode = "integer program"

    def __init__(self, model: nn.Module, graph: Graph, accel: Accel, images: np.ndarray, params):
        self.placement = place(graph, accel, images, params)
        self.program = self.placement.program
        self.shape = images.shape[1:]
        self.names = tuple(op.name for op in self.program.ops)
        with torch.no_grad():
            out = copy.deepcopy(model).eval().cpu().float()(torch.from_numpy(images[:1]))
        last = self.program.ops[-1].shape
        # A final reshape is not part of the program, its shape is the user's.
        self.out_shape = tuple(out.shape[1:]) if out[0].numel() == np.prod(last) else last

    @cached_property
    def space(self) -> SiteSpace:
        return select(self.placement)

    @property
    def coverage(self) -> Coverage:
        array = tuple(on_array(self.placement, op, op.name) for op in self.program.array_ops)
        other = tuple(
            Covered(op.name, op.what, self._host_macs(op), "the array cannot run it")
            for op in self.program.host_ops
        )
        return Coverage(array, other, self.program.notes)

    def _host_macs(self, op: P.Host) -> int | None:
        if op.what in UNCOUNTED:
            return None
        inputs = [torch.zeros(1, *self.program.ops[i].shape) for i in op.inputs]
        return count_macs(op.function, *inputs)[0]

    def run(self, images: np.ndarray, rows, hw_batch: int | None) -> Tensor:
        """(n, *out_shape) float32 logits; arguments as of the function `run`."""
        logits = run(self.placement, images, rows, hw_batch)
        return torch.from_numpy(logits.reshape(len(images), *self.out_shape))
