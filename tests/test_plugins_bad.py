"""Plug-ins that are wrong: one line that names them, never a crash and never a number."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.upsets import SingleFault
from fsim.session import open_session
from fsim.simulator.draws import Draws
from fsim.simulator.model_rows import model_rows, numbered_rows
from fsim.simulator.sites import select
from fsim.skeleton import write_skeleton
from fsim.types import FAULT
from tests.test_layout import ROOT
from tests.test_plugins import fsim, install, python

MODELS = '''
from dataclasses import dataclass

import numpy as np

from fsim.fault_models.parameters import parameter
from fsim.fault_models.rows import flip_rows


@dataclass(frozen=True)
class Weight:
    """A bit of one weight of one layer, for every image."""

    layer: str = parameter("its layer", "conv2")
    word: int = parameter("its word", 5)

    name = "weight"
    unit = "image"
    lasting = False

    def __post_init__(self):
        1 / self.word

    def rows(self, space, trial, images, draws):
        (block,) = (b for b in space.blocks if (b.component, b.name) == ("weights", self.layer))
        number = space.accel.component_index("weights")
        return flip_rows(len(images), trial=trial, image=images, event=np.arange(len(images)),
                         layer=block.layer, component=number, word=self.word, xor_mask=1)


@dataclass(frozen=True)
class Plain(Weight):
    layer: str = "conv2"
    name = "plain"


@dataclass(frozen=True)
class Typed(Weight):
    layer: list = parameter("its layers", ())
    name = "typed"


class Loose:
    name = "loose"
'''

CRITERIA = """
def fails(golden, faulty, labels):
    return golden[:, 99] > 0


def leaves(golden, faulty, labels):
    raise SystemExit(0)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with fault models and criteria, most of them wrong."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "wrongs.py").write_text(MODELS)
    (folder / "judges.py").write_text(CRITERIA)
    (folder / "quits.py").write_text("raise SystemExit(0)\n")
    install(
        folder, "fsim-wrongs",
        "[fsim.fault_models]\nweight = wrongs:Weight\nplain = wrongs:Plain\n"
        "typed = wrongs:Typed\nloose = wrongs:Loose\ngone = nowhere:Gone\nquits = quits:Quits\n"
        "[fsim.metrics]\nfails = judges:fails\nleaves = judges:leaves\n",
    )  # fmt: skip
    return folder


def refused(found, *says: str) -> None:
    """One line on stderr that says all of this, and exit code 2."""
    assert found.returncode == 2, found.stdout + found.stderr
    assert found.stderr.count("\n") == 1 and "Traceback" not in found.stderr, found.stderr
    for text in says:
        assert text in found.stderr, found.stderr


# --- fault models ---


def test_fault_models_that_do_not_load_hide_no_others(site):
    listed = fsim(site, "faults", "--models", "--json")
    assert listed.returncode == 0, listed.stderr
    names = {model["name"] for model in json.loads(listed.stdout)["models"]}
    assert {"weight", "mcu", "timing"} <= names
    assert not names & {"plain", "typed", "loose", "gone", "quits"}
    warnings = listed.stderr.splitlines()
    assert len(warnings) == 5 and all(line.startswith("warning: ") for line in warnings)
    for text in (
        "'plain' must declare its field layer by fsim.fault_models.parameters.parameter",
        "layer of typed must be declared int, float or str, got list",
        "'loose' must be a dataclass",
        "'gone' must be importable, got ModuleNotFoundError: No module named 'nowhere'",
        "'quits' must be importable, got SystemExit: 0 (quits, line 1)",
    ):
        assert text in listed.stderr


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("plain", "must declare its field layer"),
        ("weight,layer=conv9", "'weight' must run without an error of its own, got ValueError"),
        ("weight,word=0", "got ZeroDivisionError: division by zero (wrongs, line"),
        ("weight,word=100000", "'weight' must lie on the machine: word must be in 0..4607"),
        ("weight,word=3000000000000", "word must be in 0..4607, got 3000000000000"),
        ("weigth,word=1", "did you mean 'weight'?"),
    ],
)
def test_inject_refuses_a_wrong_fault_model(site, fault, says):
    run = ("--fault", fault, "--images", 4, "--trials", 2)
    refused(fsim(site, "inject", *run, "--no-curve"), says)


