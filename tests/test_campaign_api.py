"""Campaigns of a network in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fsim
from fsim.errors import ConfigError
from fsim.simulator.statistics import clopper_pearson
from tests.test_delta import Residual


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 3, 8, 8)).astype(np.float32)
    module = Residual().eval()
    labels = module(torch.from_numpy(images)).argmax(1).numpy()
    return module, images, labels


def test_a_campaign_in_one_call(network, tmp_path):
    module, images, labels = network
    before = [p.clone() for p in module.parameters()]
    out = tmp_path / "mine.h5"
    results = fsim.run_campaign(module, images, labels, out, fault="flip", trials=300)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    outcome = results.trace.outcomes["outcome"]
    k = int(((outcome == 2) | (outcome == 3)).sum())
    share, wanted = results.share("sdc"), clopper_pearson(k, 300)
    assert (share.low, share.high) == (wanted.low, wanted.high) and 0 < k < 300
    again = fsim.read_campaign(out)
    assert np.array_equal(again.trace.faults, results.trace.faults)
    with pytest.raises(fsim.TraceError, match="exists already"):
        fsim.run_campaign(module, images, labels, out, fault="flip", trials=300)
    same = fsim.run_campaign(
        module, images, labels, out, fault="flip", trials=300, overwrite=True, threads=2
    )
    assert np.array_equal(same.trace.outcomes, results.trace.outcomes)


def test_rules_strata_and_lasting_faults(network, tmp_path):
    module, images, labels = network
    results = fsim.run_campaign(
        module, images, labels, tmp_path / "w.h5", halfwidth=0.05, metric="sdc", accel="systolic"
    )
    share = results.share("sdc")
    assert (share.high - share.low) / 2 <= 0.05 and share.method == "Wilson"
    results = fsim.run_campaign(
        module, images, labels, tmp_path / "s.h5", fault="flip", trials=400, stratify=["layer"]
    )
    assert len(results.trials) == 400 and len(results.sizes) > 4
    accel = fsim.load_accel("systolic", None, {"rows": 4, "cols": 4})
    results = fsim.run_campaign(
        module, images, labels, tmp_path / "p.h5", fault="stuck1", trials=5, accel=accel
    )
    assert results.images == 12 and results.outcome.shape == (5, 12)


@pytest.mark.parametrize("options, said", [
    ({"fault": "magic"}, "fault must be flip or one of"),
    ({"trials": 5, "halfwidth": 0.1}, "one rule must stop"),
    ({"layers": ["none"], "trials": 5}, "layer must be one of"),
    ({"metric": "luck", "trials": 5}, "metric must be one of"),
])  # fmt: skip
def test_bad_options_are_refused(network, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        fsim.run_campaign(*network, tmp_path / "no.h5", **options)
    assert not list(tmp_path.iterdir())


def test_images_need_their_labels(network, tmp_path):
    module, images, labels = network
    for bad in (labels[:5], labels.astype(float)):
        with pytest.raises(ConfigError, match="whole labels"):
            fsim.run_campaign(module, images, bad, tmp_path / "no.h5", trials=5)
