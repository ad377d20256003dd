"""Products of two activations in training: exact, struck as in evaluation, straight-through."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_array_equal
from torch import nn

import fsim
from fsim.accel_models.load import load_accel
from fsim.errors import FaultError, MappingError
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.network import Explicit
from fsim.fault_models.upsets import SingleFault, UpsetRate
from fsim.simulator import ops
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.bridge import operators
from fsim.simulator.bridge.session import Session
from fsim.simulator.bridge.site import conv_site, linear_site, matmul_site
from fsim.simulator.draws import Draws
from fsim.simulator.engine import FaultHooks
from fsim.simulator.inject import slots_of
from fsim.simulator.sites import Placement, select
from tests.naive import wrapped

ACCEL = load_accel("systolic-8x8")
ROWS = 8
"""PEs that a weight stationary fold of ACCEL sums over."""
A, B = (2, 3, 12), (2, 12, 5)
"""Of one image: two heads, m = 3, k = 12 in two folds, p = 5."""


def session(*sites, model=None, accel=ACCEL):
    made = Session(accel, sites)
    made.model = model
    return made


def site_of(signed=True, accel=ACCEL, number=0, name="product"):
    return matmul_site(number, name, accel, A, B, signed)


def arguments(held, *, signed=True, trial=-1, images=3, site=0):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(images, *A, generator=generator)
    a = (a if signed else a.relu()).requires_grad_()
    b = torch.randn(images, *B, generator=generator, requires_grad=True)
    scales = operators.activation_scale(a, signed), operators.activation_scale(b, True)
    return (a, b, *scales, signed, held.handle, site, trial)


def codes_of(x, scale, signed):
    """Codes by the definition, int64."""
    ends = (-128, 127) if signed else (0, 255)
    inverse = np.float32(1) / np.float32(scale)
    return np.clip(np.rint(x.detach().numpy() * inverse), *ends).astype(np.int64)


def naive(a, b, struck=None, fold=None):
    """(n, heads, m, p) sums of codes, fold by fold; struck(at, fold, sum) changes a stored one."""
    out = np.zeros((*a.shape[:-1], b.shape[-1]), np.int64)
    for at in np.ndindex(out.shape):
        image, head, i, j = at
        total = 0
        for number, k0 in enumerate(range(0, a.shape[-1], ROWS)):
            for k in range(k0, min(k0 + ROWS, a.shape[-1])):
                total += int(a[image, head, i, k]) * int(b[image, head, k, j])
            total = wrapped(total, 32)
            if struck is not None:
                total = struck(at, number, total)
        out[at] = total
    return out


def real(sums, a_scale, b_scale):
    return sums.astype(np.float32) * (np.float32(a_scale) * np.float32(b_scale))


# --- the operator


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("function", [torch.ops.fsim.matmul, operators.ArrayMatMul.apply])
def test_product_is_that_of_the_integer_codes(function, signed):
    held = session(site_of(signed))
    a, b, a_scale, b_scale, *rest = arguments(held, signed=signed)
    out, a_codes, b_codes = function(a, b, a_scale, b_scale, *rest)
    want = codes_of(a, a_scale, signed), codes_of(b, b_scale, True)
    assert_array_equal(a_codes.numpy(), want[0])
    assert_array_equal(b_codes.numpy(), want[1])
    assert a_codes.dtype == (torch.int8 if signed else torch.uint8)
    assert_array_equal(out.detach().numpy(), real(naive(*want), a_scale, b_scale))
    assert abs(want[0]).max() == (127 if signed else 255) and abs(want[1]).max() == 127


@pytest.mark.parametrize("function", [torch.ops.fsim.matmul, operators.ArrayMatMul.apply])
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_are_those_of_the_quantised_product(function, signed):
    held = session(site_of(signed))
    a, b, *rest = arguments(held, signed=signed)
    weights = torch.randn(3, 2, 3, 5)
    (function(a, b, *rest)[0] * weights).sum().backward()
    fakes = [v.detach().clone().requires_grad_() for v in (a, b)]
    grids = [v + ((v / s).round() * s - v).detach() for v, s in zip(fakes, rest)]
    (grids[0] @ grids[1] * weights).sum().backward()
    for mine, theirs in zip((a, b), fakes):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_only_the_gradient_asked_for_is_made():
    held = session(site_of())
    a, b, *rest = arguments(held)
    torch.ops.fsim.matmul(a.detach(), b, *rest)[0].sum().backward()
    assert a.grad is None and b.grad is not None


def test_operator_passes_torch_s_own_check():
    model = BitErrors(1e-3, 1e-3, 1e-3)
    for signed in (True, False):
        held = session(site_of(signed), model=model)
        torch.library.opcheck(
            torch.ops.fsim.matmul.default, arguments(held, signed=signed, trial=2)
        )


def test_operator_compiles_as_one_graph():
    held = session(site_of(), model=BitErrors(1e-3, 0, 1e-3))
    a, b, *rest = arguments(held, trial=2)

    def step(a, b):
        return torch.ops.fsim.matmul(a, b, *rest)[0].relu().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        loss = function(a, b)
        results.append((loss.detach(), *torch.autograd.grad(loss, (a, b))))
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_wrong_operands_say_what_must_hold():
    held = session(site_of(False))
    a, b, *rest = arguments(held, signed=False)
    with pytest.raises(MappingError, match=r"must read \(2, 3, 12\) and \(2, 12, 5\) of each im"):
        torch.ops.fsim.matmul(a, b[:, :1], *rest)
    with pytest.raises(MappingError, match="must be unsigned"):
        torch.ops.fsim.matmul(a, b, *rest[:2], True, *rest[3:])
    with pytest.raises(MappingError, match="product must read what is never negative"):
        torch.ops.fsim.matmul(a - 1, b, *rest)


# --- faults


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_struck_word_of_either_operand_is_in_the_product_and_the_gradients(signed, bit):
    held = session(site_of(signed))
    a, b, a_scale, b_scale, *rest = arguments(held, signed=signed)
    codes = codes_of(a, a_scale, signed), codes_of(b, b_scale, True)
    clean = naive(*codes)
    for operand, word in ((0, 41), (1, 41), (0, 0), (1, 119)):
        fault = fsim.Fault("acts", word=word, bit=bit, cycle=1 + operand, image=1, layer="product")
        held.model = Explicit((fault,))
        changed = [c.copy() for c in codes]
        flat = changed[operand][1].reshape(-1)
        flat[word] = int(flat[word]) ^ 1 << bit
        if signed or operand:
            flat[word] = wrapped(int(flat[word]), 8)
        for v in (a, b):
            v.grad = None
        out, *read = torch.ops.fsim.matmul(a, b, a_scale, b_scale, *rest[:-1], 0)
        want = naive(*changed)
        assert_array_equal(out.detach().numpy(), real(want, a_scale, b_scale))
        assert (want != clean).any()
        for mine, theirs in zip(read, changed):
            assert_array_equal(mine.numpy(), theirs)
        weights = torch.randn(out.shape)
        (out * weights).sum().backward()
        x, y = (torch.tensor(c).float() * s for c, s in zip(changed, (a_scale, b_scale)))
        torch.testing.assert_close(a.grad, weights @ y.mT, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b.grad, x.mT @ weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_struck_sum_is_in_the_product_and_stays_in_its_range(fold):
    held = session(site_of())
    a, b, a_scale, b_scale, *rest = arguments(held)
    codes = codes_of(a, a_scale, True), codes_of(b, b_scale, True)
    clean = naive(*codes)
    word, at = 23, (2, 1, 1, 3)  # (1 * 3 + 1) * 5 + 3
    for bit in (4, 30):
        held.model = Explicit(
            (fsim.Fault("psums", word=word, bit=bit, cycle=fold, image=2, layer="product"),)
        )

        def struck(where, number, total, mask=1 << bit):
            return total ^ mask if (where, number) == (at, fold) else total

        want = naive(*codes, struck)
        assert [tuple(w) for w in np.argwhere(want != clean)] == [at]
        assert (bit == 30) == (abs(want[at]) > abs(clean).max())
        out = torch.ops.fsim.matmul(a, b, a_scale, b_scale, *rest[:-1], 0)[0].detach().numpy()
        scaled = real(np.clip(want, clean.min(), clean.max()), a_scale, b_scale)
        assert_array_equal(out, scaled)


def test_every_word_of_both_operands_is_one_site():
    held = session(site_of(), linear_site(1, "fc", ACCEL, (20,), 7, True))
    mine = [b for b in held.space.blocks if b.layer == 0]
    assert [(b.component, b.words, b.first, b.exposed_bits) for b in mine] == [
        ("acts", 72, 1, 72 * 8), ("acts", 120, 2, 120 * 8), ("psums", 30, 0, 2 * 30 * 32),
    ]  # fmt: skip
    assert [b.number for b in held.space.blocks] == list(range(len(held.space.blocks)))
    a, b, a_scale, b_scale, *rest = arguments(held)
    held.model = BitErrors(acts=1.0)
    _, *read = torch.ops.fsim.matmul(a, b, a_scale, b_scale, *rest[:-1], 0)
    assert_array_equal(read[0].numpy(), ~codes_of(a, a_scale, True))
    assert_array_equal(read[1].numpy(), ~codes_of(b, b_scale, True))


def in_evaluation(signed, accel):
    """A placed program whose one product fetches two halves of its input, (2, 4, 4) each."""
    kind = dict(bits=8, scale=1.0, is_map=False)
    source = ops.Input(index=0, name="x", inputs=(), shape=(4, 4, 4), signed=signed, **kind)
    halves = [
        ops.Slice(index=i + 1, name=f"half{i}", inputs=(0,), shape=(2, 4, 4), signed=signed,
                  slices=(slice(2 * i, 2 * i + 2), slice(None), slice(None)), **kind)
        for i in (0, 1)
    ]  # fmt: skip
    product = ops.MatMul(
        index=3, name="product", inputs=(1, 2), shape=(2, 4, 4), signed=True,
        bias=np.zeros(1, np.int64), multiplier=np.ones(1, np.float32), lo=-128, hi=127, **kind,
    )  # fmt: skip
    return Placement(ops.Program((source, *halves, product), accel.acc_bits), accel)


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
@pytest.mark.parametrize(
    "model",
    [
        BitErrors(acts=0.02),
        BitErrors(psums=1e-3),
        OneFlip(),
        UpsetRate(1e-3),
        SingleFault("stuck1"),
    ],
    ids=["acts", "psums", "one-flip", "seu", "stuck"],
)
def test_rows_and_results_are_those_of_evaluation(flow, model):
    """The same draw strikes the same words of the product that evaluation would run."""
    accel = load_accel("systolic", flow, {"rows": 3, "cols": 3, "buffers.acts.kib": 1 / 32})
    placement = in_evaluation(True, accel)
    held = session(matmul_site(0, "product", accel, (2, 4, 4), (2, 4, 4), True), accel=accel)
    codes = np.random.default_rng(5).integers(-127, 128, (6, 4, 4, 4)).astype(np.int8)
    codes[0, 0, 0, 0] = codes[0, 2, 0, 0] = 127  # scale 1 of both
    images = np.arange(6)
    rows = model.rows(select(placement), 3, images, Draws(0))
    mine = model.rows(held.space, 3, images, Draws(0))
    for name in rows.dtype.names:
        if name != "layer":
            assert_array_equal(rows[name], mine[name], err_msg=name)
    batch = Batch(*slots_of(rows, 0, 6, accel.component_index("weights"), 1))
    sums = P.run(placement.program, codes, hooks=FaultHooks(placement, batch)).acc
    read = codes.copy()
    for row in rows[rows["component"] == accel.component_index("acts")]:
        flat = read[row["image"], 2 * (row["first"] - 1) :].reshape(-1)
        flat[row["word"]] ^= np.int8(row["xor_mask"])
    clean = P.run(placement.program, read).acc
    changed = np.where(sums == clean, sums, np.clip(sums, clean.min(), clean.max()))
    held.model = model
    one = torch.ones(())
    a, b = (torch.from_numpy(half.astype(np.float32)) for half in (codes[:, :2], codes[:, 2:]))
    out, *got = torch.ops.fsim.matmul(a, b, one, one, True, held.handle, 0, 3)
    assert_array_equal(np.concatenate(got, 1), read)
    assert_array_equal(out.numpy().reshape(6, -1), changed.astype(np.float32))
    assert (sums != P.run(placement.program, codes).acc).any()


def test_threads_and_repetition_change_nothing():
    held = session(site_of(), model=BitErrors(1e-2, 0, 1e-3))
    made = arguments(held, trial=4, images=7)
    before = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            outs.append(torch.ops.fsim.matmul(*made))
    finally:
        torch.set_num_threads(before)
    for other in outs[1:]:
        assert all(torch.equal(one, same) for one, same in zip(outs[0], other))
    assert not torch.equal(outs[0][0], torch.ops.fsim.matmul(*made[:-1], 5)[0])


# --- a network


class Block(nn.Module):
    """Two heads of attention over the pixels of a map, written out as one does."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 2, 2)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def heads(self, t):
        return t.reshape(t.shape[0], -1, 2, 4).transpose(1, 2)

    def forward(self, x):
        t = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = (self.heads(part(t)) for part in (self.q, self.k, self.v))
        scores = torch.softmax(q @ k.transpose(2, 3) / 2, -1)
        y = torch.matmul(scores, v).transpose(1, 2).reshape(t.shape[0], -1, 8)
        return self.head(y.mean(1))


