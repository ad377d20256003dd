"""`fsim campaign` and what reads its files, at the command line: numbers made again by scipy."""

from __future__ import annotations

import json
import math
import shlex
from fractions import Fraction

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import special, stats

from fsim.campaign.acceptance import parse_condition
from fsim.campaign.compare import compare
from fsim.campaign.protect import protect
from fsim.campaign.results import read_results
from fsim.cli import main
from fsim.errors import ConfigError
from fsim.nas.zoo import load_model
from fsim.simulator.campaign.design import date_2009
from fsim.simulator.trace import TraceWriter, read_trace

PSUMS = ["--fault", "flip", "--sites", "psums", "--images", "10"]
FEW = ["--fault", "flip", "--sites", "psums", "--layers", "fc", "--images", "1"]
RUNS = {
    "plain": [*PSUMS, "--trials", "400"],
    "saturate": [*PSUMS, "--trials", "400", "--set", "overflow=saturate"],
    "seed": [*PSUMS, "--trials", "400", "--seed", "1"],
    "strata": ["--fault", "flip", "--stratify", "component,bit", "--images", "10", "--trials",
               "900", "--pilot", "5"],
    "flips": ["--flips", "1-3,5", "--images", "10", "--trials", "240"],
    "chips": ["--chips", "12", "--ber", "0.0123456789", "--images", "10"],
    "stuck": ["--fault", "stuck1", "--images", "6", "--trials", "20", "--images-per-fault", "4"],
    "odd": [*PSUMS, "--trials", "150", "--confidence", "0.98765432101", "--shard-size", "37",
            "--metric", "sdc"],
    "capped": [*PSUMS, "--failures", "900", "--max-trials", "200"],
    "margin": [*FEW, "--margin", "0.123456789", "--t", "2.58", "--rounding", "nearest"],
}  # fmt: skip


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def document(text: str) -> dict:
    """The one JSON document in a text; NaN and infinities are none."""
    return json.loads(text, parse_constant=no_constants)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name -> (file, what --json printed)."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    state = dict(load_model("digits-cnn").model.state_dict())
    state["fc.weight"] = state["fc.weight"] * 1.5 + 0.05 * torch.sin(torch.arange(10.0))[:, None]
    torch.save(state, folder / "w.pt")
    other = [*PSUMS, "--trials", "400", "--weights", str(folder / "w.pt")]
    for name, words in {**RUNS, "other": other}.items():
        out = folder / f"{name}.h5"
        result = CliRunner().invoke(main, ["campaign", *words, "--json", "--out", str(out)])
        assert result.exit_code == 0, result.output
        found[name] = out, document(result.stdout)
    return found


def refused(fsim, folder, *words, says):
    before = sorted(folder.rglob("*"))
    result = fsim("campaign", *words, "--out", folder / "no.h5")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and says in result.stderr, result.stderr
    assert sorted(folder.rglob("*")) == before and not result.stdout


# --- YAML ---


def test_a_file_and_options_make_the_same_bytes_and_options_go_first(fsim, runs, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "fault: flip\nsites: [psums]\nimages: 10\ntrials: 400\nset: [overflow=saturate]\n"
        "quiet: true\nfail_if: ['sdc > 1', 'masked < 0']\n"
    )
    out = tmp_path / "a.h5"
    assert fsim("campaign", plan, "--out", out).exit_code == 0
    assert out.read_bytes() == runs["saturate"][0].read_bytes()
    plan.write_text("fault: flip\nsites: psums\nimages: 9\ntrials: 7\nseed: 5\n")
    words = ["--images", 10, "--trials", 400, "--seed", 0, "--out", out, "--overwrite"]
    assert fsim("campaign", plan, *words).exit_code == 0
    assert out.read_bytes() == runs["plain"][0].read_bytes()