def test_campaign_refuses_a_wrong_fault_model(site, tmp_path):
    out = tmp_path / "x.h5"
    found = fsim(site, "campaign", "--fault", "weight,word=100000", "--images", 4, "--trials", 4,
                 "--out", out)  # fmt: skip
    refused(found, "'weight' must lie on the machine: word must be in 0..4607")
    assert not out.exists()


def test_campaign_names_the_nearest_fault_model(site):
    refused(fsim(site, "campaign", "--fault", "weigth,word=1"), "; did you mean weight?")


@pytest.fixture(scope="module")
def space():
    return select(open_session("digits-cnn", load_accel("systolic-8x8"), images=4).placement)


IMAGES = np.arange(4)


class Given:
    """A fault model of somebody else: rows as given."""

    name, unit, lasting = "given", "image", False

    def __init__(self, rows):
        self.given = rows

    def rows(self, space, trial, images, draws):
        return self.given

    def rows_at(self, space, cells, which, word, bit):
        return self.given


def psum_rows(space) -> np.ndarray:
    """Upsets of the register psum, one an image."""
    return SingleFault("seu").rows(select(space.placement, None, ["psum"]), 0, IMAGES, Draws(1))


def weight_rows(space) -> np.ndarray:
    rows = BitErrors(acts=0.0, weights=1e-3, psums=0.0).rows(space, 0, IMAGES, Draws(1))
    return rows[rows["component"] == space.accel.component_index("weights")]


@pytest.mark.parametrize("drawn", [psum_rows, weight_rows])
def test_rows_that_are_right_pass_as_they_are(space, drawn):
    rows = drawn(space)
    assert len(rows) and model_rows(Given(rows), space, 0, IMAGES, Draws(0)) is rows


@pytest.mark.parametrize(
    ("drawn", "field", "value", "says"),
    [
        (psum_rows, "row", 500, "row must be in 0..7, got 500"),
        (psum_rows, "col", -1, "col must be in 0..7, got -1"),
        (psum_rows, "first", 10**9, "first must be a cycle of its layer, got 1000000000"),
        (psum_rows, "component", 99, "component must be in"),
        (psum_rows, "trial", 7, "trial of a row of trial 0 must be that trial, got 7"),
        (psum_rows, "image", 4, "image of a row of trial 0 must be one of those asked for"),
        (psum_rows, "image", -1, "image of a row of trial 0 must be one of those asked for"),
        (psum_rows, "xor_mask", 1 << 31, "xor_mask must be extended by its sign"),
        (psum_rows, "xor_mask", 1 << 40, "xor_mask must be extended by its sign"),
        (weight_rows, "xor_mask", 128, "must be extended by its sign, as words of 8 bits are"),
        (weight_rows, "word", 10**12, "word must be in 0.."),
        (weight_rows, "first", 99, "residency must be in 0.."),
        (weight_rows, "layer", 0, "word must be in 0..-1"),
    ],
)
def test_rows_that_lie_nowhere_are_refused(space, drawn, field, value, says):
    rows = drawn(space)
    rows[field][-1] = value
    with pytest.raises(FaultError, match="'given'") as error:
        model_rows(Given(rows), space, 0, IMAGES, Draws(0))
    assert says in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [None, [], np.zeros(3), np.zeros((2, 2), FAULT), np.zeros(2, FAULT).tolist()],
)
def test_what_are_no_rows_is_refused(space, rows):
    for draw in (
        lambda model: model_rows(model, space, 0, IMAGES, Draws(0)),
        lambda model: numbered_rows(model, space, (), IMAGES, IMAGES, IMAGES),
    ):
        with pytest.raises(FaultError, match="must be a vector of fsim.types.FAULT"):
            draw(Given(rows))


def test_numbered_faults_are_one_row_each(space):
    rows = psum_rows(space)
    assert numbered_rows(Given(rows), space, (), np.arange(len(rows)), None, None) is rows
    with pytest.raises(FaultError, match="one row a fault, got 4 for 3"):
        numbered_rows(Given(rows), space, (), np.arange(3), None, None)


def test_chips_have_no_images(space):
    rows = psum_rows(space)
    model = Given(rows)
    model.unit = "trial"
    with pytest.raises(FaultError, match="must be -1, as its unit is 'trial'"):
        model_rows(model, space, 0, IMAGES, Draws(0))


