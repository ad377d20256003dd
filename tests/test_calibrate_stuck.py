"""adSAF from stuck cells: the rates that were put in come back, with intervals that cover."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fsim.accel_models.load import load_accel
from fsim.fault_models.statistical import AdSAF, AdSAFBits, load_models
from fsim.fault_models.stuck_cells import StuckCells
from fsim.session import open_session
from fsim.simulator.calibration import (
    calibrate_stuck,
    fit_stuck,
    observe_stuck,
    stuck_configuration,
)
from fsim.simulator.calibration.whole_weights import bit_law, whole_weight_law
from fsim.simulator.sites import select
from fsim.types import FAULT, FOREVER, LEVEL
from tests.rates import assert_at_least, assert_rate, seed_for


@pytest.fixture(scope="module")
def space():
    return select(open_session("digits-cnn", load_accel("systolic"), images=2).placement)


class Cells(StuckCells):
    """Cells that are named: (layer, word, bit, value)."""

    def __init__(self, *cells):
        super().__init__(0.5)
        object.__setattr__(self, "named", cells)

    def rows(self, space, trial, images, draws):
        rows = np.zeros(len(self.named), FAULT)
        rows["image"], rows["effect"], rows["last"] = -1, LEVEL, FOREVER
        rows["component"], rows["and_mask"] = space.accel.component_index("weights"), -1
        for row, (layer, word, bit, value) in zip(rows, self.named):
            mask = -128 if bit == 7 else 1 << bit
            row["layer"], row["word"] = space.layer_index(layer), word
            row["or_mask" if value else "and_mask"] = mask if value else ~mask
        return rows


def test_cells_by_hand(space):
    """One cell stuck at 1 and one at 0, each over both values."""
    codes = space.placement.program.op("conv1").weight.reshape(-1)
    zero, one = (int(np.flatnonzero((codes >> 5 & 1) == v)[0]) for v in (0, 1))
    model = Cells(*(("conv1", w, 5, v) for w, v in ((zero, 1), (one, 1)) if w != one or v))
    counts = observe_stuck(space, model, seed=0, trials=1)
    at = counts.names.index("conv1")
    want = np.zeros_like(counts.wrong)
    want[at, 5, 0] = 1  # the other one is stuck at what is written in it
    np.testing.assert_array_equal(counts.wrong, want)
    assert counts.differences == {0: counts.written[:, 0].sum() - 1, 32: 1}
    bits = (codes[:, None] >> np.arange(8)) & 1
    np.testing.assert_array_equal(counts.written[at, :, 1], bits.sum(0))
    np.testing.assert_array_equal(counts.written.sum(2)[at], len(codes))
    sign = int(np.flatnonzero(codes < 0)[0])
    low = observe_stuck(space, Cells(("conv1", sign, 7, 0)), seed=0, trials=2)
    assert low.wrong[at, 7, 1] == 2 and low.wrong.sum() == 2
    assert low.differences[128] == 2


def test_the_rates_come_back(space):
    p, share = 0.06, 0.25
    seed = seed_for("calibrate-stuck") % (1 << 63)
    fit = calibrate_stuck(space, StuckCells(p, share), seed=seed, trials=15).fit
    counts = observe_stuck(space, StuckCells(p, share), seed=seed, trials=15)
    n, k = counts.written.sum((0, 1)), counts.wrong.sum((0, 1))
    assert_rate(int(k[1]), int(n[1]), p * (1 - share))
    assert_rate(int(k[0]), int(n[0]), p * share, mutant=1.2 * p * share, named="p1 off by 20 %")
    assert fit.p0.estimate == k[1] / n[1] and fit.p1.estimate == k[0] / n[0]
    assert fit.p.estimate == pytest.approx(k[1] / n[1] + k[0] / n[0])
    assert fit.sa1_share.estimate == pytest.approx(fit.p1.estimate / fit.p.estimate)


def test_outcomes_of_the_torch_model_give_its_rates_back():
    """What training draws from and what calibration fits is one model."""
    model = AdSAFBits(p=0.05, sa1_share=0.4)
    rng = np.random.default_rng(seed_for("stuck-torch"))
    codes = rng.integers(-127, 128, 150_000)
    codes[0] = 127  # step 1
    generator = torch.Generator().manual_seed(seed_for("stuck-torch") % (1 << 63))
    read = model(torch.from_numpy(codes).float(), generator=generator).numpy().astype(int)
    was, turned = ((x[:, None] >> np.arange(8)) & 1 for x in (codes, codes ^ read))
    written = np.stack([(was == v).sum(0) for v in (0, 1)], 1)[None]
    wrong = np.stack([((was == v) & (turned == 1)).sum(0) for v in (0, 1)], 1)[None]
    fit = fit_stuck(written, wrong)
    assert_rate(int(wrong[..., 1].sum()), int(written[..., 1].sum()), 0.03)
    assert_rate(int(wrong[..., 0].sum()), int(written[..., 0].sum()), 0.02)
    assert fit.p_value > 1e-6 and abs(fit.p.estimate - 0.05) < fit.p.high - fit.p.low


def test_intervals_cover():
    """p0, p1, p and the share, and the last two at once, over many small calibrations."""
    rng, fits, p, share = np.random.default_rng(seed_for("stuck-cover")), 3000, 0.02, 0.163
    written = np.full((3, 8, 2), 90)
    inside = dict.fromkeys(("p0", "p1", "p", "sa1_share", "both"), 0)
    for _ in range(fits):
        wrong = rng.binomial(written, [p * share, p * (1 - share)])
        fit = fit_stuck(written, wrong)
        held = {"p0": fit.p0.low <= p * (1 - share) <= fit.p0.high,
                "p1": fit.p1.low <= p * share <= fit.p1.high,
                "p": fit.p.low <= p <= fit.p.high,
                "sa1_share": fit.sa1_share.low <= share <= fit.sa1_share.high}  # fmt: skip
        held["both"] = held["p"] and held["sa1_share"]
        for name in inside:
            inside[name] += held[name]
    for name in inside:
        assert_at_least(inside[name], fits, 0.95, mutant=0.9, named="intervals 15 % too narrow")


def test_intervals_of_whole_calibrations_cover(space):
    model, hits, fits = StuckCells(0.01, 0.3), 0, 40
    seed = seed_for("stuck-cover-machine") % (1 << 62)
    for i in range(fits):
        fit = calibrate_stuck(space, model, seed=seed + i, trials=1).fit
        hits += fit.p.low <= 0.01 <= fit.p.high
        hits += fit.sa1_share.low <= 0.3 <= fit.sa1_share.high
    assert_at_least(hits, 2 * fits, 0.95, mutant=0.5, named="intervals a third as wide")


def test_chance_alone_is_seldom_called_a_misfit():
    rng, fits, quiet = np.random.default_rng(seed_for("stuck-quiet")), 1500, 0
    written = np.full((3, 8, 2), 2000)
    for _ in range(fits):
        fit = fit_stuck(written, rng.binomial(written, [0.006, 0.02]))
        quiet += fit.p_value >= 0.01
        assert fit.dof == 46
    assert_at_least(quiet, fits, 0.985, mutant=0.93, named="seven false alarms in a hundred")


@pytest.mark.parametrize("planted", ["bit", "layer"])
def test_a_planted_misfit_is_found(planted):
    rng = np.random.default_rng(5)
    written, rate = np.full((3, 8, 2), 2000), np.full((3, 8, 2), 0.02)
    rate[(slice(None), 7) if planted == "bit" else 1] *= 2
    fit = fit_stuck(written, rng.binomial(written, rate))
    assert fit.p_value < 1e-6 and "not equally likely" in fit.poor[0]


def test_nothing_stuck_and_everything_stuck():
    written = np.full((1, 8, 2), 100)
    none = fit_stuck(written, np.zeros_like(written))
    assert (none.p.estimate, none.p.low, none.sa1_share, none.p_value) == (0.0, 0.0, None, None)
    assert 0 < none.p.high < 0.02
    wrong = written.copy()
    wrong[..., 0] = 0  # all at 0
    every = fit_stuck(written, wrong)
    assert (every.p.estimate, every.p.high, every.sa1_share.estimate) == (1.0, 1.0, 0.0)
    assert every.sa1_share.low == 0.0 and every.p.low > 0.99


# Against adSAF on whole weights

CODES = np.array([-127, -127, -3, 0, 0, 1, 5, 64, 100, 126])


MODELS = [AdSAF(p=0.3, sa1_share=0.4, grid="hardware"), AdSAFBits(p=0.3, sa1_share=0.4)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_laws_of_changes_are_those_of_the_torch_models(model):
    chips, half = 40_000, 512
    if model.name == "adsaf":
        law = whole_weight_law((CODES,), 0.3, 0.4, half)
    else:
        law = bit_law((CODES,), 8, 0.3 * 0.6, 0.3 * 0.4, half)
    assert law.sum() == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(seed_for(f"law {model.name}") % (1 << 63))
    written = np.tile(CODES, (chips, 1))  # max|code| 127: the models' step is 1
    read = model(torch.from_numpy(written).float(), generator=generator).numpy().astype(int)
    found = np.bincount((read - written).reshape(-1) + half, minlength=2 * half + 1)
    assert not found[law == 0].any()
    for place in np.argsort(law)[-3:]:
        assert_rate(int(found[place]), written.size, float(law[place]))
    assert np.abs(found / written.size - law).sum() / 2 < 0.02


def test_whole_weights_are_off_and_bits_are_not(space):
    result = calibrate_stuck(space, StuckCells(0.08), seed=1, trials=10)
    machine, bits, whole, matched = result.changes
    assert machine.distance == 0 and bits.distance < 0.01
    assert whole.distance > 0.1 and matched.distance > 0.1
    assert whole.changed < machine.changed / 2
    assert matched.changed == pytest.approx(machine.changed, abs=1e-9)
    counted = sum(n for d, n in result.counts.differences.items() if d)
    assert machine.changed == pytest.approx(counted / sum(result.counts.differences.values()))


# The command

RUN = ("calibrate", "--stuck-cells", "0.05", "--trials", 3, "--threads", 1)


def test_the_file_is_what_training_takes(fsim, tmp_path):
    for name in ("a.toml", "a.json"):
        path = tmp_path / "new" / name
        result = fsim(*RUN, "--sa1-share", "0.4", "--out", path, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        found = report["fits"]["adsaf-bits"]
        (model,) = load_models(path)
        assert model == AdSAFBits(p=found["p"]["estimate"],
                                  sa1_share=found["sa1_share"]["estimate"])  # fmt: skip
        assert abs(model.sa1_share - 0.4) < 0.05
    out = tmp_path / "run"
    trained = fsim("train", "--fault-backend", "torch", "--faults", path, "--epochs", 1, "--images",
                   64, "--test-images", 16, "--eval-trials", 1, "--out", out)  # fmt: skip
    assert trained.exit_code == 0, trained.output


def test_the_report_in_words(fsim):
    text = fsim(*RUN).stdout
    for part in ("p0 + p1: stuck, per cell", "chi-square", "nothing speaks against this model",
                 "adsaf, same p", "adsaf, as many weights changed", "scale for each output",
                 "mibb ", "ibf weights"):  # fmt: skip
        assert part in text, part
    assert text.count("does not apply") == 3
    rare = fsim("calibrate", "--stuck-cells", "1e-9", "--json")
    report = json.loads(rare.stdout)
    assert rare.exit_code == 0 and "no cell was read wrong" in " ".join(report["notes"])
    assert report["fits"]["adsaf-bits"]["sa1_share"] is None and not report["changes"]
    assert report["models"][0]["p"] == 0.0 and report["models"][0]["bits"] == 8


def test_adsaf_does_not_apply_to_bit_errors_for_the_right_reason(fsim):
    text = fsim("calibrate", "--ber", "weights=1e-3", "--images", 2, "--trials", 1).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("adsaf")]
    assert "stuck for good" in line and "--stuck-cells" in line and "take no stuck" not in line


def test_the_same_seed_gives_the_same_report(fsim):
    once, again, other = (fsim(*RUN, "--json", "--seed", seed).stdout for seed in (5, 5, 6))
    assert once == again != other


def test_the_configuration_has_the_fitted_rates(space):
    result = calibrate_stuck(space, StuckCells(0.05), seed=0, trials=1)
    assert stuck_configuration(result) == [
        {"model": "adsaf-bits", "p": result.fit.p.estimate,
         "sa1_share": result.fit.sa1_share.estimate, "bits": 8, "grid": "hardware"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--stuck-cells", "0"), "--stuck-cells must be above 0"),
        (("--stuck-cells", "1.5"), "[0, 1]"),
        (("--stuck-cells", "0.1", "--seu-rate", "1e-9"), "got --seu-rate and --stuck-cells"),
        (("--stuck-cells", "0.1", "--images", "4"), "--images must be left out"),
        (("--stuck-cells", "0.1", "--features", "mibb"), "--features must be left out"),
        (("--stuck-cells", "0.1", "--hw-batch", "2"), "--hw-batch needs --ber"),
        (("--ber", "1e-4", "--sa1-share", "0.5"), "--sa1-share needs --stuck-cells"),
    ],
)
def test_bad_input_is_one_line(fsim, arguments, says):
    result = fsim("calibrate", *arguments)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.count("\n") == 1 and says in result.stderr, result.stderr