@pytest.mark.parametrize(
    "text, says",
    [
        ("trails: 10", "got 'trails', did you mean trials?"),
        ("images-per-fault: 2\nimages_per_fault: 2", "images_per_fault twice"),
        ("trials: 1\ntrials: 2", "'trials' twice"),
        ("trials: {a: 1}", "trials must have a value"),
        ("layers: [[a, b]]", "layers must have a value"),
        ("trials:", "trials must have a value, got nothing"),
        ("trials: many", "'many' is not a valid integer"),
        ("trials: true", "trials must be a value, got true"),
        ("quiet: 1", "quiet must be true or false"),
        ("fault: bang", "'bang' is not one of"),
        ("a: [", "must be YAML"),
        ("when: 2020-13-45", "must be YAML"),
        ("seed: !!int x", "must be YAML"),
        ("quiet: !!bool x", "must be YAML"),
        ("model: !!python/object/apply:os.system [ls]", "must be YAML"),
        ("- trials", "must hold option: value lines"),
        ("", "must hold option: value lines"),
        ("fault: flip\nflips: 1-3", "got --flips and --fault"),
        ("1: 2", "got 1"),
        ("\x00", "must be YAML"),
        ("&a [*a]: 1", "must be YAML"),
        ("[" * 5000, "must be YAML"),
        ("seed: " + "9" * 5000, "must be YAML"),
    ],
)
def test_a_bad_file_is_one_line(fsim, tmp_path, text, says):
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    refused(fsim, tmp_path, plan, says=says)


def test_a_file_that_is_missing_or_too_large_or_in_another_code(fsim, tmp_path):
    refused(fsim, tmp_path, tmp_path / "plan.yaml", says="must exist")
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\xff")
    refused(fsim, tmp_path, tmp_path / "plan.yaml", says="must be YAML")
    (tmp_path / "plan.yaml").write_bytes(b"#" * (1 << 21))
    refused(fsim, tmp_path, tmp_path / "plan.yaml", says="under 1 MiB")


# --- rules and their intervals ---


def beta(low, high, tail=0.025):
    """Quantiles of two beta laws."""
    ends = [0.0 if low[0] == 0 else stats.beta.ppf(tail, *low)]
    return [*ends, 1.0 if high[1] == 0 else stats.beta.ppf(1 - tail, *high)]


def ends(found):
    return [found["low"], found["high"]]


def critical(path):
    """(t,) bool: trials with a critical outcome, in order."""
    return read_trace(path).outcomes["outcome"] == 3


def test_a_fixed_number_has_clopper_pearson(runs):
    path, found = runs["plain"]
    hits = critical(path)
    k, n = int(hits.sum()), len(hits)
    assert (n, found["outcomes"]["sdc_critical"]["count"]) == (400, k) and 0 < k < n
    for name, x in (("sdc_critical", k), ("masked", found["outcomes"]["masked"]["count"])):
        share = found["outcomes"][name]
        assert share["method"] == "Clopper-Pearson" and share["estimate"] == x / n
        assert ends(share) == pytest.approx(beta((x, n - x + 1), (x + 1, n - x)), rel=1e-9)
    path, found = runs["odd"]
    x, tail = found["outcomes"]["sdc"]["count"], (1 - 0.98765432101) / 2
    expected = beta((x, 150 - x + 1), (x + 1, 150 - x), tail)
    assert ends(found["outcomes"]["sdc"]) == pytest.approx(expected, rel=1e-9)


def campaign(fsim, out, *words):
    result = fsim("campaign", *words, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    return document(result.stdout)


def test_the_kth_failure_ends_and_has_the_inverse_binomial(fsim, tmp_path):
    found = campaign(fsim, tmp_path / "t.h5", *PSUMS, "--failures", 6)
    hits = critical(tmp_path / "t.h5")
    n = len(hits)
    assert hits.sum() == 6 and hits[-1]
    share = found["outcomes"]["sdc_critical"]
    assert ends(share) == pytest.approx(beta((6, n - 5), (6, n - 6)), rel=1e-9)
    assert share["estimate"] == pytest.approx(5 / (n - 1))


def test_a_cap_ends_what_would_go_on(runs):
    found = runs["capped"][1]
    assert found["trials"] == 200 and found["outcomes"]["sdc_critical"]["count"] < 900


def wilson(k, n):
    z = stats.norm.ppf(0.975)
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4)
    return [middle - half / (n + z * z), middle + half / (n + z * z)]


