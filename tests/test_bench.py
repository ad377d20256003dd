"""The benchmarks' machinery, with made-up figures: nothing is timed here."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import __main__ as command
from bench import bench_injections as injections
from bench import flips, networks, peak, picture, report
from bench.figures import (
    AIM,
    FLOOR,
    HIGHER,
    KEPT,
    LOWER,
    MISSED,
    MISSED_AIM,
    Figure,
    limits,
    markdown,
    number,
    table,
    times,
)
from bench.rivals import client, serve
from bench.rivals.sites import Sites
from fsim.accel_models.load import load_accel
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.capture import capture
from fsim.simulator.engine import FaultHooks
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement, select
from tests.test_layout import ROOT

FAST = Figure("resnet20: injections, 2 threads", [900, 1000, 1400], "/s", HIGHER, "Rival 1.0",
              [10, 8, 14], floor=30, aim=80, source="the card", note="two | threads")  # fmt: skip
SLOW = Figure("a step", [30, 31, 29], "ms", LOWER, "torch", [10, 10, 10], floor=1.5, aim=1.2)
SAME = Figure("not equal", [0], "of 64", LOWER, floor=0)
SHARE = Figure("resnet20: time for drawing", [1.25], "%")


def made_up() -> report.Run:
    sections = [
        report.Section("injections", "About injections.", ("They differ.",), 12.5, (0.1, 1.9),
                       "", [FAST, SAME, SHARE]),
        report.Section("train", "About training.", (), 3.0, (None, None), "", [SLOW]),
        report.Section("tile", "About tiles.", (), 0.1, (1.0, 1.0), "OSError: no disk", []),
    ]  # fmt: skip
    machine = {"CPU": "Some CPU", "CPUs": "2"}
    return report.Run("2026-01-01 00:00 UTC", machine, {"fsim": "0.1"}, sections=sections)


# --- figures ---


def test_a_figure_is_the_median_and_its_ratio_that_of_medians():
    assert (FAST.value, FAST.other, FAST.ratio) == (1000, 10, 100)
    assert FAST.ratios == (90, 125, 100)
    assert SHARE.ratio is None and SHARE.judged == 1.25 and SHARE.verdict == ""


@pytest.mark.parametrize(
    "better, value, other, floor, aim, verdict",
    [
        (HIGHER, 80, 1, 30, 80, AIM),
        (HIGHER, 79, 1, 30, 80, FLOOR),
        (HIGHER, 30, 1, 30, 80, FLOOR),
        (HIGHER, 29, 1, 30, 80, MISSED),
        (LOWER, 1.2, 1, 1.5, 1.2, AIM),
        (LOWER, 1.3, 1, 1.5, 1.2, FLOOR),
        (LOWER, 3, 2, 1.5, 1.2, FLOOR),
        (LOWER, 3.1, 2, 1.5, 1.2, MISSED),
        (LOWER, 0.3, None, 0.3, None, KEPT),
        (LOWER, 0.31, None, 0.3, None, MISSED),
        (LOWER, 0, None, 0, None, KEPT),
        (LOWER, 1, None, 0, None, MISSED),
        (HIGHER, 5, None, None, 6, MISSED_AIM),
        (HIGHER, 6, None, None, 6, AIM),
        (HIGHER, 6, 2, None, None, ""),
    ],
)
def test_verdicts(better, value, other, floor, aim, verdict):
    beside = {"against": "it", "others": [other]} if other else {}
    figure = Figure("x", [value], "s", better, floor=floor, aim=aim, **beside)
    assert figure.verdict == verdict


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"values": []}, "needs finite values"),
        ({"values": [float("nan")]}, "needs finite values"),
        ({"values": [1, 2], "against": "it", "others": [1]}, "as many others as values"),
        ({"values": [1], "others": [1]}, "what others are of"),
        ({"values": [1], "against": "it"}, "what others are of"),
        ({"values": [1], "against": "it", "others": [0]}, "a ratio to nothing"),
        ({"values": [1], "better": "faster"}, "better must be"),
        ({"values": [1], "floor": 1}, "needs a direction"),
    ],
)
def test_a_figure_that_says_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Figure(**({"name": "x", "unit": "s"} | fields))


@pytest.mark.parametrize(
    "value, text",
    [(None, ""), (0, "0"), (1234567, "1,230,000"), (999.6, "1,000"), (79.4, "79.4"),
     (9.996, "10.0"), (0.0995, "0.0995"), (0.00012345, "0.000123"), (-2.5, "-2.50")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_limits_are_of_the_ratio_where_there_is_one():
    assert limits(FAST) == (">= 30.0 x", ">= 80.0 x")
    assert limits(SAME) == ("<= 0", "")
    assert times(0.2) == "0.200 x"


def test_the_table_aligns_and_leaves_out_what_is_empty_everywhere():
    lines = table([FAST, SLOW]).splitlines()
    assert lines[0].split() == ["figure", "value", "unit", "rounds", "against", "its", "value",
                                "ratio", "floor", "aim", "verdict"]  # fmt: skip
    assert lines[1].endswith(AIM) and lines[2].endswith(MISSED)
    assert lines[1].index("Rival 1.0") == lines[2].index("torch") == lines[0].index("against")
    assert table([SHARE]).splitlines() == [
        "figure                      value  unit",
        "resnet20: time for drawing   1.25  %",
    ]


def test_a_missed_limit_is_bold_in_markdown():
    lines = markdown([FAST, SLOW]).splitlines()
    assert "**" not in lines[2] and lines[3].endswith(f"| **{MISSED}** |")
    assert len({line.count("|") for line in lines}) == 1


# --- runs ---


def test_a_run_survives_json(tmp_path):
    path = tmp_path / "deep" / "run.json"
    report.write_json(made_up(), path)
    assert report.read_json(path) == made_up()
    first = json.loads(path.read_text())["sections"][0]["figures"][0]
    assert (first["value"], first["ratio"], first["verdict"]) == (1000, 100, AIM)


def test_results_of_another_kind_are_refused(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text('{"format": "fsim-bench", "version": 2}')
    with pytest.raises(ValueError, match="must be of format fsim-bench 1, got fsim-bench 2"):
        report.read_json(path)
    assert command.main(["--from", str(path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_summary_and_document_name_what_was_missed_and_what_failed():
    text = report.summary(made_up())
    assert "1 of 3 limits missed" in text and "a step: MISSED" in text
    assert "tile failed: OSError: no disk" in text and "time for drawing" not in text
    page = report.document(made_up(), "x.svg")
    assert f"**{MISSED}**" in page and "**Failed**: OSError: no disk" in page
    for wanted in ("](x.svg)", "| CPU | Some CPU |", "They differ.", "Limits: the card.",
                   "| load at injections | 0.10 before, 1.90 after |", "two | threads",
                   "| load at train | unknown before, unknown after |"):  # fmt: skip
        assert wanted in page, wanted
    assert "Quick run" not in page


def test_figures_without_limit_or_rival_have_a_table_of_their_own():
    assert report.parts([SHARE, FAST, SAME]) == [[FAST, SAME], [SHARE]]
    assert report.parts([SHARE]) == [[SHARE]] and report.parts([]) == []


@pytest.mark.parametrize("load, told", [(0.1, False), (2.25, True), (None, False)])
def test_a_busy_machine_is_told(load, told):
    run = made_up()
    run.sections[0].load = (load, 1.0)
    for text in (report.summary(run), report.document(run)):
        assert ("machine was busy: load 2.25" in " ".join(text.split())) == told


def test_where_the_run_was_is_told():
    run = report.begin(True)
    assert run.quick and run.machine["CPU"] and int(run.machine["CPUs"]) >= 1
    assert {"fsim", "Python", "torch", "numpy", "numba"} <= set(run.versions)


# --- the picture ---


def test_the_picture_has_every_rate_and_every_limit_that_is_not_zero():
    figures = made_up().figures
    assert picture.rates(figures) == {"resnet20, 2 threads": {"fsim": 1000, "Rival 1.0": 10}}
    assert picture.limited(figures) == [FAST, SLOW]
    assert picture.margin(FAST) == pytest.approx(100 / 30)
    assert picture.margin(SLOW) == pytest.approx(1.5 / 3)


@pytest.mark.parametrize("ending, begin", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_picture_is_drawn(tmp_path, ending, begin):
    path = tmp_path / f"x.{ending}"
    assert picture.draw(made_up(), path)
    assert path.read_bytes().startswith(begin) and path.stat().st_size > 5000


def test_nothing_to_draw_draws_nothing(tmp_path):
    empty = report.Run("", {}, {}, sections=[report.Section("x", figures=[SHARE])])
    assert not picture.draw(empty, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


# --- the command ---


def test_every_benchmark_has_a_docstring_and_a_main_that_can_be_quick():
    assert {"injections", "network", "replay", "startup", "tile", "train"} <= set(command.names())
    for name in command.names():
        module = importlib.import_module(f"bench.bench_{name}")
        (quick,) = inspect.signature(module.main).parameters.values()
        assert (quick.name, quick.default) == ("quick", False) and module.__doc__
        assert all(isinstance(note, str) for note in getattr(module, "NOTES", ()))


@pytest.fixture
def fakes(monkeypatch):
    """Two benchmarks in place of the real ones: one that works, one that does not."""

    def broken(quick):
        raise RuntimeError("it does not run")

    for name, main in (("works", lambda quick: [FAST, SLOW]), ("broken", broken)):
        module = types.ModuleType(f"bench.bench_{name}", f"About {name}.")
        module.main = main
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "names", lambda: ["broken", "works"])


def test_the_command_prints_and_writes_and_goes_on_after_a_failure(fakes, tmp_path, capsys):
    path, page = tmp_path / "bench.json", tmp_path / "docs" / "page.md"
    assert command.main(["--quick", "--json", str(path), "--docs", str(page)]) == 1
    text = capsys.readouterr().out
    assert "failed: RuntimeError: it does not run" in text and "1 of 2 limits missed" in text
    run = report.read_json(path)
    assert run.quick and [s.name for s in run.sections] == ["broken", "works"]
    assert run.figures == [FAST, SLOW] and run.sections[1].about == "About works."
    assert (tmp_path / "bench.png").is_file() and page.with_suffix(".svg").is_file()
    assert "](page.svg)" in page.read_text() and "**Quick run**" in page.read_text()


def test_a_document_can_be_made_of_results_that_are_there(fakes, tmp_path):
    given, page = tmp_path / "given.json", tmp_path / "page.md"
    report.write_json(made_up(), given)
    assert command.main(["--from", str(given), "--docs", str(page)]) == 1  # a section failed
    assert page.read_text() == report.document(made_up(), "page.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given.json", "page.md", "page.svg"]


def test_an_unknown_benchmark_is_refused(capsys):
    assert command.main(["tiles"]) == 2
    assert "must be one of injections, network" in capsys.readouterr().err


def test_the_committed_document_is_of_a_whole_run_and_has_its_picture():
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert "](benchmarks.svg)" in page and (ROOT / "docs" / "benchmarks.svg").is_file()
    for name in command.names():
        assert f"\n## {name}\n" in page, name
    assert "Quick run" not in page


# --- networks and counts ---


class Three(nn.Module):
    """Convolutions that can be counted naively, on maps of 5 x 4 and 3 x 2."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.fc = nn.Linear(5 * 3 * 2, 3)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc(torch.flatten(F.relu(self.c(x)), 1))


