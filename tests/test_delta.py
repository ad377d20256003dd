"""Faults as differences: the same bits as running the whole network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.errors import MappingError
from fsim.simulator import delta as D
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.capture import capture
from fsim.simulator.delta import Changes, Delta
from fsim.simulator.engine import FaultHooks
from fsim.simulator.kernels import delta as K
from fsim.simulator.kernels import delta_rows as R
from fsim.simulator.kernels import delta_table as T
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement
from fsim.types import FAULT, STATE


class Everything(nn.Module):
    """Every operation that differences know, on maps with odd sizes."""

    def __init__(self, width=20):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, 37, (3, 2), (2, 1), (1, 0))
        self.depth = nn.Conv2d(37, 37, 3, padding=2, dilation=2, groups=37)
        self.grouped = nn.Conv2d(40, 70, 3, stride=2, padding=1, groups=2)
        self.point = nn.Conv2d(70, 70, 1)
        self.hidden = nn.Linear(70 * 2, 19)
        self.fc = nn.Linear(19, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu6(self.down(x))
        y = self.depth(x)
        x = F.relu(y + x)
        x = torch.cat([F.max_pool2d(x, 3, 1, 1), F.max_pool2d(x[:, 2:5], 3, 1, 1)], 1)
        z = F.relu(self.grouped(x))
        w = F.relu(self.point(z) + z)
        w = F.avg_pool2d(w, 2)
        w = w + F.pad(w[:, 3:43], (0, 0, 0, 0, 20, 10))
        return self.fc(F.relu(self.hidden(torch.flatten(w, 1))))


class Residual(nn.Module):
    """A shortcut without weights, as in the CIFAR ResNets, and an average at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 32, 3, 2, 1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.b(F.relu(self.a(x)))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Far(nn.Module):
    """Rows of pixels beyond 64 and 128, strides that bits cannot be picked for, far reaches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 72, (1, 5), (1, 2), (0, 40), dilation=(1, 20))
        self.third = nn.Conv2d(8, 72, (2, 4), (1, 3), (0, 7))
        self.fourth = nn.Conv2d(72, 20, 3, (2, 1), 1)
        self.fc = nn.Linear(20, 18)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.max_pool2d(x, (1, 3), (1, 1), (0, 1))
        w, t = self.wide(x), F.relu(self.third(x))
        t = F.pad(t, (5, 17, 1, 0))[:, :, :, : w.shape[3]]
        x = F.relu(self.fourth(w + t))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORKS = {
    "everything": (Everything, (3, 9, 11)),
    "residual": (Residual, (3, 8, 8)),
    "far": (Far, (3, 3, 150)),
}
IMAGES = 5


def made(name, *, unsigned=True, flow="os", acc_bits=32):
    torch.manual_seed(3)
    make, shape = NETWORKS[name]
    model, images = make().eval(), torch.randn(24, *shape).numpy()
    program = quantise(capture(model, images), images, unsigned=unsigned, acc_bits=acc_bits)
    accel = load_accel("systolic", flow, {"rows": 8, "cols": 8})
    return Placement(program, accel), images[:IMAGES]


@pytest.fixture(params=[True, False], ids=["vnni", "portable"])
def instruction(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(D.vnni, "supported", lambda: False)
    elif not D.vnni.supported():
        pytest.skip("needs AVX512-VNNI")
    return request.param


def rows_of(placement, component, layer, word, bit, first=0):
    row = np.zeros(1, FAULT)
    accel = placement.accel
    row["component"], row["layer"], row["word"] = accel.component_index(component), layer, word
    row["first"] = row["last"] = first
    row["row"] = row["col"] = row["image"] = -1
    row["effect"], row["and_mask"], row["xor_mask"] = STATE, -1, 1 << bit
    return row[0]


def whole(placement, images, image, rows):
    """The slow way: the whole network for each fault, on a copy of its image."""
    rows = np.array(rows, FAULT)
    hooks = FaultHooks(placement, Batch(rows, np.arange(len(rows))))
    return P.run(placement.program, images[np.array(image)], hooks=hooks).acc


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_codes_of_every_operation(name, unsigned, instruction):
    placement, images = made(name, unsigned=unsigned)
    program, delta = placement.program, Delta(placement, images)
    kinds = {int(k) for k in delta.tables.ops[:, K.KIND]}
    assert (K.CONV_VNNI in kinds) == instruction and (K.CONV in kinds) != instruction
    rng = np.random.default_rng(0)
    image, rows, changed = [], [], []
    stored = [op for op in program.ops[:-1] if op.stores]
    golden = P.run(program, images, keep=[op.index for op in stored]).kept
    for op in stored:
        for _ in range(12):
            number, bit = int(rng.integers(IMAGES)), int(rng.integers(7))
            codes = golden[op.index][number].reshape(-1)
            word = int(rng.integers(codes.size))
            image.append(number)
            rows.append(rows_of(placement, "acts", op.index, word, bit))
            changed.append((op.index, word, int(codes[word]) ^ (1 << bit)))
    layer, index, code = (np.array(column) for column in zip(*changed))
    struck = Changes(
        np.array(image), layer, np.arange(len(image) + 1), index, code.astype(np.int32)
    )
    wanted = whole(placement, images, image, rows)
    for threads in (1, 2):
        got = delta.propagate(struck, spread=True, threads=threads)
        np.testing.assert_array_equal(got.acc, wanted)
        np.testing.assert_array_equal(got.differs, (wanted != delta.acc[image]).any(1))
        # What was struck differs, and nothing before it does.
        assert (got.spread[np.arange(len(image)), layer] == 1).all()
        assert not any(row[:at].any() for row, at in zip(got.spread, layer))
    assert got.differs.any() and not got.differs.all()


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_accumulators_that_wrap(name, unsigned, instruction):
    placement, images = made(name, unsigned=unsigned, acc_bits=16)
    delta, rng = Delta(placement, images), np.random.default_rng(5)
    narrow = delta.tables.ops[:, T.NARROW]
    products = [op.index for op in placement.program.array_ops[:-1]]
    assert not narrow[products].all()
    image, rows = flips(placement, rng, 8)
    got = delta.propagate(delta.psum_hits(image, rows))
    np.testing.assert_array_equal(got.acc, whole(placement, images, image, rows))
    assert got.differs.any() and not got.differs.all()


def flips(placement, rng, count):
    """(images, rows): bits of accumulators, `count` of each array operation but the last."""
    rows, bits = [], placement.program.acc_bits
    for op in placement.program.array_ops[:-1]:
        for word in rng.integers(np.prod(op.shape), size=count).tolist():
            rows.append(rows_of(placement, "psums", op.index, word, int(rng.integers(bits - 1))))
    return rng.integers(IMAGES, size=len(rows)), np.array(rows, FAULT)


def test_halves_and_additions_beyond_float32(instruction):
    """Quotients that are often halves, and the same in integers that float32 does not hold."""
    placement, images = made("residual", unsigned=False)

    def with_factors(shift):
        ops = []
        for op in placement.program.ops:
            if isinstance(op, P.Add):
                op = replace(op, m0=1 << shift, m1=1 << shift, shift=1 + shift)
            elif isinstance(op, P.AvgPool):
                op = replace(op, m0=1 << shift, shift=4 + shift)
            ops.append(op)
        return Placement(replace(placement.program, ops=tuple(ops)), placement.accel)

    image, rows = flips(placement, np.random.default_rng(6), 100)
    found = []
    for shift, narrow in ((0, True), (20, False)):
        changed = with_factors(shift)
        delta = Delta(changed, images)
        adds = [op.index for op in changed.program.ops if isinstance(op, P.Add)]
        assert (delta.tables.ops[adds, T.NARROW] == narrow).all()
        found.append(delta.propagate(delta.psum_hits(image, rows)).acc)
        np.testing.assert_array_equal(found[-1], whole(changed, images, image, rows))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("seed", range(60))
def test_pixels_that_read_a_changed_one(seed):
    """Lists from rows of bits against a look at every window."""
    rng = np.random.default_rng(seed)
    kh, kw = rng.integers(1, 5), rng.choice([1, 2, 3, 5, 9])
    sh, sw = rng.integers(1, 4), rng.choice([1, 1, 2, 3, 4])
    dh, dw = rng.integers(1, 3), rng.choice([1, 1, 2, 30])
    h, w = rng.integers(1, 9), rng.choice([3, 7, 31, 32, 63, 64, 65, 127, 128, 129, 200])
    top, left = rng.integers(-1, 3), rng.choice([-1, 0, 1, 2, 70])
    oh, ow = int(rng.integers(1, 9)), int(rng.choice([1, 5, 32, 63, 64, 65, 100, 130]))
    ops = np.zeros((2, len(T.FIELDS)), np.int64)
    ops[:, T.B] = -1
    ops[0, [T.H, T.W, T.SPAN, T.ROW, T.PIXEL, T.AT]] = h, w, -(-w // 64), 10000, 40, 7
    ops[1, [T.H, T.W, T.SPAN, T.ROW, T.PIXEL, T.AT]] = oh, ow, -(-ow // 64), 20000, 60, 11
    ops[1, [T.KH, T.KW, T.SH, T.SW, T.TOP, T.LEFT, T.DH, T.DW]] = kh, kw, sh, sw, top, left, dh, dw
    ops[1, T.MASK] = h * ops[0, T.SPAN]
    masks = np.zeros(2 * (ops[1, T.MASK] + oh * ops[1, T.SPAN]), np.uint64)
    changed = np.zeros((h, w), bool)
    for number in (0, 1):
        R.unmark(ops, number)
    for y, x in zip(rng.integers(h, size=6), rng.choice([*range(w), 0, w - 1], size=6)):
        changed[y, x] = True
        R.mark(ops, 0, y, x, masks)
    lists = np.zeros((5, oh * ow + R.MORE), np.int64)
    count = R.list_windows(ops, 1, masks, lists)
    wanted = []
    for y in range(oh):
        for x in range(ow):
            down = [y * sh - top + i * dh for i in range(kh)]
            across = [x * sw - left + j * dw for j in range(kw)]
            reads = itertools.product(down, across)
            if any(0 <= v < h and 0 <= u < w and changed[v, u] for v, u in reads):
                wanted.append((y, x))
    if oh * ow == 1:  # listed without a look
        wanted = [(0, 0)]
    y, x = np.array(wanted, np.int64).reshape(-1, 2).T
    found = lists[:, :count]
    np.testing.assert_array_equal(found[R.PLACE], y << 32 | x)
    window = 7 + (y * sh - top) * 10000 + (x * sw - left) * 40
    np.testing.assert_array_equal(found[R.WINDOW], window)
    np.testing.assert_array_equal(found[R.TARGET], 11 + y * 20000 + x * 60)
    assert not found[R.FLAG].any()
    # Those whose codes differ stay marked, the others do not.
    keep = rng.random(count) < 0.5
    lists[R.FLAG, :count] = keep * (1 << rng.integers(16, size=count))
    R.settle(ops, 1, masks, lists)
    span = int(ops[1, T.SPAN])
    own = masks[ops[1, T.MASK] : ops[1, T.MASK] + oh * span].reshape(oh, span)
    bits = np.unpackbits(own.view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(np.argwhere(bits), np.stack([y, x], 1)[keep])
    low, high = (int(v) for v in ops[1, [T.LOW, T.HIGH]])
    if keep.any():
        assert (low, high) == (y[keep].min(), y[keep].max())
    else:
        assert high == -1


def test_several_wrong_codes_and_codes_that_are_right(instruction):
    placement, images = made("residual")
    program, delta = placement.program, Delta(placement, images)
    op = program.array_ops[0]
    golden = P.run(program, images, keep=[op.index]).kept[op.index]
    rng = np.random.default_rng(1)
    begin, index, code, image, wanted = [0], [], [], [], []
    for count in (0, 1, 7, 300):
        number = int(rng.integers(IMAGES))
        codes = golden[number : number + 1].copy()
        words = rng.permutation(codes.size)[:count]
        new = rng.integers(0, 200, count)
        new[: count // 3] = codes.reshape(-1)[words[: count // 3]]
        codes.reshape(-1)[words] = new
        given = {i: P.run(program, images[number : number + 1], keep=[i]).kept[i]
                 for i in program.live(op.index + 1)} | {op.index: codes}  # fmt: skip
        wanted.append(P.run(program, start=(op.index + 1, given)).acc[0])
        index += words.tolist()
        code += new.tolist()
        begin.append(len(index))
        image.append(number)
    struck = Changes(
        np.array(image), np.full(4, op.index), np.array(begin), np.array(index, np.int64),
        np.array(code, np.int32),
    )  # fmt: skip
    got = delta.propagate(struck)
    np.testing.assert_array_equal(got.acc, np.array(wanted))
    assert not got.differs[0] and got.differs[3]


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_hits_in_partial_sums(flow, instruction):
    placement, images = made("everything", flow=flow)
    delta, rng = Delta(placement, images), np.random.default_rng(2)
    image, rows = [], []
    for op in placement.program.array_ops[:-1]:
        for _ in range(15):
            word = int(rng.integers(np.prod(op.shape)))
            fold = int(rng.integers(placement.folds(op.index)))
            rows.append(rows_of(placement, "psums", op.index, word, int(rng.integers(31)), fold))
            image.append(int(rng.integers(IMAGES)))
    image, rows = np.array(image), np.array(rows, FAULT)
    got = delta.propagate(delta.psum_hits(image, rows))
    np.testing.assert_array_equal(got.acc, whole(placement, images, image, rows))
    assert got.differs.any() and not got.differs.all()


def test_nothing_is_left_behind():
    """The same faults in any order and number give the same answers."""
    placement, images = made("everything")
    delta, rng = Delta(placement, images), np.random.default_rng(4)
    op = placement.program.array_ops[1]
    words = rng.integers(np.prod(op.shape), size=40)
    rows = np.array([rows_of(placement, "psums", op.index, int(w), 14) for w in words], FAULT)
    image = rng.integers(IMAGES, size=40)
    first = delta.propagate(delta.psum_hits(image, rows))
    order = rng.permutation(40)
    again = delta.propagate(delta.psum_hits(image[order], rows[order]))
    np.testing.assert_array_equal(again.acc, first.acc[order])
    empty = delta.propagate(delta.psum_hits(image[:0], rows[:0]))
    assert empty.acc.shape == (0, 5) and len(empty.differs) == 0


def test_what_differences_cannot_express_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc((x @ x.transpose(1, 2) @ x).mean(1))

    images = torch.randn(16, 4, 6).numpy()
    program = quantise(capture(Attention(), images), images)
    with pytest.raises(MappingError, match="not carried as differences"):
        Delta(Placement(program, load_accel("systolic")), images)
    images = torch.randn(16, 3, 8, 8).numpy()
    program = quantise(capture(nn.Conv2d(3, 4, 3), images), images)
    with pytest.raises(MappingError, match="end in a linear layer"):
        Delta(Placement(program, load_accel("systolic")), images)
