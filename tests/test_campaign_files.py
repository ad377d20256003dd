"""Files of campaigns: tables read back, lists that reproduce, files that lie."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from fsim.campaign.acceptance import parse_condition
from fsim.campaign.chips import chips
from fsim.campaign.cite import cite
from fsim.campaign.compare import compare
from fsim.campaign.merge import merge
from fsim.campaign.protect import protect
from fsim.campaign.rates import curve
from fsim.campaign.results import read_results
from fsim.campaign.summary import summary
from fsim.cli import main
from fsim.cli.campaign_report import campaign_text
from fsim.errors import FsimError, TraceError
from fsim.simulator.trace import TraceWriter, read_trace
from fsim.types import EFFECTS

OPTIONS = {
    "single": ["--fault", "seu", "--trials", 120],
    "strata": ["--fault", "flip", "--stratify", "component,bit", "--pilot", 2, "--trials", 200],
    "stuck": ["--fault", "stuck0", "--images-per-fault", 3, "--trials", 12],
    "flips": ["--flips", "1-3", "--trials", 60],
    "chips": ["--chips", 6, "--ber", 1e-3],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each design."""
    folder = tmp_path_factory.mktemp("campaigns")
    for name, options in OPTIONS.items():
        words = ["campaign", *options, "--images", 8, "--quiet", "--out", folder / f"{name}.h5"]
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return {name: folder / f"{name}.h5" for name in OPTIONS}


# --- tables ---


@pytest.mark.parametrize("name", OPTIONS)
def test_tables_as_csv_and_parquet_are_the_trace(fsim, files, tmp_path, name):
    trace = read_trace(files[name])
    stored = {"outcomes": trace.outcomes, "faults": trace.faults, "trials": trace.trials}
    for table, rows in stored.items():
        out = tmp_path / f"{table}.csv"
        assert fsim("trace", "export", files[name], "--table", table, "--out", out).exit_code == 0
        with open(out, newline="") as file:
            found = list(csv.DictReader(file))
        assert len(found) == len(rows)
        for column in found[0]:
            texts = [line[column] for line in found]
            if column == "outcome":
                known = ["masked", "corrected", "sdc_benign", "sdc_critical", "due", "hang"]
                values = [known.index(text) for text in texts]
            elif column == "digest":
                values = [int(text, 16) for text in texts]
            elif column == "layer":
                values = [[*trace.task["layers"], "(all)"].index(text) for text in texts]
                values = [-1 if v == len(trace.task["layers"]) else v for v in values]
            elif column == "component":
                values = [trace.task["components"].index(text) for text in texts]
            elif column == "effect":
                values = [EFFECTS.index(text) for text in texts]
            else:
                values = [int(text) for text in texts]
            assert values == rows[column].tolist(), (table, column)


