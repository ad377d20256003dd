"""fsim report: true numbers, a page that loads and runs nothing, honest pictures."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from fsim.campaign.results import read_results
from fsim.cli import main
from fsim.report.markup import Html, el, plain
from fsim.report.numbers import report_numbers
from fsim.report.page import page as whole_page
from fsim.report.palette import DARK, LIGHT, STEPS, contrast, luminance
from fsim.report.places import alike
from fsim.report.scale import scale_of
from fsim.report.tables import tables
from fsim.report.words import bounds, estimate, percent, share
from fsim.simulator.trace import TraceWriter, read_trace
from tests.test_layout import ROOT

CAMPAIGNS = {
    "seu": ["--trials", 900, "--images", 40],
    "other": ["--trials", 900, "--images", 40, "--set", "acc_bits=24"],
    "strata": ["--fault", "flip", "--sites", "weights", "--layers", "conv1,fc", "--stratify",
               "layer,component,bit", "--trials", 1500, "--images", 60],
    "stuck": ["--fault", "stuck1", "--trials", 40, "--images", 6, "--sites", "psum"],
    "flips": ["--flips", "1,2,4,8", "--trials", 80, "--images", 40],
    "chips": ["--chips", 4, "--stuck-cells", 1e-3, "--images", 20],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Small finished campaigns."""
    folder, found = tmp_path_factory.mktemp("campaigns"), {}
    for name, options in CAMPAIGNS.items():
        found[name] = folder / f"{name}.h5"
        words = ["campaign", "--quiet", "--out", found[name], *options]
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    return found


def interval(k: int, n: int):
    """Clopper and Pearson by scipy."""
    found = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return k / n, found.low, found.high


def columns(path) -> dict[str, np.ndarray]:
    """The columns of a campaign's file, read without fsim."""
    with h5py.File(path) as file:
        return {
            f"{group}/{name}": values[()]
            for group in ("faults", "outcomes")
            for name, values in file[group].items()
        }


def page(found: dict):
    """The page alone: files of its pictures take half of the time."""
    return whole_page(found, files=False)


class Checker(HTMLParser):
    """What a page refers to, whether its elements are closed, and its text."""

    VOID = {"meta", "br", "hr", "col"}

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], set(), [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def check_page(text: str) -> Checker:
    """What must hold for every page."""
    found = Checker(text)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    for name in ("src", "srcset", "action", "data", "background"):
        assert not found.values(name)
    refers = found.values("href") + found.values("xlink:href")
    assert all(value.startswith("#") for value in refers)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in refers} <= set(ids)
    for inside in re.findall(r"url\(([^)]*)\)", text):
        assert inside.startswith("#") and inside[1:] in ids
    assert "@import" not in text and "javascript:" not in text
    pictures = [a for a in found.attributes if a[0] == "svg" and a[1] == "role"]
    assert len(pictures) == len(re.findall(r"<svg ", text)) > 0
    assert all(len(value) > 20 for tag, name, value in found.attributes
               if tag == "svg" and name == "aria-label")  # fmt: skip
    assert found.values("lang") == ["en"]
    return found


@pytest.fixture(scope="module")
def numbers(files) -> dict[str, dict]:
    """Campaign -> numbers of its report."""
    return {
        name: report_numbers([read_results(path)])["campaigns"][0] for name, path in files.items()
    }


# --- what is written ---


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_page_of_every_kind_is_whole_and_loads_nothing(fsim, files, name, tmp_path):
    out = tmp_path / "page.html"
    result = fsim("report", files[name], "--out", out)
    assert result.exit_code == 0, result.stderr
    found = check_page(out.read_text("utf-8"))
    text = " ".join(found.text)
    assert "digits-cnn" in text and "fsim campaign --model digits-cnn" in text
    assert "Methods, to cite" in text
    pictures = sorted((tmp_path / "page_files" / "pictures").iterdir())
    assert len(pictures) == 2 * len(re.findall("<figure>", out.read_text("utf-8")))
    for path in pictures:
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_bytes())
        else:
            assert path.read_bytes().startswith(b"\x89PNG\r\n")
    for path in (tmp_path / "page_files" / "tables").iterdir():
        lines = list(csv.reader(path.read_text("utf-8").splitlines()))
        assert len(lines) > 1 and {len(line) for line in lines} == {len(lines[0])}, path.name


