"""Layer by layer: every use of a layer computes, and is struck, as integer loops say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_array_equal
from torch import nn

import fsim
from fsim.errors import ConfigError, FaultError, MappingError
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.upsets import SingleFault
from fsim.simulator.draws import Draws
from fsim.types import Fault
from tests.naive import wrapped

ACCEL, SIDE = "systolic-8x8", 8
"""A weight stationary machine of SIDE x SIDE PEs."""


class Branching(nn.Module):
    """Takes a branch by its data, which torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.odd = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.unused = nn.Linear(3, 3)
        self.act = nn.ReLU()
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4 * 16, 5)

    def forward(self, x):
        x = self.act(self.conv(x))
        if x.sum() < 0:
            x = -x
        x = self.act(self.same(x))
        x = self.act(self.same(x) + x)
        x = self.drop(self.odd(x))
        return self.fc(torch.flatten(F.max_pool2d(x, 2), 1))


@pytest.fixture(scope="module")
def branching():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Branching().eval()
        images = torch.randn(48, 1, 8, 8)
    return model, images


@pytest.fixture(scope="module")
def attached(branching):
    return fsim.attach(branching[0], ACCEL, calibration=branching[1])


@pytest.fixture(autouse=True)
def no_faults(attached):
    attached.set_faults(None)
    attached.trial = 0


# --- the same in integer loops -----------------------------------------------------------


def in_integers(model, uses, images, faults=()):
    """(n, 5) logits of Branching, its array layers in `struck` loops."""
    layer = partial(struck, uses=uses, faults=faults)
    with torch.no_grad():
        x = torch.relu(layer("conv", images))
        x = torch.relu(layer("same", x))
        x = torch.relu(layer("same#1", x) + x)
        return layer("fc", F.max_pool2d(model.odd(x), 2).flatten(1)).numpy()


def struck(name, x, uses, faults):
    """What one use makes of (n, ...) float32 x, under its own and everybody's faults."""
    use = next(use for use in uses if use.name == name)
    mine = [f for f in faults if f.layer in (None, name)]
    made = [one_image(use, x[i].numpy(), [f for f in mine if f.image in (None, i)])
            for i in range(len(x))]  # fmt: skip
    return torch.from_numpy(np.stack(made))


def one_image(use, x, faults):
    op, source = use.placement.program.ops[-1], use.placement.program.ops[0]
    low, high = (-128, 127) if source.signed else (0, 255)
    codes = np.clip(np.rint(x * np.float32(1 / source.scale)), low, high).astype(int)
    codes = np.ascontiguousarray(codes.transpose(1, 2, 0) if codes.ndim == 3 else codes)
    weight = op.weight.astype(int)
    for fault in faults:
        if fault.component == "acts":
            flip_word(codes, fault, source.signed)
        elif fault.component == "weights":
            flip_word(weight, fault, True)
    if weight.ndim == 4:
        rows, columns = windows(codes, weight)
    else:
        rows, columns = codes.reshape(-1, codes.shape[-1]).tolist(), weight.T.tolist()
    total = product(rows, columns, op.bias.tolist(), faults, source.signed)
    out = np.array(total).astype(np.float32) * op.multiplier
    return out.T.reshape(op.shape) if len(op.shape) == 3 else out.reshape(op.shape)


def flip(value, bit, bits, signed=True):
    return wrapped(value ^ 1 << bit, bits) if signed else value ^ 1 << bit


def flip_word(codes, fault, signed):
    flat = codes.reshape(-1)
    flat[fault.word] = flip(int(flat[fault.word]), fault.bit, 8, signed)


def windows(codes, weight):
    """(m, k) and (k, n) lists of a convolution with padding 1; k counts (ky, kx, c)."""
    height, width, channels = codes.shape
    slots = [(ky, kx, c) for ky in range(3) for kx in range(3) for c in range(channels)]
    wide = np.zeros((height + 2, width + 2, channels), int)
    wide[1:-1, 1:-1] = codes
    wide = wide.tolist()
    rows = [
        [wide[y + ky][x + kx][c] for ky, kx, c in slots]
        for y in range(height)
        for x in range(width)
    ]
    return rows, [[int(w[c, ky, kx]) for w in weight] for ky, kx, c in slots]


