"""Faults as differences: the same bits as running the whole network."""

from __future__ import annotations

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


NETWORKS = {"everything": (Everything, (3, 9, 11)), "residual": (Residual, (3, 8, 8))}
IMAGES = 5


def made(name, *, unsigned=True, flow="os"):
    torch.manual_seed(3)
    make, shape = NETWORKS[name]
    model, images = make().eval(), torch.randn(24, *shape).numpy()
    program = quantise(capture(model, images), images, unsigned=unsigned)
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
