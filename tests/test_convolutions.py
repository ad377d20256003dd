"""Kinds of convolution on the array: one axis, transposed; against torch and naive loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fsim
from fsim.accel_models.load import load_accel
from fsim.simulator import convolutions
from fsim.simulator import program as P
from fsim.simulator.bridge.network import Trained
from fsim.simulator.capture import capture, forward
from fsim.simulator.quantise import quantise
from tests.test_engine import IMAGES, compare, machine_of, place, random_rows


def kinds(graph):
    return [node.kind for node in graph.nodes]


def in_float(model, images):
    """What the captured graph computes, and what torch does."""
    graph = capture(model, images.numpy())
    *_, (_, _, value) = forward(graph, images)
    with torch.no_grad():
        wanted = model.eval()(images)
    return graph, value.reshape(wanted.shape), wanted


@pytest.mark.parametrize("axes", [1, 2])
def test_a_transposed_convolution_is_a_convolution(axes):
    torch.manual_seed(0)
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1]
    for kernel, stride, padding, dilation, groups in itertools.product(
        (1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2), (1, 2)
    ):
        more = min(stride, dilation, 2) - 1
        if dilation * (kernel - 1) - 2 * padding + 4 * stride + more < stride:
            continue  # torch has no output then
        layer = make(4, 6, kernel, stride, padding, more, groups=groups, dilation=dilation)
        layer.bias.data.normal_()
        _, got, wanted = in_float(nn.Sequential(layer), torch.randn(2, 4, *(5, 7)[:axes]))
        assert torch.allclose(got, wanted, atol=1e-5), (kernel, stride, padding, dilation, groups)


def test_uneven_arguments_of_a_transposed_convolution():
    torch.manual_seed(1)
    layer = nn.ConvTranspose2d(3, 2, (3, 2), (1, 3), (2, 0), (0, 2), dilation=(2, 1))
    _, got, wanted = in_float(nn.Sequential(layer), torch.randn(2, 3, 4, 5))
    assert torch.allclose(got, wanted, atol=1e-5)


def test_stretching_puts_values_apart():
    x = torch.arange(1.0, 7).reshape(1, 1, 2, 3)
    stretch = convolutions.Stretch((2, 3))
    wanted = np.zeros((3, 7))
    wanted[::2, ::3] = x[0, 0]
    np.testing.assert_array_equal(stretch(x)[0, 0], wanted)
    cut = convolutions.Stretch((2, 3), (1, 2, 0, 1))
    np.testing.assert_array_equal(cut(x)[0, 0], wanted[:2, 1:5])


class OneAxis(nn.Module):
    """Convolutions of one axis with what surrounds them in networks for signals."""

    def __init__(self, functional=False):
        super().__init__()
        self.stem = nn.Conv1d(3, 6, 3, 2, 1)
        self.norm = nn.BatchNorm1d(6)
        self.depth = nn.Conv1d(6, 6, 3, padding="same", dilation=2, groups=6)
        self.norm2 = nn.BatchNorm1d(6)
        self.point = nn.Conv1d(6, 4, 1)
        self.fc = nn.Linear(4 * 6, 3)
        self.functional = functional
        for norm in (self.norm, self.norm2):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        if self.functional:
            x = F.conv1d(x, self.stem.weight, self.stem.bias, 2, 1)
            n = self.norm
            x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)
        else:
            x = self.norm(self.stem(x))
        x = F.relu(x)
        x = F.relu(self.norm2(self.depth(x)) + x)
        x = F.avg_pool1d(x, 2)
        x = F.pad(self.point(x), (1, 1))
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize("functional", [False, True])
def test_batch_norm_folds_into_convolutions_of_one_axis(functional):
    torch.manual_seed(2)
    graph, got, wanted = in_float(OneAxis(functional), torch.randn(4, 3, 16))
    assert torch.allclose(got, wanted, atol=1e-5)
    assert kinds(graph) == [
        "input", "host", "conv", "conv", "add", "avg_pool", "conv", "pad", "flatten", "linear",
    ]  # fmt: skip
    assert [node.relu is not None for node in graph.nodes[2:5]] == [True, False, True]


def test_other_operations_of_one_axis():
    torch.manual_seed(3)
    x = torch.randn(4, 3, 12)
    for layer in (
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(5),
        nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)),
        nn.Conv1d(5, 5, 3, padding_mode="circular"),
    ):
        model = nn.Sequential(nn.Conv1d(3, 5, 3), layer, nn.Conv1d(5, 2, 2))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.running_mean)
        graph, got, wanted = in_float(model, x)
        assert torch.allclose(got, wanted, atol=1e-5), layer
        other = {node.params["what"] for node in graph.nodes if node.kind == "host"}
        circular = isinstance(layer, nn.Conv1d)
        assert other == ({"unsqueeze", "squeeze", "Conv1d"} if circular else {"unsqueeze"})


class Back(nn.Module):
    """Down and up again."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 5, 3, 2, 1)
        self.up = nn.ConvTranspose2d(5, 4, 3, 2, 1, 1)
        self.depth = nn.ConvTranspose2d(4, 4, 2, 1, 1, groups=4)
        self.fc = nn.Linear(4 * 5 * 5, 3)

    def forward(self, x):
        x = F.relu(self.up(F.relu(self.down(x))))
        return self.fc(torch.flatten(self.depth(x), 1))


