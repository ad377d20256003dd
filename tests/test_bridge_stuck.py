"""Stuck cells of the weight memory in training: what is read, and which gradients flow."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import fsim
from fsim.accel_models.load import load_accel
from fsim.fault_models.stuck_cells import StuckCells
from fsim.nas.training.backends import ArrayFaults
from fsim.simulator.bridge.network import Trained
from fsim.simulator.bridge.operators import weight_scale
from fsim.simulator.draws import Draws


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.fc = nn.Linear(5 * 16, 4, bias=False)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).flatten(1))


def trained(p, seed=5):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(6, 3, 4, 4)
    made = Trained(net, load_accel("systolic"), x.numpy(), seed)
    made.session.model = StuckCells(p) if p else None
    return net, x, made


def read_weights(made, net, trial):
    """Weights as the rows of the trial's chip make them, bit by bit, in real values."""
    model, session = made.session.model, made.session
    rows = model.rows(session.space, trial, np.arange(6), Draws(session.seed))
    found = []
    for number, layer in enumerate((net.conv, net.fc)):
        scale = weight_scale(layer.weight)
        shape = (-1, *[1] * (layer.weight.ndim - 1))
        codes = (layer.weight.detach() / scale.reshape(shape)).round().to(torch.int64)
        flat = codes.reshape(-1)
        for row in rows[rows["layer"] == number]:
            word = int(row["word"])
            flat[word] = (int(flat[word]) & int(row["and_mask"])) | int(row["or_mask"])
            assert row["xor_mask"] == 0
        found.append(codes * scale.reshape(shape))
    return found


def test_products_and_gradients_are_those_of_the_weights_that_are_read():
    net, x, made = trained(0.05)
    for trial in (0, 3):
        conv, fc = (w.clone().requires_grad_() for w in read_weights(made, net, trial))
        assert not torch.equal(conv, net.conv.weight)
        x.requires_grad_(True)
        out = made.run(x, trial)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        g_x, g_conv, g_fc = torch.autograd.grad(
            (out * direction).sum(), [x, net.conv.weight, net.fc.weight]
        )

        # The same in float, activations rounded as the array rounds them.
        def on_grid(v, top):
            scale = v.detach().abs().amax() / top
            return v + ((v / scale).round() * scale - v).detach()

        hidden = F.relu(F.conv2d(on_grid(x, 127), conv, padding=1)).flatten(1)
        plain = F.linear(on_grid(hidden, 255), fc)
        torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
        w_x, w_conv, w_fc = torch.autograd.grad((plain * direction).sum(), [x, conv, fc])
        torch.testing.assert_close(g_x, w_x, rtol=1e-4, atol=1e-5)
        for got, wanted, read, layer in (
            (g_conv, w_conv, conv, net.conv),
            (g_fc, w_fc, fc, net.fc),
        ):
            scale = weight_scale(layer.weight)
            shape = (-1, *[1] * (layer.weight.ndim - 1))
            written = (layer.weight.detach() / scale.reshape(shape)).round() * scale.reshape(shape)
            wrong = read.detach() != written
            assert wrong.any() and not wrong.all()
            assert (got[wrong] == 0).all()
            torch.testing.assert_close(got[~wrong], wanted[~wrong], rtol=1e-4, atol=1e-5)


def test_a_chip_lasts_over_the_batches_of_an_evaluation():
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(40, 3, 4, 4)
    backend = ArrayFaults(net, load_accel("systolic"), StuckCells(0.05), x.numpy(), 1)
    backend.eval()
    with torch.no_grad():
        whole = backend.faulty(x, 7)
        parts = [backend.faulty(part, 100 + i, chip=7) for i, part in enumerate(x.split(16))]
        other = backend.faulty(x, 8)
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, other)


def test_the_operator_of_read_weights_is_sound():
    net, x, made = trained(0.05)
    arguments = (net.conv.weight.detach(), made.session.handle, 0, 2, 6)
    torch.library.opcheck(torch.ops.fsim.weights_read.default, arguments)
    made.session.model = None
    found = torch.ops.fsim.weights_read(*arguments)
    scale = weight_scale(net.conv.weight).reshape(-1, 1, 1, 1)
    assert torch.equal(found, (net.conv.weight.detach() / scale).round() * scale)


def test_training_on_stuck_cells_learns():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 4, 4)
    y = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0).long()
    model = fsim.attach(Net(), "systolic", calibration=x, faults=StuckCells(0.02), fresh="step")
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
