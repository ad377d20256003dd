"""Networks on the row-stationary machine: clean arithmetic, faults, campaigns, command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fsim as public
from fsim.accel_models.eyeriss.mapping import place as mapping_of
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError, MappingError
from fsim.session import open_session, placed_network
from fsim.simulator import exact, lower, truncation
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.campaign.evaluate import Evaluator
from fsim.simulator.delta import Delta
from fsim.simulator.engine import FaultHooks, clean_hooks
from fsim.simulator.sites import Placement, check_rows
from fsim.types import FAULT, FOREVER, LEVEL, STATE

SMALL = {
    "rows": 5, "cols": 3, "parameters.ifmap_words": 4, "parameters.filter_words": 14,
    "parameters.psum_words": 3, "buffers.acts.kib": 0.03125, "buffers.weights.kib": 0.03125,
}  # fmt: skip
"""So small that weights and maps are fetched again and again."""


class Net(nn.Module):
    """Strided, depthwise and grouped convolutions, a sum, a product of activations, linear."""

    def __init__(self, attention=True):
        super().__init__()
        self.attention = attention
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.depth = nn.Conv2d(4, 4, (3, 2), padding=(1, 1), groups=4)
        self.grouped = nn.Conv2d(4, 6, (2, 1), groups=2, padding=(1, 0))
        self.fc = nn.Linear(6, 4)
        self.head = nn.Linear(16 if attention else 4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.depth(x)[..., :-1] + x)
        x = F.avg_pool2d(F.relu(self.grouped(x)), 2)
        x = self.fc(torch.flatten(x, 2).transpose(1, 2))
        if self.attention:
            x = torch.flatten(torch.matmul(x, x.transpose(1, 2)), 1)
            return self.head(F.pad(x, (0, 16 - x.shape[1])))
        return self.head(x.mean(1))


class Plain(nn.Module):
    """Layers that differences could carry, were their products whole."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 4, 3, 2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def networked(model, shape, overrides, images=24, seed=3):
    torch.manual_seed(seed)
    seen = torch.randn(images, *shape).numpy()
    accel = load_accel("eyeriss-like", overrides=overrides)
    placed = placed_network(model, seen, accel, None)
    return placed.placement, seen


def small_net(attention=False, **overrides):
    torch.manual_seed(1)
    return networked(Net(attention), (3, 8, 6), SMALL | overrides)


def wrapped(value, bits=16):
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def array_sums(placement, op, inputs):
    """(groups, m, n) sums with bias of one image, wrapped at every addition."""
    low = placement.lowered[op.index]
    out = np.zeros((low.groups, low.m, low.n), np.int64)
    for group in range(low.groups):
        a = lower.moving_matrix(low, op, inputs[0], group)
        b = lower.weight_matrix(low, op, inputs[1] if len(inputs) > 1 else None, group)
        bias = np.broadcast_to(op.bias, low.outputs)
        bias = bias[group * low.n :] if low.outputs == low.groups * low.n else bias
        for m, n in np.ndindex(low.m, low.n):
            total = wrapped(int(bias[n]))
            for k in range(low.k):
                total = wrapped(total + wrapped(int(a[m, k]) * int(b[k, n]) >> op.truncate))
            out[group, m, n] = total
    return out


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("bits", [16, 8])
def test_wrapping_once_is_wrapping_every_product_and_every_sum(attention, bits):
    placement, seen = small_net(attention, operand_bits=bits)
    program = placement.program
    assert program.truncated and clean_hooks(placement) is None
    every = [op.index for op in program.ops]
    array = [op.index for op in program.array_ops]
    result = P.run(program, seen[:2], keep=every, keep_acc=array)
    for op in program.array_ops:
        low = placement.lowered[op.index]
        for image in range(2):
            inputs = [result.kept[i][image] for i in op.inputs]
            want = array_sums(placement, op, inputs)
            g, m, n = np.indices(want.shape)
            got = result.kept_acc[op.index][image].reshape(-1)[lower.psum_word(low, g, m, n)]
            bias = np.broadcast_to(op.bias, low.outputs)
            which = g * low.n + n if low.outputs == low.groups * low.n else n
            np.testing.assert_array_equal(wrapped(got + bias[which]), want, op.name)


