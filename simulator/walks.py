"""Upsets of registers and nets, one an inference, as changed sums of their layer.

The same walk as `engine.FaultHooks` makes image by image, for many inferences in one
compiled call: campaigns strike each image once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fsim.types import LEVEL, fault_table

from . import lower
from .engine import _extend
from .kernels import walks
from .ops import ArrayOp, MatMul
from .replay import _FAR, component_bits, own_walk
from .sites import Placement
from .updates import flat_weight, slot_order


def walkable(placement: Placement, op: ArrayOp, rows: np.ndarray) -> np.ndarray:
    """(f,) bool: whether `register_sums` has the machine's arithmetic for a fault in `op`."""
    accel = placement.accel
    none = np.zeros(len(rows), bool)
    planned = accel.overflow == "wrap" and hasattr(accel.schedule, "plan")
    if isinstance(op, MatMul) or not (planned or own_walk(accel)):
        return none
    source = placement.program.ops[op.inputs[0]]
    largest = max(map(abs, source.range)) * int(np.abs(op.weight).max(initial=0))
    if largest >= 1 << (_machine(placement, op).product_bits - 1):
        return none
    known = np.array(
        [c.kind != "memory" and "replay" in c.backends for c in accel.components]
    )  # fmt: skip
    if own_walk(accel):
        known[accel.component_index("psums")] = True
    return known[rows["component"]]


def _machine(placement: Placement, op: ArrayOp):
    source = placement.program.ops[op.inputs[0]]
    accel = placement.accel
    return accel if source.signed else replace(accel, operand_bits=accel.operand_bits + 1)


def register_sums(
    placement: Placement,
    op: ArrayOp,
    codes: np.ndarray,
    acc: np.ndarray,
    rows: np.ndarray,
    slot: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums that single faults of registers or nets change.

    codes  (images, ...) what the layer read; acc (images, ...) exact sums without bias
    rows   (f,) FAULT of components that are `walkable`, none other; slot (f,) int64 which
           image each strikes, alone
    Returns (fault, flat index into one image's sums, sum with the bias, wrapped), sorted
    by fault.
    """
    low = placement.lowered[op.index]
    machine = _machine(placement, op)
    if own_walk(machine):
        return _own_sums(placement, op, machine, codes, acc, rows, slot)
    plan = machine.schedule.plan(machine, low.m, low.k, low.n)
    rows, number, group = _by_group(placement, op, rows)
    table = fault_table(rows)
    np.minimum(table[:, 6], _FAR, out=table[:, 6])
    geometry = (
        low.h, low.w, low.channels, low.out_w, low.kernel_h, low.kernel_w,
        *low.stride, *low.padding, *low.dilation,
    )  # fmt: skip
    found, where, value = walks.struck_sums(
        np.ascontiguousarray(codes).reshape(len(codes), low.h, low.w, low.c),
        np.ascontiguousarray(acc).reshape(len(codes), low.m * low.outputs),
        np.ascontiguousarray(np.broadcast_to(op.bias, low.outputs), np.int64),
        flat_weight(placement, op), geometry, low.n, plan.vector(), plan.table(),
        component_bits(machine), placement.accel.acc_bits, plan.transposed, table,
        np.ascontiguousarray(slot, np.int64)[number], group,
    )  # fmt: skip
    return number[found], where, value


def _own_sums(placement, op, machine, codes, acc, rows, slot):
    """`register_sums` by the machine's own walk."""
    low = placement.lowered[op.index]
    stored = rows["component"] == placement.accel.component_index("psums")
    memory = np.flatnonzero(stored)
    table, number, group = _by_group(placement, op, rows[~stored])
    number = np.concatenate([np.flatnonzero(~stored)[number], memory])
    groups, m, n = lower.psum_position(low, rows["word"][memory].astype(np.int64))
    words = rows[memory]
    words["word"] = m * low.n + n
    group = np.concatenate([group, groups])
    table = fault_table(np.concatenate([table, words]))
    order = np.argsort(number, kind="stable")
    number, group, table = number[order], group[order], table[order]
    weight, window = slot_order(placement, op)
    found, where, value = own_walk(machine).struck_sums(
        machine, low.m, low.n,
        np.ascontiguousarray(codes).reshape(len(codes), low.h, low.w, low.c),
        np.ascontiguousarray(acc).reshape(len(codes), low.m * low.outputs),
        np.ascontiguousarray(np.broadcast_to(op.bias, low.outputs), np.int64),
        weight, window, table, np.ascontiguousarray(slot, np.int64)[number], group.astype(np.int64),
    )  # fmt: skip
    return number[found], where, value


def _by_group(placement: Placement, op: ArrayOp, rows: np.ndarray):
    """(rows in their group's cycles, which of the given rows, group), one for each group met."""
    low, cycles = placement.lowered[op.index], placement.group_cycles(op.index)
    level = rows["effect"] == LEVEL
    last = low.groups - 1
    begin = np.clip(rows["first"] // cycles, 0, None)
    end = np.where(level, np.minimum(rows["last"] // cycles, last), begin)
    count = np.maximum(end - begin + 1, 0) * (begin <= last)
    number = np.repeat(np.arange(len(rows)), count)
    group = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count) + begin[number]
    rows = rows[number].copy()
    start = group * cycles
    rows["first"] = np.maximum(rows["first"] - start, -1)
    ends = rows["last"] < np.iinfo(np.int64).max
    rows["last"] = np.where(ends, rows["last"] - start, rows["last"])
    unsigned = not placement.program.ops[op.inputs[0]].signed
    for at, component in enumerate(placement.accel.components):
        if component.role == "ifmap" and component.kind != "memory":
            _extend(rows, rows["component"] == at, component.bits, not unsigned)
    return rows, number, group