def test_a_width_ends_when_it_is_reached_and_has_wilson(fsim, tmp_path):
    words = [*PSUMS, "--target-halfwidth", 0.06, "--metric", "masked", "--shard-size", 50]
    found = campaign(fsim, tmp_path / "t.h5", *words)
    hits = read_trace(tmp_path / "t.h5").outcomes["outcome"] == 0
    n = len(hits)
    assert n % 50 == 0 and n > 100
    low, high = wilson(hits.sum(), n)
    assert ends(found["outcomes"]["masked"]) == pytest.approx([low, high], rel=1e-9)
    assert high - low <= 0.12
    low, high = wilson(hits[:-50].sum(), n - 50)
    assert high - low > 0.12


def test_a_threshold_ends_when_it_is_excluded_by_a_confidence_sequence(fsim, tmp_path):
    words = [*PSUMS, "--threshold", 0.3, "--shard-size", 20]
    share = campaign(fsim, tmp_path / "t.h5", *words)["outcomes"]["sdc_critical"]
    hits = critical(tmp_path / "t.h5")

    def evidence(p, k, n):
        """Log likelihood ratio of the mixture with Beta(1/2, 1/2) against p."""
        mixture = special.betaln(k + 0.5, n - k + 0.5) - special.betaln(0.5, 0.5)
        return mixture - special.xlogy(k, p) - special.xlog1py(n - k, -p)

    k, n = int(hits.sum()), len(hits)
    for p in ends(share):
        assert p in (0.0, 1.0) or evidence(p, k, n) == pytest.approx(math.log(20), rel=1e-6)
    assert evidence(0.3, k, n) > math.log(20)
    assert n == 20 or evidence(0.3, int(hits[:-20].sum()), n - 20) <= math.log(20)


def test_a_twentieth_of_a_population_has_the_hypergeometric_and_all_of_it_none(fsim, tmp_path):
    plan = document(fsim("campaign", *FEW, "--exhaustive", "--dry-run", "--json").stdout)
    size = plan["population"]
    assert plan["trials"] == size == plan["sites_per_image"] and 100 < size < 10_000
    n = size // 4
    share = campaign(fsim, tmp_path / "t.h5", *FEW, "--trials", n)["outcomes"]["sdc"]
    k = int((read_trace(tmp_path / "t.h5").outcomes["outcome"] >= 2).sum())
    every = np.arange(k, size - (n - k) + 1)
    over = stats.hypergeom.sf(k - 1, size, every, n) > 0.025
    under = stats.hypergeom.cdf(k, size, every, n) > 0.025
    assert ends(share) == pytest.approx([every[over][0] / size, every[under][-1] / size])
    share = campaign(fsim, tmp_path / "all.h5", *FEW, "--exhaustive")["outcomes"]["sdc"]
    trace = read_trace(tmp_path / "all.h5")
    names = ["word", "first", "xor_mask"]
    assert len(np.unique(trace.faults[names])) == size == len(trace.trials)
    truth = int((trace.outcomes["outcome"] >= 2).sum()) / size
    assert share["low"] == share["high"] == share["estimate"] == truth
    refused(fsim, tmp_path, *FEW, "--trials", size + 1, says=f"must be at most {size:,}")


PUBLISHED = {
    27_648: 10_389, 40_960: 11_834, 147_456: 14_954, 294_912: 15_752, 589_824: 16_184,
    1_179_648: 16_410, 2_359_296: 16_524, 864: 821, 4_608: 3_609, 17_174_144: 16_625,
}  # fmt: skip
"""Sample sizes at 1 % with t = 2.58, rounded: GabrieleGavarini/ExhaustiveFaultInjection."""


def leveugle(population, margin, t, p=0.5):
    """n of DATE 2009."""
    e, t, p = Fraction(str(margin)), Fraction(str(t)), Fraction(str(p))
    return population / (1 + e * e * (population - 1) / (t * t * p * (1 - p)))