def test_parquet_holds_what_csv_holds(fsim, files, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    outs = [tmp_path / "t.csv", tmp_path / "t.parquet"]
    for out in outs:
        result = fsim("trace", "export", files["single"], "--out", out, "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["rows"] == 120
    with open(outs[0], newline="") as file:
        lines = list(csv.DictReader(file))
    table = parquet.read_table(outs[1]).to_pydict()
    assert list(table) == list(lines[0])
    for column, values in table.items():
        assert [str(value) for value in values] == [line[column] for line in lines]


def test_one_row_an_inference_says_where_its_fault_struck(fsim, files, tmp_path):
    out = tmp_path / "t.csv"
    fsim("trace", "export", files["stuck"], "--out", out)
    trace = read_trace(files["stuck"])
    with open(out, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36
    for line, row in zip(lines, trace.outcomes):
        (fault,) = trace.faults_of(int(row["trial"]))
        assert (int(line["trial"]), int(line["image"])) == (row["trial"], row["image"])
        assert 1 << int(line["bit"]) == ~int(fault["and_mask"])  # stuck at 0
        assert (int(line["row"]), int(line["col"])) == (fault["row"], fault["col"])


def test_show_prints_the_first_rows(fsim, files):
    trace = read_trace(files["flips"])
    found = json.loads(fsim("trace", "show", files["flips"], "--rows", 4, "--json").stdout)
    assert (found["trials"], found["faults"]) == (60, len(trace.faults) == 120 and 120)
    assert found["inferences"]["faulty"] == trace.outcomes["faulty"][:4].tolist()
    text = fsim("trace", "show", files["flips"], "--rows", 4).stdout
    assert "... and 56 more rows" in text
    text = fsim("trace", "show", files["flips"], "--rows", 0).stdout
    assert "more rows" not in text


def test_another_ending_is_refused(fsim, files, tmp_path):
    result = fsim("trace", "export", files["flips"], "--out", tmp_path / "t.txt")
    assert result.exit_code == 2 and ".csv or .parquet" in result.stderr
    assert not list(tmp_path.iterdir())


# --- fault lists ---


@pytest.mark.parametrize("name", ["single", "strata", "stuck", "flips", "chips"])
def test_a_list_of_faults_reproduces_their_outcomes(fsim, files, tmp_path, name):
    table = tmp_path / "faults.csv"
    fsim("trace", "export", files[name], "--table", "faults", "--out", table)
    said = read_trace(files[name])
    for source in (table, files[name]):
        out = tmp_path / "again.h5"
        result = fsim("campaign", "--faults", source, "--images", 8, "--out", out, "--overwrite")
        assert result.exit_code == 0, result.output
        found = read_trace(out)
        assert found.faults.tobytes() == said.faults.tobytes()
        if name != "stuck":  # whose faults met three of the images, and now meet all
            assert found.outcomes.tobytes() == said.outcomes.tobytes()
            continue
        assert len(found.outcomes) == 12 * 8
        met = np.isin(_keys(found), _keys(said))
        assert found.outcomes[met].tobytes() == said.outcomes.tobytes()


def _keys(trace):
    return trace.outcomes["trial"] * 1000 + trace.outcomes["image"]


HEAD = "trial,image,layer,component,row,col,word,effect,first,last,and_mask,or_mask,xor_mask"
GOOD = "0,0,conv1,acts,-1,-1,3,state,0,0,-1,0,1"


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "must have the columns"),
        (HEAD, "at least one fault"),
        (HEAD.replace("row,", "") + "\n", "row missing"),
        (HEAD.replace("image", "row ") + "\n", "columns of a fault list must differ"),
        (f"{HEAD}\n{GOOD}\n\n{GOOD},7\n", "line 4: 13 values are needed, got 14"),
        (f"{HEAD}\n\n{GOOD}\n{GOOD.replace('conv1', 'conv9')}\n", "line 4: layer must be one of"),
        (f"{HEAD}\n{GOOD.replace('acts', 'cache')}\n", "line 2: component must be one of"),
        (f"{HEAD}\n{GOOD.replace('state', '0')}\n", "line 2: effect must be one of state, level"),
        (f'{HEAD}\n0,0,"conv1\n",acts,-1,-1,3,state,0,0,-1,0,1\n{GOOD}x', "line 4: xor_mask"),
        (f"{HEAD}\n{GOOD[:-1]}{1 << 63}\n", "line 2: xor_mask must be a whole number of 64 bits"),
        (f"{HEAD}\n{GOOD[:-1]}{'9' * 5000}\n", "line 2: xor_mask must be a whole number"),
        (f"{HEAD}\n{GOOD}\n-1{GOOD[1:]}\n", "line 3: trials must not be negative"),
        (f"{HEAD}\n0,8{GOOD[3:]}\n", "image must be -1..7"),
        (f"{HEAD}\n{GOOD.replace(',3,', ',99999999,')}\n", "word"),
        (f"{HEAD}\n\0", "line 2: 13 values are needed, got 1"),
        (b"\xff\xfe", "CSV in UTF-8"),
    ],
)
def test_a_bad_list_is_one_line_that_says_where(fsim, tmp_path, text, says):
    table = tmp_path / "faults.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = fsim("campaign", "--faults", table, "--images", 8, "--out", tmp_path / "no.h5")
    assert result.exit_code == 2 and says in result.stderr, result.output
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["faults.csv"]


# --- files that lie ---

READERS = (
    summary, lambda r: campaign_text(summary(r)), protect, curve, lambda r: chips(r, 0.5), cite,
    lambda r: parse_condition("sdc.high > 0.1").check(r, None),
)  # fmt: skip