def product(a, b, bias, faults, signed):
    """[m][n] final sums: PE row after PE row, then fold after fold."""
    m_size, k_size, n_size = len(a), len(b), len(b[0])
    folds = -(-k_size // SIDE)
    sums, ifmap, psum = (
        [f for f in faults if f.component == c] for c in ("psums", "ifmap", "psum")
    )
    result = [list(bias) for _ in a]
    for m in range(m_size):
        for n in range(n_size):
            tile, col = divmod(n, SIDE)
            for fold in range(folds):
                begin = (tile * folds + fold) * (m_size + 3 * SIDE - 2)  # cycle
                part = 0
                for row in range(SIDE):
                    k = fold * SIDE + row
                    value, factor = (a[m][k], b[k][n]) if k < k_size else (0, 0)
                    for f in ifmap:  # a flipped code goes on to the PEs on the right
                        if f.row == row and f.col <= col:
                            if f.cycle == begin + m + SIDE - 1 + row + f.col:
                                value = flip(value, f.bit, 8, signed)
                    part += value * factor
                    for f in psum:
                        if (f.row, f.col) == (row, col):
                            if f.kind == "stuck1":
                                part = part if part >> f.bit & 1 else flip(part, f.bit, 32)
                            elif f.cycle == begin + m + SIDE + row + col:
                                part = flip(part, f.bit, 32)
                total = wrapped(result[m][n] + part, 32)
                for f in sums:
                    if (f.word, f.cycle or 0) == (m * n_size + n, fold):
                        total = flip(total, f.bit, 32)
                result[m][n] = total
    return result


FAULTS = {
    "acts, signed": Fault("acts", bit=7, word=27, layer="conv", image=1),
    "acts, first use": Fault("acts", bit=7, word=37, layer="same", image=1),
    "acts, second use": Fault("acts", bit=7, word=37, layer="same#1", image=1),
    "acts, vector": Fault("acts", bit=6, word=40, layer="fc"),
    "weights, first use": Fault("weights", bit=6, word=20, layer="same", image=2),
    "weights, second use": Fault("weights", bit=7, word=22, layer="same#1", image=2),
    "psums": Fault("psums", bit=20, word=131, cycle=2, layer="same", image=0),
    "psums, second use": Fault("psums", bit=20, word=131, cycle=2, layer="same#1", image=0),
    "psums, fc": Fault("psums", bit=15, word=3, cycle=7, layer="fc", image=3),
    # Pass 3 of 86 cycles, position 24, PE (3, 2); pass 4, position 63, PE (7, 1).
    "psum": Fault("psum", bit=20, row=3, col=2, cycle=295, layer="same", image=1),
    "psum, second use": Fault("psum", bit=20, row=7, col=1, cycle=423, layer="same#1", image=1),
    "psum, fc": Fault("psum", bit=17, row=2, col=1, cycle=80, layer="fc"),
    "ifmap": Fault("ifmap", bit=7, row=5, col=0, cycle=290, layer="same#1"),
    "ifmap, signed": Fault("ifmap", bit=7, row=4, col=2, cycle=44, layer="conv", image=0),
    "stuck": Fault("psum", bit=15, row=6, col=1, kind="stuck1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_does_what_integer_loops_say(branching, attached, name):
    (model, images), fault = branching, FAULTS[name]
    uses, images = attached.network.uses, images[:4]
    clean = in_integers(model, uses, images)
    assert_array_equal(attached(images), clean)
    with attached.faults(fault):
        out = attached(images).numpy()
    expected = in_integers(model, uses, images, [fault])
    assert_array_equal(out, expected)
    changed = (out != clean).any(1)
    assert changed.all() if fault.image is None else changed.nonzero()[0].tolist() == [fault.image]
    assert_array_equal(attached(images), clean)


def test_all_of_them_together(branching, attached):
    model, images = branching[0], branching[1][:4]
    faults = list(FAULTS.values())
    with attached.faults(faults):
        out = attached(images)
    assert_array_equal(out, in_integers(model, attached.network.uses, images, faults))


def test_bit_errors_strike_the_uses_that_their_rows_name(branching, attached):
    model, images = branching[0], branching[1][:3]
    errors, names = BitErrors(0.005, 0.005, 0.0005), attached.accel.components
    rows = errors.rows(attached.network.space, 0, np.arange(3), Draws(0))
    assert set(rows["layer"]) == {0, 1, 2, 3} and set(rows["component"]) == {4, 5, 6}
    faults = [
        Fault(
            names[row["component"]].name,
            bit=int(row["xor_mask"] & -row["xor_mask"]).bit_length() - 1,  # the lowest
            word=int(row["word"]),
            cycle=int(row["first"]),
            image=int(row["image"]),
            layer=attached.layers[row["layer"]],
        )
        for row in rows
    ]
    with attached.faults(errors):
        out = attached(images)
    assert_array_equal(out, in_integers(model, attached.network.uses, images, faults))
    assert (out.numpy() != attached(images).numpy()).any(1).all()


def test_weights_written_once_are_wrong_for_all_images(branching, attached):
    _, images = branching
    one = images[:1].repeat(4, 1, 1, 1)
    with attached.faults(BitErrors(weights=0.02, hw_batch=2)):
        first, second, third, fourth = attached(one)
    assert torch.equal(first, second) and torch.equal(third, fourth)
    assert not torch.equal(first, third)


# --- the rest ----------------------------------------------------------------------------


def test_it_is_close_to_float(branching, attached):
    model, images = branching
    assert attached.mode == "layer by layer" and attached.program is None
    with torch.no_grad():
        in_float = model(images)
    out = attached(images)
    assert out.shape == in_float.shape and out.dtype == torch.float32
    assert 0 < (out - in_float).abs().max() < 0.05 * in_float.abs().max()


def test_coverage_names_what_is_not_covered(attached):
    cover = attached.coverage
    assert [e.name for e in cover.array] == ["conv", "same", "same#1", "fc"]
    assert [e.macs for e in cover.array] == [64 * 4 * 9, 64 * 16 * 9, 64 * 16 * 9, 320]
    other = {e.name: e for e in cover.other}
    assert set(other) == {"odd", "unused", "act", "drop", "(functions)"}
    assert other["odd"].macs == 64 * 16 * 9 and "never called" in other["unused"].why
    total = 64 * 4 * 9 + 3 * 64 * 16 * 9 + 320
    assert cover.share == pytest.approx(1 - 64 * 16 * 9 / total)
    text = attached.report()
    assert "layer by layer" in text and all(name in text for name in other)


def test_a_trial_draws_once_for_all_layers(attached):
    space = attached.network.space
    rows = OneFlip().rows(space, 0, np.arange(200), Draws(1))
    assert len(rows) == 200 and set(rows["layer"]) == {0, 1, 2, 3}
    assert [block.number for block in space.blocks] == list(range(len(space.blocks)))
    for model in (OneFlip(), SingleFault("stuck1"), SingleFault("seu"), BitErrors(1e-3, 1e-3)):
        with attached.faults(model):
            assert torch.isfinite(attached(torch.zeros(4, 1, 8, 8))).all()


def test_an_unknown_use_is_refused(attached):
    with pytest.raises(ConfigError, match="layer must be one of conv, same, same#1, fc"):
        attached.set_faults([Fault("weights", bit=0, word=0, layer="same#2")])


def test_no_images_are_no_logits(attached):
    assert attached(torch.zeros(0, 1, 8, 8)).shape == (0, 5)


class Small(nn.Module):
    """Untraceable; `way` is what it does with its layer and input."""

    def __init__(self, layer, way):
        super().__init__()
        self.layer, self.way = layer, way

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.way(self.layer, x)


def small(layer, way, calibration):
    made = fsim.attach(Small(layer, way), ACCEL, calibration=calibration)
    assert made.mode == "layer by layer"
    return made


def test_stacks_of_vectors_are_positions():
    made = small(nn.Linear(6, 3), lambda fc, x: fc(x), torch.randn(16, 5, 6))
    images, uses = torch.randn(4, 5, 6), made.network.uses
    fault = Fault("psums", bit=14, word=7, layer="layer", image=1)
    with made.faults(fault):
        out = made(images)
    assert_array_equal(out, struck("layer", images, uses, [fault]))
    changed = (out != made(images)).nonzero().tolist()
    assert changed == [[1, 2, 1]]


def test_a_word_that_is_fetched_strikes_what_that_fetch_is_for():
    """64 x 32 words do not fit in 512 bytes: each tile of 8 outputs and fold fetches its own."""
    accel = fsim.load_accel(ACCEL, overrides={"buffers.acts.kib": 1})
    network = Small(nn.Linear(32, 12), lambda fc, x: fc(x))
    x = torch.randn(8, 64, 32)
    made = fsim.attach(network, accel, calibration=x)
    (use,) = made.network.uses
    word, fold, tile = 5 * 32 + 19, 2, 1
    with made.faults(Fault("acts", bit=6, word=word, layer="layer", cycle=1 + 4 * tile + fold)):
        out = made(x).numpy()
    op, scale = use.op, np.float32(1 / use.placement.program.input.scale)
    codes = np.clip(np.rint(x.numpy() * scale), -128, 127).astype(int)
    sums = codes @ op.weight.T.astype(int) + op.bias
    for image, code in enumerate(codes[:, 5, 19].tolist()):
        for output in range(8, 12):
            sums[image, 5, output] += (flip(code, 6, 8) - code) * int(op.weight[output, 19])
    assert_array_equal(out, sums.astype(np.float32) * op.multiplier)
    with pytest.raises(FaultError, match="residency 0"):
        made.set_faults(Fault("acts", bit=6, word=word, layer="layer"))


def again(fc, x):
    return fc(fc(x)) if x.max() < 0 else fc(x)


def cropped(fc, x):
    return fc(x[:, :2]) if x.max() < 0 else fc(x)


@pytest.mark.parametrize(
    ("way", "message"), [(again, "more often"), (cropped, "the shape it was calibrated with")]
)
def test_a_way_that_calibration_did_not_see_is_refused(way, message):
    x = torch.rand(8, 3, 4)
    made = small(nn.Linear(4, 4), way, x)
    made(x)
    with pytest.raises(MappingError, match=message):
        made(-x)
    made(x)


def test_other_modules_run_as_often_as_they_like():
    x = torch.rand(8, 1, 1, 1, 4)
    made = small(nn.Conv3d(1, 1, 1), again, x)
    assert not made.coverage.array and made(-x).shape == x.shape


def test_one_layer_under_two_names_has_one_count():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Linear(4, 4)

        def forward(self, x):
            return self.second(torch.relu(self.first(x) if len(x) else x))

    x = torch.randn(32, 4)
    made = fsim.attach(Tied(), ACCEL, calibration=x)
    assert made.mode == "layer by layer" and made.layers == ("first", "first#1")
    outs = []
    for layer in made.layers:
        with made.faults(Fault("psums", bit=15, word=2, layer=layer)):
            outs.append(made(x))
    assert (outs[1] != made(x)).nonzero()[:, 1].unique().tolist() == [2]
    assert_array_equal(outs[1], struck_twice(made, x, "first#1"))
    assert_array_equal(outs[0], struck_twice(made, x, "first"))


def struck_twice(made, x, layer):
    fault = Fault("psums", bit=15, word=2, layer=layer)
    layer = partial(struck, uses=made.network.uses, faults=[fault])
    return layer("first#1", torch.relu(layer("first", x)))


def test_what_overflows_in_float_is_clamped():
    """A fault upsets what float code divides by; codes are then the ends, NaN is 0."""

    def divided(fc, x):
        return fc(torch.stack([x[:, 0] / x[:, 1], x[:, 2] / x[:, 3]], 1))

    made = small(nn.Linear(2, 2), divided, torch.rand(64, 4) + 1)
    wild = made(torch.tensor([[1.0, 0, 0, 0]]))  # infinity, NaN
    assert_array_equal(wild, made(torch.tensor([[1e6, 1, 0, 1]])))


def test_a_layer_that_does_not_number_the_images_stays_in_float():
    made = small(nn.Linear(6, 3), lambda fc, x: fc(x.reshape(-1, 6)).reshape(-1, 5, 3),
                 torch.randn(16, 5, 6))  # fmt: skip
    assert not made.coverage.array and made.coverage.share == 0
    assert "does not number the images" in made.coverage.other[0].why


def test_the_network_must_return_an_entry_for_each_image():
    for way in (lambda fc, x: fc(x).sum(), lambda fc, x: (fc(x), x), lambda fc, x: fc(x)[:1]):
        with pytest.raises(MappingError, match="must return one tensor"):
            small(nn.Linear(4, 4), way, torch.rand(8, 4))


def test_calibration_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"must fit the network, got \(8, 5\)"):
        small(nn.Linear(4, 4), lambda fc, x: fc(x), torch.rand(8, 5))
