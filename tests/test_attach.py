"""Attached models give the numbers of the integer program, and say what is not covered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

import fsim
from fsim.errors import ConfigError, FaultError, FsimError
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.network import Explicit
from fsim.fault_models.upsets import SingleFault
from fsim.nas.data import load_data
from fsim.nas.zoo import load_model
from fsim.simulator import program as P
from fsim.simulator.attach import attach
from fsim.simulator.capture import capture
from fsim.simulator.draws import Draws
from fsim.simulator.inject import Golden, golden_run, run_rows
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement, select
from fsim.types import Fault
from tests import naive_network
from tests.naive_network import Hit, Machine
from tests.test_attach_layers import Branching

ACCEL = "systolic-8x8"


@pytest.fixture(scope="module")
def digits():
    loaded = load_model("digits-cnn")
    train, test = (load_data("digits", split) for split in ("train", "test"))
    calibration = loaded.preprocessing(train.images[:128])
    return (
        loaded.model,
        np.asarray(calibration),
        np.asarray(loaded.preprocessing(test.images)),
        (test.labels),
    )


@pytest.fixture(scope="module")
def attached(digits):
    model, calibration, _, _ = digits
    return attach(model, ACCEL, calibration=calibration)


@pytest.fixture(autouse=True)
def no_faults(attached):
    attached.set_faults(None)
    attached.trial = 0


@pytest.fixture(scope="module")
def reference(digits):
    model, calibration, _, _ = digits
    accel = fsim.load_accel(ACCEL)
    program = quantise(
        capture(model, calibration), calibration, accel_bits=accel.operand_bits,
        acc_bits=accel.acc_bits, unsigned=accel.unsigned_acts,
    )  # fmt: skip
    return Placement(program, accel)


def floats(model, images):
    with torch.no_grad():
        return model.eval()(images).numpy()


def test_logits_are_those_of_the_program_bit_for_bit(digits, attached, reference):
    images = digits[2][:200]
    out = attached(torch.from_numpy(images))
    assert out.dtype == torch.float32 and not out.requires_grad
    assert_array_equal(out.numpy(), P.run(reference.program, images).logits)


def test_logits_and_struck_words_are_those_of_integer_loops(digits, attached, reference):
    program, images = reference.program, digits[2][:2]
    source = program.input
    codes = np.clip(np.rint(images * np.float32(1 / source.scale)), *source.range).astype(int)
    codes = codes.transpose(0, 2, 3, 1)
    index = {op.name: op.index for op in program.ops}
    hits = [
        Hit("acts", index["conv1"], 33, 0, -1, 0, 1 << 6),
        Hit("weights", index["conv3"], 100, 0, -1, 0, 1 << 6),
        Hit("psums", index["fc"], 4, 3, -1, 0, 1 << 17),
    ]
    faults = [
        Fault("acts", bit=6, word=33, layer="conv1", image=1),
        Fault("weights", bit=6, word=100, layer="conv3", image=1),
        Fault("psums", bit=17, word=4, cycle=3, layer="fc", image=1),
    ]
    with attached.faults(faults):
        out = attached(images).numpy()
    for image, struck in enumerate(([], hits)):
        logits = naive_network.run(program, codes[image], Machine("ws", 8, 8), struck)[1]
        assert_array_equal(out[image], logits)
    assert (out[1] != attached(images).numpy()[1]).all()


def test_clean_accuracy_is_that_of_float(digits, attached):
    model, _, images, labels = digits
    clean = np.mean(attached(torch.from_numpy(images)).argmax(1).numpy() == labels)
    in_float = np.mean(floats(model, torch.from_numpy(images)).argmax(1) == labels)
    assert abs(clean - in_float) < 0.01


@pytest.mark.parametrize(
    "model",
    [
        Explicit((Fault("psum", bit=20, row=1, col=2, layer="conv2", cycle=60, image=3),)),
        Explicit((Fault("weights", bit=6, word=5, layer="conv3"),)),
        BitErrors(1e-3, 1e-3, 1e-4),
        BitErrors(weights=1e-3, hw_batch=None),
        SingleFault("stuck1"),
    ],
    ids=["psum", "weight", "ber", "ber-trial", "stuck"],
)
def test_a_faulty_call_is_the_trial_that_run_rows_gives(digits, attached, reference, model):
    images, labels = digits[2][:12], digits[3][:12]
    golden: Golden = golden_run(reference, images, labels)
    attached.trial = 4
    with attached.faults(model):
        out = attached(torch.from_numpy(images)).numpy()
    assert attached.trial == 5
    rows = model.rows(select(reference), 4, np.arange(12), Draws(0))
    result = run_rows(reference, golden, rows, trial=4, hw_batch=getattr(model, "hw_batch", 1))
    scale = reference.program.ops[-1].multiplier
    assert_array_equal(out, result.acc.astype(np.float32) * scale)
    if not isinstance(model, SingleFault):
        assert (result.acc != golden.acc).any()


def test_each_call_is_a_trial_and_faults_end_with_their_block(digits, attached):
    images = torch.from_numpy(digits[2][:8])
    clean = attached(images)
    attached.trial = 0
    with attached.faults(BitErrors(weights=1e-2)):
        first, second = attached(images), attached(images)
        attached.trial = 0
        again = attached(images)
    assert attached.trial == 1
    assert_array_equal(first, again)
    assert not torch.equal(first, second)
    assert_array_equal(attached(images), clean)


def test_rates_are_bit_errors(digits):
    model, calibration, images, _ = digits
    rated = attach(model, ACCEL, calibration=calibration, rates={"weights": 1e-2}, seed=3)
    given = attach(model, ACCEL, calibration=calibration, faults=BitErrors(weights=1e-2), seed=3)
    images = torch.from_numpy(images[:4])
    assert_array_equal(rated(images), given(images))


def test_wrong_faults_are_refused(attached):
    with pytest.raises(ConfigError, match="layer must be one of.*did you mean 'conv1'"):
        attached.set_faults([Fault("weights", bit=0, word=0, layer="conv_1")])
    for wrong in (["psum"], "psum", 3):
        with pytest.raises(FaultError, match="rows"):
            attached.set_faults(wrong)


def test_the_original_is_untouched(digits):
    for model, calibration in (digits[:2], (Branching(), torch.randn(8, 1, 8, 8))):
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        made = attach(model, ACCEL, calibration=calibration)
        made(torch.as_tensor(calibration[:4]))
        assert model.training and not made.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        assert not any(type(m).__name__ == "_ArrayLayer" for m in model.modules())
        model.eval()


def test_coverage_counts_what_the_array_does(attached, reference):
    assert attached.mode == "integer program"
    assert [(e.name, e.macs) for e in attached.coverage.array] == [
        (op.name, reference.lowered[op.index].macs) for op in reference.program.array_ops
    ]
    assert attached.coverage.share == 1 and "not covered: nothing" in attached.report()


def test_the_report_names_host_operations():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.deep = nn.Conv3d(1, 8, 1)

        def forward(self, x):
            return self.fc(torch.sigmoid(self.deep(x.unsqueeze(2))).mean((1, 2, 3)))

    made = attach(Odd(), ACCEL, calibration=torch.rand(4, 1, 8, 8))
    assert made.mode == "integer program"
    host = {entry.name: entry for entry in made.coverage.other}
    assert host["deep"].what == "Conv3d" and host["deep"].macs == 64 * 8
    assert made.coverage.share == 64 / (64 + 512)
    assert "Conv3d" in made.report() and "sigmoid" in made.report()


def test_no_images_are_no_logits(attached):
    assert attached(torch.zeros(0, 1, 8, 8)).shape == (0, 10)


def test_wrong_arguments_say_what_is_wrong(digits, attached):
    model, calibration, _, _ = digits
    cases = [
        ({"calibration": None}, "got None"),
        ({"calibration": calibration[:0]}, "n >= 1"),
        ({"calibration": np.zeros((4, 3, 8, 8), np.float32)}, "must fit the network"),
        ({"calibration": np.zeros((4, 1, 8, 8), np.uint8)}, "float32"),
        ({"accel": "sistolic"}, "did you mean"),
        ({"accel": 3}, "accel must be"),
        ({"rates": {"regs": 1}}, "rates must"),
        ({"rates": 2.0}, "probability must be in"),
        ({"rates": 0.1, "faults": OneFlip()}, "give one"),
        ({"seed": -1}, "seed must"),
    ]
    for change, message in cases:
        arguments = {"accel": ACCEL, "calibration": calibration, **change}
        with pytest.raises(FsimError, match=message):
            attach(model, **arguments)
    with pytest.raises(ConfigError, match="images must be"):
        attached(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="quant_params"):
        attach(Branching(), ACCEL, calibration=torch.randn(8, 1, 8, 8), quant_params={})


def test_calibration_images_may_change_afterwards(digits):
    model, calibration, _, _ = digits
    images = calibration[:32].clone() if hasattr(calibration, "clone") else calibration[:32].copy()
    images = torch.as_tensor(images)
    made = attach(model, ACCEL, calibration=images)
    wanted = made(images[:4].clone())
    probe = images[:4].clone()
    images.zero_()
    with torch.no_grad():
        next(model.parameters()).add_(0.0)  # quantised anew
    assert torch.equal(made(probe), wanted)


class _Sequence(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(8, 3)

    def forward(self, x):
        x = self.layer(x)
        return self.fc((x[0] if isinstance(x, tuple) else x)[:, -1])


def test_what_cannot_be_counted_is_not_called_nothing():
    x = torch.randn(8, 5, 8)
    report = attach(_Sequence(nn.LSTM(8, 8, batch_first=True)), ACCEL, calibration=x).report()
    assert "that can be counted; those of layer cannot" in report and "unknown MACs" in report


def test_attention_is_counted_though_torch_has_a_fast_path():
    x = torch.randn(8, 5, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    made = attach(_Sequence(layer.eval()), ACCEL, calibration=x)
    # In, out and two products of attention for 5 steps of 8 values, then two linear layers.
    wanted = 5 * 8 * 8 * 4 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16
    assert sum(e.macs for e in made.coverage.other) == wanted


def test_what_is_not_finite_is_refused_in_training():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    x = torch.randn(4, 1, 8, 8)
    made = attach(net, ACCEL, calibration=x).train()
    with pytest.raises(ConfigError, match="what it reads must be finite in 0"):
        made(torch.full_like(x, float("nan")))
    with torch.no_grad():
        net[2].weight[0, 0] = float("inf")
    with pytest.raises(ConfigError, match="its weights must be finite in 2"):
        made(x)


def test_evaluation_in_a_compiled_network():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(4, 1, 4, 4)
    made = attach(net, ACCEL, calibration=x).eval()
    compiled = torch.compile(made, backend="eager")
    assert torch.equal(compiled(x), made(x))
