"""Faults in a running network: the engine against a plain restatement and the cycle models."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.fault_models.explicit import masks, rows_of
from fsim.simulator import lower as L
from fsim.simulator import program as P
from fsim.simulator.capture import capture
from fsim.simulator.engine import Batch, FaultHooks, no_faults
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement
from fsim.types import FAULT, FOREVER, LEVEL, STATE, Fault, fault_table
from tests import naive_network
from tests.naive_network import Hit, Machine

IMAGES = 4


class Net(nn.Module):
    """Strided, depthwise, grouped and dilated convolutions, residual addition, pool, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 6, (2, 1), groups=2, padding=(1, 0), dilation=(2, 1))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.depth(x) + x)
        x = self.grouped(x)
        x = F.avg_pool2d(x, 2)
        return self.fc(torch.flatten(x, 1))


def network(unsigned=True, acc_bits=32):
    torch.manual_seed(5)
    model = Net()
    images = torch.randn(16, 3, 6, 5).numpy()
    program = quantise(capture(model, images), images, unsigned=unsigned, acc_bits=acc_bits)
    return program, P.run(program, images[:IMAGES], keep=[0]).kept[0]


def place(program, name="systolic", flow="ws", rows=4, cols=3, **overrides):
    accel = load_accel(name, flow, {"rows": rows, "cols": cols, **overrides})
    return Placement(program, accel)


def machine_of(placement, fetched=(), reloaded=()):
    accel = placement.accel
    return Machine(
        accel.dataflow, accel.rows, accel.cols, accel.acc_bits, accel.overflow == "saturate",
        set(fetched), set(reloaded),
    )  # fmt: skip


def signed_words(placement, block):
    """Whether the words of a block are two's complement."""
    if block.component != "acts":
        return True
    op = placement.program.ops[block.layer]
    return (op if block.first == 0 else placement.program.ops[op.inputs[0]]).signed


def random_rows(placement, rng, count, images=IMAGES, components=None, kinds=("flip",)):
    """Rows on random sites of the memories; many meet on one word or one output."""
    blocks = [b for b in placement.blocks if components is None or b.component in components]
    rows, slot = np.zeros(count, FAULT), rng.integers(-1, images, count)
    seen = []
    for i in range(count):
        if seen and rng.random() < 0.4:
            block, residency, word = seen[rng.integers(len(seen))]
            bit = rng.integers(block.bits)
            if rng.random() < 0.5:
                slot[i] = slot[i - 1]
        else:
            block = blocks[rng.integers(len(blocks))]
            residency, word, bit = block.site(np.array(rng.integers(block.exposed_bits)))
            seen.append((block, residency, word))
        row = rows[i]
        row["layer"], row["row"], row["col"] = block.layer, -1, -1
        row["component"] = placement.accel.component_index(block.component)
        row["word"], row["first"], row["last"] = word, residency, residency
        row["effect"], row["image"] = STATE, -1
        row["and_mask"], row["or_mask"], row["xor_mask"] = masks(
            kinds[rng.integers(len(kinds))], 1 << int(bit), block.bits, signed_words(placement, block)
        )
    return rows, slot


def oracle(placement, machine, codes, rows, slot):
    """(final sums, logits) of every image, hits in the order of the rows."""
    accel, found = placement.accel, []
    for image in range(len(codes)):
        hits = [
            Hit(
                accel.components[row["component"]].name,
                *(int(row[f]) for f in ("layer", "word", "first", "and_mask", "or_mask", "xor_mask")),
            )
            for row, s in zip(rows, slot)
            if s in (-1, image)
        ]
        found.append(naive_network.run(placement.program, codes[image], machine, hits)[:2])
    return tuple(np.array(part) for part in zip(*found))


def compare(placement, machine, codes, rows, slot, *, differs=True):
    hooks = FaultHooks(placement, Batch(rows, slot))
    got = P.run(placement.program, codes, hooks=hooks)
    acc, logits = oracle(placement, machine, codes, rows, slot)
    np.testing.assert_array_equal(got.acc, acc)
    np.testing.assert_array_equal(got.logits, logits)
    if differs:
        assert (got.acc != P.run(placement.program, codes).acc).any()


MACHINES = {
    "ws": ("systolic", "ws", 4, 3),
    "os": ("systolic", "os", 3, 5),
    "is": ("systolic", "is", 5, 4),
    "gemmini-ws": ("gemmini-like-4x4", "ws", 4, 4),
    "gemmini-os": ("gemmini-like-4x4", "os", 4, 4),
    "pipelined-ws": ("pipelined-systolic-4x4", "ws", 4, 4),
    "pipelined-os": ("pipelined-systolic-4x4", "os", 4, 4),
}


@pytest.fixture(scope="module")
def unsigned():
    return network()


@pytest.fixture(scope="module")
def signed():
    return network(unsigned=False)


def test_the_restatement_without_faults_is_the_network(unsigned):
    program, codes = unsigned
    kinds = [type(op).__name__ for op in program.ops]
    assert kinds == ["Input", "Conv", "Conv", "Add", "Conv", "AvgPool", "Flatten", "Linear"]
    assert not program.ops[1].signed
    placement = place(program)
    compare(placement, machine_of(placement), codes, *dataclasses.astuple(no_faults()), differs=False)


@pytest.mark.parametrize("kinds", [("flip",), ("flip", "stuck0", "stuck1")])
@pytest.mark.parametrize("name", MACHINES)
def test_wrong_stored_words(name, kinds, unsigned, signed):
    program, codes = unsigned if MACHINES[name][0] == "systolic" else signed
    placement = place(program, *MACHINES[name])
    rng = np.random.default_rng(1 + len(kinds))
    for count in (3, 60):
        rows, slot = random_rows(placement, rng, count, kinds=kinds)
        compare(placement, machine_of(placement), codes, rows, slot, differs=count > 3)
