"""`fsim fit`: the published example, budgets of campaigns recomputed by hand, what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

from fsim.accel_models.accel import MEMORIES
from fsim.accel_models.load import load_accel
from fsim.campaign.results import read_results
from fsim.cli import main
from fsim.fit.assumed import Assumed
from fsim.fit.campaigns import budget
from fsim.fit.occupancy import occupancy
from fsim.fit.table import examples, read_budget
from fsim.session import open_session

CAMPAIGNS = {
    "seu": "--fault seu --trials 900 --images 10",
    "looked": "--fault seu --failures 3 --metric sdc --images 10 --max-trials 400",
    "layer": "--fault seu --trials 60 --images 10 --layers fc",
    "mbu": "--fault mbu --trials 60 --images 10 --sites psum",
    "net": "--fault transient --trials 60 --images 10",
    "intermittent": "--fault intermittent --trials 20 --images 10",
    "flip": "--fault flip --trials 3000 --images 10",
    "strata": "--fault flip --trials 900 --images 10 --stratify component,bit --pilot 5",
    "whole": "--fault flip --sites weights --layers fc --images 10 --exhaustive",
    "other": "--fault flip --trials 50 --images 10 --set buffers.acts.kib=128",
    "confident": "--fault flip --trials 50 --images 10 --confidence 0.9",
    "top5": "--fault mbu --trials 50 --images 10 --critical top5",
    "ecc": "--fault flip --trials 600 --images 10 --set buffers.weights.protection=secded "
    "--set buffers.acts.protection=parity",
    "events": "--fault mcu,shapes=2x2 --trials 5 --images 5",
    "stuck": "--fault stuck1 --trials 12 --images 10 --layers conv1,fc --seed 1",
    "counted": "--flips 1-3 --trials 30 --images 10",
    "chips": "--chips 2 --ber 1e-3 --images 10",
    "part": "--fault flip --trials 60 --images 10 --shard 1/2 --shard-size 10",
}
"""Name -> options of small campaigns."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """file(name): the path of a campaign of CAMPAIGNS, run when it is first asked for."""
    folder = tmp_path_factory.mktemp("fit")

    def path(name: str):
        found = folder / f"{name}.h5"
        if not found.exists():
            words = ["campaign", *CAMPAIGNS[name].split(), "--quiet", "--out", str(found)]
            done = CliRunner().invoke(main, words)
            assert done.exit_code in (0, 3), done.output
        return found

    return path


def said(fsim, *arguments) -> dict:
    done = fsim("fit", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def inferences(fsim, path, tmp_path) -> list[dict]:
    """Every inference of a campaign, by `fsim trace export`."""
    out = tmp_path / "inferences.csv"
    done = fsim("trace", "export", path, "--out", out)
    assert done.exit_code == 0, done.stderr
    return list(csv.DictReader(io.StringIO(out.read_text())))


# --- tables ---


def test_the_published_nvdla_example(fsim):
    """Four digits of what is published; the rows are recomputed in rational arithmetic."""
    found = said(fsim, "--example", "nvdla")
    classes = {one["class"]: one["fit"]["estimate"] for one in found["classes"]}
    digits = {name: f"{value:.4f}" for name, value in classes.items()}
    assert digits == {"datapath": "1.2864", "local control": "0.0797", "global control": "1.1322"}
    assert f"{found['total']['fit']['estimate']:.4f}" == "2.4983"
    shares = "0.018 0.035 0.117 0.156 0.272 0.041 0.081"
    active = "0.31 0.42 0.27 0.27 0.27 0.27 0.32"
    unmasked = "0.0039 0.0057 0.0026 0.0114 0.0201 0.0120 0.0728"
    rows = [600 * Fraction(a) * Fraction(b) * Fraction(c)
            for a, b, c in zip(shares.split(), active.split(), unmasked.split())]  # fmt: skip
    got = [one["fit"]["estimate"] for one in found["components"]]
    assert got == pytest.approx([float(row) for row in rows], rel=1e-12)
    assert found["total"]["fit"]["estimate"] == pytest.approx(float(sum(rows)), rel=1e-12)
    assert "28 % of the whole is in no row" in found["notes"][0]
    assert "168 FIT higher" in found["notes"][1]  # 600 x 0.28
    assert "MICRO 2020" in found["about"] and examples() == ["nvdla"]


def test_a_table_of_ones_own_takes_the_same_way(fsim, tmp_path):
    """Bits at 1,000 FIT a Mbit, a further derating, and counts instead of a stated share."""
    path = tmp_path / "mine.csv"
    path.write_text(
        "# mine\ncomponent,class,bits,active,timing,unmasked,failures,trials\n"
        "a,x,2000000,0.5,0.1,0.2,,\nb,y,500000,1,,,3,700\nc,y,500000,1,1,,0,300\n"
    )
    found = said(fsim, "--table", path, "--fit-per-mbit", 1000, "--csv", tmp_path / "out.csv")
    a, b, c = (one["fit"] for one in found["components"])
    assert a["estimate"] == a["low"] == a["high"] == pytest.approx(2000 * 0.5 * 0.1 * 0.2)
    assert b["estimate"] == pytest.approx(500 * 3 / 700)
    assert c["estimate"] == 0 and c["high"] == pytest.approx(500 * (1 - 0.025 ** (1 / 300)))
    total = found["total"]["fit"]
    assert total["estimate"] == pytest.approx(20 + 500 * 3 / 700)
    assert a["low"] < total["low"] < total["estimate"]
    assert total["estimate"] < total["high"] < a["high"] + b["high"] + c["high"]
    binary = said(fsim, "--table", path, "--fit-per-mbit", 1000, "--mbit", "binary")
    ratio = found["total"]["fit"]["estimate"] / binary["total"]["fit"]["estimate"]
    assert ratio == pytest.approx(1.048576)
    text = io.StringIO((tmp_path / "out.csv").read_text())
    rows = {row["name"]: row for row in csv.DictReader(text)}
    assert float(rows["total"]["fit_high"]) == total["high"] and rows["a"]["timing"] == "0.1"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("component,share,unmasked\na,0.5,0.1\n", "", "a share needs the FIT of the whole"),
        ("component,bits,unmasked\na,5,0.1\n", "", "line 2: bits need a rate"),
        ("component,share,bits,unmasked\na,0.5,5,0.1\n", "", "share or bits"),
        ("component,share\na,0.5\n", "--raw-fit 9", "unmasked must be given"),
        ("component,share,unmasked\na,0.5,1.1\n", "--raw-fit 9", "unmasked must be from 0 to 1"),
        ("component,share,unmasked\na,nan,1\n", "--raw-fit 9", "share must be from 0 to 1"),
        ("component,share,unmasked\na,x,1\n", "--raw-fit 9", "share must be a number, got 'x'"),
        ("component,share,unmasked\na,.6,1\nb,.6,1\n", "--raw-fit 9", "add up to at most 1"),
        ("component,share,unmasked\na,.2,1\na,.2,1\n", "--raw-fit 9", "line 3: component must"),
        ("component,share,failures,trials\na,.2,5,3\n", "--raw-fit 9", "failures <= trials"),
        ("component,share,unmasked\na,.2\n", "--raw-fit 9", "3 values are needed, got 2"),
        ("share,unmasked\n.2,1\n", "--raw-fit 9", "the column component"),
        ("component\n", "", "at least one row"),
        ("component,share,raw_fit,unmasked\na,.2,9,1\n", "--raw-fit 9", "or beside it"),
        ("component,share,unmasked\na,.2,1\n", "--raw-fit 9 --fit-per-mbit 2", "none with bits"),
        ("component,bits,unmasked\na,2,1\n", "--raw-fit 9 --fit-per-mbit 2", "none with share"),
        ("component,share,unmasked\na,.2,1\n", "--raw-fit 9 --confidence 2", "strictly between"),
        ("component,share,unmasked\na,.2,1\n", "--raw-fit 9 --lifetime 2", "the safety table"),
        ("component,share,unmasked\na,.2,1\n", "--raw-fit 9 --duty 0.5", "belongs to campaigns"),
        ("component,share,unmasked\na,.2,1\n", "--raw-fit 9 --failure any", "--failure belongs"),
    ],
)
def test_tables_that_are_not_valid(fsim, tmp_path, text, options, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    done = fsim("fit", "--table", path, *options.split())
    assert done.exit_code == 2 and message in done.stderr, done.stderr


# --- campaigns ---

BITS = {"ifmap": 32 * 32 * 8, "filter": 32 * 32 * 8, "psum": 32 * 32 * 32,
        "acts": 64 * 8192, "weights": 64 * 8192, "psums": 64 * 8192}  # fmt: skip
"""Of `systolic`: 32 x 32 PEs of 8, 8 and 32 bits, and 64 KiB each."""


@pytest.mark.parametrize(
    ("failure", "outcomes"),
    [
        ("sdc-critical", {"sdc_critical"}),
        ("sdc", {"sdc_critical", "sdc_benign"}),
        ("any", {"sdc_critical", "sdc_benign", "due", "hang"}),
    ],
)
def test_a_budget_is_rate_bits_deratings_and_what_failed(fsim, file, tmp_path, failure, outcomes):
    options = "--fit-per-mbit 600 --rate memory=1000 --rate psum=30 --duty 0.4 --occupancy acts=0.5"
    found = said(fsim, file("seu"), file("flip"), *options.split(), "--failure", failure,
                 "--derate", "timing=0.9")  # fmt: skip
    rate = {"ifmap": 600, "filter": 600, "psum": 30, **dict.fromkeys(("acts", "weights", "psums"),
                                                                     1000)}  # fmt: skip
    expected = {}
    for name in ("seu", "flip"):
        rows = inferences(fsim, file(name), tmp_path)
        trials = Counter(row["component"] for row in rows)
        failed = Counter(row["component"] for row in rows if row["outcome"] in outcomes)
        for component in trials:
            share = failed[component] / trials[component]
            live = 0.5 if component == "acts" else 1
            raw = rate[component] * 1e-6 * BITS[component]
            expected[component] = (raw, share, raw * 0.4 * 0.9 * live * share)
    got = {
        one["component"]: (one["raw_fit"], one["failing"]["estimate"], one["fit"]["estimate"])
        for one in found["components"]
    }
    assert set(got) == set(BITS)
    for name, values in got.items():
        assert values == pytest.approx(expected[name], rel=1e-9, abs=1e-300), name
    total = found["total"]["fit"]
    assert total["estimate"] == pytest.approx(sum(v[2] for v in expected.values()), rel=1e-9)
    assert total["low"] <= total["estimate"] <= total["high"]
    if failure == "sdc":
        assert sum(v[2] for v in expected.values()) > 100  # what was compared is not nothing


def test_layers_share_the_rate_by_their_sites(fsim, file):
    """Registers: a layer is struck in proportion to its cycles, and layers add up."""
    found = said(fsim, file("seu"), "--fit-per-mbit", 600, "--failure", "sdc")
    cells = read_results(file("seu")).task["campaign"]["frame"]["cells"]
    cycles = {name: words for _, name, _, component, words, _ in cells if component == "psum"}
    raw = 600e-6 * sum(BITS[name] for name in ("ifmap", "filter", "psum"))
    for one in found["layers"]:
        share = cycles[one["layer"]] / sum(cycles.values())
        assert one["exposed_fit"] == pytest.approx(raw * share, rel=1e-9)
        assert one["fit"]["estimate"] == pytest.approx(
            one["exposed_fit"] * one["failing"]["estimate"], rel=1e-9
        )
    assert len(found["layers"]) == 4
    # The same AVF as in the campaign's own table of components.
    own = {row["component"]: row["sdc"] for row in read_results(file("seu")).groups(("component",))}
    for one in found["components"]:
        mine = own[one["component"]]
        assert (one["failing"]["low"], one["failing"]["high"]) == (mine.low, mine.high)


def test_an_inference_fails_as_often_as_its_cycles_say(fsim, file):
    """1,793 cycles of the network on the array at 1 GHz, whatever the duty is."""
    found = said(fsim, file("seu"), "--fit-per-mbit", 600, "--failure", "sdc", "--duty", 0.25,
                 "--clock", "1e9")  # fmt: skip
    one = found["inference"]
    assert one["cycles"] == 1793
    fit = found["total"]["fit"]["estimate"] / 0.25
    assert one["estimate"] == pytest.approx(fit * 1e-9 / 3600 * 1793e-9, rel=1e-9)


def test_a_population_that_was_tried_whole_has_no_width(fsim, file):
    found = said(fsim, file("whole"), "--fit-per-mbit", 600, "--failure", "sdc-critical")
    (one,) = found["components"]
    results = read_results(file("whole"))
    share = (results.outcome == 3).mean()
    assert share > 0
    fit = one["fit"]
    assert fit["low"] == fit["high"] == pytest.approx(600e-6 * BITS["weights"] * share)
    assert found["total"]["fit"]["low"] == found["total"]["fit"]["high"]
    assert found["notes"][0].startswith("conditional on fc")


def test_strata_are_weighted_and_looking_costs_width(file):
    rate = Assumed({"": 600.0})
    stratified = budget([read_results(file("strata"))], rate, failure="sdc")
    groups = {row["component"]: row["sdc"]
              for row in read_results(file("strata")).groups(("component",))}  # fmt: skip
    for line in stratified.lines:
        own = groups[line.component]
        found = stratified.failing(line)
        assert (found.low, found.estimate, found.high) == (own.low, own.estimate, own.high)
    looked = budget([read_results(file("looked"))], rate, failure="sdc")
    assert "sequence" in looked.failing(looked.lines[0]).method
    assert "Bonferroni" in looked.total().method


def test_a_stuck_bit_fails_if_any_image_shows_it(fsim, file, tmp_path):
    found = said(fsim, file("stuck"), "--rate", "register=10", "--rate", "net=5", "--duty", 0.5)
    rows = inferences(fsim, file("stuck"), tmp_path)
    trials: dict[tuple, bool] = {}
    for row in rows:
        key = row["component"], row["trial"]
        trials[key] = trials.get(key, False) or row["outcome"] == "sdc_critical"
    bits = {**BITS, "mul": 32 * 32 * 16}
    for one in found["components"]:
        name = one["component"].removesuffix(" (stuck1)")
        mine = [failed for (component, _), failed in trials.items() if component == name]
        assert (one["failing"]["failures"], one["failing"]["trials"]) == (sum(mine), len(mine))
        rate = 5 if name == "mul" else 10
        assert one["fit"]["estimate"] == pytest.approx(
            rate * 1e-6 * bits[name] * sum(mine) / len(mine) if mine else None
        )
        assert "duty" not in one["factors"]
    assert 0 < sum(trials.values()) and found["layers"] == []


def test_the_schedule_limits_what_is_live(fsim, file):
    """digits-cnn on 32 x 32 PEs: 158, 550, 990 and 95 cycles of conv1, conv2, conv3 and fc.

    Tensors, 8 bits a code: x 64 words live in conv1; conv1 1024 in conv1 and conv2; conv2 512
    in conv2 and, with the addition after it, conv3; conv3 512 in conv3; the pooled 32 in fc.
    Weights: 144, 4608, 9216 and 320 words, in their layer and the one before. Partial sums of 32
    bits: 1024, 512, 512 and 10.
    """
    acts = 8 * (64 * 158 + 1024 * (158 + 550) + 512 * (550 + 990) + 512 * 990 + 32 * 95)
    weights = 8 * (144 * 158 + 4608 * (158 + 550) + 9216 * (550 + 990) + 320 * (990 + 95))
    psums = 32 * (1024 * 158 + 512 * 550 + 512 * 990 + 10 * 95)
    found = said(fsim, file("flip"), "--fit-per-mbit", 600, "--occupancy", "schedule")
    got = {one["component"]: one["factors"]["occupancy"] for one in found["components"]}
    room = 64 * 8192 * (158 + 550 + 990 + 95)
    assert got == pytest.approx(
        {"acts": acts / room, "weights": weights / room, "psums": psums / room}, rel=1e-12
    )
    assert any("from the schedule is an upper limit" in note for note in found["notes"])
    mixed = said(fsim, file("flip"), "--fit-per-mbit", 600, "--occupancy", "schedule",
                 "--occupancy", "acts=0.25")  # fmt: skip
    assert mixed["components"][0]["factors"]["occupancy"] == 0.25
    assert (
        mixed["components"][1]["factors"]["occupancy"] == got[found["components"][1]["component"]]
    )


def test_a_memory_holds_no_more_than_it_has():
    """Buffers of 1 KiB: nothing is live beyond them, and a tensor that does not fit is not kept."""
    accel = load_accel("systolic", overrides={f"buffers.{m}.kib": 1 for m in MEMORIES})
    placement = open_session("digits-cnn", accel, images=4).placement
    small = occupancy(placement)
    assert small["psums"] == 1698 / 1793 + 95 / 1793 * 320 / 8192  # 10 sums of 32 bits in fc
    assert 0 < small["acts"] < 1 and 0 < small["weights"] <= 1


def test_check_bits_are_bits_like_others(fsim, file):
    """8 check bits for 64 (SECDED), 1 for 64 (parity): 65,536 and 8,192 of 524,288.

    Single flips of words with SECDED are corrected; with parity they are detected, which is a
    failure only where the user says so.
    """
    options = ("--fit-per-mbit", 600, "--occupancy", "weights=0.25", "--failure")
    found = {
        one["component"]: one for one in said(fsim, file("ecc"), *options, "any")["components"]
    }
    silent = {
        one["component"]: one for one in said(fsim, file("ecc"), *options, "sdc")["components"]
    }
    assert found["weights_check"]["bits"] == 65_536 and found["acts_check"]["bits"] == 8_192
    assert found["weights"]["bits"] == 524_288
    assert found["weights_check"]["factors"]["occupancy"] == 0.25
    assert found["acts_check"]["factors"]["occupancy"] == 1
    assert found["weights"]["failing"]["failures"] == 0 < found["weights"]["failing"]["trials"]
    assert silent["acts"]["failing"]["failures"] == 0
    assert found["acts"]["failing"]["failures"] == found["acts"]["failing"]["trials"] > 0


def test_the_two_kinds_of_one_register_stand_beside_each_other(fsim, file):
    found = said(fsim, file("seu"), file("mbu"), "--fit-per-mbit", 600, "--rate", "psum/mbu=20")
    raw = {one["component"]: one["raw_fit"] for one in found["components"]}
    assert raw["psum"] == pytest.approx(30 * raw["psum (mbu)"])
    assert any("two-bit upsets" in note for note in found["notes"])


def test_the_safety_table_follows_from_the_budget(fsim, file, tmp_path):
    """The metrics again, from the budget's numbers: ECC of two memories, nothing elsewhere."""
    (tmp_path / "mine.yaml").write_text(
        "fit_per_mbit: 600\nduty: 0.5\nlifetime: 20000\nmechanisms:\n"
        "  - {name: ecc, components: [acts, weights], coverage: high, fit: 2,"
        " self_coverage: 0.9, reported: 0.5}\n"
    )
    found = said(fsim, file("flip"), "--failure", "sdc", "--assume", tmp_path / "mine.yaml")
    fit = {one["component"]: one["fit"] for one in found["components"]}
    raw = {one["component"]: one["raw_fit"] for one in found["components"]}
    covered = fit["acts"]["estimate"] + fit["weights"]["estimate"]
    single = fit["psums"]["estimate"] + 0.01 * covered
    whole = sum(raw.values()) + 2
    table = found["safety"]
    assert table["spfm"]["estimate"] == pytest.approx(1 - single / whole, rel=1e-12)
    latent = 0.99 * covered * 0.5 + 0.2
    assert table["lfm"]["estimate"] == pytest.approx(1 - latent / (whole - single), rel=1e-12)
    dual = 10_000 * (0.2e-9 * 0.99 * covered * 1e-9 + 0.99 * covered * 0.5e-9 * 2e-9)
    assert table["pmhf"]["estimate"] == pytest.approx(single * 1e-9 + dual, rel=1e-12)
    assert table["pmhf"]["dual_point"] == pytest.approx(dual, rel=1e-9)
    for name in ("spfm", "lfm", "pmhf"):
        one = table[name]
        assert one["low"] < one["estimate"] < one["high"], name
    # Everything at its worst and at its best bounds what the intervals say.
    worst = (fit["psums"]["high"] + 0.01 * (fit["acts"]["high"] + fit["weights"]["high"])) / whole
    assert 1 - worst < table["spfm"]["low"]
    assert sum(row["rate"] for row in table["rows"]) == pytest.approx(whole)
    text = fsim("fit", file("flip"), "--failure", "sdc", "--assume", tmp_path / "mine.yaml").stdout
    assert "ASIL D" in text and "over 20,000 h" in text
    same = said(fsim, file("flip"), "--failure", "sdc", "--fit-per-mbit", 600, "--duty", 0.5,
                "--lifetime", 20000, "--mechanism",
                "name=ecc,components=acts+weights,coverage=0.99,fit=2,self_coverage=0.9,"
                "reported=0.5")  # fmt: skip
    assert same["safety"] == table