def read_by_all(path, *others):
    """Give a file to every reader; how many of them could tell something. FsimError only."""
    begin, told = time.monotonic(), 0
    try:
        results = read_results(path)
    except FsimError as error:
        assert "\n" not in str(error)
        return 0
    more = (lambda r, o=other: compare(r, read_results(o)) for other in others)
    back = (lambda r, o=other: compare(read_results(o), r) for other in others)
    for reader in (*READERS, *more, *back):
        try:
            json.dumps(reader(results), allow_nan=False)
            told += 1
        except FsimError:
            pass
    assert time.monotonic() - begin < 20
    return told


def rewritten(source, target, task=None, **tables):
    """A file of other content whose digests are right."""
    trace = replace(read_trace(source), **tables)
    with TraceWriter(target, task or trace.task, trace.provenance, overwrite=True) as writer:
        writer.add(trace.faults, trace.outcomes)
    return target


def paths_of(node, at=()):
    """Where values are; of lists the first and the last."""
    if at:
        yield at
    if isinstance(node, dict):
        for key, item in node.items():
            yield from paths_of(item, (*at, key))
    elif isinstance(node, list) and node and "accel" not in at:  # whose lists no one reads
        for i in {0, len(node) - 1}:
            yield from paths_of(node[i], (*at, i))


MISSING = object()
ABSURD = (MISSING, None, True, -1, 0, 10**30, -1e300, "x", "", [], ["a"], [[]], {}, {"a": 1})


def altered(task, at, value):
    task = json.loads(json.dumps(task))
    node = task
    for key in at[:-1]:
        node = node[key]
    if value is MISSING:
        del node[at[-1]]
    else:
        node[at[-1]] = value
    return task


@pytest.mark.parametrize("name", OPTIONS)
def test_tasks_that_lie_are_refused_or_harmless(files, tmp_path, name, monkeypatch):
    import fsim.campaign.results as module

    trace = read_trace(files[name])
    everywhere = list(paths_of(trace.task))
    assert len(everywhere) > 40
    rng = np.random.default_rng(len(name))
    refused = 0
    for at in everywhere:
        for number in rng.choice(len(ABSURD), 2, replace=False):
            task = altered(trace.task, at, ABSURD[number])
            # The reader of files checks digests, which are right by assumption.
            monkeypatch.setattr(module, "read_trace", lambda path, t=task: replace(trace, task=t))
            refused += not read_by_all(tmp_path / "no.h5")
    assert refused > 30  # the checks do see most of them


@pytest.mark.parametrize(
    "name, at, value",
    [
        ("single", ("campaign", "rule", "confidence"), 1 - 1e-16),
        ("single", ("campaign", "rule", "metric"), ["sdc"]),
        ("single", ("campaign", "rule", "more"), 1),
        ("single", ("campaign", "frame"), None),
        ("single", ("campaign", "frame", "images"), 10**9),
        ("single", ("campaign", "frame", "stratify"), ["layer", "component", "bit"]),
        ("single", ("campaign", "frame", "cells"), [[0, "conv1", 0, "ifmap", 9, 64]] * (1 << 16)),
        ("single", ("campaign", "frame", "cells", 0, 1), "fc"),
        ("single", ("campaign", "design"), "chips"),
        ("strata", ("campaign", "frame", "cells"), []),
        ("strata", ("campaign", "frame", "cells", 0, 5), 10**9),
        ("strata", ("campaign", "frame", "cells", 0, 4), -5),
        ("strata", ("campaign", "frame", "stratify"), ["bit"]),
        ("stuck", ("campaign", "unit_images"), 12),
        ("flips", ("campaign", "flips"), []),
        ("flips", ("campaign", "flips"), [3, 2, 1]),
        ("flips", ("campaign", "bits"), 0),
        ("flips", ("campaign", "bits"), 10**15),
        ("chips", ("campaign", "unit_images"), 4),
        ("chips", ("faults", "weights"), "0.1"),
        ("single", ("accel", "name"), MISSING),
        ("single", ("layers",), "conv1"),
        ("single", ("components",), ["x"]),
    ],
)  # fmt: skip
def test_these_lies_are_seen(fsim, files, tmp_path, name, at, value):
    task = read_trace(files[name]).task
    path = rewritten(files[name], tmp_path / "bad.h5", altered(task, at, value))
    begin = time.monotonic()
    with pytest.raises(TraceError, match=r"bad\.h5"):
        read_results(path)
    assert time.monotonic() - begin < 5
    for command in (["cite", path], ["protect", path], ["curve", path], ["chips", path],
                    ["compare", path, files[name]], ["merge", path, "--out", tmp_path / "no.h5"],
                    ["campaign", "--baseline", path, "--out", tmp_path / "no.h5"],
                    ["report", path, "--out", tmp_path / "no"]):  # fmt: skip
        result = fsim(*command)
        assert result.exit_code == 2, (command, result.output)
        assert result.stderr.count("\n") == 1 and "bad.h5" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.h5"]