def test_batch_normalisation_gets_the_mean_statistics_of_batches():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    images = np.random.default_rng(0).normal(2, 3, (16, 3, 4, 4)).astype(np.float32)
    networks.calibrate(model, images)
    with torch.no_grad():
        seen = [model[0](torch.from_numpy(part)) for part in np.array_split(images, 4)]
    for name, wanted in (("running_mean", [s.mean((0, 2, 3)) for s in seen]),
                         ("running_var", [s.var((0, 2, 3)) for s in seen])):  # fmt: skip
        torch.testing.assert_close(getattr(model[1], name), torch.stack(wanted).mean(0))
    assert not model.training


def test_faults_are_compared_with_whole_runs_and_multiply_adds_counted():
    torch.manual_seed(1)
    images = torch.randn(16, 3, 5, 4).numpy()
    program = quantise(capture(Three().eval(), images), images)
    placement = Placement(program, load_accel("systolic", "os"))
    campaign = flips.Campaign(placement, images[:6], threads=1)
    done = campaign.run(200, 7)
    assert set(done.seconds) == set(flips.PARTS) and (done.image == np.arange(200) % 6).all()
    again = campaign.run(200, 8)
    assert not np.array_equal(done.rows["word"], again.rows["word"])
    found = flips.compare(campaign, done, 150)
    assert (found.faults, found.wrong) == (150, 0)

    convolutions = [op for op in program.ops if isinstance(op, P.Conv)]
    assert set(done.rows["layer"]) == {op.index for op in convolutions}
    every = [op.index for op in program.ops[:-1]]
    golden = P.run(program, images[:6], keep=every).kept
    hooks = FaultHooks(placement, Batch(done.rows[:150], np.arange(150)))
    faulty = P.run(program, images[done.image[:150]], hooks=hooks, keep=every).kept
    windows = changed = 0
    for op in convolutions:
        source, (out, channels, *_), step = op.inputs[0], op.weight.shape, op.stride[0]
        _, height, width = op.shape
        for fault in range(150):
            codes = faulty[source][fault] != golden[source][done.image[fault]]
            for y in range(height):
                for x in range(width):
                    rows = range(max(y * step - 1, 0), min(y * step + 2, codes.shape[0]))
                    across = range(max(x * step - 1, 0), min(x * step + 2, codes.shape[1]))
                    count = sum(int(codes[i, j].sum()) for i in rows for j in across)
                    windows += 9 * channels * out * (count > 0)
                    changed += out * count
    assert 0 < changed < windows
    assert (found.windows, found.changed) == (windows / 150, changed / 150)

    done.found.acc[[3, 60], 1] += 1
    assert flips.compare(campaign, done, 150).wrong == 2


