"""Networks on `nvdla-small-like`: its order of channels, its limits, faults in layers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import OneFlip
from fsim.fault_models.explicit import rows_of
from fsim.fault_models.upsets import SingleFault, UpsetRate
from fsim.simulator import lower as L
from fsim.simulator import program as P
from fsim.simulator.batch import Batch, no_faults
from fsim.simulator.campaign.evaluate import Evaluator
from fsim.simulator.campaign.population import SingleFaults
from fsim.simulator.draws import Draws
from fsim.simulator.engine import FaultHooks, clean_hooks
from fsim.simulator.sites import Placement, select
from fsim.simulator.statistics import Outcome
from fsim.simulator.walks import register_sums, walkable
from fsim.types import FAULT, FOREVER, Fault, fault_table
from tests import naive_network
from tests.naive_network import Hit
from tests.test_delta import IMAGES as STORED
from tests.test_delta import made
from tests.test_engine import FIELDS, IMAGES, network, random_rows

ROWS, COLS, STRIPE = 4, 2, 3


def machine(**overrides):
    return load_accel(
        "nvdla-small-like", None,
        {"rows": ROWS, "cols": COLS, "parameters.stripe": STRIPE, **overrides},
    )  # fmt: skip


@pytest.fixture(scope="module")
def signed():
    return network(unsigned=False, acc_bits=34)


def place(program, **overrides):
    return Placement(program, machine(**overrides))


def order(op, channels, block):
    """(kernel row, kernel column, channel) of each multiply-add, None where there is no channel."""
    *_, kernel_h, kernel_w = op.weight.shape if op.weight.ndim == 4 else (1, 1)
    if (kernel_h, kernel_w) == (1, 1):
        return [(0, 0, c) for c in range(channels)]
    return [
        (ky, kx, c0 + c if c0 + c < channels else None)
        for c0 in range(0, channels, block)
        for ky in range(kernel_h)
        for kx in range(kernel_w)
        for c in range(block)
    ]


def restated_sums(op, kind, codes, accel, faults, fetched):
    """[position][output] final sums of one image: blocks of channels, held at 34 and 32 bits."""
    if kind == "Linear":
        codes, weight = codes.reshape(1, 1, -1), op.weight.reshape(*op.weight.shape, 1, 1)
        groups, stride, pad, dilation, out_h, out_w = 1, (1, 1), (0, 0), (1, 1), 1, 1
    else:
        weight, groups, stride, dilation = op.weight, op.groups, op.stride, op.dilation
        pad = (op.padding[2], op.padding[0])
        _, out_h, out_w = op.shape
    height, width, channels = codes.shape
    outputs, per_group, kernel_h, kernel_w = weight.shape
    slots = order(op, per_group, accel.cols)

    def held(value, bits):
        return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, value))

    result = []
    for m in range(out_h * out_w):
        line = []
        for output in range(outputs):
            group, total = output // (outputs // groups), 0
            for k0 in range(0, len(slots), accel.cols):
                part = 0
                for ky, kx, c in slots[k0 : k0 + accel.cols]:
                    y = m // out_w * stride[0] + ky * dilation[0] - pad[0]
                    x = m % out_w * stride[1] + kx * dilation[1] - pad[1]
                    if c is None or not (0 <= y < height and 0 <= x < width):
                        continue
                    channel = group * per_group + c
                    value = int(codes[y][x][channel])
                    if fetched:
                        word = (y * width + x) * channels + channel
                        value = faults.read(value, "acts", op.index, word, 1 + group)
                    word = ((output * per_group + c) * kernel_h + ky) * kernel_w + kx
                    factor = int(weight[output][c][ky][kx])
                    part += value * faults.read(factor, "weights", op.index, word, 0)
                total = held(total + part, accel.acc_bits)
                if k0 + accel.cols < len(slots):  # the last sum is delivered, not stored
                    word = m * outputs + output
                    total = faults.read(total, "psums", op.index, word, k0 // accel.cols)
                    total = naive_network.wrapped(total, accel.acc_bits)
            line.append(held(total, 32) + int(np.broadcast_to(op.bias, outputs)[output]))
        result.append(line)
    return result


# Order and geometry ----------------------------------------------------------------------------

GEOMETRIES = [
    L.Lowered(1, 12, 36, 4, 7, 6, 3, 4, 3, 4, 3, 3, (2, 2), (1, 1), block=2),
    L.Lowered(4, 30, 18, 1, 6, 5, 4, 6, 5, 4, 3, 3, (1, 1), (1, 1), block=2),
    L.Lowered(2, 15, 12, 3, 6, 5, 4, 5, 3, 6, 2, 3, (1, 2), (1, 1), (2, 1), block=2),
    L.Lowered(1, 25, 72, 5, 5, 5, 3, 5, 5, 5, 3, 3, (1, 1), (1, 1), block=8),
]


@pytest.mark.parametrize("low", GEOMETRIES)
def test_blocks_of_channels_are_counted_over_the_window(low):
    class Shape:
        weight = np.zeros((low.n, low.channels, low.kernel_h, low.kernel_w))

    slots = order(Shape, low.channels, low.block)
    assert len(slots) == low.k
    ky, kx, c = L.window_slots(low)
    found = [(y, x, None if z < 0 else z) for y, x, z in zip(ky.tolist(), kx.tolist(), c.tolist())]
    assert found == slots
    plain = L.plain(low)
    assert low.macs == plain.macs == low.groups * low.m * plain.k * low.n
    for group in range(low.groups):
        addresses, straight = L.word_addresses(low, group), L.word_addresses(plain, group)
        for k, (y, x, z) in enumerate(slots):
            want = -1 if z is None else straight[:, (y * low.kernel_w + x) * low.channels + z]
            np.testing.assert_array_equal(addresses[:, k], want)
    want = {}
    for group in range(low.groups):
        for (m, k), word in np.ndenumerate(L.word_addresses(low, group)):
            if word >= 0:
                want.setdefault(int(word), set()).add((group, m, k))
    for word in range(low.h * low.w * low.c):
        assert set(L.uses(low, word)) == want.get(word, set())


@pytest.mark.parametrize("low", GEOMETRIES)
def test_weight_words_of_blocks_and_back(low):
    words = np.arange(low.outputs * low.channels * low.kernel_h * low.kernel_w)
    group, k, n = L.weight_position(low, words)
    np.testing.assert_array_equal(L.weight_word(low, group, k, n), words)

    class Numbered:
        weight = words.reshape(low.outputs, low.channels, low.kernel_h, low.kernel_w) + 1

    for g in range(low.groups):
        matrix = L.weight_matrix(low, Numbered, None, g)
        assert matrix.shape == (low.k, low.n)
        mine = group == g
        assert (matrix[k[mine], n[mine]] == words[mine] + 1).all()
        assert np.count_nonzero(matrix) == mine.sum()


def test_layers_take_the_cycles_of_their_blocks(signed):
    placement = place(signed[0])
    for op in signed[0].array_ops:
        low = placement.lowered[op.index]
        blocks = -(-len(order(op, low.channels, COLS)) // COLS)
        passes = [
            (min(ROWS, low.n - n0), min(STRIPE, low.m - m0))
            for n0 in range(0, low.n, ROWS)
            for m0 in range(0, low.m, STRIPE)
        ]
        want = low.groups * blocks * sum(kernels + 1 + pixels + 8 for kernels, pixels in passes)
        assert placement.cycles(op.index) == want
        assert placement.folds(op.index) == blocks - 1


def test_residencies_are_those_of_one_fetch(signed):
    roomy, tight = place(signed[0]), place(signed[0], **{"buffers.acts.kib": 0.0625})
    for block in roomy.blocks:
        if block.component == "psums":
            assert block.residencies == roomy.folds(block.layer)
        else:
            assert block.residencies == 1
    fetched = [block for block in tight.blocks if block.component == "acts" and block.first]
    assert fetched
    for block in fetched:
        groups = tight.lowered[block.layer].groups if block.layer in tight.lowered else 1
        numbers = {block.first} if block.word is None else set(block.residency.tolist())
        assert numbers == set(range(block.first, block.first + groups))


# Whole networks ----------------------------------------------------------------------------------


def test_without_faults_sums_are_plain(signed):
    program, codes = signed
    placement = place(program)
    assert clean_hooks(placement) is None
    found = P.run(program, codes, hooks=FaultHooks(placement, no_faults()))
    np.testing.assert_array_equal(found.acc, P.run(program, codes).acc)


@pytest.mark.parametrize("kib", [64, 0.0625])
@pytest.mark.parametrize("seed", range(3))
def test_errors_in_memories_are_those_of_a_naive_network(signed, seed, kib, monkeypatch):
    program, codes = signed
    placement = place(program, **{"buffers.acts.kib": kib})
    accel = placement.accel
    accel_fetched = {
        op.index for op in program.ops if op.stores and not placement.kept(op)
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    rows, slot = random_rows(placement, rng, 60, kinds=("flip", "stuck0", "stuck1"))
    found = P.run(program, codes, hooks=FaultHooks(placement, Batch(rows, slot)))

    monkeypatch.setattr(naive_network, "array_sums", restated_sums)
    accel_like = type("Machine", (), {"fetched": accel_fetched, "acc_bits": accel.acc_bits,
                                      "cols": accel.cols})()  # fmt: skip
    clean, changed = P.run(program, codes), 0
    for image in range(IMAGES):
        hits = [
            Hit(accel.components[row["component"]].name, *(int(row[name]) for name in FIELDS))
            for row, s in zip(rows, slot) if s in (-1, image)
        ]  # fmt: skip
        sums, logits, _ = naive_network.run(program, codes[image], accel_like, hits)
        np.testing.assert_array_equal(found.acc[image].reshape(-1), sums)
        np.testing.assert_array_equal(found.logits[image].reshape(-1), logits)
        changed += (sums != clean.acc[image].reshape(-1)).any()
    assert changed


def product(op, low, codes, group, block):
    """(a, b) of one group's product in the machine's order, element by element."""
    weight = op.weight.reshape(low.outputs, low.channels, low.kernel_h, low.kernel_w)
    slots = order(op, low.channels, block)
    held = codes.reshape(low.h, low.w, low.c)
    a = np.zeros((low.m, len(slots)), np.int64)
    b = np.zeros((len(slots), low.n), np.int64)
    for k, (ky, kx, c) in enumerate(slots):
        if c is None:
            continue
        b[k] = weight[group * low.n : (group + 1) * low.n, c, ky, kx]
        for m in range(low.m):
            y = m // low.out_w * low.stride[0] + ky * low.dilation[0] - low.padding[0]
            x = m % low.out_w * low.stride[1] + kx * low.dilation[1] - low.padding[1]
            if 0 <= y < low.h and 0 <= x < low.w:
                a[m, k] = held[y, x, group * low.channels + c]
    return a, b


def random_faults(placement, layer, rng, count, control=True):
    accel, low = placement.accel, placement.lowered[layer]
    cycles, found = placement.group_cycles(layer), []
    backend = "reference" if control else "replay"
    parts = [c for c in accel.components if backend in c.backends]
    for _ in range(count):
        part = parts[rng.integers(len(parts))]
        stuck = rng.random() < 0.2
        height, width, _ = accel.grid(part)
        fault = Fault(
            part.name, int(rng.integers(height)), int(rng.integers(width)),
            bit=int(rng.integers(part.bits)), kind="stuck1" if stuck else "flip",
            cycle=None if stuck and rng.random() < 0.5 else int(rng.integers(cycles)),
        )  # fmt: skip
        rows = rows_of([fault], accel, cycles)
        rows["layer"] = layer
        shift = int(rng.integers(low.groups)) * cycles
        for name in ("first", "last"):
            if rows[name][0] not in (-1, FOREVER):
                rows[name] += shift
        found.append(rows)
    return np.concatenate(found)


@pytest.mark.parametrize("control", [False, True])
def test_register_faults_in_layers_are_those_of_the_cycle_model(signed, control):
    program, codes = signed
    placement = place(program)
    accel, rng, changed = placement.accel, np.random.default_rng(7), 0
    wanted = [op.index for op in program.ops[:-1]]
    products = [op.index for op in program.array_ops]
    run = P.run(program, codes, keep=wanted, keep_acc=products)
    for op in program.array_ops:
        low, cycles = placement.lowered[op.index], placement.group_cycles(op.index)
        for _ in range(3):
            rows = random_faults(placement, op.index, rng, 6, control)
            hooks = FaultHooks(placement, Batch(rows, np.zeros(len(rows), np.int64)))
            inputs = tuple(run.kept[i][:1] for i in op.inputs)
            acc = run.kept_acc[op.index][:1]
            pairs = hooks.accumulated(op, inputs, acc)
            bias = np.broadcast_to(op.bias, low.outputs)
            found = acc.reshape(low.m, low.outputs).astype(np.int64) + bias
            plain = found.copy()
            found.reshape(-1)[pairs[0]] = pairs[1]
            for group in range(low.groups):
                a, b = product(op, low, inputs[0][0], group, COLS)
                begin = group * cycles
                mine = np.array(
                    [row for row in rows if row["first"] < begin + cycles and row["last"] >= begin],
                    FAULT,
                )
                mine["first"] = np.maximum(mine["first"] - begin, -1)
                mine["last"] -= np.where(mine["last"] == FOREVER, 0, begin)
                part = slice(group * low.n, (group + 1) * low.n)
                d = np.tile(bias[part], (low.m, 1)).astype(np.int64)
                want = accel.cycle.run(accel, a, b, d, fault_table(mine))[0]
                np.testing.assert_array_equal(found[:, part], want)
            changed += (found != plain).any()
    assert changed > 5


def test_logits_are_the_same_by_every_backend(signed):
    program, codes = signed
    placement = place(program)
    rng = np.random.default_rng(29)
    rows = np.concatenate([random_faults(placement, op.index, rng, 4) for op in program.array_ops])
    slot = rng.integers(0, IMAGES, len(rows))
    found = [
        P.run(program, codes, hooks=FaultHooks(placement, Batch(rows, slot), backend))
        for backend in ("auto", "tile", "reference")
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].logits, other.logits)
    assert (found[0].acc != P.run(program, codes).acc).any()


# Campaigns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "everything"])
@pytest.mark.parametrize("kind", ["flip", "seu", "mbu", "transient", "intermittent"])
def test_differences_are_whole_inferences(name, kind):
    placement, images = made(name, unsigned=False, acc_bits=34)
    placement = place(placement.program)
    model = OneFlip() if kind == "flip" else SingleFault(kind)
    faults = SingleFaults(select(placement), model, STORED, stratify=("layer", "component"))
    each = {"flip": 12, "transient": 80}.get(kind, 4)  # of the one net in each layer
    drawn = faults.draw(np.arange(len(faults.frame.strata) * each))
    labels = np.arange(STORED) % 4
    got, wanted = (
        Evaluator(placement, images, labels, way=way).outcomes(drawn)
        for way in ("differences", "whole")
    )
    for column in wanted.dtype.names:
        np.testing.assert_array_equal(got[column], wanted[column], column)
    seen = set(wanted["outcome"].tolist())
    assert Outcome.MASKED in seen and len(seen) > 1


@pytest.mark.parametrize("kind", ["seu", "transient", "intermittent"])
def test_many_inferences_at_once_are_those_of_one(kind):
    placement, images = made("everything", unsigned=False, acc_bits=34)
    placement = place(placement.program)
    program = placement.program
    served = [c.name for c in placement.accel.components if "replay" in c.backends]
    space = select(placement, None, served)
    cells = SingleFault(kind).cells(space)
    wanted = [op.index for op in program.array_ops]
    run = P.run(program, images, keep=[op.index for op in program.ops[:-1]], keep_acc=wanted)
    rng, changed = np.random.default_rng(2), 0
    for op in program.array_ops:
        mine = [i for i, cell in enumerate(cells) if cell.layer == op.index]
        which = rng.choice(mine, 20)
        word = np.array([rng.integers(cells[w].words) for w in which])
        bit = np.array([rng.integers(cells[w].bits) for w in which])
        rows = SingleFault(kind).rows_at(space, cells, which, word, bit)
        assert walkable(placement, op, rows).all()
        slot = rng.integers(0, len(images), len(rows))
        codes, acc = run.kept[op.inputs[0]], run.kept_acc[op.index]
        fault, index, value = register_sums(placement, op, codes, acc, rows, slot)
        for i in range(len(rows)):
            some = slice(slot[i], slot[i] + 1)
            hooks = FaultHooks(placement, Batch(rows[i : i + 1], np.zeros(1, np.int64)))
            found = hooks.accumulated(op, (codes[some],), acc[some])
            pairs = {} if found is None else dict(zip(*(part.tolist() for part in found)))
            here = fault == i
            assert dict(zip(index[here].tolist(), value[here].tolist())) == pairs
            changed += len(pairs)
    assert changed > 10


def test_registers_of_a_half_are_drawn_once(signed):
    """Their sites are half as many as rows say, and faults name the first row of a half."""
    placement = place(signed[0])
    space = select(placement, None, ["wt_pre", "dat_pre"])
    for site in space.registers:
        assert site.sites == 2 * COLS * 8 * placement.cycles(site.layer)
    rows = UpsetRate(0.01).rows(space, 0, np.arange(2), Draws(1))
    assert set(rows["row"].tolist()) == {0, ROWS // 2}
    assert set(rows["col"].tolist()) == set(range(COLS))
    total = sum(site.sites for site in space.registers)
    assert abs(len(rows) - 2 * 0.01 * total) < 6 * math.sqrt(2 * 0.01 * total)


# The command line ------------------------------------------------------------------------------


def test_inject_replay_and_explain(fsim, tmp_path):
    options = ("--accel", "nvdla-small-like", "--images", 20, "--trials", 2)
    for number, faults in enumerate(
        (("--ber", "1e-4", "--no-curve"), ("--seu-rate", "1e-7"), ("--fault", "seu"),
         ("--fault", "stuck1"))
    ):  # fmt: skip
        trace = tmp_path / f"{number}.h5"
        result = fsim("inject", *options, *faults, "--trace", trace, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["accuracy"]["clean"] == pytest.approx(1.0, abs=0.051)
        assert fsim("replay", trace).exit_code == 0
