"""Calibration: what was put in comes out, and what does not fit is said so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.network import Explicit
from fsim.fault_models.statistical import MiBB, load_models
from fsim.fault_models.upsets import UpsetRate
from fsim.session import open_session
from fsim.simulator import ops
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.calibration import calibrate, configuration, fit_flips, fit_mibb, observe
from fsim.simulator.draws import Draws
from fsim.simulator.engine import FaultHooks
from fsim.simulator.sites import Placement, select
from fsim.types import Fault
from tests.rates import assert_at_least, assert_rate, seed_for

VALUES = np.array([1024, 512, 512, 256])
MACS = np.array([9, 144, 288, 64])
P_M = 3e-6
CONFIDENCE = 0.95


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", load_accel("systolic"), images=10)


# --- one fault, by hand -----------------------------------------------------------------


def copy_network(acc_bits: int = 32):
    """codes -> the same as sums -> half of them as codes -> the same as sums."""
    common = dict(
        shape=(1, 2, 2), bits=8, weight=np.ones((1, 1, 1, 1), np.int64), weight_scale=np.ones(1),
        bias=np.zeros(1, np.int64),
    )  # fmt: skip
    half, one = (np.array([m], np.float32) for m in (0.5, 1.0))
    return ops.Program(
        (
            ops.Input(
                index=0, name="x", inputs=(), shape=(1, 2, 2), bits=8, signed=True, scale=1.0
            ),
            ops.Conv(
                index=1, name="conv", inputs=(0,), signed=False, scale=1.0, multiplier=half,
                lo=0, hi=255, **common,
            ),
            ops.Conv(
                index=2, name="last", inputs=(1,), signed=True, scale=1.0, multiplier=one,
                lo=-128, hi=127, **common,
            ),
        ),
        acc_bits,
    )  # fmt: skip


IMAGES = np.array([[[[100, 99], [-60, 0]]], [[[1, 2], [3, 4]]]], np.float32)
"""Largest feature 100 / 2 = 50, so the grid ends at 2^6 and one of its codes is worth 0.5:
the feature's code is the sum itself, the machine's code half of it and 0 below zero."""


@pytest.mark.parametrize(
    ("word", "bit", "place", "power", "clamped", "code"),
    [
        (0, 3, 3, 1, 0, 1),  # 100 + 8: 108, of the machine 54 instead of 50
        (1, 0, 8, 1, 0, 1),  # 99 - 1: 98, of the machine 49 instead of round(49.5) = 50
        (3, 0, 0, 1, 0, 0),  # 0 + 1: the machine's code is round(0.5) = 0 as before
        (2, 2, 10, 1, 0, 0),  # -60 = ...11000100 loses 4: -64, and 0 after the ReLU either way
        (0, 4, 4, 1, 0, 1),  # 100 + 16 = 116
        (1, 4, 4, 1, 0, 1),  # 99 + 16 = 115
        (3, 30, 7, 0, 1, 1),  # 2^30, far beyond the grid
        (3, 31, 15, 0, 1, 0),  # -2^31: the machine's code stays 0
    ],
)
def test_one_wrong_sum_is_one_struck_value(word, bit, place, power, clamped, code):
    space = select(Placement(copy_network(), load_accel("systolic")))
    fault = Fault("psums", word=word, bit=bit, layer="conv", image=0)
    found = observe(space, IMAGES, Explicit((fault,)), seed=0, trials=1)
    products = found.products
    assert [layer.step for layer in products.layers] == [0.5, 0.5]
    assert [layer.macs for layer in products.layers] == [1, 1]
    np.testing.assert_array_equal(products.struck, [[1, 0], [0, 0]])  # not what is inherited
    np.testing.assert_array_equal(products.sums, [1, 0])
    np.testing.assert_array_equal(products.outputs, [code, 0])
    np.testing.assert_array_equal(products.biases[0], np.arange(16) == place)
    assert (products.powers[0], products.clamped[0]) == (power, clamped)
    assert not found.acts.flipped.any() and not found.weights.flipped.any()


def test_a_difference_below_half_a_code_strikes_no_feature():
    """Large images make a code of the grid worth several units of the sum."""
    program = copy_network()
    space = select(Placement(program, load_accel("systolic")))
    bias = np.array([1 << 12], np.int64)  # features up to 2^11 + 50: a code is worth 2^5
    object.__setattr__(program.ops[1], "bias", bias)
    fault = Fault("psums", word=3, bit=2, layer="conv", image=0)
    products = observe(space, IMAGES, Explicit((fault,)), seed=0, trials=1).products
    assert (products.sums[0], products.struck[0, 0]) == (1, 0)


def test_wrong_codes_and_weights_are_flips_and_no_struck_values(session):
    space = select(session.placement)
    faults = (
        Fault("acts", word=7, bit=5, layer="conv1", image=2),
        Fault("weights", word=3, bit=7, layer="conv2", image=1),
    )
    found = observe(space, session.images, Explicit(faults), seed=0, trials=2)
    assert not found.products.struck.any() and not found.products.sums.any()
    for flips, name, bit in ((found.acts, "conv1", 5), (found.weights, "conv2", 7)):
        want = np.zeros_like(flips.flipped)
        want[flips.names.index(name), bit] = 2
        np.testing.assert_array_equal(flips.flipped, want)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_saturation_without_faults_is_no_fault(overflow):
    """32700 + 100 does not fit 16 bits: where adders saturate, that alone is no struck sum."""
    settings = {"acc_bits": 16, "overflow": overflow}
    program = copy_network(16)
    object.__setattr__(program.ops[1], "bias", np.array([32700], np.int64))
    space = select(Placement(program, load_accel("systolic", None, settings)))
    fault = Fault("psums", word=3, bit=3, layer="conv", image=1)
    products = observe(space, IMAGES, Explicit((fault,)), seed=0, trials=1).products
    np.testing.assert_array_equal(products.sums, [1, 0])


# --- the counts against the machine -----------------------------------------------------


@pytest.mark.parametrize("model", [BitErrors(psums=1e-3), UpsetRate(3e-7)])
def test_changed_codes_of_the_first_layer_are_those_of_a_plain_run(session, model):
    space = select(session.placement)
    found = observe(space, session.images, model, seed=3, trials=1)
    first = found.products.layers[0]
    rows = model.rows(space, 0, np.arange(len(session.images)), Draws(3))
    hooks = FaultHooks(session.placement, Batch(rows, rows["image"].astype(np.int64)))
    clean, faulty = (
        P.run(session.program, session.images, hooks=h, keep=[first.index]).kept[first.index]
        for h in (None, hooks)
    )
    changed = int((clean != faulty).sum())
    assert changed > 0 and found.products.outputs[0] == changed
    assert found.products.sums[0] >= changed


def test_every_flip_of_a_stored_code_is_found(session):
    """Counted where codes are read, and equal to the rows that were drawn."""
    space, model = select(session.placement), BitErrors(acts=1e-3, weights=1e-3, hw_batch=4)
    found = observe(space, session.images, model, seed=4, trials=2)
    rows = np.concatenate(
        [model.rows(space, t, np.arange(len(session.images)), Draws(4)) for t in range(2)]
    )
    for flips in (found.acts, found.weights):
        mine = rows[rows["component"] == space.accel.component_index(flips.memory)]
        want = [int(((mine["xor_mask"] >> bit) & 1).sum()) for bit in range(8)]
        np.testing.assert_array_equal(flips.flipped.sum(0), want)
    weights = [b.exposed_words for b in space.blocks if b.component == "weights"]
    np.testing.assert_array_equal(found.weights.exposed, np.array(weights) * 3 * 2)
    assert len(rows) == found.faults


def test_the_bit_error_rates_come_back(session):
    space = select(session.placement)
    rates = {"acts": 4e-3, "weights": 2e-3}
    seed = seed_for("calibrate-ber") % (1 << 63)
    result = calibrate(space, session.images, BitErrors(**rates), seed=seed, trials=4)
    assert result.mibb is None and "mibb" in result.absent and "adsaf" in result.absent
    for fit, rate in ((result.acts, rates["acts"]), (result.weights, rates["weights"])):
        assert_rate(fit.flipped, fit.bits, rate, mutant=1.25 * rate, named="a quarter too many")
        assert fit.low < fit.r < fit.high


def test_intervals_of_bit_error_rates_cover(session):
    """Weights and feature maps of repeated small calibrations, each with its own seed."""
    space, rate, hits = select(session.placement), 1e-3, 0
    seed = seed_for("calibrate-cover") % (1 << 62)
    for i in range(60):
        model = BitErrors(acts=rate, weights=rate)
        result = calibrate(space, session.images[:2], model, seed=seed + i, trials=1)
        hits += sum(fit.low <= rate <= fit.high for fit in (result.acts, result.weights))
    assert_at_least(hits, 120, CONFIDENCE, mutant=0.5, named="intervals a third as wide")


# --- MiBB -------------------------------------------------------------------------------


def drawn(rng, p_m: float, units: int) -> np.ndarray:
    """(units, layers) struck values of MiBB itself."""
    return rng.binomial(VALUES, 1 - (1 - p_m) ** MACS, (units, len(VALUES)))


def test_intervals_of_p_m_cover():
    """95 % of the intervals of MiBB's own outcomes hold p_m, and are not wider than need be."""
    rng, fits = np.random.default_rng(seed_for("calibrate-mibb")), 2500
    found = [fit_mibb(drawn(rng, P_M, 60), VALUES, MACS) for _ in range(fits)]
    inside = sum(fit.low <= P_M <= fit.high for fit in found)
    assert_at_least(inside, fits, 0.94, mutant=0.88, named="intervals 20 % too narrow")
    assert_at_least(fits - inside, fits, 0.03, mutant=0.005, named="intervals 40 % too wide")
    quiet = sum(fit.p is not None and fit.p >= 0.01 for fit in found)
    assert_at_least(quiet, fits, 0.97, mutant=0.9, named="ten false alarms in a hundred")


