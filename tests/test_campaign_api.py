"""Campaigns of a network in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fsim
from fsim.campaign.api import session_of
from fsim.campaign.campaign import Campaign, Options
from fsim.errors import ConfigError
from fsim.simulator.attach_layers import Layered
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


class Untraceable(nn.Module):
    """What it runs depends on what it sees: there is no graph."""

    def __init__(self):
        super().__init__()
        self.stem, self.more = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        if x.mean() > -1:
            x = torch.relu(self.more(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("fault", ["flip", "seu", "stuck1"])
def test_networks_without_a_graph_run_whole_inferences_and_say_so(network, tmp_path, fault):
    _, images, labels = network
    torch.manual_seed(2)
    module = Untraceable().eval()
    accel = fsim.load_accel("systolic", None, {"rows": 4, "cols": 4})
    out = tmp_path / "u.h5"
    trials = 40 if fault != "stuck1" else 4
    results = fsim.run_campaign(module, images, labels, out, fault=fault, trials=trials,
                                accel=accel)  # fmt: skip
    table, rows = results.trace.outcomes, results.trace.faults
    assert set(results.task["layers"]) == {"stem", "more", "fc"}
    attached = Layered(module, accel, images, "")
    clean = attached.run(images, None, 1)
    changed = 0
    for entry in table[:: max(1, len(table) // 20)]:
        mine = rows[rows["trial"] == entry["trial"]].copy()
        mine["image"] = 0
        image = int(entry["image"])
        logits = attached.run(images[image : image + 1], mine, 1)[0]
        same = torch.equal(logits, clean[image])
        changed += not same
        assert (entry["outcome"] == 0) == same
        assert entry["faulty"] == int(logits.argmax()) and entry["golden"] == clean[image].argmax()
    assert changed
    session = session_of(module, images, labels, accel)
    campaign = Campaign(results.task, Options(), session)
    way, reason = campaign.way
    assert way == "whole inferences" and "layer by layer" in reason
    with pytest.raises(fsim.MappingError, match="no differences"):
        _ = Campaign(results.task, Options(way="differences"), session).evaluator


def test_the_command_line_takes_networks_without_a_graph(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from fsim.cli import main

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    (tmp_path / "mine.py").write_text(
        "import torch\nfrom tests.test_campaign_api import Untraceable\n"
        "def make():\n    torch.manual_seed(2)\n    return Untraceable().eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 4)
    out = tmp_path / "u.h5"
    base = ["campaign", "--model", "mine:make", "--data", tmp_path / "data.npz", "--fault", "flip",
            "--images", 12, "--trials", 60]  # fmt: skip
    result = run(*base, "--out", out)
    assert result.exit_code == 0, result.output
    assert "note: whole inferences: layer by layer" in result.stdout
    result = run("replay", out, "--model", "mine:make", "--sample", 20)
    assert result.exit_code == 0 and "differences  0" in result.stdout
    result = run(*base, "--out", tmp_path / "no.h5", "--way", "differences")
    assert result.exit_code == 2 and "no differences" in result.stderr


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
