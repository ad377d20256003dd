"""Other distributions bring families, criteria and fault models through entry points."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs_tools.pages import agrees, blocks, steps
from fsim.errors import ConfigError
from fsim.skeleton import write_skeleton
from fsim.testing import accelerator_contract
from tests.test_layout import ROOT

CRITERIA = """
import numpy as np


def margin(golden, faulty, labels):
    "The golden class leads by less than half of what it did."
    best = golden.argmax(axis=1)
    rows = np.arange(len(golden))
    def lead(x):
        rest = x.copy()
        rest[rows, best] = -np.inf
        return x[rows, best] - rest.max(axis=1)
    return lead(faulty) < lead(golden) / 2


def one_number(golden, faulty, labels):
    return 0.5


def by_batch(golden, faulty, labels):
    "Wrong: it depends on who else is in the batch."
    return faulty.max(axis=1) >= np.median(faulty.max(axis=1)) + (len(faulty) > 1) * 5


def writes(golden, faulty, labels):
    "Wrong: it changes what it is given."
    faulty -= golden
    return faulty.any(axis=1)


def raises(golden, faulty, labels):
    return golden[:, 99] > 0
"""


def install(site: Path, name: str, entry_points: str) -> None:
    """What pip would leave: metadata beside the modules in a folder on the path."""
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(entry_points)


def python(site: Path, *arguments, cwd=None):
    """Run the interpreter with the plug-ins of `site`."""
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd or site,
        env={**os.environ, "PYTHONPATH": path}, timeout=600,
    )  # fmt: skip


def fsim(site: Path, *arguments):
    return python(site, "-m", "fsim", *arguments)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A folder with the skeleton `my-npu` written and installed."""
    folder = tmp_path_factory.mktemp("npu")
    site = folder / "site"
    write_skeleton("my-npu", folder / "my-npu")
    site.mkdir()
    (folder / "my-npu" / "my_npu").rename(site / "my_npu")
    install(site, "fsim-my-npu", "[fsim.accelerators]\nmy-npu = my_npu\n")
    return site


def contract(site: Path, *only: str):
    """One line a check of the contract of my-npu, all checks or some."""
    code = (
        "import sys\n"
        "from fsim.testing import accelerator_contract\n"
        f"only = {list(only)!r}\n"
        "for check in accelerator_contract('my-npu'):\n"
        "    if only and not any(word in check.name for word in only):\n"
        "        continue\n"
        "    try:\n"
        "        check()\n"
        "        print('ok', check)\n"
        "    except AssertionError as error:\n"
        "        print('failed', check, error)\n"
    )
    found = python(site, "-c", code)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.slow
def test_the_skeleton_keeps_the_whole_contract(family):
    lines = contract(family)
    assert len(lines) == 15
    assert all(line.startswith("ok ") for line in lines), "\n".join(lines)


def test_a_new_family_is_listed_shown_and_run(family):
    listed = fsim(family, "accel", "list")
    assert "my-npu" in listed.stdout and listed.returncode == 0, listed.stderr
    line = next(line for line in listed.stdout.splitlines() if line.startswith("my-npu"))
    assert "not checked against RTL" in line
    shown = json.loads(fsim(family, "accel", "show", "my-npu", "--gemm", "8,4,8", "--json").stdout)
    assert shown["gemm"]["cycles"] == 5
    run = fsim(family, "inject", "--accel", "my-npu", "--ber", "1e-4", "--images", 20, "--trials",
               2, "--no-curve", "--json")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["accuracy"]["clean"] > 0.9


PORT = "waves.record(S, [value for row in S.psum for value in row])"
STRUCK = f"                faults.after_edge(S, t)\n                {PORT}\n"
UNSTRUCK = f"                {PORT}\n                faults.after_edge(S, t)\n"
SUM = "wrap(S.psum[i][j] + product, accel.acc_bits)"
CLIPPED = (
    "max(-(1 << accel.acc_bits - 1), min((1 << accel.acc_bits - 1) - 1, S.psum[i][j] + product))"
)
LOOPS = """
def loops(accel):
    from fsim.accel_models.families import Loops

    return Loops(accel.rows, None, None, 1)


def plan("""