def test_extreme_codes_wrap_and_the_sums_are_still_those_of_the_machine():
    """Operands at the ends of their range, so that products and sums wrap many times."""
    rng = np.random.default_rng(0)
    for truncate in (1, 2, 7, 15):
        ends = [-32768, 32767, -21846, 12345]
        weight = rng.choice(ends, (3, 5, 2, 2))
        codes = rng.choice(ends, (1, 4, 4, 5)).astype(np.int16)
        problem = exact.Problem("conv", (-32768, 32767), weight, truncate=truncate)
        got = exact.prepare(problem)(codes)
        assert exact.choose(problem).name == "truncated"
        wraps = 0
        for y, x, o in np.ndindex(3, 3, 3):
            total = 0
            for c, ky, kx in np.ndindex(5, 2, 2):
                product = int(codes[0, y + ky, x + kx, c]) * int(weight[o, c, ky, kx]) >> truncate
                wraps += not -32768 <= total + wrapped(product) < 32768
                total = wrapped(total + wrapped(product))
            assert wrapped(int(got[0, y, x, o])) == total
        assert wraps > 20


def random_rows(placement, rng, count, images=2):
    """FAULT rows anywhere: registers, nets, words of every memory, flips and lasting faults."""
    accel, rows = placement.accel, np.zeros(count, FAULT)
    registers = placement.register_sites
    for row in rows:
        row["image"] = rng.integers(-1, images)
        row["and_mask"] = -1
        if rng.random() < 0.5:
            site = registers[rng.integers(len(registers))]
            height, width, words = site.grid
            row["layer"] = site.layer if rng.random() < 0.8 else -1
            row["component"], bits = site.component, site.bits
            low = placement.lowered[site.layer]
            mapping = mapping_of(accel, low)
            height = min(height, mapping.chain * mapping.filter_sets)
            row["row"], row["col"] = rng.integers(height), rng.integers(width)
            row["word"] = rng.integers(words) if words > 1 else -1
            row["first"] = row["last"] = rng.integers(site.cycles)
            row["effect"] = STATE
            if row["layer"] < 0 or rng.random() < 0.3:
                row["effect"], row["first"], row["last"] = LEVEL, -1, FOREVER
        else:
            block = placement.blocks[rng.integers(len(placement.blocks))]
            row["row"] = row["col"] = -1
            residency, word, bit = block.site(rng.integers(block.exposed_bits, size=1))
            row["layer"], row["word"], bits = block.layer, word[0], block.bits
            row["component"] = accel.component_index(block.component)
            row["first"] = row["last"] = residency[0]
            row["effect"] = STATE
        mask = 1 << int(rng.integers(bits))
        mask = mask - (1 << bits) if mask >> (bits - 1) else mask
        name = ("xor_mask", "or_mask")[int(row["effect"] == LEVEL)]
        row[name] = mask
    return rows


@pytest.mark.parametrize("attention", [False, True])
def test_compiled_inferences_are_those_of_the_array_in_plain_python(attention):
    placement, seen = small_net(attention)
    program, rng = placement.program, np.random.default_rng(7)
    assert any(block.word is not None for block in placement.blocks)  # maps fetched by tiles
    assert any(b.component == "weights" and b.residencies > 1 for b in placement.blocks)
    clean, changed = P.run(program, seen[:2]).acc, 0
    for count in (1, 2, 5, 12, 40):
        rows = random_rows(placement, rng, count)
        check_rows(placement, rows, 2)
        batch = Batch(rows, rows["image"].astype(np.int64))
        answers = []
        for backend in ("auto", "reference"):
            hooks = FaultHooks(placement, batch, backend)
            answers.append(P.run(program, seen[:2], hooks=hooks, keep=range(len(program.ops))))
        for index, codes in answers[1].kept.items():
            np.testing.assert_array_equal(answers[0].kept[index], codes, program.ops[index].name)
        np.testing.assert_array_equal(answers[0].acc, answers[1].acc)
        changed += bool((answers[0].acc != clean).any())
        split = FaultHooks(placement, batch)
        np.testing.assert_array_equal(P.run(program, seen[:2], hooks=split, chunk=1).acc,
                                      answers[0].acc)  # fmt: skip
    assert changed >= 3