def test_sizes_of_date_2009(fsim, runs):
    found = date_2009(list(PUBLISHED), 0.01, 2.58, 0.5, "nearest", 0.95)
    assert list(found.counts) == list(PUBLISHED.values())
    strict = ["--confidence", 0.99, "--p", 0.1]
    for more, t, p in (([], stats.norm.ppf(0.975), 0.5), (["--t", 1.96], 1.96, 0.5),
                       (strict, stats.norm.ppf(0.995), 0.1)):  # fmt: skip
        plan = document(fsim("campaign", *PSUMS, *more, "--dry-run", "--json").stdout)
        assert plan["trials"] == math.ceil(leveugle(plan["population"], 0.01, float(t), p))
    size = read_results(runs["margin"][0]).sizes[0]
    expected = math.floor(leveugle(size, 0.123456789, 2.58) + Fraction(1, 2))
    assert runs["margin"][1]["trials"] == expected


# --- strata, images, lists of options ---


@pytest.mark.parametrize("axes", ["layer", "component", "bit", "layer,component", "bit,layer"])
def test_a_margin_holds_in_each_stratum(fsim, tmp_path, axes):
    words = ["--fault", "flip", "--layers", "fc,conv1", "--images", 4, "--stratify", axes,
             "--margin", 0.3]  # fmt: skip
    found = campaign(fsim, tmp_path / "t.h5", *words)
    trace = read_trace(tmp_path / "t.h5")
    sizes: dict[tuple, int] = {}
    for _, layer, _, component, cells, bits in trace.task["campaign"]["frame"]["cells"]:
        for bit in range(bits):
            of = {"layer": layer, "component": component, "bit": bit}
            key = tuple(of[axis] for axis in axes.split(","))
            sizes[key] = sizes.get(key, 0) + 4 * cells
    counts = dict.fromkeys(sizes, 0)
    for row in trace.faults:
        of = {"layer": trace.task["layers"][row["layer"]], "bit": int(row["xor_mask"]) % 2**64,
              "component": trace.task["components"][row["component"]]}  # fmt: skip
        of["bit"] = (of["bit"] & -of["bit"]).bit_length() - 1
        counts[tuple(of[axis] for axis in axes.split(","))] += 1
    t = float(stats.norm.ppf(0.975))
    assert counts == {key: math.ceil(leveugle(n, 0.3, t)) for key, n in sizes.items()}
    assert found["population"]["strata"] == len(sizes)
    assert found["population"]["members"] == sum(sizes.values())


def test_strata_are_weighted_by_their_sizes(runs):
    path, found = runs["strata"]
    results = read_results(path)
    hits, stratum = critical(path), results.trials % len(results.sizes)
    n = np.bincount(stratum, minlength=len(results.sizes))
    assert n.min() >= 5 and n.sum() == 900 and len(set(n.tolist())) > 1
    rates = np.bincount(stratum, hits, minlength=len(n)) / n
    share = found["outcomes"]["sdc_critical"]
    assert share["estimate"] == pytest.approx(float(np.average(rates, weights=results.sizes)))
    assert share["low"] < share["estimate"] < share["high"]
    right = read_trace(path).outcomes["faulty"] == read_trace(path).outcomes["label"]
    rates = np.bincount(stratum, right, minlength=len(n)) / n
    expected = float(np.average(rates, weights=results.sizes))
    assert found["accuracy"]["faulty"] == pytest.approx(expected)


def test_every_fault_meets_as_many_images_as_asked(runs):
    path, found = runs["stuck"]
    outcomes = read_trace(path).outcomes
    assert len(outcomes) == 80 and found["images_per_trial"] == 4
    assert np.unique(outcomes["trial"], return_counts=True)[1].tolist() == [4] * 20
    assert outcomes["image"].max() < 6