@pytest.mark.parametrize(
    ("check", "says", "changes"),
    [
        ("every-single-fault", "as in the reference",
         [("schedule", "PRODUCT, (1, 1, 0, 0, 0)", "PRODUCT, (0, 1, 0, 0, 0)")]),
        ("every-single-fault", "as in the reference",
         [("schedule", "phase_cycles=k + 1", "phase_cycles=k")]),
        ("every-single-fault", "as in the reference",
         [("schedule", "MUL, MUL), PRODUCT", "MUL, MUL), WEIGHT")]),
        ("cycles-and-waves", "must be .cycles, rows, cols",
         [("schedule", "* (k + 1)", "* (k + 2)")]),
        ("cycles-and-waves", "must be an int > 0, got 2.0 of type float",
         [("schedule", "* (k + 1)", "* (k + 1.0)")]),
        ("cycles-and-waves", "must pass 'out', the output port",
         [("cycle", PORT, "waves.record(S, [0])")]),
        # Right on square arrays.
        ("every-single-fault", "as in the reference",
         [("schedule", "rows=accel.rows,", "rows=accel.cols,")]),
        ("cycles-and-waves", "must be .cycles, rows, cols",
         [("schedule", "ceil_div(m, accel.rows)", "ceil_div(m, accel.cols)")]),
        ("cycles-and-waves", "must be .cycles, rows, cols",
         [("cycle", "rows, cols = accel.rows, accel.cols", "cols, rows = accel.rows, accel.cols"),
          ("cycle", "min(cols, n - n0)", "min(rows, n - n0)")]),
        # What adders do beyond their width.
        ("clean-products", "as by integers that wrap",
         [("cycle", "padded(d, m0 + i, n0 + j)", "0")]),
        ("overflow", "as by integers that wrap", [("cycle", SUM, CLIPPED)]),
        ("overflow", "as by integers that wrap",
         [("cycle", SUM, CLIPPED), ("schedule", 'accel.overflow == "saturate"', "True")]),
        ("overflow", "as by integers that saturate",
         [("__init__", '("wrap",)', '("wrap", "saturate")')]),
        ("overflow", "fsim.gemm.* as in the reference",
         [("__init__", '("wrap",)', '("saturate",)'), ("cycle", SUM, CLIPPED),
          ("schedule", 'accel.overflow == "saturate"', "False"),
          ("presets/my-npu.yaml", "overflow: wrap", "overflow: saturate")]),
        ("unsigned-activations", "as in the reference",
         [("__init__", 'overflow=("wrap",)', 'unsigned_acts=(False, True)'),
          ("cycle", "product = wrap(S.ifmap[i][j] *", "product = wrap(wrap(S.ifmap[i][j], 3) *")]),
        # Widths that are not the machine's.
        ("widths", "'psum' must fit its 5 bits",
         [("schedule", '"psum", accel.acc_bits,', '"psum", accel.acc_bits - 1,')]),
        ("widths", "all 8 bits of 'psum' must be used",
         [("schedule", '"psum", accel.acc_bits,', '"psum", accel.acc_bits + 2,')]),
        ("widths", "'filter' must fit its 2 bits",
         [("schedule", '"filter", word,', '"filter", word - 1,')]),
        ("widths", "all 8 bits of 'ifmap' must be used",
         [("schedule", '"ifmap", word,', '"ifmap", 8,')]),
        ("widths", "no bit of 'mul' .4 bits",
         [("schedule", '"mul", accel.product_bits,', '"mul", accel.product_bits - 2,')]),
        ("widths", "bit 6 of 'mul' .8 bits. must be used",
         [("schedule", '"mul", accel.product_bits,', '"mul", accel.product_bits + 2,')]),
        ("roles", "'filter' has role 'ifmap'",
         [("schedule", '"ifmap", word, "register", "ifmap"', '"ifmap", word, "register", "filter"'),
          ("schedule", '"filter", word, "register", "filter"',
           '"filter", word, "register", "ifmap"')]),
        ("faults-in-waves", "must show in its wave", [("cycle", STRUCK, UNSTRUCK)]),
        ("components", "as often as the plan has folds", [("schedule", "\ndef plan(", LOOPS)]),
        ("components", "must have loops.accel. for a dataflow other than",
         [("__init__", '("os",)', '("mine",)'),
          ("presets/my-npu.yaml", "dataflow: os", "dataflow: mine")]),
        ("presets", "must be its own, got 'other'",
         [("presets/my-npu.yaml", "name: my-npu", "name: other")]),
        ("network", "must run without an exception, got .*",
         [("schedule", "segments=(", "segments=1 / 0 and (")]),
    ],
)  # fmt: skip
def test_a_wrong_family_breaks_the_contract(family, tmp_path, check, says, changes):
    site = changed(family, tmp_path, changes)
    lines = [line for line in contract(site, check) if line.split()[1].endswith(check)]
    assert len(lines) == 1
    assert lines[0].startswith("failed ") and re.search(says, lines[0]), lines