def test_a_cross_section_is_a_rate(fsim, file):
    """1e-14 cm2 at 26 n/cm2/h: 260 FIT per Mbit."""
    there = said(fsim, file("flip"), "--cross-section", "1e-14", "--flux", 26, "--failure", "sdc")
    here = said(fsim, file("flip"), "--fit-per-mbit", 260, "--failure", "sdc")
    ours, theirs = (one["total"]["fit"]["estimate"] for one in (here, there))
    assert ours == pytest.approx(theirs, rel=1e-12) and ours > 0


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["counted"], "--fit-per-mbit 1", "must hold single faults, got sets of flips"),
        (["chips"], "--fit-per-mbit 1", "got chips: how often a chip is bad is a yield"),
        (["events"], "--fit-per-mbit 1", "got events of a fault model (mcu)"),
        (["intermittent"], "--fit-per-mbit 1", "got intermittent: its events have no rate"),
        (["part"], "--fit-per-mbit 1", "must be a whole campaign, got a part"),
        (["seu"], "", "a raw rate must be stated for ifmap, a register"),
        (["net"], "--fit-per-mbit 1", "a raw rate must be stated for mul, a net"),
        (["seu"], "--fit-per-mbit -1", "FIT per Mbit must be a finite number"),
        (["seu"], "--fit-per-mbit 1 --rate psun=3", "got 'psun'; did you mean psum?"),
        (["seu"], "--fit-per-mbit 1 --occupancy acts=0.5", "in none of the campaigns"),
        (["seu"], "--fit-per-mbit 1 --occupancy psum=1.5", "occupancy of psum must be in [0, 1]"),
        (["seu"], "--fit-per-mbit 1 --duty 2", "duty must be in [0, 1], got 2.0"),
        (["seu"], "--fit-per-mbit 1 --rate psum=x", "--rate psum must be a number, got 'x'"),
        (["seu"], "--fit-per-mbit 1 --cross-section 1e-14", "one raw rate must be stated"),
        (["seu"], "--flux 13", "--flux needs --cross-section"),
        (["seu"], "--fit-per-mbit 1 --raw-fit 3", "--raw-fit belongs to a table"),
        (["seu", "layer"], "--fit-per-mbit 1", "got ifmap in two of seu"),
        (["flip", "other"], "--fit-per-mbit 1", "must be of one machine"),
        (["seu", "confident"], "--fit-per-mbit 1", "must have one confidence, got 0.9"),
        (["seu", "top5"], "--fit-per-mbit 1", "must call the same answers critical, got top5"),
        (["flip"], "--fit-per-mbit 1 --clock 1e9", "--clock needs a duty above 0"),
        (["layer"], "--fit-per-mbit 1 --clock 1e9", "--clock needs a duty above 0"),
        (["seu", "stuck"], "--fit-per-mbit 1 --rate net=1 --clock 1e9", "--clock needs"),
        (["seu"], "--fit-per-mbit 1 --confidence 0.9", "--confidence belongs to a table"),
        (["seu"], "--fit-per-mbit 1 --model digits-cnn", "--model belongs to"),
        ([], "", "needs campaigns, or --table, or --example"),
        (["seu"], "--example nvdla", "one of the three"),
        ([], "--example nvldla", "example must be one of nvdla, got 'nvldla'"),
        (["seu"], "--fit-per-mbit 1 --mechanism name=m,coverage=1", "must have a components"),
        (["seu"], "--fit-per-mbit 1 --mechanism name=m,components=x,coverage=1", "got 'x'"),
        (["seu"], "--fit-per-mbit 1 --mechanism name=m,components=psum,coverage=good",
         "coverage of m must be a number, got 'good'"),
        (["seu"], "--fit-per-mbit 1 --mechanism name=m,component=psum,coverage=1",
         "got 'component'; did you mean components?"),
    ],
)  # fmt: skip
def test_what_gives_no_rate_is_refused(fsim, file, files, options, message):
    done = fsim("fit", *map(file, files), *options.split())
    assert done.exit_code == 2 and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit_per_mbit: [1]\n", "fit_per_mbit must be a number"),
        ("fit_per_mbits: 1\n", "did you mean fit_per_mbit?"),
        ("rates: 5\n", "rates of"),
        ("mbit: 1000\n", "must be decimal or binary"),
        ("mechanisms: {a: 1}\n", "mechanisms of"),
        ("mechanisms: [3]\n", "a safety mechanism must be key: value lines"),
        ("duty: 1\nduty: 1\n", "'duty' twice"),
        ("- 1\n", "must hold key: value lines"),
        ("a: [\n", "must be YAML"),
    ],
)
def test_files_of_assumptions_that_are_not_valid(fsim, file, tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    done = fsim("fit", file("flip"), "--assume", path)
    assert done.exit_code == 2 and message in done.stderr, done.stderr


def test_budgets_in_python(file):
    found = budget([read_results(file("flip"))], Assumed({"": 600.0}), failure="sdc")
    assert found.total().estimate == pytest.approx(sum(found.fit(x).estimate for x in found.lines))
    assert {line.component: line.bits for line in found.lines}.items() <= BITS.items()
    assert np.isfinite(found.total().high)
    with pytest.raises(ValueError, match="failure must be one of"):
        budget([read_results(file("flip"))], Assumed({"": 600.0}), failure="critical")
    with pytest.raises(ValueError, match="must be a file that exists"):
        read_budget(file("flip").with_name("nothing.csv"))