@pytest.mark.parametrize("seed", range(4))
def test_words_of_the_buffer_act_in_their_residency_alone(seed):
    """One convolution; every product looks its operands up in the residency it reads."""
    torch.manual_seed(seed)
    placement, seen = networked(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1)), (4, 7, 4), SMALL, seed=seed
    )
    program, rng = placement.program, np.random.default_rng(seed)
    op, low = program.array_ops[0], placement.lowered[1]
    mapping = mapping_of(placement.accel, low)
    assert min(mapping.strips, mapping.filter_passes, mapping.channel_passes) > 1
    rows = np.zeros(60, FAULT)
    blocks = [b for b in placement.blocks if b.layer == 1]
    assert {block.component for block in blocks} == {"acts", "weights", "psums"}
    hits = {}
    for row in rows:
        block = blocks[rng.integers(len(blocks))]
        residency, word, bit = (int(v[0]) for v in block.site(
            rng.integers(block.exposed_bits, size=1)))  # fmt: skip
        mask = 1 << bit if bit < 15 else -(1 << 15)
        row["layer"], row["word"], row["first"], row["last"] = 1, word, residency, residency
        row["component"] = placement.accel.component_index(block.component)
        row["row"] = row["col"] = -1
        row["and_mask"], row["xor_mask"] = -1, mask
        key = block.component, word, residency
        hits[key] = hits.get(key, 0) ^ mask
    hooks = FaultHooks(placement, Batch(rows, np.zeros(60, np.int64)))
    got = P.run(program, seen[:1], hooks=hooks, keep=[0])
    codes = got.kept[0][0]
    want = np.zeros((low.out_h, low.out_w, 8), np.int64)
    per_pass = mapping.row.q * mapping.channel_sets
    for y, x, o in np.ndindex(want.shape):
        strip, block = y // 3, o // (mapping.row.p * mapping.filter_sets)
        total = int(op.bias[o])
        for fold in range(mapping.channel_passes):
            for c in range(fold * per_pass, min((fold + 1) * per_pass, 4)):
                for ky, kx in np.ndindex(3, 3):
                    row, col = y + ky - 1, x + kx - 1
                    if 0 <= row < low.h and 0 <= col < low.w:
                        fetch = 1 + block * mapping.strips + strip
                        a = int(codes[row, col, c])
                        a ^= hits.get(("acts", (row * low.w + col) * 4 + c, fetch), 0)
                        w = int(op.weight[o, c, ky, kx])
                        w ^= hits.get(("weights", ((o * 4 + c) * 3 + ky) * 3 + kx, strip), 0)
                        total += a * w >> op.truncate
            word = (y * low.out_w + x) * 8 + o
            total = wrapped(total) ^ hits.get(("psums", word, fold), 0)
        want[y, x, o] = total
    natural = want.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(got.acc[0], natural)
    assert (got.acc[0] != P.run(program, seen[:1]).acc[0]).any()


def test_the_loss_of_truncation_is_given_back_in_the_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 4, 3))
    placement, seen = networked(model, (8, 7, 7), {})
    op = placement.program.array_ops[0]
    want = model(torch.from_numpy(seen)).detach().numpy().transpose(0, 2, 3, 1)
    result = P.run(placement.program, seen, keep=[0], keep_acc=[1])
    unit = placement.program.ops[0].scale * op.weight_scale * 2.0**op.truncate
    error = (result.kept_acc[1] + op.bias) - want / unit
    assert np.abs(error.mean((0, 1, 2))).max() < 1
    whole = exact.prepare(exact.replace(placement.program.problem(op), truncate=0))
    lost = whole(result.kept[0]) / 2.0**op.truncate - result.kept_acc[1]
    assert lost.min() >= 0 and lost.max() < 8 * 9  # floor takes less than a unit a product
    assert (lost.mean((0, 1, 2)) > 20).all()  # which the bias has made good
    again = truncation.centred(placement.program, seen).array_ops[0].bias - op.bias
    assert np.abs(again - lost.mean((0, 1, 2))).max() <= 0.5 + 1e-9


def test_positions_are_the_smallest_that_leave_half_of_the_range():
    assert truncation.shift_for(np.array([2.0**14]), 16) == 0
    assert truncation.shift_for(np.array([2.0**14 + 1]), 16) == 1
    assert truncation.shift_for(np.array([2.0**20, 2.0**19]), 16) == 6
    outlier = np.array([2.0**20, 2.0**20, 2.0**30])
    assert truncation.shift_for(outlier, 16) == 8  # 4 times the median, not the outlier
    assert truncation.shift_for(np.zeros(3), 16) == 0
    placement, seen = small_net()
    program = placement.program
    kept = P.run(program, seen, keep_acc=[op.index for op in program.array_ops]).kept_acc
    for op in program.array_ops:
        assert np.abs(kept[op.index] + op.bias).max() < 1.5 * 2**14


def test_an_output_with_a_large_bias_does_not_take_the_precision_of_the_others():
    model = nn.Sequential(nn.Conv2d(2, 4, 3))
    with torch.no_grad():
        model[0].bias[1] = 1000.0
    placement, seen = networked(model, (2, 6, 6), {})
    op = placement.program.array_ops[0]
    logits = P.run(placement.program, seen).logits.reshape(len(seen), 4, 4, 4)
    want = model(torch.from_numpy(seen)).detach().numpy()
    assert np.abs(logits - want)[:, [0, 2, 3]].max() < 0.01
    assert np.abs(logits - want)[:, 1].max() < 1.0
    assert op.weight_scale[1] > 10 * op.weight_scale[0]