@pytest.mark.parametrize(
    "words, says",
    [
        (["--trials", 9, "--margin", 0.1], "got --trials and --margin"),
        (["--failures", 9, "--threshold", 0.1], "got --failures and --threshold"),
        (["--exhaustive", "--trials", 9], "one rule"),
        (["--fault", "flip", "--flips", "1-3"], "one kind of faults"),
        (["--chips", 3, "--flips", "1-3"], "one kind of faults"),
        (["--chips", 3], "needs one of --stuck-cells and --ber"),
        (["--chips", 3, "--ber", 0.1, "--stuck-cells", 0.1], "needs one of"),
        (["--chips", 3, "--ber", 0.1, "--trials", 3], "--trials does not go with --chips"),
        (["--chips", 3, "--ber", 0.1, "--failures", 3], "known before"),
        (["--chips", 3, "--ber", 0.1, "--stratify", "bit"], "--stratify does not go with --chips"),
        (["--ber", 0.1], "of chips: give --chips"),
        (["--chips", 3, "--ber", 0.1, "--sites", "acts"], "chips have faults in weights"),
        (["--fault", "flip", "--sites", "acts,ifmap"], "strike stored words"),
        (["--fault", "flip", "--threshold", 0], "--threshold must lie strictly between"),
        (["--margin", 0.3, "--max-trials", 5], "--max-trials belongs to"),
        (["--trials", 10, "--stratify", "component,bit"], "need at least 1,440 trials"),
        (["--trials", 5, "--pilot", 3], "--pilot belongs to --stratify"),
        (["--trials", 5, "--confidence", 0.9999999999999999], "--confidence must be at most"),
        (["--margin", 0.5, "--p", 1e-9, "--rounding", "nearest"], "at least one fault"),
        (["--trials", 5, "--shard", "١/٣"], "--shard must be K/N"),
        (["--chips", 3, "--ber", 0.1, "--sa1-share", 0.5], "needs --stuck-cells"),
        (["--flips", "3-1"], "numbers and ranges"),
        (["--flips", "1,1"], "must rise"),
        (["--flips", "1-99999999"], "at most 4096"),
        (["--flips", "1-3", "--fail-if", "sdc > 0"], "depend on a rate"),
        (["--fault", "stuck0", "--failures", 3], "counts single inferences"),
        (["--fault", "flip", "--stratify", "row"], "strata must be told apart"),
        (["--fault", "flip", "--stratify", "bit,bit"], "once each"),
        (["--fault", "flip", "--stratify", "bit", "--failures", 2], "--stratify stops by"),
        (["--stratify", "bit", "--images-per-fault", 2], "meet one image each"),
        (["--images-per-fault", 3], "1 to 2 or all"),
        (["--t", 2.58, "--trials", 9], "--t belongs to --margin"),
        (["--p", 0.1, "--exhaustive"], "--p belongs to --margin"),
        (["--margin", "nan"], "strictly between 0 and 1"),
        (["--confidence", 1], "strictly between 0 and 1"),
        (["--threshold", 1], "strictly between 0 and 1"),
        (["--shard", "3/2", "--trials", 9], "--shard must be K/N"),
        (["--shard", "1/2", "--failures", 9], "--shard needs a campaign"),
        (["--shard", "1/2", "--trials", 9, "--fail-if", "sdc > 0"], "judge a whole campaign"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--faults", "none.csv", "--sites", "acts"], "must go without it"),
        (["--faults", "none.csv"], "file that exists"),
        (["--faults", "none.txt"], ".csv or .h5"),
        (["--fail-if", "sdc > baseline"], "give --baseline"),
        (["--baseline", "none.h5"], "none.h5"),
        (["--trials", 0], "--trials"),
    ],
)  # fmt: skip
def test_options_that_exclude_each_other_are_one_line(fsim, tmp_path, words, says):
    refused(fsim, tmp_path, "--images", 2, *words, says=says)


# --- acceptance ---


@pytest.mark.parametrize(
    "text",
    ["", "sdc", "sdc >", "sdc > x", "sdc > 1.2.3", "sdc > 1e999", "sdc => 1", "sdc > nan", "sdc!>1",
     "sdc.mid > 1", "loss > 1", "accuracy.low < 0.9", "accuracy < baseline.high", "sdc > -1",
     "sdc > baseline / 2", "sdc > baseline + 1e999", "sdc > 0.1 + 0.1", "sdc > 1; masked > 1"],
)  # fmt: skip
def test_conditions_of_another_form_are_refused_before_anything_runs(fsim, tmp_path, text):
    refused(fsim, tmp_path, "--fail-if", text, says="--fail-if")


def test_a_condition_that_holds_is_exit_code_4(fsim, runs, tmp_path):
    share = runs["plain"][1]["outcomes"]["sdc"]
    rate, low, high = share["estimate"], share["low"], share["high"]
    base = ["campaign", *RUNS["plain"], "--baseline", runs["plain"][0], "--json"]
    conditions = {
        f"sdc > {rate!r}": False, f"sdc >= {rate!r}": True, f"sdc<{rate + 1e-9!r}": True,
        f"sdc <= {rate - 1e-9!r}": False, f"sdc.low > {low - 1e-9!r}": True,
        f"sdc.high > {high + 1e-9!r}": False, "sdc > baseline": False, "sdc >= baseline": True,
        "sdc.high > baseline.low": True, "sdc.low > baseline + 0.001": False,
        "sdc > baseline * 0.99": True, "sdc < baseline - 1e-3": False, "accuracy < 1": True,
        "accuracy < baseline": False, "due > 0": False,
    }  # fmt: skip
    for wanted in (True, False):
        some = [text for text, holds in conditions.items() if holds is wanted]
        words = [word for text in some for word in ("--fail-if", text)]
        result = fsim(*base, *words, "--out", tmp_path / f"{wanted}.h5")
        assert result.exit_code == (4 if wanted else 0), result.output
        checks = document(result.stdout)["checks"]
        assert [c["condition"] for c in checks] == some
        assert [c["failed"] for c in checks] == [wanted] * len(some)
        assert (tmp_path / f"{wanted}.h5").exists()
    result = fsim("campaign", *RUNS["plain"], "--out", tmp_path / "t.h5", "--fail-if", "sdc > 0")
    assert result.exit_code == 4 and "FAILED: fails if sdc > 0 (got 0." in result.stdout


def test_conditions_are_parsed_as_written():
    found = parse_condition(" sdc_critical.high>=baseline.low*1.5e-1 ")
    assert (found.metric, found.end, found.compare) == ("sdc_critical", "high", ">=")
    assert (found.base_end, found.change, found.by) == ("low", "*", 0.15)
    with pytest.raises(ConfigError):
        parse_condition("sdc > 0.1\n> 2")


# --- dry runs, text, reproduction ---


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_says_what_would_be_and_writes_nothing(fsim, runs, tmp_path, name):
    words = ["campaign", *RUNS[name], "--dry-run", "--out", tmp_path / "no.h5"]
    plan = document(fsim(*words, "--json").stdout)
    found = runs[name][1]
    counted = name != "capped" and name != "strata"
    assert plan["trials"] == (found["trials"] if counted else None)
    assert plan["images_per_fault"] == found["images_per_trial"]
    assert plan["faults_a_second"] > 0
    assert fsim(*words).stdout.startswith("network")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RUNS)