@pytest.mark.parametrize("name", ["single", "strata", "stuck", "flips"])
def test_faults_outside_what_the_task_says_are_refused_or_harmless(files, tmp_path, name):
    trace = read_trace(files[name])
    refused = 0
    for column in trace.faults.dtype.names[1:]:
        for value in (np.iinfo(trace.faults.dtype[column]).max, -7, 63):
            faults = trace.faults.copy()
            faults[column][len(faults) // 2] = value
            path = rewritten(files[name], tmp_path / "bad.h5", faults=faults)
            refused += not read_by_all(path, files[name])
    assert refused >= 6  # layers and components at least


def test_a_fault_of_another_stratum_is_refused(files, tmp_path):
    trace = read_trace(files["strata"])
    faults = trace.faults.copy()
    faults["xor_mask"][5] <<= 1
    path = rewritten(files["strata"], tmp_path / "bad.h5", faults=faults)
    with pytest.raises(TraceError, match=f"trial {faults['trial'][5]} must lie in its part"):
        read_results(path)


def test_unknown_effects_are_no_crash(fsim, files, tmp_path):
    trace = read_trace(files["single"])
    faults = trace.faults.copy()
    faults["effect"][3] = 9
    path = rewritten(files["single"], tmp_path / "bad.h5", faults=faults)
    result = fsim("trace", "export", path, "--table", "faults", "--out", tmp_path / "t.csv")
    assert result.exit_code == 2 and "effects of faults" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.h5"]


def test_damaged_files_are_refused(files, tmp_path):
    data = files["single"].read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "bad.h5"
    same = read_results(files["single"]).outcome
    for number in range(60):
        changed = bytearray(data)
        if number % 3 == 0:
            changed = changed[: int(rng.integers(0, len(data)))]
        else:
            changed[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        try:
            found = read_results(path)
        except FsimError:
            continue
        assert np.array_equal(found.outcome, same)  # a byte that nothing rests on


def test_a_merge_refuses_what_is_no_part(files, tmp_path):
    with pytest.raises(TraceError, match="another campaign"):
        merge([files["single"], files["flips"]], tmp_path / "no.h5")
    with pytest.raises(TraceError, match="more than one"):
        merge([files["single"], files["single"]], tmp_path / "no.h5")
    with pytest.raises(TraceError):
        merge([], tmp_path / "no.h5")
    assert not list(tmp_path.iterdir())


def test_a_part_without_trials_is_told_without_numbers(fsim, files, tmp_path):
    trace = read_trace(files["single"])
    path = tmp_path / "empty.h5"
    rewritten(files["single"], path, faults=trace.faults[:0], outcomes=trace.outcomes[:0])
    found = summary(read_results(path))
    assert found["trials"] == 0 and found["accuracy"] == {"clean": None, "faulty": None}
    assert found["outcomes"]["sdc"]["estimate"] is None
    assert read_by_all(path, files["single"]) > 4
    result = fsim("merge", path, "--out", tmp_path / "all.h5", "--json")
    assert result.exit_code == 3 and json.loads(result.stdout)["complete"] is False
    for text in ("sdc > 0.9", "sdc < 0.1", "accuracy < 0.1", "sdc.high > baseline * 2"):
        checked = parse_condition(text).check(read_results(path), read_results(files["single"]))
        assert checked["failed"] and (checked["value"] is None or "high" in text)