NETWORKS = {"one axis": (OneAxis, (3, 16)), "transposed": (Back, (2, 6, 6))}


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
@pytest.mark.parametrize("name", NETWORKS)
def test_integers_and_wrong_words_against_naive_loops(name, flow):
    torch.manual_seed(4)
    make, shape = NETWORKS[name]
    model, images = make(), torch.randn(16, *shape).numpy()
    program = quantise(capture(model, images), images)
    assert {op.name for op in program.array_ops} >= {"fc", {"one axis": "stem"}.get(name, "up")}
    assert not program.host_ops
    codes = P.run(program, images[:IMAGES], keep=[0]).kept[0]
    rng = np.random.default_rng(5)
    for overrides in ({}, {"buffers.acts.kib": 8 / 1024}):
        placement = place(program, flow=flow, **overrides)
        stored = [op.index for op in program.ops[:-1] if op.stores] if overrides else ()
        machine = machine_of(placement, fetched=stored)
        for count in (0, 30):
            rows, slot = random_rows(placement, rng, count)
            compare(placement, machine, codes, rows, slot, differs=count > 0)


def test_a_layer_that_cannot_be_traced_is_on_the_array_too():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv1d(3, 4, 3, padding=1)
            self.b = nn.ConvTranspose1d(4, 2, 2, 2)

        def forward(self, x):
            if float(x.sum()) > 1e9:
                x = -x
            return self.b(F.relu(self.a(x))).flatten(1)

    torch.manual_seed(6)
    model, x = Steps().eval(), torch.randn(32, 3, 8)
    attached = fsim.attach(model, "systolic", calibration=x).eval()
    assert {entry.name for entry in attached.coverage.array} == {"a", "b"}
    with torch.no_grad():
        wanted = model(x)
        error = (attached(x) - wanted).abs().max()
    assert error < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_training_runs_them_on_the_array(name):
    """Values and gradients within quantisation of torch's; sites named after the modules."""
    torch.manual_seed(7)
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(32, *shape)
    model.eval()  # one set of statistics for evaluation and training
    calibrated = fsim.attach(model, "systolic", calibration=x).eval()(x).detach()
    trained = Trained(model, load_accel("systolic"), x.numpy(), 0)
    layers = [n for n, m in model.named_modules() if hasattr(m, "weight") and "norm" not in n]
    assert [site.name for site in trained.session.sites] == layers
    weights = [p for p in model.parameters() if p.ndim > 1]
    wanted = model(x)
    direction = torch.randn_like(wanted)
    float_gradients = torch.autograd.grad((wanted * direction).sum(), weights)
    got = trained.run(x, -1)
    gradients = torch.autograd.grad((got * direction).sum(), weights)
    top = wanted.abs().max()
    assert (got - wanted).abs().max() < 0.05 * top
    assert (calibrated - wanted).abs().max() < 0.05 * top
    for one, other in zip(gradients, float_gradients):
        assert one.shape == other.shape
        assert (one - other).norm() < 0.2 * other.norm()  # a kernel turned wrongly: about 1