@pytest.fixture
def block():
    torch.manual_seed(3)
    return Block().eval()


@pytest.fixture
def images():
    return torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def test_both_products_of_attention_run_on_the_array(block, images):
    model = fsim.attach(block, ACCEL, calibration=images)
    evaluated = [e for e in model.coverage.array if e.what == "MatMul"]
    assert all(name in model.layers for name in ("matmul", "matmul_1"))
    model.train()
    assert model.layers == ("embed", "q", "k", "v", "matmul", "matmul_1", "head")
    sites = [s for s in model._trained.session.sites if isinstance(s.op, ops.MatMul)]
    assert [s.input.signed for s in sites] == [True, False]  # a softmax is never negative
    assert [(s.name, s.placement.lowered[2].macs) for s in sites] == [
        (e.name, e.macs) for e in evaluated
    ]
    assert "in training in float" not in model.report()


def test_training_and_evaluation_of_attention_are_near(block, images):
    """Codes between layers, in evaluation only, move logits by a few per cent of their range."""
    model = fsim.attach(block, ACCEL, calibration=images)
    evaluated, in_float = model(images), block(images).detach()
    trained = model.train()(images).detach()
    reach = in_float.max() - in_float.min()
    assert (trained - evaluated).abs().max() < 0.05 * reach
    assert (trained - in_float).abs().max() < 0.02 * reach
    assert not torch.equal(trained, in_float)


