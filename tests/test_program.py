"""The integer program equals a plain restatement of it, op by op, with and without faults."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsim.errors import ConfigError
from fsim.simulator import program as P
from fsim.simulator.capture import capture, forward
from fsim.simulator.kernels import requantise as kernels
from fsim.simulator.quantise import quantise
from tests.test_exact import naive_convolution

WORST = {"mobile": 0.1, "odd": 0.12, "attention": 0.1}
"""Largest |integer - float| logit allowed, as a share of the largest float logit."""


class Mobile(nn.Module):
    """Depthwise, linear bottleneck, ReLU6, dilation, concat, max and strided average pools."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.bn1 = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fc = nn.Linear(12 * 2 * 2, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu6(self.bn0(self.stem(x)))
        x = F.relu6(self.bn1(self.depth(x)))
        x = self.point(x)
        x = torch.cat([self.grouped(x), x.relu()], 1)
        x = self.pool(x)
        x = F.avg_pool2d(x, 3, 2, 1)
        return self.fc(self.drop(x.view(x.size(0), -1)))


class Odd(nn.Module):
    """Uneven padding, a shared layer, a lone batch norm, sigmoid on the host, option-A shortcut."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.shared = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.bn = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(8, 3, 2)

    def forward(self, x):
        x = F.relu(self.first(F.pad(x, (0, 2, 1, 0))))
        y = self.shared(F.relu(self.shared(x)))
        y = self.bn(y + x)
        y = torch.sigmoid(y)
        z = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return torch.log_softmax(torch.flatten(self.last(z).mean((2, 3), keepdim=True), 1), 1)


class Attention(nn.Module):
    """Two heads of plain attention over the pixels, without softmax."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        t = self.embed(x).flatten(2).transpose(1, 2)
        q = self.q(t).reshape(t.shape[0], -1, 2, 4).transpose(1, 2)
        k = self.k(t).reshape(t.shape[0], -1, 2, 4).transpose(1, 2)
        a = torch.relu(q @ k.transpose(2, 3))
        return self.head((a @ k).transpose(1, 2).reshape(t.shape[0], -1, 8)[:, 0])


def build(name: str, **options):
    """(model, images, graph, program) of a seeded random network."""
    torch.manual_seed(3)
    model, shape = {
        "mobile": (Mobile, (3, 13, 12)),
        "odd": (Odd, (2, 8, 7)),
        "attention": (Attention, (3, 6, 6)),
    }[name]
    model = model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.3, 2)
    images = torch.randn(24, *shape).numpy()
    graph = capture(model, images)
    return model.eval(), images, graph, quantise(graph, images, **options)


@pytest.fixture(scope="module", params=["mobile", "odd", "attention"])
def network(request):
    return request.param, *build(request.param)


# --- the plain restatement: network order everywhere, exact rationals for rounding ------------


def half_even(value: Fraction) -> int:
    return round(value)  # Python's round of a Fraction is half to even