# --- criteria ---


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fails", "the criterion 'fails' must run without an error of its own, got IndexError"),
        ("leaves", "the criterion 'leaves' must run without an error of its own, got SystemExit"),
    ],
)
def test_a_criterion_that_fails_is_named(site, tmp_path, name, says):
    found = fsim(site, "campaign", "--fault", "flip", "--trials", 60, "--images", 20,
                 "--critical", name, "--out", tmp_path / "x.h5")  # fmt: skip
    refused(found, says, "(judges, line")


# --- accelerators ---


@pytest.fixture
def npu(tmp_path):
    """A new folder with the skeleton `my-npu`, installed."""
    write_skeleton("my-npu", tmp_path / "my-npu")
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "my-npu" / "my_npu").rename(folder / "my_npu")
    install(folder, "fsim-my-npu", "[fsim.accelerators]\nmy-npu = my_npu\n")
    return folder


def change(site: Path, file: str, old: str, new: str) -> None:
    path = site / "my_npu" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("schedule.py", "def cycles", "def cycles(", "got SyntaxError"),
        ("schedule.py", "return _tiles", "return 1 // 0 * _tiles",
         "schedule.py of family 'my-npu' must run without an error of its own, got "
         "ZeroDivisionError"),
        ("__init__.py", 'presets=str(Path(__file__).resolve().parent / "presets")', "presets=5",
         "presets of family 'my-npu' must be the path"),
    ],
)  # fmt: skip
def test_a_schedule_that_fails_is_named(npu, file, old, new, says):
    change(npu, file, old, new)
    refused(fsim(npu, "accel", "show", "my-npu", "--gemm", "4,4,4"), says)


