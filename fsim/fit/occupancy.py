"""How much of each memory holds words still to be read, at most, from the network's schedule.

The schedule is that of the array's operations, one after another; operations off the array
take no time in it. A word counts as live during every operation from the one that writes it to
the last that reads it, the whole of both:

    acts     a tensor that stays on chip: from the operation that makes it to its last reader; one
             that does not fit: while it is made, and while it is read
    weights  during their operation and, in a double buffer, the one before
    psums    during their operation

and never more than the memory holds. What is live for part of an operation only counts for all
of it, so this is an upper limit, and FIT that follow from it are.
"""

from __future__ import annotations

import math

from fsim.campaign.results import Results
from fsim.errors import ConfigError
from fsim.session import from_task
from fsim.simulator.ops import Input, MatMul, Program
from fsim.simulator.sites import Placement

from .machine import KIB_BITS


def scheduled_occupancy(results: Results, model: str | None = None) -> dict[str, float]:
    """`occupancy` of the network of a campaign, which is opened for it.

    model  name of a network whose code may run for that, as `fsim.session.from_task` asks
    """
    return occupancy(from_task(results.task, model).placement)


def occupancy(placement: Placement) -> dict[str, float]:
    """Memory -> share of its bits x time of an inference that is live, at most; in [0, 1].

    ConfigError for a network without an operation on the array, which has no schedule.
    """
    array = placement.program.array_ops
    cycles = {op.index: placement.cycles(op.index) for op in array}
    if not sum(cycles.values()):
        raise ConfigError("a schedule must have an operation on the array, got none")
    live: dict[str, dict[int, int]] = {"acts": {}, "weights": {}, "psums": {}}

    def add(memory: str, slot: int, bits: int) -> None:
        live[memory][slot] = live[memory].get(slot, 0) + bits

    for index, slots in _tensors(placement).items():
        op = placement.program.ops[index]
        for slot in slots:
            add("acts", slot, math.prod(op.shape) * op.bits)
    before = None
    for op in array:
        add("psums", op.index, math.prod(op.shape) * placement.accel.acc_bits)
        if not isinstance(op, MatMul):
            bits = op.weight.size * op.weight_bits
            add("weights", op.index, bits)
            if before is not None and placement.accel.buffers["weights"].double_buffered:
                add("weights", before, bits)
        before = op.index
    found = {}
    for memory, slots in live.items():
        size = int(placement.accel.buffers[memory].kib * KIB_BITS)
        used = sum(cycles[slot] * min(bits, size) for slot, bits in slots.items())
        found[memory] = used / (size * sum(cycles.values()))
    return found


def _tensors(placement: Placement) -> dict[int, set[int]]:
    """Operation whose output is stored -> array operations during which it is live."""
    program = placement.program
    readers: dict[int, list[int]] = {}
    for op in program.ops:
        if op.stores:
            for source in {root for i in op.inputs for root in _roots(program, i)}:
                readers.setdefault(source, []).append(op.index)
    found = {}
    for index, reading in readers.items():
        op = program.ops[index]
        if placement.kept(op):
            ends = range(index, max(reading) + 1)
        else:
            ends = [*reading] if isinstance(op, Input) else [index, *reading]
        found[index] = {i for i in ends if program.ops[i].is_array}
    return found


def _roots(program: Program, index: int) -> set[int]:
    """Operations whose stored words tensor `index` shows (through views)."""
    op = program.ops[index]
    if op.stores:
        return {index}
    return set().union(*(_roots(program, i) for i in op.inputs))