def test_digits_keep_their_accuracy():
    integers = open_session("digits-cnn", load_accel("systolic"), images=500).golden().accuracy
    for bits in (16, 8):
        accel = load_accel("eyeriss-like", overrides={"operand_bits": bits})
        assert open_session("digits-cnn", accel, images=500).golden().accuracy >= integers - 0.01


def test_campaigns_start_at_the_struck_layer_with_the_same_answers():
    wide, seen = networked(Plain(), (3, 8, 6), SMALL)
    narrow, _ = networked(Plain(), (3, 8, 6), SMALL | {"operand_bits": 8})
    labels = np.zeros(len(seen), np.int64)
    for placement in (wide, narrow):
        with pytest.raises(MappingError, match="products that lose low bits"):
            Delta(placement, seen)
    rng = np.random.default_rng(1)
    rows = random_rows(narrow, rng, 200)
    rows = rows[(rows["effect"] == STATE) & (rows["layer"] >= 0)][:60]
    image = rng.integers(len(seen), size=len(rows))
    begin, which = np.arange(len(rows) + 1), np.arange(len(rows))
    evaluator = Evaluator(narrow, seen, labels)
    assert "low bits" in evaluator.golden.refusal
    quick = evaluator.differences(which, image, rows, which)
    whole = evaluator.together(which, image, rows, begin, which)
    np.testing.assert_array_equal(quick, whole)
    assert len(np.unique(whole["outcome"])) > 1


def test_layers_that_the_array_cannot_map_are_named():
    for model, says in (
        (nn.Conv2d(1, 1, 3, dilation=2), "dilation must be 1 on eyeriss-like"),
        (nn.Conv2d(1, 1, (1, 13)), "S x q must be at most 12"),
        (nn.Conv2d(1, 1, (13, 1)), "windows must be at most 12 rows high"),
    ):
        with pytest.raises(MappingError, match=says + r".*\(0\)"):
            networked(nn.Sequential(model), (1, 16, 16), {}, images=2)


def test_truncated_programs_and_backends_are_for_their_machine():
    placement, seen = small_net()
    systolic = load_accel("systolic", overrides={"operand_bits": 16, "product_bits": 32})
    with pytest.raises(ConfigError, match="products must be whole on systolic"):
        Placement(placement.program, systolic)
    rows = random_rows(placement, np.random.default_rng(0), 20)
    hooks = FaultHooks(placement, Batch(rows, rows["image"].astype(np.int64)), "tile")
    with pytest.raises(FaultError, match="backend of eyeriss-like must be auto or reference"):
        P.run(placement.program, seen[:2], hooks=hooks)
    with pytest.raises(MappingError, match="use fsim.row_conv or a network"):
        public.gemm([[1]], [[1]], accel="eyeriss-like")


RUN = ("--accel", "eyeriss-like", "--images", "6", "--seed", "3")


@pytest.mark.parametrize(
    "faults",
    [("--ber", "1e-4", "--no-curve"), ("--seu-rate", "1e-7"), ("--fault", "stuck1"),
     ("--fault", "seu"), ("--fault", "mbu"), ("--fault", "intermittent")],
)  # fmt: skip
def test_inject_and_replay_agree(fsim, tmp_path, faults):
    trace = tmp_path / "t.h5"
    result = fsim("inject", *RUN, *faults, "--trials", "3", "--trace", trace, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["accuracy"]["clean"] > 0.8
    again = fsim("replay", trace, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["differences"] == 0


def test_sites_explain_and_campaign(fsim, tmp_path):
    sites = json.loads(fsim("sites", "digits-cnn", "--accel", "eyeriss-like", "--json").stdout)
    words = {row["component"]: row["words"] for row in sites["registers"]}
    assert words == {"ifmap_spad": 168 * 12, "filter_spad": 168 * 224, "psum_spad": 168 * 24,
                     "product": 168, "ifmap_bus": 168, "filter_bus": 12}  # fmt: skip
    assert {row["bits"] for row in sites["registers"] + sites["memories"]} == {16}
    trace = tmp_path / "t.h5"
    options = ("--fault", "seu", "--trials", "2", "--sites", "psum_spad", "--trace", trace)
    assert fsim("inject", *RUN, *options).exit_code == 0
    told = fsim("explain", trace, "--event", "1", "--json")
    assert told.exit_code == 0, told.stderr
    (fault,) = json.loads(told.stdout)["faults"]
    assert fault["component"] == "psum_spad"
    assert 0 <= fault["word"] < 24 and 0 <= fault["row"] < 12 and "place" not in fault
    result = fsim("campaign", *RUN, "--fault", "seu", "--trials", "60", "--out", tmp_path / "c")
    assert result.exit_code == 0, result.stderr
    listed = fsim("accel", "list").stdout
    (line,) = [line for line in listed.splitlines() if line.startswith("eyeriss-like")]
    assert "the array is not checked against RTL" in line
