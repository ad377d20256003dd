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
from fsim.simulator.batch import Batch, no_faults
from fsim.simulator.capture import capture
from fsim.simulator.engine import FaultHooks
from fsim.simulator.inject import golden_run
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement
from fsim.types import FAULT, FOREVER, STATE, Fault, fault_table
from tests import naive_network
from tests.naive_network import Hit, Machine

IMAGES = 3
FIELDS = ("layer", "word", "first", "and_mask", "or_mask", "xor_mask")  # of a Hit


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
    if block.first > 0:  # fetched by `op`, into its slot `first - 1`
        op = placement.program.ops[op.inputs[block.first - 1]]
    return op.signed


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
            kinds[rng.integers(len(kinds))],
            1 << int(bit),
            block.bits,
            signed_words(placement, block),
        )
    return rows, slot


def oracle(placement, machine, codes, rows, slot):
    """(final sums, logits) of every image, hits in the order of the rows."""
    accel, found = placement.accel, []
    for image in range(len(codes)):
        hits = [
            Hit(accel.components[row["component"]].name, *(int(row[name]) for name in FIELDS))
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
    none = no_faults()
    compare(placement, machine_of(placement), codes, none.rows, none.slot, differs=False)


@pytest.mark.parametrize("kinds", [("flip",), ("flip", "stuck0", "stuck1")])
@pytest.mark.parametrize("name", MACHINES)
def test_wrong_stored_words(name, kinds, unsigned, signed):
    program, codes = unsigned if MACHINES[name][0] == "systolic" else signed
    placement = place(program, *MACHINES[name])
    rng = np.random.default_rng(1 + len(kinds))
    for count in (3, 40, 200):
        rows, slot = random_rows(placement, rng, count, kinds=kinds)
        compare(placement, machine_of(placement), codes, rows, slot, differs=count > 3)


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
@pytest.mark.parametrize("component", ["acts", "weights", "psums"])
def test_rows_act_in_their_order_on_one_word(component, flow, unsigned):
    """Stuck bits and flips of one word, for all images and for one, in either order."""
    program, codes = unsigned
    placement = place(program, flow=flow)
    block = next(b for b in placement.blocks if b.component == component and b.layer == 1)
    for word in range(min(block.words, 3)):
        for order in ((-1, 1), (1, -1)):
            rows, slot = np.zeros(2, FAULT), np.array(order)
            rows["layer"], rows["word"] = 1, word
            rows["component"] = placement.accel.component_index(component)
            for row, kind in zip(rows, ("stuck1", "flip")):
                row["and_mask"], row["or_mask"], row["xor_mask"] = masks(
                    kind, 96, block.bits, signed_words(placement, block)
                )
            compare(placement, machine_of(placement), codes, rows, slot, differs=False)


def test_a_weight_and_a_sum_that_one_output_reads(unsigned):
    program, codes = unsigned
    placement = place(program)
    low = placement.lowered[1]
    rng = np.random.default_rng(8)
    for _ in range(10):
        rows = np.zeros(8, FAULT)
        rows["layer"], output = 1, rng.integers(low.outputs)
        rows["component"][:4] = placement.accel.component_index("weights")
        rows["component"][4:] = placement.accel.component_index("psums")
        rows["word"][:4] = L.weight_word(low, 0, rng.integers(0, low.k, 4), output)
        rows["word"][4:] = L.psum_word(low, 0, rng.integers(0, low.m, 4), output)
        rows["first"][4:] = rng.integers(0, placement.folds(1), 4)
        rows["and_mask"], rows["xor_mask"] = -1, 1 << rng.integers(0, 7, 8)
        rows = rng.permutation(rows)
        slot = rng.integers(-1, IMAGES, 8)
        compare(placement, machine_of(placement), codes, rows, slot, differs=False)


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_activations_that_do_not_fit_are_fetched_again(flow, unsigned):
    program, codes = unsigned
    placement = place(program, flow=flow, **{"buffers.acts.kib": 8 / 1024})  # four codes
    stored = [op.index for op in program.ops[:-1] if op.stores]
    assert not any(placement.kept(program.ops[i]) for i in stored)
    rng = np.random.default_rng(11)
    machine = machine_of(placement, fetched=stored)
    for components in (("acts",), None):
        for count in (2, 20, 120):
            rows, slot = random_rows(placement, rng, count, components=components)
            compare(placement, machine, codes, rows, slot, differs=count > 2)


@pytest.mark.parametrize("flow", ["os", "is"])
def test_weights_that_do_not_fit_are_fetched_again(flow, unsigned):
    program, codes = unsigned
    for acts in (64, 8 / 1024):
        overrides = {"buffers.weights.kib": 30 / 1024, "buffers.acts.kib": acts}
        placement = place(program, flow=flow, **overrides)
        large = {op.index for op in program.array_ops if op.weight.size * 8 > 120}
        assert large == {1, 2, 4, 7}
        fetched = {op.index for op in program.ops} if acts < 1 else set()
        rng = np.random.default_rng(13)
        machine = machine_of(placement, fetched, large)
        for components in (("weights",), None):
            for count in (3, 80):
                rows, slot = random_rows(placement, rng, count, components=components)
                compare(placement, machine, codes, rows, slot, differs=count > 3)


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_sums_at_the_ends_of_narrow_accumulators(flow, overflow):
    """Hits on high bits of 18-bit sums, so that later additions overflow."""
    program, codes = network(acc_bits=18)
    placement = place(program, flow=flow, acc_bits=18, overflow=overflow)
    rng = np.random.default_rng(17)
    for count in (4, 60):
        rows, slot = random_rows(placement, rng, count, components=("psums", "weights"))
        struck = rows["component"] == placement.accel.component_index("psums")
        rows["xor_mask"][struck] = masks("flip", 1 << 16, 18, True)[2]
        compare(placement, machine_of(placement), codes, rows, slot)


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_the_golden_run_saturates_where_adders_do(flow):
    program, _ = network(acc_bits=16)
    layer = program.array_ops[1]
    largest = np.sign(layer.weight) * 127
    program = P.with_weights(program, {layer.index: largest})
    placement = place(program, flow=flow, acc_bits=16, overflow="saturate")
    images = np.random.default_rng(5).uniform(0, 4, (2, *program.input.shape)).astype(np.float32)
    codes = P.run(program, images, keep=[0]).kept[0]
    want, _ = oracle(placement, machine_of(placement), codes, np.zeros(0, FAULT), [])
    np.testing.assert_array_equal(golden_run(placement, images, np.zeros(2, int)).acc, want)
    assert (P.run(program, images).acc != want).any()


# --- registers --------------------------------------------------------------------------


class Sums:
    """Keeps what the engine answers for one layer, with the operands it saw.

    Without `part`, so that it sees the whole batch at once.
    """

    def __init__(self, layer, *arguments):
        self.engine = FaultHooks(*arguments)
        self.stored, self.loaded = self.engine.stored, self.engine.loaded
        self.layer = layer

    def accumulated(self, op, inputs, acc):
        replaced = self.engine.accumulated(op, inputs, acc)
        if op.index == self.layer:
            self.inputs = [codes.copy() for codes in inputs]
            self.final = acc.astype(np.int64) + op.bias
            if replaced is not None:
                assert len(np.unique(replaced[0])) == len(replaced[0])
                self.final.reshape(-1)[replaced[0]] = replaced[1]
        return replaced


def random_register_rows(placement, layer, rng, count):
    """FAULT rows of the layer on PE components, cycles counted over all its groups."""
    accel, low = placement.accel, placement.lowered[layer]
    cycles, found = placement.group_cycles(layer), []
    unsigned_codes = not placement.program.ops[placement.program.ops[layer].inputs[0]].signed
    parts = [c for c in accel.components if c.kind != "memory"]
    for _ in range(count):
        part = parts[rng.integers(len(parts))]
        stuck = rng.random() < 0.2
        fault = Fault(
            part.name, int(rng.integers(accel.rows)), int(rng.integers(accel.cols)),
            bit=int(rng.integers(part.bits)), kind="stuck1" if stuck else "flip",
            cycle=None if stuck and rng.random() < 0.5 else int(rng.integers(cycles)),
        )  # fmt: skip
        rows = rows_of([fault], accel, cycles, unsigned_ifmap=unsigned_codes)
        shift = int(rng.integers(low.groups)) * cycles
        rows["layer"] = layer
        for name in ("first", "last"):
            if rows[name][0] not in (-1, FOREVER):
                rows[name] += shift
        found.append(rows)
    return np.concatenate(found)


def by_cycles(placement, layer, codes, rows):
    """(positions, outputs) sums of one image by the cycle model, one group after another."""
    program, accel = placement.program, placement.accel
    op, low = program.ops[layer], placement.lowered[layer]
    cycles = placement.group_cycles(layer)
    if not program.ops[op.inputs[0]].signed:
        accel = dataclasses.replace(accel, operand_bits=accel.operand_bits + 1)
    bias = np.broadcast_to(op.bias, low.outputs)
    parts = []
    for group in range(low.groups):
        a, b = L.moving_matrix(low, op, codes, group), L.weight_matrix(low, op, None, group)
        d = np.tile(bias[group * low.n : (group + 1) * low.n], (low.m, 1))
        begin, end = group * cycles, (group + 1) * cycles
        mine = [row.copy() for row in rows if row["first"] < end and row["last"] >= begin]
        for row in mine:
            row["first"] = max(row["first"] - begin, -1)
            row["last"] -= 0 if row["last"] == FOREVER else begin
        table = fault_table(np.array(mine, FAULT))
        parts.append(accel.cycle.run(accel, a, b, d, table, False)[0])
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("name", MACHINES)
def test_register_faults_are_those_of_the_cycle_model(name, unsigned, signed):
    program, codes = unsigned if MACHINES[name][0] == "systolic" else signed
    placement = place(program, *MACHINES[name])
    rng = np.random.default_rng(23)
    changed = 0
    for layer in (1, 4, 7):  # strided, grouped, linear
        clean = Sums(layer, placement, no_faults())
        P.run(program, codes, hooks=clean)
        for count in (3, 12):
            rows = random_register_rows(placement, layer, rng, count)
            slot = rng.integers(-1, 2, count)
            hooks = Sums(layer, placement, Batch(rows, slot))
            P.run(program, codes, hooks=hooks)
            for image in range(2):
                mine = rows[(slot == -1) | (slot == image)]
                want = by_cycles(placement, layer, hooks.inputs[0][image], mine)
                got = hooks.final[image].reshape(want.shape)
                np.testing.assert_array_equal(got, want, err_msg=f"{name} {layer} {mine}")
                changed += (want != clean.final[image].reshape(want.shape)).any()
    assert changed > 1


@pytest.mark.parametrize("name", ["ws", "os", "is"])
def test_backends_agree(name, unsigned):
    program, codes = unsigned
    placement = place(program, *MACHINES[name])
    rng = np.random.default_rng(29)
    rows = np.concatenate(
        [random_register_rows(placement, op.index, rng, 4) for op in program.array_ops]
    )
    slot = rng.integers(0, IMAGES, len(rows))
    found = [
        P.run(program, codes, hooks=FaultHooks(placement, Batch(rows, slot), backend)).acc
        for backend in ("auto", "tile", "reference")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != P.run(program, codes).acc).any()


# --- addresses --------------------------------------------------------------------------

GEOMETRIES = [
    L.Lowered(1, 12, 27, 4, 7, 6, 3, 4, 3, 4, 3, 3, (2, 2), (1, 1)),
    L.Lowered(4, 30, 9, 1, 6, 5, 4, 6, 5, 4, 3, 3, (1, 1), (1, 1)),
    L.Lowered(2, 15, 12, 3, 6, 5, 4, 5, 3, 6, 2, 3, (1, 2), (1, 1), (2, 1)),
    L.Lowered(1, 1, 24, 5, 1, 1, 24, 1, 1, 5),
]
HEADS = L.Lowered(3, 4, 5, 2, 4, 1, 5, 4, 1, 2)  # of a matmul


@pytest.mark.parametrize("low", GEOMETRIES)
def test_uses_is_the_inverse_of_word_addresses(low):
    want = {}
    for group in range(low.groups):
        addresses = L.word_addresses(low, group)
        assert addresses.shape == (low.m, low.k)
        for m, k in zip(*np.nonzero(addresses >= 0)):
            want.setdefault(int(addresses[m, k]), []).append((group, int(m), int(k)))
    for word in range(low.h * low.w * low.c):
        assert sorted(L.uses(low, word)) == sorted(want.get(word, []))


@pytest.mark.parametrize("low", [*GEOMETRIES, HEADS])
def test_sum_words_and_positions_are_inverses(low):
    words = np.arange(low.groups * low.m * low.n)
    group, m, n = L.psum_position(low, words)
    assert group.max() < low.groups and m.max() < low.m and n.max() < low.n
    np.testing.assert_array_equal(L.psum_word(low, group, m, n), words)


@pytest.mark.parametrize("low", GEOMETRIES)
def test_weight_words_and_positions_are_inverses(low):
    words = np.arange(low.groups * low.k * low.n)
    group, k, n = L.weight_position(low, words)
    assert group.max() < low.groups and k.max() < low.k and n.max() < low.n
    np.testing.assert_array_equal(L.weight_word(low, group, k, n), words)


def test_weight_words_are_those_of_the_lowered_matrix(unsigned):
    program, _ = unsigned
    for op in program.array_ops:
        low = L.lower(program, op)
        for group in range(low.groups):
            k, n = np.meshgrid(np.arange(low.k), np.arange(low.n), indexing="ij")
            want = op.weight.reshape(-1)[L.weight_word(low, group, k, n)]
            np.testing.assert_array_equal(L.weight_matrix(low, op, None, group), want)


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_fetched_words_are_those_that_products_read(flow, unsigned):
    """Every site of a fetched map is read in that fetch, and none is counted twice."""
    program, _ = unsigned
    placement = place(program, flow=flow, **{"buffers.acts.kib": 8 / 1024})
    rows, cols, checked = placement.accel.rows, placement.accel.cols, 0
    for block in placement.blocks:
        if block.word is None:
            continue
        low, want = placement.lowered[block.layer], set()
        folds, n_tiles = math.ceil(low.k / rows), math.ceil(low.n / cols)
        m_tiles = math.ceil(low.m / (rows if flow == "os" else cols))
        for word in range(low.h * low.w * low.c):
            for group, m, k in L.uses(low, word):
                if flow == "os":
                    fetches = [group * m_tiles + m // rows]
                elif flow == "ws":
                    fetches = [(group * n_tiles + t) * folds + k // rows for t in range(n_tiles)]
                else:
                    fetches = [(group * m_tiles + m // cols) * folds + k // rows]
                want |= {(1 + fetch, word) for fetch in fetches}
        assert set(zip(block.residency.tolist(), block.word.tolist())) == want
        assert block.exposed_words == len(want)
        checked += 1
    assert checked > 2