def wrapped(values, bits):
    return (values + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def scaled(sums, multiplier, lo, hi):
    """float32(sum) * float32 multiplier, half to even, clamp."""
    product = sums.astype(np.float32) * multiplier.astype(np.float32)
    return np.clip(np.rint(product.astype(np.float64)), lo, hi).astype(np.int64)


def rational(values, lo, hi):
    """Each rational to its nearest even integer, clamped."""
    flat = [min(max(half_even(v), lo), hi) for v in values.reshape(-1)]
    return np.array(flat, np.int64).reshape(values.shape)


def fractions(values):
    return np.vectorize(Fraction, otypes=[object])(values)


def naive_run(program, images):
    """Codes of every operation in the network's own order, int64; the last gives sums."""
    made = []
    for op in program.ops:
        sources = [made[i] for i in op.inputs]
        lo, hi = op.range
        if isinstance(op, P.Input):
            inverse = np.float32(1.0 / op.scale)
            codes = np.clip(np.rint(images.astype(np.float32) * inverse), lo, hi).astype(np.int64)
        elif op.is_array:
            if isinstance(op, P.Conv):
                last = sources[0].transpose(0, 2, 3, 1)
                sums = naive_convolution(
                    last, op.weight, op.stride, op.padding, op.dilation, op.groups
                )
            elif isinstance(op, P.Linear):
                sums = sources[0] @ op.weight.T
            else:
                sums = sources[0] @ sources[1]
            sums = wrapped(sums + op.bias, program.acc_bits)
            final = op is program.ops[-1]
            codes = sums if final else scaled(sums, op.multiplier, op.lo, op.hi)
            if isinstance(op, P.Conv):
                codes = codes.transpose(0, 3, 1, 2)
        elif isinstance(op, P.Add):
            total = op.m0 * sources[0] + op.m1 * sources[1]
            codes = rational(fractions(total) / 2**op.shift, op.lo, op.hi)
        elif isinstance(op, P.AvgPool):
            codes = naive_average(op, sources[0])
        elif isinstance(op, P.MaxPool):
            pool = (op.kernel, op.stride, op.padding[::-1], op.dilation)
            codes = F.max_pool2d(torch.from_numpy(sources[0]).double(), *pool).long().numpy()
        elif isinstance(op, P.Relu):
            codes = np.minimum(np.maximum(sources[0], op.lo), op.hi)
        elif isinstance(op, P.Flatten):
            codes = sources[0].reshape(len(images), -1)
        elif isinstance(op, P.Pad):
            codes = np.pad(sources[0], ((0, 0), *op.amount))
        elif isinstance(op, P.Slice):
            codes = sources[0][(slice(None), *op.slices)]
        elif isinstance(op, P.Concat):
            parts = [
                part if m is None else rational(fractions(part * m) / 2**op.shift, lo, hi)
                for part, m in zip(sources, op.m0)
            ]
            codes = np.concatenate(parts, op.axis + 1)
        else:
            codes = naive_host(op, sources)
        made.append(codes)
    return made


def naive_average(op, codes):
    left, top = op.padding
    n, c, h, w = codes.shape
    wide = np.zeros((n, c, h + top + op.kernel[0], w + left + op.kernel[1]), np.int64)
    wide[:, :, top : top + h, left : left + w] = codes
    out = np.empty((n, *op.shape), object)
    for y in range(op.shape[1]):
        for x in range(op.shape[2]):
            rows = slice(y * op.stride[0], y * op.stride[0] + op.kernel[0])
            cols = slice(x * op.stride[1], x * op.stride[1] + op.kernel[1])
            total = wide[:, :, rows, cols].sum((2, 3)) * op.m0
            out[:, :, y, x] = fractions(total) / 2**op.shift
    return rational(out, *op.range)


def naive_host(op, sources):
    scale_in = [1.0 if op.moves else s for s in op.in_scales]
    scale_out = 1.0 if op.moves else op.scale
    rows = []
    for i in range(len(sources[0])):
        tensors = [
            torch.from_numpy(source[i : i + 1].astype(np.float32) * np.float32(s))
            for source, s in zip(sources, scale_in)
        ]
        value = op.function(*tensors).numpy() * np.float32(1.0 / scale_out)
        rows.append(np.clip(np.rint(value), *op.range).astype(np.int64))
    return np.concatenate(rows)


def as_network(op, codes):
    return codes.transpose(0, 3, 1, 2) if op.channels_last else codes


def test_every_tensor_equals_the_restatement(network):
    _, _, images, _, program = network
    kept = P.run(program, images, keep=range(len(program.ops) - 1))
    want = naive_run(program, images)
    for op in program.ops[:-1]:
        got = kept.kept[op.index]
        assert got.dtype == op.dtype and got.shape == (len(images), *op.layout)
        np.testing.assert_array_equal(as_network(op, got), want[op.index], err_msg=op.name)
    last = program.ops[-1]
    if last.is_array:
        np.testing.assert_array_equal(kept.acc, want[-1].reshape(len(images), -1))
        logits = kept.acc.astype(np.float32) * last.multiplier
    else:
        np.testing.assert_array_equal(kept.acc, want[-1].reshape(len(images), -1))
        logits = kept.acc.astype(np.float32) * np.float32(last.scale)
    np.testing.assert_array_equal(kept.logits, logits)


def test_the_integer_network_is_near_the_float_one(network):
    name, model, images, graph, program = network
    *_, (_, _, value) = forward(graph, torch.from_numpy(images))
    with torch.no_grad():
        want = model(torch.from_numpy(images))
    if name == "odd":  # its log_softmax is left out, and the notes say so
        assert "log_softmax" in program.notes[0]
        value_of_model = torch.log_softmax(value.flatten(1), 1)
    else:
        value_of_model = value
    torch.testing.assert_close(value_of_model, want, rtol=1e-4, atol=1e-4)
    logits = P.run(program, images).logits
    reference = value.flatten(1).numpy()
    assert np.abs(logits - reference).max() < WORST[name] * np.abs(reference).max()


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_other_widths_equal_the_restatement(bits):
    _, images, _, program = build("mobile", accel_bits=bits)
    assert {op.bits for op in program.ops[:-1]} == {bits}
    np.testing.assert_array_equal(P.run(program, images).acc, naive_run(program, images)[-1])


def test_narrow_accumulators_wrap_as_the_restatement_does():
    _, images, _, program = build("mobile", acc_bits=20)
    free = P.Program(program.ops, 32)
    program = P.Program(program.ops, 13)
    got, want = P.run(program, images).acc, naive_run(program, images)[-1]
    np.testing.assert_array_equal(got, want)
    assert (got != P.run(free, images).acc).any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_threads_and_batch_size_do_not_change_a_bit(network, threads, chunk):
    _, _, images, _, program = network
    want = P.run(program, images, threads=1)
    before = torch.get_num_threads()
    got = P.run(program, images, threads=threads, chunk=chunk)
    assert torch.get_num_threads() == before
    np.testing.assert_array_equal(got.acc, want.acc)
    np.testing.assert_array_equal(got.logits, want.logits)


def test_a_run_may_start_from_any_operation(network):
    _, _, images, _, program = network
    full = P.run(program, images, keep=range(len(program.ops) - 1))
    for first in range(1, len(program.ops)):
        codes = {i: full.kept[i] for i in program.live(first)}
        copies = {i: c.copy() for i, c in codes.items()}
        np.testing.assert_array_equal(P.run(program, start=(first, codes)).acc, full.acc)
        for i, c in copies.items():
            np.testing.assert_array_equal(codes[i], c)  # what was given is not changed


def test_codes_may_be_given_in_place_of_images(network):
    _, _, images, _, program = network
    full = P.run(program, images, keep=[0])
    np.testing.assert_array_equal(P.run(program, full.kept[0]).acc, full.acc)


def test_matrix_products_of_heads_run_on_the_array_in_the_networks_order():
    _, _, _, program = build("attention")
    products = [op for op in program.ops if isinstance(op, P.MatMul)]
    assert [op.shape for op in products] == [(2, 9, 9), (2, 9, 4)]
    assert [op.layout for op in products] == [(2, 9, 9), (2, 9, 4)]
    assert program.op("embed").layout == (3, 3, 8)
    assert [op.name for op in program.host_ops] == []


class Reuse(nn.Module):
    """A slice that is read again after two more maps of its source's size were made."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x):
        a = self.a(x)
        cut = a[:, :, ::2, ::2]
        return self.d(self.c(self.b(a)))[:, :, ::2, ::2] + cut


def test_a_slice_keeps_its_source_alive():
    torch.manual_seed(0)
    images = torch.randn(6, 4, 8, 8).numpy()
    program = quantise(capture(Reuse(), images), images)
    want = naive_run(program, images)[-1].reshape(len(images), -1)
    for _ in range(2):  # the second time every buffer is a used one
        np.testing.assert_array_equal(P.run(program, images).acc, want)


ALL_CODES = np.arange(-128, 128, dtype=np.int8)


@pytest.mark.parametrize("shift", [1, 2, 3, 15, 22])
@pytest.mark.parametrize(("m0", "m1"), [(1, 0), (1, 1), (3, -2), (0, 5), (32767, 32767), (-7, 1)])
def test_integer_rounding_is_half_to_even_for_every_pair_of_codes(m0, m1, shift):
    a, b = (np.ascontiguousarray(v).reshape(-1) for v in np.meshgrid(ALL_CODES, ALL_CODES))
    lo, hi = -100, 101
    total = m0 * a.astype(np.int64) + m1 * b.astype(np.int64)
    below, rest = total >> shift, total & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    up = (rest > half) | ((rest == half) & (below & 1 == 1))
    want = np.clip(below + up, lo, hi)
    out = np.empty(len(a), np.int8)
    kernels.add_wide(a, b, m0, m1, shift, lo, hi, out)
    np.testing.assert_array_equal(out, want)
    f = np.float32
    for run, more in ((kernels.add_narrow, ()), (kernels.add_narrow_parallel, (3,))):
        out[:] = 99
        run(a, b, f(m0), f(m1), f(2.0**-shift), f(lo), f(hi), out, *more)
        np.testing.assert_array_equal(out, want)
    if m1 == 0:
        kernels.rescale(a, m0, shift, lo, hi, out)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("acc_bits", [12, 32])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_requantisation_is_one_product_rounded_half_to_even(channels, acc_bits):
    """All three kernels, against the float32 product held exactly in float64."""
    rng = np.random.default_rng(channels)
    rows = 1700  # more than one tile, and not a whole number of them
    multiplier = rng.choice([0.5, 0.25, 1.5, 0.0123, 2.0**-9, 3e-3], channels).astype(np.float32)
    bias = rng.integers(-500, 500, channels)
    most = 2**11 - 501 if acc_bits == 12 else 2**23
    acc = rng.integers(-most, most, (rows, channels))
    acc[:200] = rng.integers(-400, 400, (200, channels))  # many ties
    # float32 products of 24 by 24 bits need 48: float64 holds them, then one rounding
    product = ((acc + bias).astype(np.float64) * multiplier).astype(np.float32)
    want = np.clip(np.rint(product), -128, 127).astype(np.int8)
    lo, hi = np.float32(-128), np.float32(127)
    tiles = [kernels.tiled(v.astype(np.float32)) for v in (bias, multiplier)]
    out = np.empty((rows, channels), np.int8)
    flat = acc.astype(np.float32).reshape(-1)
    kernels.requantise_float(flat, *tiles, lo, hi, out.reshape(-1))
    np.testing.assert_array_equal(out, want)
    out[:] = 99
    kernels.requantise_float_parallel(flat, *tiles, lo, hi, out.reshape(-1), 3)
    np.testing.assert_array_equal(out, want)
    for dtype in (np.float32, np.int32, np.int64):
        # whole turns of the accumulator change nothing
        turned = acc + (2**acc_bits if dtype == np.int64 else 0)
        kernels.requantise_integer(turned.astype(dtype), bias, multiplier, acc_bits, lo, hi, out)
        np.testing.assert_array_equal(out, want)
    index = rng.permutation(acc.size)[:100]
    out[:] = 99
    kernels.requantise_at(
        index, (acc + bias + 2**acc_bits).reshape(-1)[index], multiplier, acc_bits, lo, hi,
        out.reshape(-1),
    )  # fmt: skip
    sparse = np.full(acc.size, 99)
    sparse[index] = want.reshape(-1)[index]
    np.testing.assert_array_equal(out.reshape(-1), sparse)


# --- hooks --------------------------------------------------------------------------------


class Recorder:
    """Changes nothing and notes every call."""

    def __init__(self):
        self.calls = []
        self.sums = {}

    def stored(self, op, codes):
        self.calls.append(("stored", op.index, codes.shape))

    def loaded(self, op, slot, codes):
        self.calls.append(("loaded", op.index, slot))
        return codes

    def accumulated(self, op, inputs, acc):
        self.calls.append(("accumulated", op.index, acc.shape))
        self.sums[op.index] = (tuple(c.copy() for c in inputs), acc.astype(np.int64))


def test_hooks_that_change_nothing_change_nothing_and_see_everything(network):
    _, _, images, _, program = network
    hooks = Recorder()
    with_hooks = P.run(program, images, hooks=hooks)
    np.testing.assert_array_equal(with_hooks.acc, P.run(program, images).acc)
    storing = [op for op in program.ops if op.stores]
    last = program.ops[-1]
    want = []
    for op in storing:
        want += [("loaded", op.index, slot) for slot in range(len(op.inputs))]
        shape = (len(images), *op.layout)
        want += [("accumulated", op.index, shape)] if op.is_array else []
        want += [("stored", op.index, shape)] if not (op is last and op.is_array) else []
    assert hooks.calls == want
    for op in program.array_ops:
        (codes, *_), sums = hooks.sums[op.index]
        if isinstance(op, P.Conv):
            plain = naive_convolution(
                codes, op.weight, op.stride, op.padding, op.dilation, op.groups
            )
            np.testing.assert_array_equal(sums, plain, err_msg=op.name)
    kept = P.run(program, images, keep_acc=[op.index for op in program.array_ops]).kept_acc
    for index, (_, sums) in hooks.sums.items():
        np.testing.assert_array_equal(kept[index], sums)


class Strike(Recorder):
    """One change at one operation."""

    def __init__(self, index, how):
        super().__init__()
        self.index, self.how = index, how

    def stored(self, op, codes):
        if op.index == self.index and self.how == "stored":
            codes.reshape(-1)[3] ^= 2

    def loaded(self, op, slot, codes):
        if op.index == self.index and slot == 0 and self.how == "loaded":
            codes = codes.copy()
            codes.reshape(-1)[3] ^= 2
        return codes

    def accumulated(self, op, inputs, acc):
        if op.index == self.index and self.how == "accumulated":
            flat = np.array([1, acc.size - 1])
            bias = np.broadcast_to(op.bias, acc.shape).reshape(-1)[flat]
            return flat, acc.reshape(-1)[flat].astype(np.int64) + bias + (1 << 33) + 4096
        return None


def test_a_struck_code_travels_as_if_the_network_had_made_it(network):
    """Faults at the store, at the load and in a sum, against a run from changed codes."""
    _, _, images, _, program = network
    full = P.run(program, images, keep=range(len(program.ops) - 1),
                 keep_acc=[op.index for op in program.array_ops])  # fmt: skip
    checked = 0
    for op in program.ops[:-1]:
        codes = dict(full.kept)
        if op.stores:
            changed = full.kept[op.index].copy()
            changed.reshape(-1)[3] ^= 2
            start = {i: codes[i] for i in program.live(op.index + 1)} | {op.index: changed}
            want = P.run(program, start=(op.index + 1, start)).acc
            got = P.run(program, images, hooks=Strike(op.index, "stored")).acc
            np.testing.assert_array_equal(got, want)
        if op.is_array:
            got = P.run(program, images, hooks=Strike(op.index, "accumulated"), keep=[op.index])
            flat = [1, full.kept_acc[op.index].size - 1]
            want = full.kept[op.index].copy()
            for i in flat:
                o = i % op.layout[-1]
                bias, m = (v[o if len(v) > 1 else 0] for v in (op.bias, op.multiplier))
                total = int(full.kept_acc[op.index].reshape(-1)[i]) + int(bias) + 4096
                value = np.rint(np.float64(np.float32(total) * m))
                want.reshape(-1)[i] = min(max(int(value), op.lo), op.hi)
            np.testing.assert_array_equal(got.kept[op.index], want, err_msg=op.name)
            checked += 1
    assert checked == len([op for op in program.array_ops if op is not program.ops[-1]])


class PerImage:
    """Flips a bit of a different word of operation `index` in every image."""

    def __init__(self, index, first=0, count=None):
        self.index, self.first, self.count = index, first, count
        self.seen = []

    def part(self, begin, end):
        assert self.first == 0
        return PerImage(self.index, begin, end - begin)

    def stored(self, op, codes):
        if self.count is not None:
            assert len(codes) == self.count
        if op.index == self.index:
            for i, image in enumerate(codes):
                image.reshape(-1)[(self.first + i) % image.size] ^= 4

    def loaded(self, op, slot, codes):
        return codes

    def accumulated(self, op, inputs, acc):
        if op.index != self.index:
            return None
        per_image = acc.size // len(acc)
        flat = np.arange(len(acc)) * per_image
        return flat, np.arange(self.first, self.first + len(acc)) * 1000


class PerImageWhole(PerImage):
    part = property()  # hasattr is False: these want all images at once


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_hooks_that_can_be_split_give_the_same_in_parts(network, threads, chunk):
    _, _, images, _, program = network
    for op in program.array_ops:
        want = P.run(program, images, hooks=PerImageWhole(op.index), threads=1)
        got = P.run(program, images, hooks=PerImage(op.index), threads=threads, chunk=chunk)
        np.testing.assert_array_equal(got.acc, want.acc)
        assert (want.acc != P.run(program, images).acc).any()


def test_a_load_fault_reaches_one_reader_only():
    _, images, _, program = build("mobile")
    readers = [op for op in program.ops if program.op("point").index in op.inputs]
    assert len(readers) == 2  # the grouped convolution and the ReLU
    hooks = Strike(readers[0].index, "loaded")
    others = P.run(program, images, hooks=hooks, keep=[op.index for op in readers])
    clean = P.run(program, images, keep=[op.index for op in readers])
    assert (others.kept[readers[0].index] != clean.kept[readers[0].index]).any()
    np.testing.assert_array_equal(others.kept[readers[1].index], clean.kept[readers[1].index])


def test_a_sum_replaced_in_the_last_operation_is_the_result(network):
    _, _, images, _, program = network
    last = program.ops[-1]
    if not last.is_array:
        pytest.skip("the last operation has no sums")
    clean = P.run(program, images)
    struck = P.run(program, images, hooks=Strike(last.index, "accumulated"))
    want = clean.acc.copy()
    want[0, 1] += 4096  # 2^33 is beyond 32 bits and wraps away
    want[-1, -1] += 4096
    np.testing.assert_array_equal(struck.acc, want)


def test_other_weights_give_the_network_with_these_weights():
    _, images, _, program = build("mobile")
    P.run(program, images)
    op = program.op("grouped")
    weight = op.weight.copy()
    weight[0, 0, 0, 0] ^= 64
    changed = P.with_weights(program, {op.index: weight})
    np.testing.assert_array_equal(P.run(changed, images).acc, naive_run(changed, images)[-1])
    assert (P.run(changed, images).acc != P.run(program, images).acc).any()
    with pytest.raises(ConfigError, match="weight codes of grouped"):
        P.with_weights(program, {op.index: weight * 100})
    with pytest.raises(ConfigError, match="got operation 0"):
        P.with_weights(program, {0: weight})


def test_images_that_do_not_fit_are_refused():
    _, images, _, program = build("odd")
    with pytest.raises(ConfigError, match=r"must be \(n, 2, 8, 7\), got \(24, 2, 8, 6\)"):
        P.run(program, images[..., :6])
    bad = images.copy()
    bad[1, 0, 0, 0] = math.nan
    with pytest.raises(ConfigError, match="must be finite"):
        P.run(program, bad)
    with pytest.raises(ConfigError, match=r"must lie in \[-128, 127\], got \[300, 300\]"):
        P.run(program, np.full((1, 8, 7, 2), 300))
    with pytest.raises(ConfigError, match="needs images"):
        P.run(program)
    with pytest.raises(ConfigError, match=r"needs the codes of operations \[0\]"):
        P.run(program, start=(1, {}))


@pytest.mark.parametrize("ratios", [[0.7, 1.3], [1e-4, 3e-6], [100.0, 0.01], [0.0, 1.0], [0.0]])
def test_fixed_point_is_as_near_as_its_shift_allows(ratios):
    numbers, shift = P.fixed_point(ratios)
    assert 1 <= shift <= 46 and max(numbers) <= 2**15
    for number, ratio in zip(numbers, ratios):
        assert abs(Fraction(number, 2**shift) - Fraction(ratio)) <= Fraction(1, 2 ** (shift + 1))