def test_the_command_of_cite_makes_the_same_bytes(fsim, runs, tmp_path, name):
    path = runs[name][0]
    found = document(fsim("cite", path, "--json").stdout)
    words = shlex.split(found["command"])
    assert words[:2] == ["fsim", "campaign"] and found["text"].endswith(found["command"])
    out = tmp_path / "again.h5"
    result = fsim(*words[1:], "--out", out)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == path.read_bytes()


# --- comparison, protection, chips, rates ---


def test_the_same_faults_in_two_networks_are_paired(fsim, runs):
    one, two = runs["plain"][0], runs["other"][0]
    found = document(fsim("compare", one, two, "--json").stdout)
    a, b = critical(one), critical(two)
    only = int((a & ~b).sum()), int((b & ~a).sum())
    assert found["paired"] and found["pairs"] == 400
    assert (found["only_this"], found["only_that"]) == only
    assert sum(only) > 3
    assert found["p_value"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert found["difference"]["estimate"] == pytest.approx((only[0] - only[1]) / 400)
    for other in ("seed", "odd", "strata"):
        found = document(fsim("compare", one, runs[other][0], "--json").stdout)
        assert not found["paired"] and found["why_not"] and found["p_value"] is None
        x, y, d = found["this"], found["that"], found["difference"]
        gap = x["estimate"] - y["estimate"]
        low = gap - math.hypot(x["estimate"] - x["low"], y["high"] - y["estimate"])
        high = gap + math.hypot(x["high"] - x["estimate"], y["estimate"] - y["low"])
        assert [d["low"], d["high"]] == pytest.approx([low, high])
    result = fsim("compare", one, runs["flips"][0])
    assert result.exit_code == 2 and "depend on a rate" in result.stderr


def judged(path, target, change):
    """The same trials with outcomes of our own."""
    trace = read_trace(path)
    outcomes = trace.outcomes.copy()
    outcomes["outcome"] = change(read_results(path))
    with TraceWriter(target, trace.task, trace.provenance) as writer:
        writer.add(trace.faults, outcomes)
    return read_results(target)


def test_discordant_pairs_both_ways_are_mcnemars(runs, tmp_path):
    path = runs["plain"][0]
    one = judged(path, tmp_path / "a.h5", lambda r: np.where(r.trials % 10 < 3, 3, 0))
    two = judged(path, tmp_path / "b.h5", lambda r: np.where(r.trials % 20 < 2, 3, 0)
                 + 3 * (r.trials % 40 == 39))  # fmt: skip
    found = compare(one, two)
    assert (found["only_this"], found["only_that"]) == (80, 10)
    assert found["p_value"] == pytest.approx(stats.binomtest(10, 90).pvalue, rel=1e-9)


def test_protecting_the_one_part_that_fails_leaves_nothing(runs, tmp_path):
    def part(r):
        return (r.label("component") == "psums") & (r.label("bit") == 7)

    path = runs["strata"][0]
    bad = judged(path, tmp_path / "bad.h5", lambda r: np.where(part(r), 3, 0))
    found = protect(bad, by=("component", "bit"))
    first = found["ranking"][0]
    assert (first["component"], first["bit"]) == ("psums", 7)
    assert first["events"] == first["trials"] == part(bad).sum()
    assert sum(row["events"] for row in found["ranking"][1:]) == 0
    assert sum(row["share"] for row in found["ranking"]) == pytest.approx(1)
    assert found["unprotected"]["estimate"] == pytest.approx(first["share"])
    for step in found["steps"]:
        assert step["residual"]["estimate"] == 0 and step["share_of_bits"] >= first["share"]
    assert found["steps"][-1]["share_of_bits"] == 1


@pytest.mark.parametrize("by", [("layer",), ("component", "bit"), ("layer", "component", "bit")])
def test_what_remains_falls_to_nothing(fsim, runs, by):
    path = runs["strata"][0]
    found = document(fsim("protect", path, "--by", ",".join(by), "--json").stdout)
    left = [found["unprotected"], *(step["residual"] for step in found["steps"])]
    assert all(a["estimate"] >= b["estimate"] for a, b in zip(left, left[1:]))
    assert left[0]["estimate"] > 0 and left[-1]["estimate"] == left[-1]["low"] == 0
    shares = [step["share_of_bits"] for step in found["steps"]]
    assert shares == sorted(shares) and shares[-1] == 1
    assert found["steps"][-1]["groups"] == len(found["ranking"])
    assert sum(row["events"] for row in found["ranking"]) == critical(path).sum()


def test_one_half_of_the_trials_ranks_and_the_other_judges(runs, tmp_path):
    def half(which):
        return lambda r: np.where(
            (r.label("bit") == 7) & (r.trials // len(r.sizes) % 2 == which), 3, 0
        )

    path = runs["strata"][0]
    seen = protect(judged(path, tmp_path / "a.h5", half(0)), by=("bit",))
    assert seen["ranking"][0]["bit"] == 7 and seen["unprotected"]["estimate"] == 0
    unseen = protect(judged(path, tmp_path / "b.h5", half(1)), by=("bit",))
    size = {row["bit"]: row["share"] for row in unseen["ranking"]}
    largest = max(size.values())  # with nothing to rank by, large parts come first
    assert unseen["ranking"][0]["share"] == largest
    assert unseen["unprotected"]["estimate"] == pytest.approx(size[7])


def test_chips_have_their_quantile_and_yield(fsim, runs):
    path = runs["chips"][0]
    trace = read_trace(path)
    right = (trace.outcomes["faulty"] == trace.outcomes["label"]).reshape(12, 10).mean(axis=1)
    bound = float(np.sort(right)[4])
    words = ["chips", path, "--yield-at", bound, "--quantile", 0.25, "--json"]
    found = document(fsim(*words).stdout)
    assert found["accuracy"] == right.tolist() and found["mean"] == pytest.approx(right.mean())
    assert found["quantile"]["estimate"] == np.sort(right)[2]  # a quarter of twelve is the third
    good = int((right >= bound).sum())
    assert found["yield"]["estimate"] == good / 12
    assert ends(found["yield"]) == pytest.approx(beta((good, 13 - good), (good + 1, 12 - good)))
    rank = 0
    while stats.binom.cdf(rank, 12, 0.25) <= 0.025:
        rank += 1
    assert found["quantile"]["low"] == (np.sort(right)[rank - 1] if rank else None)
    assert found["chips_needed"] == math.ceil(math.log(0.025) / math.log(0.75))
    for words in (["--quantile", 0], ["--quantile", "nan"], ["--yield-at", 1.5]):
        assert fsim("chips", path, *words).exit_code == 2
    assert fsim("chips", runs["plain"][0]).exit_code == 2


def test_a_curve_is_the_binomial_mixture_of_what_was_measured(fsim, runs, tmp_path):
    path = runs["flips"][0]
    trace = read_trace(path)
    flips, bits = np.array([1, 2, 3, 5]), trace.task["campaign"]["bits"]
    assert np.unique(trace.trials["n_faults"]).tolist() == flips.tolist()
    rows = trace.trials["n_faults"]
    shares = [critical(path)[rows == j].mean() for j in flips]
    right = trace.outcomes["faulty"] == trace.outcomes["label"]
    means = [right[rows == j].mean() for j in flips]
    assert len(set(means)) > 1
    rates = [0.0, 0.01 / bits, 0.3 / bits, 1 / bits, 50 / bits]
    picture = tmp_path / "curve.svg"
    words = ["curve", path, "--rates", ",".join(map(repr, rates)), "--picture", picture, "--json"]
    found = document(fsim(*words).stdout)
    assert found["ber"] == rates and picture.read_text().startswith("<?xml")
    for at, ber in enumerate(rates):
        masses = stats.binom.pmf(flips, bits, ber)
        covered = stats.binom.pmf(0, bits, ber) + masses.sum()
        assert found["covered"][at] == pytest.approx(covered, abs=1e-9)
        direct, c = float(masses @ shares), found["critical"][at]
        assert c["low"] <= direct + 1e-12 and direct <= c["high"] + 1e-12
        assert c["high"] - c["low"] >= 1 - covered - 1e-9
        if covered > 0.99:
            assert abs(c["estimate"] - direct) <= 1 - covered + 1e-12
            direct = stats.binom.pmf(0, bits, ber) * found["clean"] + float(masses @ means)
            assert abs(found["accuracy"][at]["estimate"] - direct) <= 1 - covered + 1e-9
    assert found["critical"][0]["estimate"] == 0 and found["critical"][-1]["estimate"] is None
    assert found["accuracy"][0]["estimate"] == pytest.approx(found["clean"])
    for words in (["--rates", "2"], ["--rates", ""], ["--picture", tmp_path / "c.pdf"]):
        assert fsim("curve", path, *words).exit_code == 2
    assert fsim("curve", runs["plain"][0]).exit_code == 2


@pytest.mark.parametrize("name", RUNS)
def test_text_for_people_has_no_nan(fsim, runs, name):
    path = runs[name][0]
    for command in ("cite", "protect", "curve", "chips"):
        result = fsim(command, path)
        assert result.exit_code in (0, 2)
        assert "nan" not in result.stdout.lower(), result.stdout


def test_a_rule_that_was_not_met_is_not_claimed(fsim, tmp_path):
    out = tmp_path / "early.h5"
    result = fsim("campaign", "--images", 10, "--target-halfwidth", 0.0001, "--max-trials", 200,
                  "--shard-size", 100, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "at the most trials allowed, not yet until the half-width" in result.stdout
    text = fsim("cite", out).stdout
    assert "stopped at 200 trials, the most allowed" in text
    assert "reached 0.0001" not in text