def changed(family: Path, tmp_path: Path, changes) -> Path:
    """A copy of the installed family with texts of its files replaced: (file, old, new)."""
    site = tmp_path / "site"
    shutil.copytree(family, site)
    for file, old, new in changes:
        path = site / "my_npu" / (file if "." in file else f"{file}.py")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    return site


def test_a_preset_is_tried_with_its_own_numbers(family, tmp_path):
    """A second preset, of a width at which the family is wrong."""
    site = changed(
        family, tmp_path,
        [("cycle", "accel.product_bits)", "accel.product_bits - (accel.operand_bits == 5))")],
    )  # fmt: skip
    text = (site / "my_npu/presets/my-npu.yaml").read_text().replace("name: my-npu", "name: five")
    assert all(line.startswith("ok ") for line in contract(site, "presets"))
    (site / "my_npu/presets/five.yaml").write_text(
        text.replace("operand: 8", "operand: 5").replace("product: 16", "product: 10")
    )
    found = contract(site, "presets")
    assert [line.split()[0] for line in found] == ["ok", "failed"] and "preset five" in found[1]
    (site / "my_npu/presets/five.yaml").rename(site / "my_npu/presets/systolic.yaml")
    assert "that no other preset has" in contract(site, "presets")[0]


def test_bits_to_spare_must_be_named(family, tmp_path):
    site = changed(
        family, tmp_path,
        [("schedule", '"psum", accel.acc_bits,', '"psum", accel.acc_bits + 2,')],
    )  # fmt: skip
    code = (
        "from fsim.testing import accelerator_contract\n"
        "for check in accelerator_contract('my-npu', spare=['psum']):\n"
        "    if check.name == 'os-widths':\n"
        "        check()\n"
        "        print('passed')\n"
    )
    assert python(site, "-c", code).stdout == "passed\n"


@pytest.mark.parametrize("name", ["gemmini", "tpu", "pipelined"])
def test_families_of_fsim_keep_the_checks_without_faults(name):
    """Honest machines are not refused."""
    words = ("components", "clean", "overflow", "unsigned", "presets", "waves", "widths", "roles")
    ran = 0
    for check in accelerator_contract(name):
        if any(word in check.name for word in words):
            check()
            ran += 1
    assert ran >= 9


def test_a_register_that_no_fault_reaches_breaks_the_contract(family, tmp_path):
    spare = '        Component("spare", word, "register", "psum", ("reference",), "unused"),\n    )'
    site = changed(family, tmp_path, [("schedule", 'adder"),\n    )', 'adder"),\n' + spare)])
    (line,) = contract(site, "every-component-matters")
    assert line.startswith("failed ") and "spare" in line


def test_a_broken_plug_in_hides_no_other_machine(tmp_path):
    (tmp_path / "bad_npu.py").write_text("raise RuntimeError('no licence')\n")
    install(tmp_path, "fsim-bad", "[fsim.accelerators]\nbad-npu = bad_npu\n")
    listed = fsim(tmp_path, "accel", "list")
    assert listed.returncode == 0 and "gemmini-like" in listed.stdout
    assert "warning: the plug-in of family 'bad-npu' must be importable" in listed.stderr
    assert "no licence" in listed.stderr
    (tmp_path / "mine.yaml").write_text("name: mine\nfamily: bad-npu\n")
    checked = fsim(tmp_path, "accel", "check", "mine.yaml")
    assert checked.returncode == 2 and "Traceback" not in checked.stderr


