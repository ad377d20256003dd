"""The scripts behind the committed evidence, on a tiny preset."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from bench.reproduce import fault_tolerant_training as training
from bench.reproduce import searched_networks as searched
from bench.reproduce.evaluation import Faults, Stop, summary
from bench.reproduce.searched_report import LABELS, write_report
from fsim.nas.space.files import read_architecture


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A bench whose searches and trainings take seconds, on images of noise."""
    small = searched.PRESETS["small"]
    family = replace(small.families["mibb"], sweep=(1e-3,))
    preset = replace(
        small,
        search=replace(small.search, epochs=2, warmup=1, proposals=4, reward_batch=8),
        train=replace(small.train, epochs=1),
        families={"mibb": family},
    )
    monkeypatch.setitem(searched.PRESETS, "tiny", preset)
    monkeypatch.setattr(searched, "RESULTS", tmp_path / "results")
    bench = searched.Bench("tiny", tmp_path / "work", time.time() + 1e6, "cpu")
    (bench.kept / "logs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {f"{s}_images": rng.integers(0, 256, (n, 3, 16, 16), np.uint8)
              for s, n in (("train", 60), ("test", 20))}  # fmt: skip
    labels = {f"{s}_labels": np.arange(n) % 10 for s, n in (("train", 60), ("test", 20))}
    bench.folder.mkdir(parents=True)
    np.savez(bench.data, **images, **labels)
    return bench


def test_a_search_leaves_genotype_and_log_and_its_network_fits(tiny):
    assert searched.search(tiny, "mibb", "ftt") == "mibb-ftt"
    found = read_architecture(tiny.genotype("mibb", "ftt"))
    assert found.space == tiny.settings.spaces["mibb"]
    log = json.loads((tiny.kept / "logs" / "mibb-ftt.json").read_text())
    assert len(log["epochs"]) == 2 and len(log["told"]) == 4 and log["derived"]
    assert log["identity"]["settings"]["alpha_l"] == 0.5
    got = searched.train(tiny, "mibb", "ftt")
    other = searched.train(tiny, "mibb", "mobilenet-v2")
    assert got["mflops"] <= 3.0 <= other["mflops"]
    assert got["mibb 0.001"]["maps"] == 10 and 0 <= got["none"]["mean"] <= 1
    every = {("mibb", name): got if name in searched.KINDS else other for name in LABELS}
    write_report(tiny.kept, "tiny", tiny.settings, every)
    text = tiny.kept.with_name(tiny.kept.name + ".md").read_text()
    assert text.count("\n|") == 2 + len(LABELS) and "MobileNet-V2" in text
    assert tiny.kept.with_name(tiny.kept.name + ".png").stat().st_size > 10_000


def test_a_stopped_search_goes_on_to_the_same_genotype(tiny, tmp_path):
    whole = searched.search(tiny, "mibb", "random")
    wanted = tiny.genotype("mibb", "random").read_text()
    tiny.genotype("mibb", whole.partition("-")[2]).unlink()
    late = replace(tiny, folder=tiny.folder / "again", until=0.0)
    late.folder.mkdir()
    (late.folder / "images.npz").write_bytes((tiny.folder / "images.npz").read_bytes())
    for _ in range(2):  # one epoch a call
        with pytest.raises(Stop):
            searched.search(late, "mibb", "random")
    searched.search(replace(late, until=time.time() + 1e6), "mibb", "random")
    assert tiny.genotype("mibb", "random").read_text() == wanted


def test_plain_search_is_shared_by_families_of_one_space():
    preset = searched.PRESETS["small"]
    assert [searched.searched_by(f, "plain", preset) for f in preset.families] == ["mibb"] * 3
    assert searched.searched_by("adsaf", "ftt", preset) == "adsaf"
    paper = searched.PRESETS["paper"]
    assert searched.searched_by("adsaf", "plain", paper) == "adsaf"


def test_the_table_of_trainings():
    values = [[0.5, 0.7], [0.6, 0.8]]
    keys = ["none", *(Faults(f, r).name for f, rates in training.SWEEPS.items() for r in rates)]
    report = {
        **training.PRESETS["small"], "seeds": 2, "maps": 2, "trained": {"normal": "none"},
        "accuracy": {"normal": {k: [[0.5], [0.6]] if k == "none" else values for k in keys}},
    }  # fmt: skip
    lines = training.table(report).splitlines()
    assert "| clean | 55.0 +- 7.1 |" in lines
    assert "| mibb 0.0001 | 65.0 +- 7.1 / 14.1 (51.5) |" in lines
    one = summary(np.array([0.25]))
    assert (one.mean, one.std, one.low, one.maps) == (0.25, 0.0, 0.25, 1)