def test_a_rival_without_limits_and_a_run_without_rivals():
    rounds = [types.SimpleNamespace(rate=rate) for rate in (100.0, 110.0)]
    rivals = [injections.Opponent("PyTorchFI 0.6.0", None, "batch 8", 1.0, [10.0, 11.0]),
              injections.Opponent("MRFI 2.1.0", None, "batch 8", 1.0, [5.0, 5.0])]  # fmt: skip
    turns = injections.Turns(rounds, rivals, [])
    first, second = injections.against("resnet8", 2, turns, "note")
    assert first.ratio == 10 and first.floor in (10, 30) and second.floor is None
    assert first.name == "resnet8: injections, 2 threads" and picture.RATES in first.name
    timed = injections.against("mobilenet-v2", 2, turns, "note")
    assert all(figure.floor is figure.aim is None for figure in timed)
    turns = injections.Turns(rounds, [], ["MRFI: not there"])
    (alone,) = injections.against("resnet8", 1, turns, "note")
    assert not alone.others and alone.verdict == "" and "MRFI: not there" in alone.note


def test_the_loop_of_the_peak_multiplies_and_adds():
    if not peak.supported():
        assert peak.macs_per_second(1) is None
        return
    seed, count = 0x05F6077F, 1000
    left = seed.to_bytes(4, "little")
    right = (seed ^ 0x01020304).to_bytes(4, "little")
    dot = sum(a * (b - 256 if b > 127 else b) for a, b in zip(left, right))
    wanted = sum(chain + count * dot for chain in range(peak.CHAINS))
    assert (int(peak._work(count, np.int32(seed))) - wanted) % (1 << 32) == 0


