"""`fsim inject`, `replay`, `explain` and `sites`: what they write, find and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fsim.nas.places import _checkout_data
from fsim.simulator import inject as trials_of
from fsim.simulator.trace import TraceWriter, read_trace
from tests.test_layout import ROOT

PSUM = "layer=conv2,component=psum,row=0,col=0,bit=1,cycle=5"
RUN = ("inject", "--images", 4, "--trials", 3, "--no-curve")


def leftovers(folder, before):
    return sorted(set(folder.rglob("*")) - before)


def refused(fsim, folder, *arguments, says=""):
    """Exit code 2, one line, nothing on stdout and nothing written."""
    before = set(folder.rglob("*"))
    result = fsim(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("Error") and len(result.stderr.splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr and says in result.stderr
    assert leftovers(folder, before) == []
    return result


@pytest.fixture
def trace(fsim, tmp_path):
    path = tmp_path / "run.h5"
    result = fsim(*RUN, "--ber", "1e-4", "--seed", 3, "--trace", path)
    assert result.exit_code == 0, result.output
    return path


# What a run says


def test_json_reports_every_outcome_and_is_the_same_for_the_same_seed(fsim, tmp_path):
    reports = []
    for seed in (1, 1, 2):
        result = fsim(*RUN, "--ber", "1e-4", "--json", "--seed", seed, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
        del report["seconds"]
        reports.append(report)
    assert reports[0] == reports[1] != reports[2]
    assert sum(x["count"] for x in reports[0]["outcomes"].values()) == 3 * 4
    assert {x["component"] for x in reports[0]["faults_by"]} == {"acts", "weights", "psums"}
    assert 0 <= reports[0]["accuracy"]["faulty_min"] <= reports[0]["accuracy"]["faulty_max"] <= 1


def test_a_dry_run_only_counts(fsim, tmp_path):
    result = fsim(*RUN, "--ber", "1e-4", "--hw-batch", "all", "--dry-run", "--json",
                  "--trace", tmp_path / "t.h5", "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    bits = plan["exposed_bits_per_image"]
    flips = 1e-4 * (4 * bits["acts"] + bits["weights"] + 4 * bits["psums"])
    assert plan["expected_faults_per_trial"] == pytest.approx(flips)
    assert list(tmp_path.iterdir()) == []
    assert 0 < plan["seconds"] < 60
    text = fsim(*RUN, "--dry-run").stdout
    assert "expected faults per trial" in text and "digits-cnn" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--accel", "gemmini-like", "--ber", "1e-5"],
        ["--seu-rate", "1e-8", "--sites", "psum"],
        ["--fault", "seu", "--layers", "conv2"],
        ["--fault", "stuck1", "--set", "rows=8", "--dataflow", "os"],
        ["--fault", "layer=conv2,component=weights,word=3,bit=7"],
        ["--fault", "layer=conv2,component=psum,row=1,col=2,bit=20,cycle=60,image=1",
         "--fault", "layer=conv3,component=acts,word=0,bit=0"],
    ],
)  # fmt: skip
def test_a_run_is_replayed_without_differences(fsim, tmp_path, arguments):
    path = tmp_path / "t.h5"
    result = fsim(*RUN, *arguments, "--trace", path)
    assert result.exit_code == 0, result.output
    again = fsim("replay", path, "--json")
    assert again.exit_code == 0, again.output
    report = json.loads(again.stdout)
    assert (report["trials"], report["inferences"], report["differences"]) == (3, 12, 0)


@pytest.mark.parametrize("hw_batch", ["3", "all"])
def test_replay_knows_how_long_the_weights_stayed(fsim, tmp_path, hw_batch):
    path = tmp_path / "t.h5"
    run = fsim(*RUN, "--ber", "weights=1e-3", "--hw-batch", hw_batch, "--trace", path)
    assert run.exit_code == 0, run.output
    again = fsim("replay", path)
    assert again.exit_code == 0, again.output
    part = fsim("replay", path, "--sample", 2, "--sample-images", 2, "--json")
    assert json.loads(part.stdout)["inferences"] == 4 and part.exit_code == 0


def rewritten(path, target, change):
    """A trace that reads, of the same outcomes, after `change` of its fault rows."""
    stored = read_trace(path)
    faults = stored.faults.copy()
    change(faults)
    with TraceWriter(target, stored.task, stored.provenance) as writer:
        writer.append(faults, stored.outcomes)
    return target


def test_replay_finds_one_altered_row(fsim, tmp_path):
    path = tmp_path / "t.h5"
    fault = "layer=conv2,component=weights,word=3,bit=6"
    assert fsim(*RUN, "--fault", fault, "--trace", path).exit_code == 0

    def other_bit(faults):
        assert len(faults) == 3
        faults["xor_mask"][1] = 1 << 5

    changed = rewritten(path, tmp_path / "changed.h5", other_bit)
    result = fsim("replay", changed, "--json")
    assert result.exit_code == 1 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report["differences"] >= 1 and {d["trial"] for d in report["first"]} == {1}
    assert "trial 1 image" in fsim("replay", changed).stdout
    untouched = rewritten(path, tmp_path / "same.h5", lambda faults: None)
    assert fsim("replay", untouched).exit_code == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [("word", 1 << 30), ("layer", 99), ("component", 99), ("image", 4), ("first", 77)],
)
def test_rows_outside_the_network_are_refused(fsim, tmp_path, trace, column, value):
    def outside(faults):
        faults[column][0] = value

    path = rewritten(trace, tmp_path / "bad.h5", outside)
    refused(fsim, tmp_path, "replay", path, says="must be")


@pytest.mark.parametrize("change", [
    {"faults": "x"}, {"faults": {"kind": "ber", "hw_batch": 0}}, {"codes_sha256": "0"},
    {"model": "no-such"}, {"accel": 3}, {"accel": {"buffers": 3}}, {"quant_params": 3},
    {"images": "many"}, {"weights": "no-such.pt"}, {"layers": []},
])  # fmt: skip
def test_a_task_that_does_not_fit_is_one_line(fsim, tmp_path, trace, change):
    stored = read_trace(trace)
    path = tmp_path / "bad.h5"
    with TraceWriter(path, {**stored.task, **change}, stored.provenance) as writer:
        writer.append(stored.faults, stored.outcomes)
    refused(fsim, tmp_path, "replay", path)


def test_damaged_bytes_are_one_line(fsim, tmp_path, trace):
    data = trace.read_bytes()
    rng = np.random.default_rng(1)
    for number in range(12):
        bad = tmp_path / "bad.h5"
        if number < 4:
            bad.write_bytes(data[: len(data) * number // 4])
        else:
            changed = bytearray(data)
            at = int(rng.integers(len(data)))
            changed[at : at + 64] = bytes(b ^ 0xFF for b in changed[at : at + 64])
            bad.write_bytes(changed)
        result = fsim("replay", bad)
        assert "Traceback" not in result.output
        if result.exit_code != 0:  # unused bytes of the container may change unseen
            assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
            assert result.stderr.startswith("Error")
        else:
            assert number >= 4
            assert read_trace(bad).faults.tobytes() == read_trace(trace).faults.tobytes()
    for command in ("replay", "explain"):
        more = ["--event", 0] if command == "explain" else []
        refused(fsim, tmp_path, command, tmp_path / "none.h5", *more, says="no such file")


# Going on after a stop


class Stop(Exception):
    pass


def test_a_resumed_run_is_the_run_that_was_not_stopped(fsim, tmp_path, monkeypatch):
    run = ("inject", "--images", 4, "--trials", 5, "--no-curve", "--ber", "1e-4", "--quiet")
    whole = tmp_path / "whole.h5"
    wanted = fsim(*run, "--json", "--trace", whole)
    assert wanted.exit_code == 0, wanted.output
    real = trials_of.run_trials

    def stopping(*arguments, **named):
        for number, result in enumerate(real(*arguments, **named)):
            if number == 2:
                raise Stop
            yield result

    path = tmp_path / "part.h5"
    monkeypatch.setattr(trials_of, "run_trials", stopping)
    with pytest.raises(Stop):
        fsim(*run, "--trace", path)
    monkeypatch.undo()
    assert not path.exists() and (tmp_path / "part.h5.parts").is_dir()
    refused(fsim, tmp_path, *run, "--trace", path, says="unfinished")
    refused(fsim, tmp_path, *run, "--trace", path, "--resume", "--seed", 9, says="another task")
    done = fsim(*run, "--json", "--trace", path, "--resume")
    assert done.exit_code == 0, done.output
    reports = [json.loads(x.stdout) for x in (wanted, done)]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    one, other = read_trace(whole), read_trace(path)
    for name in ("faults", "outcomes", "trials"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert one.task == other.task
    assert not (tmp_path / "part.h5.parts").exists()
    finished = path.read_bytes()
    assert fsim(*run, "--trace", path, "--resume").exit_code == 0
    assert path.read_bytes() == finished


# Looking at one fault, and at all sites


def test_explain_follows_one_event(fsim, tmp_path, trace):
    result = fsim("explain", trace, "--event", 0, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    row = read_trace(trace).faults[0]
    assert found["image"] == max(int(row["image"]), 0) and len(found["faults"]) == 1
    assert len(found["clean_logits"]) == len(found["faulty_logits"]) == 10
    assert any(layer["codes_changed"] for layer in found["layers"]) or found["outcome"] == "masked"
    assert "clean logit" in fsim("explain", trace, "--event", 0).stdout
    refused(fsim, tmp_path, "explain", trace, "--event", 10**6, says="event must be")
    refused(fsim, tmp_path, "explain", trace, "--event", 0, "--trial", 9, says="event must be")
    refused(fsim, tmp_path, "explain", trace, "--event", 0, "--image", 4, says="image must be")


def test_sites_add_up_to_what_inject_plans(fsim):
    result = fsim("sites", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    plan = json.loads(fsim(*RUN, "--dry-run", "--json").stdout)
    assert found["exposed_bits"] == sum(plan["exposed_bits_per_image"].values())
    assert found["register_sites"] == plan["register_sites_per_image"]
    assert "register sites" in fsim("sites", "digits-cnn", "--accel", "gemmini-like").stdout


def test_sites_need_neither_weights_nor_data(fsim, tmp_path, monkeypatch):
    monkeypatch.setenv("FSIM_DATA", str(tmp_path))
    monkeypatch.setenv("FSIM_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("fsim.nas.places._checkout_data", list)
        result = fsim("sites", "resnet8", "--json")
        assert result.exit_code == 0, result.output
        bare = json.loads(result.stdout)
        assert [note.split(":")[0] for note in bare["notes"]] == [
            "weights of resnet8 were not found", "images"]  # fmt: skip
        assert "note: images: random ones of 3 x 32 x 32" in fsim("sites", "resnet8").stdout
        assert fsim("sites", "resnet8", "--weights", "none.pt").exit_code == 2
        assert fsim("sites", "resnet8", "--data", "cifar10").exit_code == 2
        assert fsim("inject", "--model", "resnet8").exit_code == 2
    if _checkout_data():
        found = json.loads(fsim("sites", "resnet8", "--json").stdout)
        assert found.pop("notes") == []
        assert found == {key: bare[key] for key in found}


FACTORY = """
import torch
def make():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))
"""


def test_a_factory_without_weights_replays_and_what_was_assumed_is_told(
    fsim, tmp_path, monkeypatch
):
    (tmp_path / "usernet.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.h5"
    run = (*RUN, "--model", "usernet:make", "--data", "digits", "--fault", "seu")
    reports = [json.loads(fsim(*run, "--json", *more).stdout) for more in ((), ("--trace", path))]
    assert reports[0]["notes"] == [
        "weights as the factory makes them (torch seed 0)",
        "preprocessing: pixel / 16 (usernet:make states none, and pixels of digits are 0..16)",
    ]
    assert reports[0]["outcomes"] == reports[1]["outcomes"]
    again = fsim("replay", path, "--model", "usernet:make", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["differences"] == 0
    images = np.zeros((4, 1, 8, 8))
    images[:, 0, 0, 0] = 1
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(4))
    run = (*RUN, "--model", "usernet:make", "--data", "d.npz", "--fault", "seu", "--json")
    assert not any("preprocessing" in note for note in json.loads(fsim(*run).stdout)["notes"])


def test_single_faults_have_their_outcomes_by_bit(fsim, tmp_path):
    run = ("inject", "--images", 20, "--trials", 3, "--fault", "seu", "--sites", "psum")
    whole = fsim(*run, "--trace", tmp_path / "t.h5", "--json")
    report = json.loads(whole.stdout)
    bits = report["outcomes_by_bit"]
    assert {b["component"] for b in bits} == {"psum"} and max(b["bit"] for b in bits) <= 31
    assert sum(b["faults"] for b in bits) == 60
    for name in ("masked", "sdc_benign", "sdc_critical"):
        assert sum(b.get(name, 0) for b in bits) == report["outcomes"][name]["count"]
    again = fsim(*run, "--trace", tmp_path / "t.h5", "--resume", "--json")
    assert json.loads(again.stdout)["outcomes_by_bit"] == bits


def test_named_faults_are_one_trial_without_interval(fsim):
    report = json.loads(fsim("inject", "--images", 5, "--fault", PSUM, "--json").stdout)
    assert report["plan"]["trials"] == 1
    share = report["outcomes"]["masked"]
    assert share["low"] == share["high"] == share["estimate"] and "exact" in share["method"]


# What is refused

BAD = [
    (["--fault", "stuck0", "--layers", "conv1"], "--layers cannot restrict a stuck-at fault"),
    (["--fault", "stuck0", "--fault", "seu"], "the only --fault"),
    (["--fault", "transient", "--sites", "psum"], "needs a net of the PEs"),
    (["--accel", "systolics"], "systolic"),
    (["--fault", PSUM.replace("psum", "psumm")], "psum"),
    (["--sites", "weight"], "weights"),
    (["--layers", "conv9"], "conv2"),
    (["--fault", PSUM.replace("conv2", "conv9")], "layer must be"),
    (["--fault", PSUM.replace("bit=1", "bit=32")], "bit must be in 0..31"),
    (["--fault", PSUM.replace("bit=1", "bit=-1")], "bit"),
    (["--fault", PSUM.replace("cycle=5", "cycle=99999999")], "cycle must be"),
    (["--fault", PSUM.replace("row=0", "row=32")], "row must be"),
    (["--fault", PSUM + ",image=4"], "image"),
    (["--fault", PSUM + ",image=-2"], "image"),
    (["--fault", PSUM.replace("layer=conv2,", "")], "needs layer="),
    (["--fault", "layer=conv2,component=weights,word=4608,bit=1"], "word must be"),
    (["--fault", "layer=conv2,component=weights,word=0,bit=8"], "bit must be"),
    (["--fault", "layer=conv2,component=weights,word=0,bit=1,cycle=1"], "residency"),
    (["--fault", "component=weights,word=0,bit=1"], "needs layer="),
    (["--fault", "sue"], "--fault must be"),
    (["--fault", "seu", "--sites", "weights"], "needs a register"),
    (["--ber", "nan"], ""),
    (["--ber", "-1"], ""),
    (["--ber", "2"], ""),
    (["--ber", "abc"], ""),
    (["--ber", ""], ""),
    (["--ber", "weights=2"], ""),
    (["--ber", "weight=1e-5"], "weights"),
    (["--ber", "weights=1e-5,weights=1e-5"], "twice"),
    (["--seu-rate", "nan"], ""),
    (["--ber", "1e-5", "--fault", "seu"], "exactly one"),
    (["--ber", "1e-5", "--seu-rate", "1e-9"], "exactly one"),
    (["--model", "resnet21"], "resnet20"),
    (["--model", "no_such_module:factory"], "no_such_module"),
    (["--weights", "no-such-file.pt"], "no-such-file.pt"),
    (["--data", "digit"], "digits"),
    (["--data", "no-such.npz"], "no-such.npz"),
    (["--quant-params", "no-such.json"], "no-such.json"),
    (["--hw-batch", "0"], "--hw-batch"),
    (["--hw-batch", "some"], "--hw-batch"),
    (["--fault", "seu", "--hw-batch", "0"], "--hw-batch"),
    (["--trials", "0"], ""),
    (["--images", "0"], ""),
    (["--seed", "-1"], ""),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=str)
def test_bad_input_is_one_line_and_nothing_is_written(fsim, tmp_path, arguments, says):
    refused(fsim, tmp_path, *RUN, "--trace", tmp_path / "t.h5", "--out", tmp_path / "out",
            *arguments, says=says)  # fmt: skip


def test_bad_files_are_one_line_and_nothing_is_written(fsim, tmp_path):
    import torch

    bad = tmp_path / "bad"
    bad.mkdir()
    torch.save({"other": torch.zeros(3)}, bad / "other.pt")
    (bad / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    (bad / "broken.yaml").write_text("rows: [1, 2\n  cols: }")
    (bad / "list.yaml").write_text("- 1\n- 2\n")
    np.savez(bad / "object.npz", images=np.array([{"a": 1}], object), labels=np.zeros(1, int))
    np.savez(bad / "nan.npz", images=np.full((4, 1, 8, 8), np.nan, np.float32),
             labels=np.zeros(4, int))  # fmt: skip
    np.savez(bad / "shape.npz", images=np.zeros((4, 3, 5, 5), np.float32), labels=np.zeros(4, int))
    np.savez(bad / "count.npz", images=np.zeros((4, 1, 8, 8), np.float32), labels=np.zeros(3, int))
    np.savez(bad / "names.npz", x=np.zeros(3))
    (bad / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (bad / "text.json").write_text("scales = 1")
    (bad / "list.json").write_text("[1]")
    (bad / "deep.json").write_text("[" * 100000)
    (bad / "unknown.json").write_text('{"no-such-layer": {"scale": 1}}')
    options = {"pt": "--weights", "yaml": "--accel", "npz": "--data", "json": "--quant-params"}
    for path in sorted(bad.iterdir()):
        refused(fsim, tmp_path, *RUN, "--trace", tmp_path / "t.h5", "--out", tmp_path / "out",
                options[path.suffix[1:]], path)  # fmt: skip


def test_a_trace_is_not_overwritten_unasked(fsim, tmp_path, trace):
    before = trace.read_bytes()
    refused(fsim, tmp_path, *RUN, "--trace", trace, "--out", tmp_path / "out", says="exists")
    refused(fsim, tmp_path, *RUN, "--trace", trace, "--resume", "--overwrite", says="exclude")
    refused(fsim, tmp_path, *RUN, "--trace", trace, "--resume", "--ber", "1e-3",
            says="another task")  # fmt: skip
    refused(fsim, tmp_path, *RUN, "--resume", says="need --trace")
    refused(fsim, tmp_path, *RUN, "--trace", tmp_path / "t.h5", "--out", trace, says="a folder")
    assert trace.read_bytes() == before
    assert fsim(*RUN, "--ber", "1e-3", "--trace", trace, "--overwrite").exit_code == 0
    assert trace.read_bytes() != before


@pytest.mark.parametrize("arguments", [
    ["--seu-rate", "1"], ["--seu-rate", "0.5"], ["--ber", "1", "--images", 539],
    ["--trials", 1 << 29],
])  # fmt: skip
def test_what_memory_cannot_hold_is_refused_before_it_runs(fsim, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("fsim.machine.available_memory", lambda: 4 << 30)
    monkeypatch.setattr("fsim.session.golden_run", lambda *_: pytest.fail("it ran"))
    refused(fsim, tmp_path, *RUN, *arguments, "--trace", tmp_path / "t.h5",
            "--out", tmp_path / "out", says="must take at most 2,048 MiB")  # fmt: skip


def test_a_trace_that_could_not_be_read_again_is_refused(fsim, tmp_path, monkeypatch):
    monkeypatch.setattr("fsim.machine.available_memory", lambda: 1 << 40)
    refused(fsim, tmp_path, *RUN, "--ber", "1e-3", "--trials", 10**6,
            "--trace", tmp_path / "t.h5", says="a trace must hold at most 8,192 MiB")  # fmt: skip


# The plain-Python backend, single faults, the curve and the cache of compiled kernels

REGISTER = "layer=conv3,component=psum,row=2,col=3,bit=24,cycle=40"
WORD = "layer=conv2,component=weights,word=5,bit=7"


@pytest.mark.parametrize("arguments", [["--fault", "seu"], ["--ber", "1e-4"]])
def test_replay_by_the_reference_finds_the_same(fsim, tmp_path, arguments):
    path = tmp_path / "t.h5"
    assert fsim(*RUN, *arguments, "--trace", path).exit_code == 0
    result = fsim("replay", path, "--backend", "reference", "--sample-images", 1, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["backend"], report["trials"], report["inferences"]) == ("reference", 1, 1)
    assert report["differences"] == 0


def test_replay_by_the_reference_finds_an_altered_row(fsim, tmp_path):
    path = tmp_path / "t.h5"
    assert fsim(*RUN, "--fault", REGISTER, "--trace", path).exit_code == 0

    def other_bit(faults):
        faults["xor_mask"] = 1

    changed = rewritten(path, tmp_path / "changed.h5", other_bit)
    result = fsim("replay", changed, "--backend", "reference", "--sample-images", 1)
    assert result.exit_code == 1 and "trial 0 image 0: digest" in result.stdout


def test_explain_tells_a_register_from_a_word_and_takes_an_image(fsim, tmp_path):
    path = tmp_path / "t.h5"
    run = fsim(*RUN, "--fault", REGISTER, "--fault", WORD, "--trace", path)
    assert run.exit_code == 0, run.output
    found = [
        json.loads(fsim("explain", path, "--event", event, "--image", image, "--json").stdout)
        for event in (0, 1)
        for image in (0, 3)
    ]
    register, word = found[0]["faults"][0], found[2]["faults"][0]
    assert (register["component"], register["layer"], register["row"], register["col"]) == (
        "psum", "conv3", 2, 3)  # fmt: skip
    assert (register["effect"], register["cycles"]) == ("state", "40 to 40")
    assert (register["bits"], register["masks"]) == (32, "and -0x1, or 0x0, xor 0x1000000")
    assert "word" not in register and "row" not in word
    assert (word["component"], word["layer"], word["word"], word["residency"]) == (
        "weights", "conv2", 5, 0)  # fmt: skip
    assert word["masks"] == "and -0x1, or 0x0, xor -0x80"  # the sign bit of 8 bits
    assert [one["image"] for one in found] == [0, 3, 0, 3]
    layers = {one["layer"]: one for one in found[0]["layers"]}
    # One register holds one sum at a time; what stands before the layer is untouched.
    assert layers["conv3"]["sums_changed"] == 1 and layers["conv2"]["codes_changed"] == 0
    layers = {one["layer"]: one for one in found[2]["layers"]}
    # A weight belongs to one output channel: at most its 4 x 4 positions change.
    channel = layers["conv2"]["codes"] // 32
    assert 1 <= layers["conv2"]["sums_changed"] <= channel and layers["conv1"]["codes_changed"] == 0
    assert found[0]["label"] != found[1]["label"]
    text = fsim("explain", path, "--event", 1, "--image", 3).stdout
    assert "image 3, label" in text and "residency" in text
    every = json.loads(fsim("explain", path, "--event", 1, "--json").stdout)
    assert every["image"] == read_trace(path).faults["image"][0].clip(0)


def test_the_curve_falls_and_stops_where_memory_ends(fsim, tmp_path, monkeypatch):
    run = ("inject", "--images", 16, "--trials", 1, "--ber", "weights=1e-3", "--hw-batch", "all")
    out = tmp_path / "out"
    whole = fsim(*run, "--curve", "--out", out, "--json")
    assert whole.exit_code == 0, whole.output
    report = json.loads(whole.stdout)
    assert (out / "ber_curve.png").read_bytes().startswith(b"\x89PNG")
    assert report["curve"]["picture"] == str(out / "ber_curve.png")
    curve = report["curve"]
    assert curve["ber"] == sorted(curve["ber"]) and len(curve["ber"]) == len(curve["accuracy"])
    assert curve["accuracy"][-1] < report["accuracy"]["clean"] - 0.1
    assert curve["ber"][0] < curve["ber_at_one_point_drop"] < curve["ber"][-1]
    hit = report["critical_given_a_flip"]
    assert sum(f["flips"] for f in hit["by_layer"]) == hit["flips"]
    assert sum(f["critical"] for f in hit["by_layer"]) == round(hit["estimate"] * hit["flips"])
    hit = report["critical_given_a_flip"]
    assert set(hit["by_component"]) == {"weights"} and hit["low"] <= hit["estimate"] <= hit["high"]
    assert hit["flips"] == 2000
    monkeypatch.setattr("fsim.cli.inject_plan.BYTES_A_FAULT", 1 << 20)
    monkeypatch.setattr("fsim.machine.available_memory", lambda: 4 << 30)
    short = fsim(*run)
    assert short.exit_code == 0, short.output
    bits = report["plan"]["exposed_bits_per_image"]["weights"]
    last = max(b for b in curve["ber"] if b * bits * 16 <= 2048)
    assert f"nowhere up to a rate of {last:.2g}" in short.stdout


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path):
    def run():
        done = subprocess.run(
            [sys.executable, "-m", "fsim", *map(str, RUN), "--fault", WORD],
            cwd=ROOT, env=os.environ | {"FSIM_CACHE": str(tmp_path)}, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    first = run()
    assert {p.suffix for p in first} >= {".nbi", ".nbc"}
    assert run() == first
