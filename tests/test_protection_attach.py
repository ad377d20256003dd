"""Protected memories in torch models on the array, and in networks that run layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fsim
from fsim.accel_models.load import load_accel
from fsim.campaign.api import run_campaign
from fsim.errors import FaultError
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.stuck_cells import StuckCells
from fsim.types import Fault

SECDED = {f"buffers.{name}.protection": "secded" for name in ("acts", "weights", "psums")}


class Net(nn.Module):
    """Two convolutions and a linear layer; `branch` makes it one that cannot be traced."""

    def __init__(self, branch=False):
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, stride=2)
        self.fc = nn.Linear(6 * 9, 4)
        self.branch = branch

    def forward(self, x):
        x = torch.relu(self.a(x))
        if self.branch and x.sum() > -1e9:
            x = x * 1.0
        return self.fc(torch.relu(self.b(x)).flatten(1))


@pytest.fixture(scope="module")
def images():
    return torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def attached(images, settings, branch=False):
    accel = load_accel("systolic-8x8", None, settings)
    return fsim.attach(Net(branch), accel, calibration=images)


@pytest.mark.parametrize("branch", [False, True])
def test_single_flips_change_nothing_and_double_ones_what_they_would(images, branch):
    model, plain = (attached(images, s, branch).eval() for s in (SECDED, {}))
    clean = model(images)
    with plain.faults(OneFlip()):
        assert not torch.equal(plain(images), clean)
    with model.faults(OneFlip()):
        assert torch.equal(model(images), clean)
    pair = [Fault("weights", bit=bit, layer="b", word=5) for bit in (6, 7)]
    with model.faults(pair), plain.faults(pair):
        struck = model(images)
        assert torch.equal(struck, plain(images)) and not torch.equal(struck, clean)


def test_training_reads_what_leaves_the_decoder(images):
    for faults, same in ((OneFlip(), True), (BitErrors(0.02, 0.02, 0.0), False)):
        outs = []
        for model_faults in (None, faults):
            model = attached(images, SECDED).train()
            model.set_faults(model_faults)
            outs.append(model(images).detach())
        assert torch.equal(*outs) == same


def test_stuck_bits_in_training_are_refused(images):
    model = attached(images, SECDED).train()
    model.set_faults(StuckCells(0.01))
    with pytest.raises(FaultError, match="must be flips of words"):
        model(images)


@pytest.mark.parametrize("branch", [False, True])
def test_campaigns_from_python_count_corrected_ones(images, branch, tmp_path):
    accel = load_accel("systolic-8x8", None, SECDED)
    labels = np.zeros(len(images), np.int64)
    found = run_campaign(Net(branch), images.numpy(), labels, tmp_path / "c.h5", accel=accel,
                         fault="flip", trials=60)  # fmt: skip
    assert int(found.tally.of("corrected").sum()) == 60
    assert found.share("corrected").estimate == 1.0 and found.share("sdc").estimate == 0.0