def test_a_struck_product_moves_the_output_in_both_modes(block, images):
    model = fsim.attach(block, ACCEL, calibration=images)
    for mode in (False, True):
        model.train(mode)
        clean = model(images)
        with model.faults(fsim.Fault("psums", word=7, bit=24, layer="matmul_1", image=2)):
            struck = model(images)
        moved = (struck != clean).any(1)
        assert moved[2] and moved.sum() == 1


def test_named_words_are_those_of_the_mode(block, images):
    model = fsim.attach(block, ACCEL, calibration=images).train()
    for operand, words in ((1, 2 * 16 * 16), (2, 2 * 16 * 4)):
        fault = fsim.Fault("acts", word=words - 1, bit=0, cycle=operand, layer="matmul_1")
        with model.faults(fault):
            model(images)
        with pytest.raises(FaultError, match="matmul_1 has no word|word must be in"):
            model.set_faults(replace(fault, word=2 * 16 * 16))


def test_attention_learns_on_the_array_under_faults(block, images):
    model = fsim.attach(block, ACCEL, calibration=images, rates=1e-4).train()
    labels = (images.mean((1, 2, 3)) > 0).long()
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    assert block.q.weight.grad.abs().sum() > 0  # through both products


def test_a_copy_and_a_pickle_draw_as_the_network_does(block, images):
    model = fsim.attach(block, ACCEL, calibration=images, rates=1e-3).train()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.trial = model.trial = 7
        out = model(images)
        assert torch.equal(twin(images), out)
        model.trial = 7
        assert torch.equal(model(images), out)
        assert not torch.equal(model(images), out)  # the next draw