@pytest.mark.parametrize(
    "name",
    ["", "My-npu", "systolic", "gemmini-like", "numpy", "class", "-x", "a--b", "a/b", "x" * 41],
)
def test_names_that_a_family_cannot_have_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="a new family's name must"):
        write_skeleton(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(ConfigError, match="must not exist yet"):
        write_skeleton("my-npu", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def criteria(tmp_path_factory):
    site = tmp_path_factory.mktemp("criteria")
    (site / "judges.py").write_text(CRITERIA)
    install(
        site, "fsim-judges",
        "[fsim.metrics]\nmargin = judges:margin\nnumber = judges:one_number\n"
        "batch = judges:by_batch\nmissing = judges:nothing\n"
        "writes = judges:writes\nraises = judges:raises\n",
    )  # fmt: skip
    return site


def test_a_criterion_of_a_plug_in_decides_what_is_critical(criteria):
    run = ["campaign", "--fault", "flip", "--trials", 400, "--images", 50, "--json"]
    plain = fsim(criteria, *run, "--out", "plain.h5")
    other = fsim(criteria, *run, "--critical", "margin", "--out", "margin.h5")
    assert other.returncode == 0, other.stderr
    plain, other = json.loads(plain.stdout), json.loads(other.stdout)
    assert other["critical"] == "margin"
    counts = [found["outcomes"]["sdc_critical"]["count"] for found in (plain, other)]
    assert counts[1] > counts[0]
    assert plain["outcomes"]["sdc"]["count"] == other["outcomes"]["sdc"]["count"]
    again = json.loads(fsim(criteria, "replay", "margin.h5", "--json").stdout)
    assert again["differences"] == 0
    assert "--critical margin" in fsim(criteria, "cite", "margin.h5").stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("number", "must return (.*) booleans, got float64"),
        ("missing", "must be importable, got AttributeError"),
        ("margn", "did you mean 'margin'"),
    ],
)
def test_a_criterion_that_is_none_is_refused(criteria, tmp_path, name, says):
    found = fsim(criteria, "campaign", "--fault", "flip", "--trials", 50, "--critical", name,
                 "--out", tmp_path / "x.h5")  # fmt: skip
    assert found.returncode != 0 and "Traceback" not in found.stderr
    assert re.search(says, found.stderr), found.stderr


def test_the_criterion_contract_tells_good_from_bad(criteria):
    code = (
        "from fsim.testing import criterion_contract\n"
        "names = 'top1 top5 wrong margin batch number writes raises missing nowhere'\n"
        "for name in names.split():\n"
        "    for check in criterion_contract(name):\n"
        "        try:\n"
        "            check()\n"
        "        except AssertionError as error:\n"
        "            print(name, check)\n"
    )
    found = python(criteria, "-c", code)
    every = ["booleans", "one-by-one", "inputs-unchanged"]
    wanted = ["batch one-by-one", "number booleans", "number one-by-one", "writes inputs-unchanged"]
    wanted += [f"{name} {check}" for name in ("raises", "missing", "nowhere") for check in every]
    assert found.stdout.splitlines() == wanted, found.stdout + found.stderr


def test_the_criterion_of_the_guide_keeps_its_contract(tmp_path):
    page = (ROOT / "docs" / "how-to/add-an-accelerator.md").read_text()
    (code,) = (block.text for block in blocks(page) if block.language == "python")
    (tmp_path / "my_package.py").write_text(code)
    (entry,) = re.findall(r"confident = \"(my_package:\w+)\"", page)
    install(tmp_path, "fsim-confident", f"[fsim.metrics]\nconfident = {entry}\n")
    code = (
        "import numpy as np\n"
        "from fsim.simulator.criteria import criterion\n"
        "from fsim.testing import criterion_contract\n"
        "for check in criterion_contract('confident'):\n"
        "    check()\n"
        "golden = np.float32([[1, 3], [1, 3], [1, 3]])\n"
        "faulty = np.float32([[4, 1], [2, 1], [0, 9]])\n"
        "print(criterion('confident')(golden, faulty, None).tolist())\n"
    )
    found = python(tmp_path, "-c", code)
    assert found.stdout == "[True, False, False]\n", found.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("patch") is None, reason="the page's changes need patch")
