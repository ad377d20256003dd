"""Protected memories at the command line: --set, outcomes, replay, tables, reports."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from fsim.campaign.results import read_results
from fsim.session import from_task
from fsim.simulator.statistics import Outcome
from fsim.simulator.trace import read_trace

WEIGHTS = ("--set", "buffers.weights.protection=secded")
ACTS = ("--set", "buffers.acts.protection=parity")
FLIPS = ("campaign", "--fault", "flip", "--images", 10)


def run(fsim, *arguments):
    result = fsim(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def report_of(fsim, *arguments):
    return json.loads(run(fsim, *arguments, "--json"))


def test_inject_counts_corrected_and_detected_and_replays(fsim, tmp_path):
    trace = tmp_path / "run.h5"
    common = ("inject", "--images", 20, "--trials", 3, "--ber", "acts=2e-5,weights=2e-5",
              "--no-curve", "--seed", 2)  # fmt: skip
    found = report_of(fsim, *common, *WEIGHTS, *ACTS, "--trace", trace)
    assert found["protection"] == {"acts": "parity", "weights": "secded"}
    counts = {name: outcome["count"] for name, outcome in found["outcomes"].items()}
    assert counts["corrected"] > 0 and counts["due"] > 0 and sum(counts.values()) == 60
    assert counts["sdc_benign"] == counts["sdc_critical"] == 0
    stored = read_trace(trace)
    codes = np.bincount(stored.outcomes["outcome"], minlength=6)
    assert codes[Outcome.CORRECTED] == counts["corrected"] and codes[Outcome.DUE] == counts["due"]
    # Rows are the physical faults: as many as were drawn, check bits among them.
    names = stored.task["components"]
    struck = {names[i] for i in np.unique(stored.faults["component"])}
    assert {"weights", "weights_check", "acts"} <= struck
    assert sum(row["faults"] for row in found["faults_by"]) == len(stored.faults)
    assert json.loads(run(fsim, "replay", trace, "--json"))["differences"] == 0
    text = run(fsim, *common, *WEIGHTS, *ACTS)
    assert "protection       acts parity (64 data bits), weights secded (64 data bits)" in text
    assert "corrected" in text and "\ndue " in text
    plain = run(fsim, *common)
    assert "corrected" not in plain and "protection" not in plain and "\ndue " not in plain


def test_without_protection_nothing_is_corrected_or_detected(fsim):
    found = report_of(fsim, "inject", "--images", 4, "--trials", 1, "--no-curve")
    assert found["protection"] == {}
    for name in ("corrected", "due"):
        assert found["outcomes"][name]["count"] == 0
        assert found["outcomes"][name]["method"].startswith("cannot occur")


def test_campaigns_of_single_flips_are_all_corrected_and_replay(fsim, tmp_path):
    path = tmp_path / "c.h5"
    found = report_of(fsim, *FLIPS, "--sites", "weights", "--trials", 200, *WEIGHTS, "--out", path)
    assert found["outcomes"]["corrected"]["count"] == 200
    assert found["outcomes"]["sdc"]["count"] == found["outcomes"]["masked"]["count"] == 0
    rows = {row["component"]: row for row in found["by_component"]}
    # 8 check bits for 64 of data.
    assert rows["weights_check"]["share"] == pytest.approx(1 / 9, rel=2e-3)
    assert rows["weights_check"]["counts"]["corrected"] > 0
    assert json.loads(run(fsim, "replay", path, "--json"))["differences"] == 0
    said = report_of(fsim, "protect", path, "--metric", "sdc")
    assert said["unprotected"]["estimate"] == 0


def test_campaigns_of_flips_and_chips_go_through_the_decoder(fsim, tmp_path):
    flips, chips = tmp_path / "f.h5", tmp_path / "chips.h5"
    sites = ("--sites", "weights")
    many = ("campaign", "--flips", "1,40", "--images", 10, "--trials", 200, *sites, *WEIGHTS)
    found = report_of(fsim, *many, "--set", "buffers.weights.word_bits=32", "--out", flips)
    one, forty = found["flips"]
    assert one["corrected"]["estimate"] == 1.0 and forty["due"]["estimate"] > 0
    assert json.loads(run(fsim, "replay", flips, "--json"))["differences"] == 0
    assert "due" in run(fsim, *many, "--out", tmp_path / "again.h5")
    report_of(fsim, "campaign", "--chips", 4, "--stuck-cells", "2e-3", "--images", 10, *WEIGHTS,
              "--out", chips)  # fmt: skip
    assert json.loads(run(fsim, "replay", chips, "--json"))["differences"] == 0
    told = report_of(fsim, "chips", chips)
    assert told["due"] == 1.0
    assert "detected (DUE)" in run(fsim, "chips", chips)
    curve = report_of(fsim, "curve", flips, "--rates", "1e-6")
    assert 0 <= curve["critical"][0]["estimate"] <= 1


def test_a_rule_may_wait_for_detections(fsim, tmp_path):
    found = report_of(fsim, *FLIPS, "--sites", "acts", "--metric", "due", "--failures", 5, *ACTS,
                      "--out", tmp_path / "d.h5")  # fmt: skip
    assert found["outcomes"]["due"]["count"] == 5


def test_explain_says_what_is_read(fsim, tmp_path):
    trace = tmp_path / "run.h5"
    run(fsim, "inject", "--images", 2, "--fault", "layer=conv2,component=weights,word=9,bit=3",
        *WEIGHTS, "--trace", trace)  # fmt: skip
    found = report_of(fsim, "explain", trace, "--event", 0)
    assert found["outcome"] == "corrected" and found["read"] == []
    assert "read        no wrong word" in run(fsim, "explain", trace, "--event", 0)
    check = tmp_path / "check.h5"
    struck = "layer=conv2,component=weights_check,word=2,bit=7"
    run(fsim, "inject", "--images", 2, "--fault", struck, *WEIGHTS, "--trace", check)
    found = report_of(fsim, "explain", check, "--event", 0)
    assert found["faults"][0]["place"] == "check bits of memory word 2"
    assert found["outcome"] == "corrected"


def test_a_report_shows_what_was_detected(fsim, tmp_path):
    path, page = tmp_path / "d.h5", tmp_path / "page.html"
    report_of(fsim, *FLIPS, "--sites", "acts,weights", "--trials", 150, *ACTS, *WEIGHTS, "--out",
              path)  # fmt: skip
    run(fsim, "report", path, "--out", page, "--no-pictures", "--no-explain")
    text = page.read_text()
    assert "of-due" in text and "of-corrected" in text
    numbers = report_of(fsim, "report", path, "--no-explain")
    outcomes = {row["outcome"]: row["count"] for row in numbers["campaigns"][0]["outcomes"]}
    results = read_results(path)
    for name in ("corrected", "due"):
        assert outcomes[name] == int(results.tally.of(name).sum()) > 0


def test_a_machine_of_an_older_trace_has_no_protection(fsim, tmp_path):
    trace = tmp_path / "run.h5"
    run(fsim, "inject", "--images", 2, "--trials", 1, "--no-curve", "--trace", trace)
    task = copy.deepcopy(read_trace(trace).task)
    for buffer in task["accel"]["buffers"].values():
        for key in set(buffer) - {"kib", "double_buffered"}:
            del buffer[key]
    accel = from_task(task).placement.accel
    assert accel.protected == () and accel == from_task(read_trace(trace).task).placement.accel


def test_a_described_buffer_is_written_and_read_again(fsim, tmp_path):
    more = ("--set", "buffers.weights.interleave=4", "--set", "buffers.weights.scrub_cycles=1000")
    text = run(fsim, "accel", "show", "systolic-8x8", "--yaml", *WEIGHTS, *more)
    assert "protection: secded" in text and "interleave: 4" in text
    # The value, and its source, which names the option; other buffers say nothing.
    assert len([line for line in text.splitlines() if "protection" in line]) == 2
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    again = run(fsim, "accel", "show", path, "--yaml")
    assert again == text
    shown = run(fsim, "accel", "show", path)
    assert "4 words interleaved, secded (72, 64), scrubbed every 1,000 cycles" in shown
    assert "weights_check" in shown


def test_scrubbing_is_in_the_rows_and_replays(fsim, tmp_path):
    trace = tmp_path / "run.h5"
    run(fsim, "inject", "--images", 8, "--trials", 2, "--no-curve", "--ber", "weights=1e-3",
        "--hw-batch", 8, *WEIGHTS, "--set", "buffers.weights.scrub_inferences=2", "--trace",
        trace)  # fmt: skip
    stored = read_trace(trace)
    assert set(np.unique(stored.faults["col"])) == {0, 1, 2, 3}
    assert json.loads(run(fsim, "replay", trace, "--json"))["differences"] == 0


@pytest.mark.parametrize(
    "setting, says",
    [
        ("buffers.weights.protection=ecc", "must be 'none', 'parity' or 'secded'"),
        ("buffers.weights.scrub_cycles=9", "must go with protection secded"),
        ("buffers.weights.protecton=secded", "did you mean buffers.weights.protection?"),
    ],
)
def test_bad_settings_are_one_line(fsim, setting, says):
    result = fsim("inject", "--set", setting)
    assert result.exit_code == 2 and says in result.stderr
    assert len(result.stderr.splitlines()) == 1