# --- rivals ---


def test_rivals_draw_from_the_outputs_that_fsim_draws_from():
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    model, _ = networks.network("resnet8", images)
    sites = serve.outputs(model, torch.from_numpy(images))
    placement = Placement(quantise(capture(model, images), images), load_accel("systolic", "os"))
    convolutions = [op for op in placement.program.ops if isinstance(op, P.Conv)]
    assert sites.names == [op.name for op in convolutions]
    assert sites.shapes == [op.shape for op in convolutions]
    blocks = select(placement, sites.names, ("psums",)).blocks
    assert int(sites.ends[-1]) == sum(block.exposed_words for block in blocks)
    assert all(block.residencies == 1 for block in blocks)


def test_every_output_is_drawn_once_in_a_round_of_all_numbers():
    class InTurn:
        def integers(self, high, size):
            return np.arange(size) % high

    shapes = [(2, 3, 1), (1, 1, 1), (4, 2, 2)]
    layer, place = Sites("abc", shapes, [1, 1, 1]).draw(23, InTurn())
    wanted = [(i, p) for i, shape in enumerate(shapes) for p in range(np.prod(shape))]
    assert list(zip(layer.tolist(), place.tolist())) == wanted


class FakeTool:
    """Strikes every second image of a batch, in its class."""

    LAYOUTS = ("channels first",)

    def __init__(self, model, sites, batch, shape):
        self.model, self.batch = model, batch

    def run(self, images, rng):
        assert len(images) == self.batch
        logits = self.model(images).clone()
        logits[::2] = logits[::2].flip(1)
        return logits