@pytest.mark.parametrize(
    ("new", "got"),
    [
        ("return np.array(out, np.int64)", "ndarray"),
        ("return np.array(out, np.int64)[:1], None", "int64 of shape (1, 2)"),
        ("return np.array(out, np.float64), None", "float64 of shape (2, 2)"),
        ("return np.array(out[9], np.int64), None", "IndexError"),
    ],
)
def test_a_reference_that_answers_wrongly_is_named(npu, new, got):
    change(npu, "cycle.py", "return np.array(out, np.int64), waves.arrays()", new)
    code = (
        "import numpy as np, fsim\n"
        "from fsim.errors import ConfigError\n"
        "a = np.ones((2, 2), int)\n"
        "try:\n"
        "    fsim.gemm(a, a, accel='my-npu', backend='reference')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    found = python(npu, "-c", code)
    assert "cycle.py of family 'my-npu'" in found.stdout and got in found.stdout, found.stderr


def test_a_dataflow_of_its_own_needs_loops(npu):
    change(npu, "__init__.py", '("os",)', '("bcast",)')
    change(npu, "presets/my-npu.yaml", "dataflow: os", "dataflow: bcast")
    found = fsim(npu, "inject", "--accel", "my-npu", "--images", 2, "--trials", 1, "--no-curve")
    refused(found, "must have loops(accel) in schedule.py for its dataflow 'bcast'")


def test_who_asks_for_a_machine_hears_that_its_plug_in_is_broken(npu):
    change(npu, "__init__.py", "FAMILY = ", "FAMILY_ = ")
    refused(fsim(npu, "accel", "show", "my-npu"), "must define FAMILY with that name, got None")


def test_a_preset_whose_name_is_taken_is_told(npu):
    presets = npu / "my_npu" / "presets"
    (presets / "systolic.yaml").write_text((presets / "my-npu.yaml").read_text())
    listed = fsim(npu, "accel", "list")
    assert listed.returncode == 0
    assert "warning: the preset 'systolic' of family 'my-npu' must have a name of its own" in (
        listed.stderr
    )
    shown = json.loads(fsim(npu, "accel", "show", "systolic", "--json").stdout)
    assert shown["family"] == "systolic"


VECTORS = """
import json
import sys

import numpy as np

import fsim
from fsim.simulator.runners import run_reference
from fsim.types import fault_table

rng = np.random.default_rng(3)
a, b = rng.integers(-9, 9, (5, 6)), rng.integers(-9, 9, (6, 10))
accel = fsim.load_accel("my-npu", overrides={"rows": 4, "cols": 4})
names = [c.name for c in accel.components if c.kind != "memory"]
widths = [c.bits for c in accel.components if c.kind != "memory"]
clean, waves = run_reference(accel, a, b, None, np.zeros((0, 10), np.int64), True)
faults = [(s, rng.integers(4), rng.integers(4), rng.integers(widths[s]), rng.integers(40))
          for s in (0, 1, 2, 3) * 10]
outs = []
for site, row, col, bit, cycle in faults:
    fault = fsim.Fault(names[site], row=int(row), col=int(col), bit=int(bit), cycle=int(cycle))
    outs.append(fsim.gemm(a, b, accel=accel, faults=[fault], backend="reference").out)
outs = np.array(outs)
wrong = sys.argv[1:] == ["wrong"]
meta = {"design": "npu", "dataflow": "OS", "rows": 4, "cols": 4, "sites": names,
        "site_bits": widths, "kinds": ["flip"], "cases": [{"M": 5, "K": 6, "N": 10}],
        "n_vectors": len(faults)}
columns = np.array(faults).T
trace = waves["out"].copy()
trace[7, 3] += wrong
np.savez_compressed(
    "npu.npz", meta=json.dumps(meta), A0=a, B0=b, C0=clean, T0=len(trace), trace_golden0=trace,
    f_case=np.zeros(40, int), f_kind=np.zeros(40, int), f_site=columns[0], f_row=columns[1],
    f_col=columns[2], f_bit=columns[3], f_cycle=columns[4], f_off=np.arange(40) * 50,
    f_out=outs.reshape(-1), f_masked=(outs == clean).all(axis=(1, 2)),
)
"""


def test_vectors_are_checked_on_a_family_without_tile(npu):
    (npu / "write.py").write_text(VECTORS)
    done = python(npu, "write.py")
    assert done.returncode == 0, done.stderr
    verify = ("verify", "--vectors", "npu.npz", "--accel", "my-npu", "--json")
    found = fsim(npu, *verify)
    assert found.returncode == 0, found.stderr
    reports = {report["backend"]: report for report in json.loads(found.stdout)["vectors"]}
    assert set(reports) == {"replay", "reference"}
    assert all(r["vectors"] == 40 and not r["failed"] for r in reports.values())
    assert reports["reference"]["skipped"] == 0
    refused(fsim(npu, *verify, "--backend", "tile"), "family 'my-npu' has no tile.py")

    python(npu, "write.py", "wrong")
    found = fsim(npu, *verify)
    assert found.returncode == 1, found.stderr
    (wrong,) = (m for r in json.loads(found.stdout)["vectors"] for m in r["mismatches"])
    assert (wrong["cycle"], wrong["register"], wrong["row"], wrong["col"]) == (7, "out", 0, 3)


# --- skeletons ---


def test_a_name_of_one_word_does_not_hide_its_own_package(tmp_path):
    write_skeleton("ws4", tmp_path / "ws4")
    project = tmp_path / "ws4"
    install(project, "fsim_ws4", re.search(
        r"\[project\.entry-points\.\"(.*?)\"\]\n\"ws4\" = \"(.*?)\"",
        (project / "pyproject.toml").read_text(),
    ).expand(r"[\1]\nws4 = \2\n"))  # fmt: skip
    # Where the folder was made, which Python searches first.
    path = os.pathsep.join(map(str, (tmp_path, ROOT, project)))
    shown = subprocess.run(
        [sys.executable, "-m", "fsim", "accel", "show", "ws4"], capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=300,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("name", ["tests", "build", "src"])
def test_names_of_folders_that_projects_have_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="a new family's name must not be"):
        write_skeleton(name, tmp_path / "new")


@pytest.mark.parametrize("folder", ["my_npu", "a\nb"])
def test_folders_that_would_do_harm_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="the folder of a new family must have a name"):
        write_skeleton("my-npu", tmp_path / folder)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_name_is_not_the_folder_we_are_in(tmp_path):
    refused(fsim(tmp_path, "accel", "new", "my-npu", "--dir", ""), "--dir must be the name")


def test_nothing_is_left_of_a_skeleton_that_a_full_disk_ended(tmp_path, monkeypatch):
    written, whole = [], Path.write_text

    def full(path, *arguments, **options):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_skeleton("my-npu", tmp_path / "one" / "two")
    assert len(written) == 3 and not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(write_skeleton("my-npu", tmp_path / "one" / "two")) == 7