def test_the_same_files_give_the_same_bytes(fsim, files, tmp_path):
    for name in ("one", "two"):
        fsim("report", files["strata"], files["flips"], "--out", tmp_path / name)
    made = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    ]
    assert len(made[0]) > 20 and made[0] == made[1]


def test_json_prints_all_numbers_and_writes_nothing(fsim, files, numbers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(fsim("report", files["seu"], "--json").stdout)
    assert found["campaigns"] == json.loads(json.dumps([numbers["seu"]]))
    assert not list(tmp_path.iterdir())


def test_a_folder_or_a_page_may_be_named_and_a_file_may_not(fsim, files, tmp_path):
    fsim("report", files["chips"], "--out", tmp_path / "folder", "--no-pictures")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["report.html", "tables"]
    (tmp_path / "text.txt").write_text("mine")
    result = fsim("report", files["chips"], "--out", tmp_path / "text.txt")
    assert result.exit_code == 2 and "must be a .html file or a folder" in result.stderr
    assert (tmp_path / "text.txt").read_text() == "mine"


def test_a_trace_that_is_no_campaign_is_refused(fsim, tmp_path):
    trace = tmp_path / "trace.h5"
    fsim("inject", "--images", 2, "--trials", 1, "--no-curve", "--trace", trace)
    result = fsim("report", trace, "--out", tmp_path / "page.html")
    assert result.exit_code == 2 and "must be the file of a campaign" in result.stderr
    assert not (tmp_path / "page.html").exists()


# --- numbers, against the columns of the file and scipy ---


def test_outcome_shares_are_those_of_the_file(files, numbers):
    outcome = columns(files["seu"])["outcomes/outcome"]
    codes = {"masked": (0, 1), "sdc_benign": (2,), "sdc_critical": (3,), "sdc": (2, 3)}
    rows = {row["outcome"]: row for row in numbers["seu"]["outcomes"]}
    assert set(rows) == set(codes)
    for name, row in rows.items():
        k = int(np.isin(outcome, codes[name]).sum())
        assert (row["count"], row["of"]) == (k, 900)
        got = [row["share"][end] for end in ("estimate", "low", "high")]
        assert got == pytest.approx(interval(k, 900), abs=1e-9)


def test_tables_by_layer_component_and_bit_are_those_of_the_file(files, numbers):
    table = columns(files["seu"])
    task = read_trace(files["seu"]).task
    bit = np.log2((table["faults/xor_mask"] & -table["faults/xor_mask"]).astype(float)).astype(int)
    for axes in ("component", "layer", "layer,component", "component,bit", "layer,component,bit"):
        seen = 0
        name = f"by-{axes.replace(',', '-')}.csv"
        made = tables({"campaigns": [numbers["seu"]]})[name].decode()
        for row in csv.DictReader(made.splitlines()):
            mine = np.ones(900, bool)
            if "layer" in axes:
                mine &= table["faults/layer"] == task["layers"].index(row["layer"])
            if "component" in axes:
                mine &= table["faults/component"] == task["components"].index(row["component"])
            if "bit" in axes:
                mine &= bit == int(row["bit"])
            n = int(mine.sum())
            assert int(row["trials"]) == n
            seen += n
            for metric, codes in (("sdc", (2, 3)), ("sdc_critical", (3,))):
                k = int(np.isin(table["outcomes/outcome"][mine], codes).sum())
                assert int(row[f"{metric}_count"]) == k
                if not n:
                    assert row[metric] == "" and row[f"{metric}_low"] == "0.0"
                    continue
                got = [float(row[metric + end]) for end in ("", "_low", "_high")]
                assert got == pytest.approx(interval(k, n), abs=1e-9)
        assert seen == 900


def test_blocks_of_pes_cover_the_array_and_count_every_fault_once(files, numbers):
    table = columns(files["seu"])
    maps = {(m["metric"], m["component"]): m for m in numbers["seu"]["pe"]}
    found = maps["sdc", None]
    assert found["array"] == [32, 32] and found["why_not"] is None
    cover = np.zeros((32, 32), int)
    row, col = table["faults/row"], table["faults/col"]
    changed = np.isin(table["outcomes/outcome"], (2, 3))
    for block in found["blocks"]:
        rows = slice(block["row"], block["row_last"] + 1)
        cover[rows, block["col"] : block["col_last"] + 1] += 1
        mine = (row >= block["row"]) & (row <= block["row_last"])
        mine &= (col >= block["col"]) & (col <= block["col_last"])
        k, n = int(changed[mine].sum()), int(mine.sum())
        assert (block["events"], block["trials"]) == (k, n)
        got = [block["rate"][end] for end in ("estimate", "low", "high")]
        assert got == pytest.approx(interval(k, n), abs=1e-9)
    assert (cover == 1).all()
    for side, at in (("rows", row), ("cols", col)):
        assert sum(part["trials"] for part in found[side]) == 900
        for part in found[side]:
            mine = (at >= part["first"]) & (at <= part["last"])
            assert part["events"] == int(changed[mine].sum())
    k = np.array([block["events"] for block in found["blocks"]])
    n = np.array([block["trials"] for block in found["blocks"]])
    expected = stats.chi2_contingency(np.stack([k, n - k]), correction=False).pvalue
    assert found["p_alike"] == pytest.approx(expected)


def test_a_map_without_events_enough_says_why(numbers):
    (found,) = (m for m in numbers["seu"]["pe"] if m["metric"] == "sdc_critical")
    assert found["events"] < 12 and not found["blocks"]
    assert f"{found['events']} such outcomes in 900 trials" in found["why_not"]


def test_unlike_parts_are_told_from_alike_ones():
    rng = np.random.default_rng(3)
    n = np.full(64, 200)
    even = [alike(rng.binomial(n, 0.1), n) for _ in range(300)]
    # Uniform if alike: the chance of fewer than 3 or more than 33 of 300 below 0.05 is 2e-4.
    assert 3 <= sum(p < 0.05 for p in even) <= 33
    assert alike(rng.binomial(n, np.linspace(0.05, 0.2, 64)), n) < 1e-6
    assert alike([0, 0], [9, 9]) is None and alike([1], [9]) is None


def test_the_worst_faults_come_first_and_are_followed(fsim, files, numbers):
    table = columns(files["strata"])
    critical = set(table["outcomes/trial"][table["outcomes/outcome"] == 3].tolist())
    found = numbers["strata"]["worst"]
    listed = [fault["trial"] for fault in found["faults"]]
    assert len(critical) > 20 and len(listed) == len(set(listed)) == 20
    assert set(listed) <= critical and found["alike"] == len(critical)
    assert found["of"] == int(np.isin(table["outcomes/outcome"], (2, 3)).sum())
    assert found["followed"] == 5 and found["why_not"] is None
    for fault in found["faults"][:5]:
        one = [f"--{name}={fault[name]}" for name in ("trial", "event", "image")]
        told = json.loads(fsim("explain", files["strata"], *one, "--json").stdout)
        assert fault["spread"] == told["layers"]
        assert (told["clean_class"], told["faulty_class"]) == (
            fault["clean_class"], fault["faulty_class"])  # fmt: skip


def test_a_fault_that_met_several_images_is_counted_by_images(files, numbers):
    table = columns(files["stuck"])
    per_trial = {}
    for trial, outcome in zip(table["outcomes/trial"], table["outcomes/outcome"]):
        per_trial.setdefault(int(trial), []).append(int(outcome))
    worst = numbers["stuck"]["worst"]["faults"][0]
    assert worst["images"] == 6
    assert worst["critical"] == max(row.count(3) for row in per_trial.values())
    assert worst["critical"] == per_trial[worst["trial"]].count(3)
    text = page({**report_numbers([read_results(files["stuck"])], follow=False)}).html
    assert f"critical for {worst['critical']} of 6 images" in text


def test_numbers_of_the_page_are_those_of_the_json(files, numbers):
    text = " ".join(Checker(page(report_numbers([read_results(files["seu"])])).html).text)
    for row in numbers["seu"]["outcomes"]:
        assert estimate(row["share"]) in text and bounds(row["share"]) in text
    for row in numbers["seu"]["parts"]["layer"]:
        assert share(row["sdc"]) in text


def test_what_no_one_saw_is_never_shown_as_zero(numbers):
    rows = numbers["seu"]["parts"]["layer,component,bit"]
    none = [row for row in rows if not row["trials"]]
    assert none and all(row["sdc"]["estimate"] is None for row in none)
    shown = scale_of([(row["sdc"], row["trials"]) for row in rows])
    for row in rows:
        if row["trials"] and not row["counts"]["sdc"] and row["trials"] < 100:
            assert shown.uncertain(row["sdc"])


def test_pandas_reads_the_tables(fsim, files, tmp_path):
    pandas = pytest.importorskip("pandas")
    fsim("report", files["seu"], files["strata"], "--out", tmp_path, "--no-pictures")
    found = pandas.read_csv(tmp_path / "tables" / "by-layer-component-bit.csv")
    assert set(found["campaign"]) == {"seu", "strata"}
    assert found["sdc_critical"].dtype == float and found["trials"].sum() == 900 + 1500


def test_the_accuracy_has_the_interval_of_its_design(files, numbers):
    table = columns(files["seu"])
    k = int((table["outcomes/faulty"] == table["outcomes/label"]).sum())
    found = numbers["seu"]["accuracy"]
    got = [found[end] for end in ("estimate", "low", "high")]
    assert got == pytest.approx(interval(k, 900), abs=1e-9)
    for name in ("strata", "stuck", "chips"):
        results = read_results(files[name])
        found = numbers[name]["accuracy"]
        assert found["estimate"] == pytest.approx(results.accuracy)
        assert found["low"] < found["estimate"] < found["high"] or found["estimate"] == 1
    # Six images of one fault are not six trials: the interval is wider than of 240.
    k = round(numbers["stuck"]["accuracy"]["estimate"] * 240)
    _, low, high = interval(k, 240)
    found = numbers["stuck"]["accuracy"]
    assert found["high"] - found["low"] > 1.3 * (high - low)
    assert numbers["flips"]["accuracy"] is None


def test_lists_say_that_they_are_no_sample_and_how_many_faults_a_trial_has(fsim, files, tmp_path):
    out = tmp_path / "list.h5"
    assert fsim("campaign", "--quiet", "--faults", files["flips"], "--images", 40, "--out",
                out).exit_code == 0  # fmt: skip
    found = report_numbers([read_results(out)])
    worst = found["campaigns"][0]["worst"]
    trace = read_trace(out)
    for fault in worst["faults"]:
        assert fault["events"] == len(np.unique(trace.faults_of(fault["trial"])["event"]))
    assert max(fault["events"] for fault in worst["faults"]) > 1 and worst["followed"] == 5
    text = " ".join(check_page(page(found).html).text)
    assert "not a random sample" in text and "others" in text


def test_a_network_of_ones_own_is_opened_if_it_is_named(fsim, tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential("
        "torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "mine.h5"
    result = fsim("campaign", "--quiet", "--model", "mynet:make", "--data", "digits", "--images",
                  20, "--fault", "flip", "--trials", 60, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    page_of = tmp_path / "p.html"
    told = [fsim("report", out, "--json", *more).stdout for more in ((), ("--model", "mynet:make"))]
    without, named = (json.loads(text)["campaigns"][0]["worst"] for text in told)
    assert without["followed"] == 0 and "whose code would run" in without["why_not"]
    assert named["followed"] == 5 and named["why_not"] is None
    result = fsim("report", out, "--model", "other:make", "--out", page_of)
    assert result.exit_code == 2 and "--model must be that of a campaign" in result.stderr


def test_no_critical_outcome_is_not_called_zero(fsim, tmp_path):
    out = tmp_path / "few.h5"
    fsim("campaign", "--quiet", "--trials", 20, "--images", 5, "--sites", "psum", "--out", out)
    found = report_numbers([read_results(out)], follow=False)
    row = next(r for r in found["campaigns"][0]["outcomes"] if r["outcome"] == "sdc_critical")
    assert row["count"] == 0 and row["share"]["high"] > 0.1
    text = " ".join(check_page(page(found).html).text)
    assert "No critical outcome was seen" in text and bounds(row["share"]) in text


# --- several campaigns ---


def test_several_campaigns_are_compared_with_the_first(fsim, files, tmp_path):
    names = ("seu", "other", "flips", "chips")
    found = report_numbers([read_results(files[name]) for name in names], follow=False)
    text = page(found).html
    told = " ".join(check_page(text).text)
    assert [one["name"] for one in found["comparisons"]] == ["other", "flips", "chips"]
    assert "cannot" in found["comparisons"][1] and "depends on a rate" in told
    for name in names:
        assert f"{names.index(name) + 1}. {name}" in told
    assert not found["comparisons"][0]["paired"]  # machines differ in their sites
    assert "not paired with the first" in told


def test_the_same_faults_are_paired_and_names_are_told_apart(files, tmp_path):
    twin = tmp_path / "chips.h5"
    twin.write_bytes(files["chips"].read_bytes())
    found = report_numbers([read_results(files["chips"]), read_results(twin)], follow=False)
    assert [one["name"] for one in found["campaigns"]] == ["chips (1)", "chips (2)"]
    (one,) = found["comparisons"]
    assert one["paired"] and (one["pairs"], one["only_this"], one["only_that"]) == (80, 0, 0)
    assert "yes, 80" in page(found).html


# --- hostile and incomplete files ---

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def rewritten(source: Path, target: Path, change) -> Path:
    """The same trials under another task and provenance."""
    trace = read_trace(source)
    task, provenance = json.loads(json.dumps(trace.task)), dict(trace.provenance)
    change(task, provenance)
    with TraceWriter(target, task, provenance) as writer:
        writer.add(trace.faults, trace.outcomes)
    return target


def evil(task, provenance):
    task["model"] = EVIL
    task["data"] = "=1+1" + EVIL
    task["accel"]["name"] = EVIL + "$\\frac{1}{2}$" + chr(0x202E) + chr(7)
    names = {name: f"=1+{number}{EVIL}" for number, name in enumerate(task["layers"])}
    task["layers"] = list(names.values())
    parts = {name: f"../../$x_{name}^2$ {EVIL}" for name in task["components"]}
    task["components"] = list(parts.values())
    for cell in task["campaign"]["frame"]["cells"]:
        cell[1], cell[3] = names[cell[1]], parts[cell[3]]
    provenance["python"] = EVIL
    provenance[EVIL] = "x" * 5000


def test_names_of_a_file_add_no_markup(fsim, files, tmp_path):
    hostile = rewritten(files["seu"], tmp_path / "hostile.h5", evil)
    result = fsim("report", hostile, "--out", tmp_path / "out" / "page.html", "--title", EVIL)
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "out" / "page.html").read_text("utf-8")
    found = check_page(text)
    assert "<script" not in text.lower() and "<img" not in text.lower()
    assert EVIL in " ".join(found.text)
    assert chr(0x202E) not in text and chr(7) not in text
    assert "whose code would run" in " ".join(found.text)  # the model is not imported
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert {path.parts[0] for path in made} == {"hostile.h5", "out"}
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in made)
    for path in (tmp_path / "out").rglob("*.svg"):
        root = ElementTree.fromstring(path.read_bytes())
        assert {e.tag.split("}")[1] for e in root.iter()}.isdisjoint({"script", "image", "a"})
    for path in (tmp_path / "out").rglob("*.csv"):
        for line in csv.reader(path.read_text("utf-8").splitlines()):
            assert not [cell for cell in line if cell.startswith(("=", "@"))]


def test_a_network_of_very_many_layers_has_maps_of_the_worst(files, tmp_path):
    def change(task, provenance):
        cells = task["campaign"]["frame"]["cells"]
        names = [f"more.{copy}" for copy in range(600)]
        for at, name in enumerate(names, len(task["layers"])):
            cells += [[at, name, *cell[2:]] for cell in cells[:3]]
        task["layers"] += names

    path = rewritten(files["seu"], tmp_path / "wide.h5", change)
    made = page(report_numbers([read_results(path)], follow=False))
    text = " ".join(check_page(made.html).text)
    assert "304 layers or components with the lowest lower limits are in the tables" in text
    assert len(made.html) < 8 << 20


def test_a_network_that_cannot_be_opened_leaves_the_rest(files, tmp_path):
    def change(task, provenance):
        task["codes_sha256"] = "0" * 64

    path = rewritten(files["seu"], tmp_path / "changed.h5", change)
    found = report_numbers([read_results(path)])
    worst = found["campaigns"][0]["worst"]
    assert worst["faults"] and worst["followed"] == 0
    assert "codes_sha256 must be that of the trace" in worst["why_not"]
    text = page(found).html
    assert "How they spread is not shown" in text and "codes_sha256" in text


def test_a_part_of_a_campaign_says_so(fsim, files, tmp_path):
    part = tmp_path / "part.h5"
    assert fsim("campaign", "--quiet", *CAMPAIGNS["seu"], "--shard", "1/3", "--shard-size", 100,
                "--out", part).exit_code == 0  # fmt: skip
    found = report_numbers([read_results(part)], follow=False)
    assert not found["campaigns"][0]["summary"]["complete"]
    assert "holds a part of its campaign" in page(found).html


def test_the_notebook_shows_a_fragment_with_the_numbers(files, numbers):
    text = read_results(files["seu"])._repr_html_()
    found = Checker(text)
    assert not found.tags & {"html", "body", "script", "link", "img"}
    row = next(r for r in numbers["seu"]["outcomes"] if r["outcome"] == "sdc_critical")
    assert bounds(row["share"]) in " ".join(found.text)
    # Its style must not reach the rest of the notebook.
    sheet = re.sub(r"@page\{.*?\}", "", re.search(r"<style>(.*?)</style>", text, re.S)[1])
    sheet = re.sub(r"@media[^{]*\{", "", sheet)
    for selector in re.findall(r"(?:^|[{}])\s*([^{}@]+)\{", sheet):
        assert all("fsim" in one for one in selector.split(",")), selector


# --- colours, scales, words ---


def test_colours_are_told_apart_and_read():
    assert len(set(LIGHT.values())) == len(LIGHT) and set(LIGHT) == set(DARK)
    for colours in (LIGHT, DARK):
        for text in ("ink", "soft", "link", "warn"):
            for ground in ("page", "card"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for mark in ("masked", "benign", "critical", "due", "hang", "corrected", "good", "axis"):
            assert contrast(colours[mark], colours["card"]) >= 3, mark
        for step in range(STEPS):
            assert contrast(colours[f"t{step}"], colours[f"h{step}"]) >= 4.5, step
        heat = [luminance(colours[f"h{step}"]) for step in range(STEPS)]
        away = heat if colours is DARK else heat[::-1]
        assert all(b > a + 0.004 for a, b in zip(away, away[1:]))
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's well-known grey


def cell(k: int, n: int) -> tuple[dict, int]:
    middle, low, high = interval(k, n)
    return {"estimate": middle, "low": low, "high": high}, n


@pytest.mark.parametrize("seed", range(20))
def test_a_scale_reaches_the_largest_share_in_rising_steps(seed):
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0, 10 ** rng.uniform(-4, 0), 30)
    cells = [cell(int(rng.binomial(2000, rate)), 2000) for rate in rates]
    found = scale_of(cells)
    assert len(found.edges) == STEPS - 1 and (np.diff(found.edges) > 0).all()
    most = max(one["estimate"] for one, _ in cells)
    assert found.step(most) >= STEPS - 2 and found.step(0.0) == 0
    assert found.edges[-1] < 1


def test_rare_and_frequent_shares_have_steps_of_1_2_5_and_like_ones_equal_steps():
    wide = [cell(k, 100_000) for k in (3, 10, 20, 30, 40, 9000)]
    assert scale_of(wide).edges == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    like = [cell(k, 1000) for k in (80, 90, 100, 120, 140)]
    assert scale_of(like).edges == (0.02, 0.04, 0.06, 0.08, 0.1, 0.12)


@pytest.mark.parametrize(
    ("k", "n", "uncertain"),
    [(0, 20, True), (0, 100_000, False), (1, 100, True), (3, 3000, True), (12, 100, False),
     (3, 3, True), (400, 1000, False)],
)  # fmt: skip
def test_few_events_are_uncertain_and_many_are_not(k, n, uncertain):
    wide = scale_of([cell(k, 100_000) for k in (3, 10, 20, 30, 40, 9000)])
    assert wide.uncertain(cell(k, n)[0]) is uncertain


def test_no_trials_are_uncertain():
    wide = scale_of([cell(5, 100)])
    assert wide.uncertain({"estimate": None, "low": 0.0, "high": 1.0})


def test_shares_are_written_as_finely_as_they_are_known():
    found = {"estimate": 0.89030, "low": 0.88589, "high": 0.89460}
    assert share(found).replace("\u00a0", " ") == "89.03 % (88.59 – 89.46 %)"
    found = {"estimate": 0.0005, "low": 0.00024, "high": 0.00092}
    assert share(found).replace("\u00a0", " ") == "0.050 % (0.024 – 0.092 %)"
    assert estimate({"estimate": None, "low": 0.0, "high": 1.0}) == "unknown"
    assert bounds({"estimate": 0.9, "low": None, "high": 0.95}) == "unknown – 95.00\u00a0%"
    assert (percent(0.0), percent(float("nan")), percent(0.5)) == (
        "0\u00a0%",
        "unknown",
        "50\u00a0%",
    )


def test_markup_escapes_all_but_markup():
    made = el("p", "<b>", Html("<i>x</i>"), [1, None, "&"], class_='a"b', hidden=True, id=None)
    assert made == '<p class="a&quot;b" hidden>&lt;b&gt;<i>x</i>1&amp;</p>'
    assert plain("a\x00b\u202e\ud800") == "a b  " and len(plain("x" * 9999)) == 301


# --- docs/report.md ---


def test_the_table_of_the_document_names_every_section():
    """Its commands are run by test_docs_site.py."""
    text = (ROOT / "docs" / "report.md").read_text("utf-8")
    source = (ROOT / "fsim" / "report" / "sections.py").read_text("utf-8")
    titles = re.findall(r'\("\w+", "([^"]+)", \w+\)', source)
    assert len(titles) == 12
    lines = text.split("## What is in it")[1].split("##")[0].splitlines()
    told = [
        name.strip()
        for line in lines
        if line.startswith("| ") and not line.startswith("| section")
        for name in line.split("|")[1].split(",")
    ]
    for title in titles:
        assert any(title.startswith(name) for name in told) or title == "What was done", title
    for name in told:
        assert any(title.startswith(name) for title in titles), name


def test_a_notebook_and_the_page_open_no_display(files, monkeypatch):
    import matplotlib

    before = matplotlib.get_backend()
    monkeypatch.delenv("DISPLAY", raising=False)
    page(report_numbers([read_results(files["chips"])], follow=False))
    assert matplotlib.get_backend() == before
    assert matplotlib.rcParams["svg.hashsalt"] != "fsim"  # settings are as they were


def test_parts_of_which_most_was_not_tried_are_drawn(fsim, tmp_path):
    """Strata by component and bit leave cells of a layer without a trial."""
    made = tmp_path / "thin.h5"
    result = fsim("campaign", "--fault", "flip", "--stratify", "component,bit", "--trials", 1500,
                  "--images", 20, "--out", made)  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = read_results(made).groups(("layer", "component", "bit"))
    assert all(row["sdc"].estimate == row["sdc"].estimate for row in rows if row["trials"])
    assert any(not row["trials"] for row in rows)
    out = tmp_path / "thin.html"
    result = fsim("report", made, "--out", out, "--no-explain", "--no-pictures")
    assert result.exit_code == 0, result.output
    assert "<svg" in out.read_text("utf-8")