def test_the_guide_does_what_it_says(tmp_path):
    """Every command of the page, in order, with what pip would do done by hand."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "my-npu", ROOT))),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    last = ""
    for block in blocks((ROOT / "docs" / "how-to/add-an-accelerator.md").read_text()):
        if block.language == "text":
            for line in block.text.strip().splitlines():
                pieces = [re.escape(piece) for piece in line.split("...")]
                assert re.search(".*".join(pieces), last), f"{line}\nnot in\n{last}"
            continue
        if block.language not in ("sh", "console"):
            continue
        for step in steps(block):
            if step.here is not None:
                (tmp_path / step.here[0]).write_text(step.here[1])
                continue
            if step.command.startswith("pip install"):
                install(
                    tmp_path / "my-npu", "fsim-my-npu", "[fsim.accelerators]\nmy-npu = my_npu\n"
                )
                continue
            if step.command.startswith("fsim verify"):
                continue  # it needs the reader's RTL
            command = step.command.replace("pytest -q", "pytest -q -p no:cacheprovider")
            done = subprocess.run(
                ["sh", "-c", command], cwd=tmp_path, env=environment, text=True, timeout=600,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            last = done.stdout
            failing = command.startswith("pytest") and "FAILED" in last  # the page says so
            assert done.returncode == 0 or failing, f"{command}\n{last}"
            if step.output:
                assert agrees(step.output, last), f"{command} printed\n{last}"
    assert "15 passed" in last


FAULT_MODELS = '''
from dataclasses import dataclass

import numpy as np

from fsim.fault_models.parameters import parameter
from fsim.fault_models.rows import flip_rows


@dataclass(frozen=True)
class FirstWeight:
    """A bit of one weight of the first layer, for every image.

    bit  which one
    """

    bit: int = parameter("bit of the weight", 6)

    name = "first-weight"
    unit = "image"
    lasting = False

    def rows(self, space, trial, images, draws):
        block = next(b for b in space.blocks if b.component == "weights")
        images = np.asarray(images, np.int64)
        word = draws.sites(block.words, 1, 77 << 20, trial, images)[:, 0]
        names = [c.name for c in space.accel.components]
        return flip_rows(
            len(images), trial=trial, image=images, event=np.arange(len(images)),
            layer=block.layer, component=names.index("weights"), word=word,
            xor_mask=1 << self.bit,
        )


@dataclass(frozen=True)
class Batchwise(FirstWeight):
    name = "batchwise"

    def rows(self, space, trial, images, draws):
        rows = super().rows(space, trial, images, draws)
        rows["word"] = rows["word"][0]  # wrong: that of the first image asked for
        return rows


@dataclass(frozen=True)
class Seedless(FirstWeight):
    name = "seedless"

    def rows(self, space, trial, images, draws):
        rows = super().rows(space, trial, images, draws)
        rows["word"] = (trial + rows["image"]) % 7  # wrong: whatever the seed
        return rows


@dataclass(frozen=True)
class Everlasting(FirstWeight):
    """The same word in every trial: right only if that is said."""

    name = "everlasting"

    def rows(self, space, trial, images, draws):
        rows = super().rows(space, trial, images, draws)
        rows["word"] = 5
        return rows


@dataclass(frozen=True)
class Unextended(FirstWeight):
    name = "unextended"

    def rows(self, space, trial, images, draws):
        rows = super().rows(space, trial, images, draws)
        rows["xor_mask"] = 128  # wrong: the sign bit is -128
        return rows


@dataclass(frozen=True)
class Far(FirstWeight):
    name = "far"

    def rows(self, space, trial, images, draws):
        rows = super().rows(space, trial, images, draws)
        rows["word"] += 3_000_000_000_000  # wrong: there are not that many
        return rows


class Undeclared:
    """Neither a dataclass nor with a name or lasting."""

    unit = "image"
    rows = FirstWeight().rows


class Nothing:
    name = "nothing"
'''


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    site = tmp_path_factory.mktemp("models")
    (site / "strikes.py").write_text(FAULT_MODELS)
    install(
        site, "fsim-strikes",
        "[fsim.fault_models]\nfirst-weight = strikes:FirstWeight\nbatchwise = strikes:Batchwise\n"
        "nothing = strikes:Nothing\n",
    )  # fmt: skip
    return site


def test_a_fault_model_of_a_plug_in_is_drawn_stored_and_replayed(models):
    run = fsim(models, "inject", "--fault", "first-weight,bit=5", "--images", 20, "--trials", 3,
               "--no-curve", "--trace", "t.h5", "--json")  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {row["component"] for row in found["faults_by"]} == {"weights"}
    again = fsim(models, "replay", "t.h5", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["differences"] == 0, again.stderr
    wrong = fsim(models, "inject", "--fault", "nothing", "--images", 2, "--trials", 1)
    assert wrong.returncode != 0 and "must be a dataclass with" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("model", "broken"),
    [
        ("FirstWeight()", []),
        ("Batchwise()", ["images-alone"]),
        ("Seedless()", ["trials-differ"]),
        ("Everlasting()", ["trials-differ"]),
        ("Everlasting(), fixed=True", []),
        ("FirstWeight(), fixed=True", ["seed-does-not-matter"]),
        ("Unextended()", ["codes-stay-codes"]),
        ("Far()", ["valid-rows", "runs"]),
        ("Undeclared()", ["declaration"]),
        ("FirstWeight", ["declaration", "valid-rows", "codes-stay-codes", "same-again",
                         "trials-differ", "images-alone", "runs"]),
    ],
)  # fmt: skip
def test_the_fault_model_contract_tells_good_from_bad(models, model, broken):
    code = (
        "from strikes import *\n"
        "from fsim.testing import fault_model_contract\n"
        f"for check in fault_model_contract({model}):\n"
        "    try:\n"
        "        check()\n"
        "    except AssertionError as error:\n"
        "        print(check)\n"
        "        assert str(error)\n"
    )
    found = python(models, "-c", code)
    assert found.returncode == 0 and found.stdout.split() == broken, found.stdout + found.stderr
