"""Several statistical models at once: order, draws, gradients, and what a map is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.cli import main
from fsim.cli.fault_backend import faults_of
from fsim.errors import ConfigError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.statistical import (
    AdSAF,
    FaultModel,
    apply_several,
    common_grid,
    model_from_config,
)
from fsim.nas.search.evaluation import BATCH, evaluate_maps
from fsim.nas.training.backends import ArrayFaults, TensorFaults

MIBB = {"model": "mibb", "p_m": 2e-2, "grid": "hardware"}
IBF = {"model": "ibf", "r": 2e-2}
ADSAF = {"model": "adsaf", "p": 0.2}
LOGNORMAL = {"model": "log-normal", "sigma": 0.3}
X = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))


def models(*configs):
    return [model_from_config(config) for config in configs]


def streams(count, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def struck(*configs, x=X):
    return apply_several(models(*configs), x, generators=streams(len(configs)), macs=9)


def codes(config, x=X):
    return model_from_config(config).fixed_point.encode(x)


def test_one_model_is_the_model_itself():
    for config in (MIBB, IBF, ADSAF, LOGNORMAL):
        alone = model_from_config(config)(X, generator=streams(1)[0], macs=9)
        assert torch.equal(struck(config), alone)


def test_mibb_then_ibf_by_integers():
    mibb, ibf = models(MIBB, IBF)
    one, other = streams(2)
    bias = mibb.draw(X.shape, generator=one, macs=9).numpy()
    mask = ibf.draw(X.shape, generator=other).numpy()
    encoded = codes(MIBB)
    clean = encoded.codes.numpy().astype(int)
    biased = np.clip(clean + bias, -128, 127)
    want = ((biased & 255) ^ mask).astype(np.uint8).astype(np.int8)
    got = (struck(MIBB, IBF) / encoded.step).numpy()
    assert (got == want).all()
    assert (bias != 0).any() and (mask != 0).any()
    # Each strikes where the other does not.
    assert (got != clean)[(bias != 0) & (mask == 0) & (biased != clean)].all()
    assert (got != clean)[(bias == 0) & (mask != 0)].all()


def test_the_order_is_the_one_given():
    saf, law = models(ADSAF, LOGNORMAL)
    one, other = streams(2)
    faults, factors = (m.draw(X.shape, generator=g) for m, g in ((saf, one), (law, other)))
    encoded = codes(ADSAF)
    stuck, _ = saf.corrupt(encoded, faults)
    assert torch.equal(struck(ADSAF, LOGNORMAL), stuck * factors * encoded.step)
    one, other = streams(2)
    factors, faults = (m.draw(X.shape, generator=g) for m, g in ((law, one), (saf, other)))
    varied, _ = saf.corrupt(encoded._replace(codes=encoded.codes * factors), faults)
    assert torch.equal(struck(LOGNORMAL, ADSAF), varied * encoded.step)


def test_bits_after_variation_are_those_of_the_rounded_value():
    bits = {"model": "adsaf-bits", "p": 0.0}
    law = LOGNORMAL | {"grid": "hardware"}
    encoded = codes(bits)
    varied = encoded.codes * model_from_config(law).draw(X.shape, generator=streams(1)[0])
    want = varied.round().clamp(-128, 127) * encoded.step
    assert torch.equal(struck(law, bits), want)


def test_the_step_does_not_follow_the_faults():
    """All weights read 0, then every bit of them flips: -1 in steps of the healthy tensor."""
    zeros = {"model": "adsaf", "p": 1.0, "sa1_share": 0.0, "grid": "hardware"}
    flips = {"model": "ibf", "r": 1.0, "target": "weights"}
    assert (struck(zeros, flips) == -codes(flips).step).all()


def test_gradients_are_the_product():
    x = X.clone().requires_grad_()
    saf, law = models(ADSAF, LOGNORMAL)
    apply_several([saf, law], x, generators=streams(2)).sum().backward()
    one, other = streams(2)
    _, passes = saf.corrupt(codes(ADSAF), saf.draw(X.shape, generator=one))
    assert torch.equal(x.grad, passes * law.draw(X.shape, generator=other))


def test_models_of_one_tensor_share_target_and_grid():
    with pytest.raises(ConfigError, match="one grid, got paper of mibb and hardware of ibf"):
        common_grid(models({"model": "mibb", "p_m": 0.1}, IBF))
    with pytest.raises(ConfigError, match="one target, got features of mibb and weights of adsaf"):
        common_grid(models(MIBB, ADSAF))
    assert common_grid([]) is None


# --- in a network


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


def images(count=8):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def drawn(monkeypatch):
    """Every (model, faults) that a statistical model draws, in order."""
    seen = []
    for kind in FaultModel.__subclasses__():
        for inner in (kind, *kind.__subclasses__()):
            if "draw" in vars(inner):
                original = inner.draw

                def draw(self, shape, *, generator, macs=None, original=original):
                    faults = original(self, shape, generator=generator, macs=macs)
                    seen.append((self, faults))
                    return faults

                monkeypatch.setattr(inner, "draw", draw)
    return seen


ALL = (MIBB, ADSAF, IBF, LOGNORMAL)


def test_all_strike_and_a_trial_is_one_draw():
    backend = TensorFaults(network(), models(*ALL))
    with torch.no_grad():
        one, again, other = (backend.faulty(images(), trial) for trial in (5, 5, 6))
        assert torch.equal(one, again) and not torch.equal(one, other)
        for missing in range(4):
            rest = [config for i, config in enumerate(ALL) if i != missing]
            assert not torch.equal(TensorFaults(network(), models(*rest)).faulty(images(), 5), one)


def test_models_share_no_draws(drawn):
    TensorFaults(network(), models(MIBB, MIBB, ADSAF, ADSAF)).faulty(images(), 5)
    first, second = (faults for model, faults in drawn if model.name == "mibb")
    assert first.any() and second.any() and not torch.equal(first, second)
    first, second = (faults for model, faults in drawn if model.name == "adsaf")
    assert not torch.equal(first, second)


def test_a_model_that_is_added_leaves_the_draws_of_those_before(drawn):
    TensorFaults(network(), models(MIBB)).faulty(images(), 5)
    TensorFaults(network(), models(MIBB, ADSAF, IBF)).faulty(images(), 5)
    first, second = (faults for model, faults in drawn if model.name == "mibb")
    assert torch.equal(first, second)


def test_each_target_is_quantised_on_its_own_grid():
    """Without faults in them the faulty pass is the clean one."""
    none = models({"model": "mibb", "p_m": 0.0}, {"model": "ibf", "r": 0.0, "target": "weights"})
    backend = TensorFaults(network(), none)
    assert torch.equal(backend.faulty(images(), 0), backend.clean(images()))
    assert [grid.grid for grid in backend.grids.values()] == ["paper", "hardware"]


# --- maps


def test_a_map_is_one_chip_with_features_of_its_own(drawn):
    backend = TensorFaults(network(), models(ADSAF, MIBB))
    labels = torch.zeros(BATCH + 20, dtype=torch.int64)
    evaluate_maps(backend, (images(BATCH + 20), labels), 2)
    chips = [faults for model, faults in drawn if model.name == "adsaf"]
    features = [faults[:20] for model, faults in drawn if model.name == "mibb"]
    assert len(chips) == len(features) == 4  # 2 maps of 2 batches
    assert torch.equal(chips[0], chips[1]) and torch.equal(chips[2], chips[3])
    assert not torch.equal(chips[0], chips[2])
    for i in range(4):
        assert not any(torch.equal(features[i], features[j]) for j in range(i))


def test_batches_are_as_large_as_asked_for(drawn):
    backend = TensorFaults(network(), models(MIBB))
    found = evaluate_maps(backend, (images(20), torch.zeros(20, dtype=torch.int64)), 2, batch=8)
    assert [len(faults) for _, faults in drawn] == [8, 8, 4] * 2
    assert len(found.faulty) == 2


def test_networks_of_the_same_shapes_meet_the_same_maps(drawn):
    labels = torch.zeros(BATCH + 20, dtype=torch.int64)
    for seed in (1, 2):
        backend = TensorFaults(network(seed), models(*ALL))
        evaluate_maps(backend, (images(BATCH + 20), labels), 2)
    half = len(drawn) // 2
    assert half and all(torch.equal(a, b) for (_, a), (_, b) in zip(drawn[:half], drawn[half:]))


def test_networks_of_the_same_shapes_meet_the_same_upsets(monkeypatch):
    seen, original = [], BitErrors.rows

    def rows(self, space, trial, images, draws):
        found = original(self, space, trial, images, draws)
        seen.append(found[["image", "layer", "component", "word", "first"]])
        return found

    monkeypatch.setattr(BitErrors, "rows", rows)
    labels = torch.zeros(BATCH + 20, dtype=torch.int64)
    errors = BitErrors(1e-3, 1e-3, 1e-3)
    for seed in (1, 2):
        given = images(BATCH + 20)
        backend = ArrayFaults(network(seed), load_accel("systolic-8x8"), errors,
                              given[:64].numpy(), 7)  # fmt: skip
        evaluate_maps(backend, (given, labels), 2)
    half = len(seen) // 2
    assert half == 4 and all((a == b).all() for a, b in zip(seen[:half], seen[half:]))
    assert all(len(found) for found in seen)
    assert not any(len(a) == len(b) and (a == b).all() for a, b in zip(seen[:3], seen[1:4]))


# --- the commands


def options(**given):
    names = ("accel", "dataflow", "settings", "ber", "seu_rate", "hw_batch", "faults_file", "mibb",
             "adsaf")  # fmt: skip
    return dict.fromkeys(names) | {"fault_backend": "torch"} | given


def test_options_combine_in_one_order_on_the_files_grid(tmp_path):
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"models": [IBF, LOGNORMAL]}))
    _, found, described = faults_of(**options(faults_file=file, mibb=1e-3, adsaf=0.1))
    assert [model.name for model in found] == ["ibf", "log-normal", "mibb", "adsaf"]
    assert [model.grid for model in found] == ["hardware", "paper", "hardware", "paper"]
    assert described["text"].count(";") == 3 and isinstance(found[3], AdSAF)
    file.write_text(json.dumps({"models": [IBF, MIBB | {"grid": "paper"}]}))
    with pytest.raises(ConfigError, match="one grid"):
        faults_of(**options(faults_file=file))


def test_training_under_a_combination(tmp_path):
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"models": [IBF, LOGNORMAL]}))
    done = CliRunner().invoke(main, [
        "train", "--fault-backend", "torch", "--mibb", "1e-3", "--adsaf", "0.05", "--faults",
        str(file), "--epochs", "1", "--images", "64", "--test-images", "32", "--out",
        str(tmp_path / "run"), "--json"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["identity"]["faults"]["models"]) == 4