def test_intervals_cover_when_faults_strike_many_values_at_once():
    rng, fits, size = np.random.default_rng(seed_for("calibrate-cluster")), 1000, 10
    found = []
    for _ in range(fits):
        events = rng.poisson(1e-5 * MACS * VALUES / size, (300, len(VALUES)))
        found.append(fit_mibb(size * events, VALUES, MACS))
    inside = sum(fit.low <= 1e-5 <= fit.high for fit in found)
    assert_at_least(inside, fits, 0.92, mutant=0.8, named="intervals of independent values")
    assert np.mean([fit.design for fit in found]) == pytest.approx(size, rel=0.1)
    assert all(any("together" in reason for reason in fit.poor) for fit in found)


def test_outcomes_of_the_torch_model_give_its_p_m_back():
    """What training draws from and what calibration fits is one model."""
    model, units = MiBB(p_m=2e-5, grid="hardware"), 40
    generator = torch.Generator().manual_seed(seed_for("calibrate-torch") % (1 << 63))
    struck, biases = np.zeros((units, len(VALUES)), int), np.zeros(16, int)
    for layer, (values, macs) in enumerate(zip(VALUES, MACS)):
        bias = model.draw((units, int(values)), generator=generator, macs=int(macs)).numpy()
        struck[:, layer] = (bias != 0).sum(1)
        place = np.log2(np.abs(bias[bias != 0])).astype(int) + 8 * (bias[bias != 0] < 0)
        biases += np.bincount(place, minlength=16)
    fit = fit_mibb(struck, VALUES, MACS, biases)
    wide = 4 * (fit.high - fit.low)  # some eight standard deviations
    assert abs(fit.p_m - 2e-5) < wide and fit.p_m > 1e-6
    assert fit.distance < fit.chance + 0.2 and not any("biases" in why for why in fit.poor)