@pytest.fixture
def server(monkeypatch, tmp_path):
    module = types.ModuleType("bench.rivals.fake_tool")
    module.Tool, module.LAYOUTS = FakeTool, FakeTool.LAYOUTS
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(serve.TOOLS, "fake", "numpy")
    torch.manual_seed(0)
    monkeypatch.setattr(serve, "build", lambda network: Three())
    torch.save(Three().state_dict(), tmp_path / "w.pt")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3, 5, 4)).astype("f4"))
    made = serve.Server("fake")
    threads = torch.get_num_threads()
    told = made.answer("prepare", network="two", weights=str(tmp_path / "w.pt"),
                       images=str(tmp_path / "x.npy"), threads=threads)  # fmt: skip
    assert told["outputs"] == (4 + 6) * 5 * 4 + 5 * 3 * 2 and told["version"] == np.__version__
    return made


def test_a_rival_counts_injections_and_what_they_change(server):
    assert server.answer("choose", batch=4, layout="channels first") == {}
    done = server.answer("run", seconds=0, seed=1)
    assert (done["injections"], done["differ"]) == (4, 2)
    _, batches, *_ = server.setting(4, "channels first")
    assert [len(part) for part in batches] == [4, 4]  # six images, the first two again
    torch.testing.assert_close(batches[1][2:], server.images[:2])
    with pytest.raises(ValueError, match="no such request"):
        server.answer("dance")


def rival(code: str) -> client.Rival:
    """A process that does what `code` says for each line it is given."""
    loop = "import sys, json, time\nfor line in sys.stdin:\n    asked = json.loads(line)\n"
    body = "\n".join(f"    {line}" for line in code.splitlines())
    return client.Rival("fake", [sys.executable, "-c", f"{loop}{body}"])


def test_a_rival_is_asked_line_by_line_and_its_best_setting_chosen():
    code = (
        "rate = {8: 50, 32: 80}.get(asked.get('batch'), 0) * (1 + (asked.get('layout') == 'b'))\n"
        "print(json.dumps({'ok': {'injections': rate, 'seconds': 1, 'asked': asked}}), flush=True)"
    )
    with rival(code) as fake:
        assert fake.ask("run", seed=3)["asked"] == {"do": "run", "seed": 3}
        assert fake.best(["a", "b"], (8, 32), 0.1, 60) == [
            (160, 32, "b"), (100, 8, "b"), (80, 32, "a"), (50, 8, "a"),
        ]  # fmt: skip
        assert fake.best(["a", "b"], (8, 32), 0.1, 0) == [(100, 8, "b"), (50, 8, "a")]
    assert fake.process.poll() is not None


@pytest.mark.parametrize(
    "code, message",
    [
        ("print(json.dumps({'error': 'KeyError: x'}), flush=True)", "fake: KeyError: x"),
        ("print('no torch', file=sys.stderr); sys.exit(3)", "fake ended with status 3: no torch"),
        ("time.sleep(60)", "fake did not answer in 0.2 s"),
    ],
)
def test_a_rival_that_fails_is_told(monkeypatch, code, message):
    if "answer" in message:
        monkeypatch.setattr(client, "PATIENCE_S", 0.2)
    with rival(code) as fake, pytest.raises(client.RivalError, match=message):
        fake.ask("run")


def test_an_environment_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "ENVIRONMENT", tmp_path)
    with pytest.raises(client.RivalError, match="make bench-rivals"):
        client.Rival("mrfi")