def test_autocast_leaves_the_codes_as_they_are(block, images):
    model = fsim.attach(block, ACCEL, calibration=images).train()
    plain = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(images)
    torch.testing.assert_close(cast.float(), plain, rtol=0.05, atol=0.05)
    cast.float().sum().backward()
    assert block.q.weight.grad.dtype == torch.float32


class Calls(nn.Module):
    """Products as they can be written; those from `x @ self.fixed` on are none of two maps."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Parameter(torch.randn(6, 6))
        self.each = nn.Parameter(torch.randn(4, 6, 6))
        self.deep = nn.Conv3d(1, 1, 1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        y = torch.bmm(x, x) + x.bmm(mat2=x) + x.matmul(x) + torch.matmul(input=x, other=x)
        y = y + x @ self.fixed + torch.matmul(x.transpose(0, 1), self.fixed).transpose(0, 1)
        y = y + torch.einsum("nij,njk->nik", x, x) + x.unsqueeze(1).matmul(x.unsqueeze(0))[:, 0]
        y = y + F.scaled_dot_product_attention(x, x, x) + self.deep(x[:, None, None])[:, 0, 0]
        z = x.transpose(0, 1)  # its first axis does not number the images
        y = y + torch.bmm(z, z.transpose(1, 2)).mean()
        if len(x) == 4:  # as many matrices as images
            y = y + torch.bmm(x, self.each)
        return self.fc(y.mean(1))


def test_what_stays_in_float_is_what_evaluation_leaves_there_and_is_said():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 6)
    model = fsim.attach(Calls(), ACCEL, calibration=x).train()
    assert model.layers == ("bmm", "bmm_1", "matmul", "matmul_1", "fc")
    want = (
        "in training in float (calls a pass): bmm (2), conv3d (1), einsum (1), "
        "matmul (3), scaled_dot_product_attention (1)"
    )
    assert want in model.report()
    torch.testing.assert_close(model(x), model.module(x), rtol=0.1, atol=0.2)


def test_another_shape_than_that_of_calibration_is_refused(block, images):
    model = fsim.attach(block, ACCEL, calibration=images).train()
    model._trained.shapes = tuple((1,) if len(s) == 6 else s for s in model._trained.shapes)
    with pytest.raises(MappingError, match="must be one of the calibration pass, got a matmul"):
        model(images)


# --- machines of other widths


@pytest.mark.parametrize("bits", [4, 16])
def test_gradients_and_codes_follow_the_width_of_the_machine(bits):
    accel = load_accel(
        "systolic-8x8", None, {"operand_bits": bits, "product_bits": 2 * bits, "acc_bits": 48}
    )
    held = session(
        site_of(accel=accel), linear_site(1, "fc", accel, (9,), 4, True),
        conv_site(2, "c", accel, (2, 5, 5), (3, 2, 3, 3), True, (1, 1), (0, 0), (1, 1), 1),
        accel=accel,
    )  # fmt: skip
    top = 2 ** (bits - 1) - 1

    def grid(x, largest):
        step = largest.detach() / top
        return x + ((x / step).round() * step - x).detach()

    torch.manual_seed(2)
    cases = [
        ("matmul", (3, *A), (3, *B), torch.matmul, []),
        ("linear", (3, 9), (4, 9), F.linear, []),
        ("conv2d", (3, 2, 5, 5), (3, 2, 3, 3), F.conv2d, [[1, 1], [0, 0], [1, 1], 1]),
    ]
    for number, (name, left, right, plain, geometry) in enumerate(cases):
        a, b = (torch.randn(shape, requires_grad=True) for shape in (left, right))
        scale = operators.activation_scale(a, True, bits)
        other = operators.activation_scale(b, True, bits) if name == "matmul" else None
        middle = [scale, other] if name == "matmul" else [scale]
        given = (a, b, *([] if name == "matmul" else [None]), *middle, *geometry, True)
        given = (*given, held.handle, number, -1)
        torch.library.opcheck(getattr(torch.ops.fsim, name).default, given)
        out = getattr(torch.ops.fsim, name)(*given)[0]
        weights = torch.randn(out.shape)
        (out * weights).sum().backward()
        got = a.grad, b.grad
        a.grad = b.grad = None
        largest = b.abs().amax() if name == "matmul" else b.abs().flatten(1).amax(1)
        largest = largest.reshape(-1, *[1] * (b.ndim - 1)) if name != "matmul" else largest
        (plain(grid(a, a.abs().amax()), grid(b, largest)) * weights).sum().backward()
        for mine, theirs in zip(got, (a.grad, b.grad)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