def test_rare_faults_that_strike_hundreds_of_values_are_no_misfit():
    """One fault in ten strikes 300 values: layers that it happened to spare still fit."""
    rng, fits = np.random.default_rng(seed_for("calibrate-heavy")), 400
    each = 60 / 50 * MACS * VALUES / (MACS * VALUES).sum()
    quiet = 0
    for _ in range(fits):
        events = rng.poisson(0.9 * each, (50, 4)) + 300 * rng.poisson(0.1 * each, (50, 4))
        fit = fit_mibb(np.minimum(events, VALUES), VALUES, MACS)
        quiet += fit.p is None or fit.p >= 0.01
    assert_at_least(quiet, fits, 0.97, mutant=0.8, named="each layer judged by itself alone")


@pytest.mark.parametrize("size", [1, 10])
def test_a_planted_misfit_is_found(size):
    """Struck values that have nothing to do with the number of multiply-adds."""
    rng = np.random.default_rng(11)
    biases = np.zeros(16, int)
    biases[7] = 1000
    for _ in range(20):
        struck = size * rng.binomial(VALUES, 2e-3 / size, (100, len(VALUES)))
        fit = fit_mibb(struck, VALUES, MACS, biases)
        assert fit.p < 1e-4 and any("do not follow" in reason for reason in fit.poor)
        assert any("not uniform" in reason for reason in fit.poor)
        assert fit.distance == pytest.approx(15 / 16)


def test_flips_of_one_bit_are_no_ibf():
    flipped = np.zeros((2, 8), int)
    flipped[:, 3] = 200
    fit = fit_flips(np.array([10_000, 20_000]), flipped)
    assert fit.p < 1e-6 and fit.poor
    assert (fit.flipped, fit.bits) == (400, 240_000)


def test_nothing_struck_everything_struck_and_one_layer():
    nothing = fit_mibb(np.zeros((5, 4), int), VALUES, MACS)
    assert (nothing.p_m, nothing.low, nothing.p) == (0.0, 0.0, None)
    assert nothing.high == pytest.approx(-np.log(0.025) / (5 * VALUES @ MACS), rel=1e-3)
    everything = fit_mibb(np.tile(VALUES, (5, 1)), VALUES, MACS)
    assert everything.p_m == everything.high == 1.0 and 0 < everything.low < 1
    one = fit_mibb(np.array([[3], [5]]), VALUES[:1], MACS[:1])
    assert one.p_m == pytest.approx(1 - (1 - 8 / 2048) ** (1 / 9))
    assert one.p is None and one.low < one.p_m < one.high
    once = fit_mibb(np.array([[3, 1, 0, 0]]), VALUES, MACS)
    assert 0 < once.low < once.p_m < once.high < 1


# --- the command ------------------------------------------------------------------------

SMALL = ("calibrate", "--images", 4, "--trials", 2, "--threads", 1)


def test_the_file_is_what_training_takes(fsim, tmp_path):
    report = {}
    for name in ("a.toml", "a.json"):
        path = tmp_path / "new" / name
        result = fsim(*SMALL, "--ber", "1e-3", "--out", path, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        features, weights = load_models(path)
        assert features == MiBB(p_m=report["fits"]["mibb"]["p_m"], grid="hardware")
        assert (weights.name, weights.target) == ("ibf", "weights")
        assert weights.r == report["fits"]["ibf weights"]["r"]
    out = tmp_path / "run"
    trained = fsim("train", "--fault-backend", "torch", "--faults", path, "--epochs", 1, "--images",
                   64, "--test-images", 16, "--eval-trials", 1, "--out", out)  # fmt: skip
    assert trained.exit_code == 0, trained.output


def test_the_report_says_what_is_poor_and_what_does_not_apply(fsim):
    result = fsim(*SMALL, "--ber", "psums=1e-2")
    assert result.exit_code == 0, result.output
    assert "POOR DESCRIPTION: struck values do not follow" in result.stdout
    assert "POOR DESCRIPTION: biases are not uniform" in result.stdout
    assert "adsaf" in result.stdout and result.stdout.count("does not apply") == 3
    upsets = fsim(*SMALL, "--seu-rate", "1e-12")
    assert "no feature was struck" in upsets.stdout and upsets.exit_code == 0


def test_the_same_seed_gives_the_same_report(fsim):
    once, again, other = (
        fsim(*SMALL, "--seu-rate", "1e-7", "--json", "--seed", seed).stdout for seed in (5, 5, 6)
    )
    assert once == again != other


def test_the_model_of_features_can_be_chosen(session):
    result = calibrate(select(session.placement), session.images, BitErrors(1e-3, 0, 1e-3),
                       seed=1, trials=1)  # fmt: skip
    assert [table["model"] for table in configuration(result)] == ["mibb"]
    (table,) = configuration(result, "ibf")
    assert (table["model"], table["target"], table["r"]) == ("ibf", "features", result.acts.r)
    weights = calibrate(select(session.placement), session.images[:2], BitErrors(0, 1e-3, 0),
                        seed=1, trials=1)  # fmt: skip
    with pytest.raises(ConfigError, match="--features must be a model that was fitted, got mibb"):
        configuration(weights, "mibb")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "exactly one of --ber, --seu-rate and --stuck-cells must be given, got none"),
        (("--ber", "1e-5", "--seu-rate", "1e-9"), "got --ber and --seu-rate"),
        (("--ber", "0"), "must be above 0"),
        (("--seu-rate", "0"), "must be above 0"),
        (("--seu-rate", "2"), "[0, 1]"),
        (("--seu-rate", "1e-8", "--hw-batch", "2"), "--hw-batch needs --ber"),
        (("--ber", "regs=1e-5"), "--ber must name"),
        (("--ber", "1e-5", "--out", "models.yaml"), ".toml or .json"),
        (("--ber", "1e-5", "--out", "folder.toml"), "regular file"),
        (("--ber", "1e-5", "--out", "file/models.toml"), "folder"),
        (("--ber", "weights=1e-3", "--features", "mibb", "--images", "2"), "--features must be"),
        (("--ber", "1e-5", "--model", "nonesuch"), "nonesuch"),
        (("--ber", "1e-5", "--accel", "nonesuch"), "nonesuch"),
        (("--ber", "1e-5", "--trials", "0"), "--trials"),
    ],
)
def test_bad_input_is_one_line(fsim, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "file").touch()
    result = fsim("calibrate", *arguments)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.count("\n") == 1 and says in result.stderr, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.toml"]
