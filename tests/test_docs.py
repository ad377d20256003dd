"""The examples and tables of docs/ are true."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from fsim.accel_models.families import family_names
from fsim.accel_models.load import OVERRIDES, load_accel
from fsim.accel_models.schema import CHOICES, NUMBERS
from fsim.fault_models.families import BUILT_IN, make_family, parse_family
from fsim.fault_models.network import network_rows
from fsim.parse import parse_fault
from fsim.session import open_session
from fsim.simulator.explain import bits_struck
from fsim.simulator.sites import select
from fsim.types import Fault
from tests.test_layout import ROOT

DOCS = ROOT / "docs"


def document(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def block(name: str, language: str) -> str:
    """The one code block of a language in a document."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", document(name), re.DOTALL)
    return found


def first_cells(text: str) -> set[str]:
    """What stands in code style in the first column of a document's tables."""
    return {
        name
        for line in text.splitlines()
        if line.startswith("| ")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def test_the_example_accelerator_is_valid_and_has_every_key(fsim, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(block("accelerators.md", "yaml"))
    assert fsim("accel", "check", path).stdout.startswith("ok: edge-npu, ")
    accel = load_accel(path)
    assert (accel.rows, accel.cols, accel.acc_bits, accel.overflow) == (12, 16, 24, "wrap")
    assert accel.buffers["acts"].double_buffered and not accel.buffers["psums"].double_buffered
    for key in (*NUMBERS, *CHOICES):
        assert f" {key.split('.')[-1]}:" in f" {path.read_text()}".replace("\n", " ")
    result = fsim("inject", "--accel", path, "--images", 2, "--trials", 1, "--no-curve")
    assert result.exit_code == 0, result.output


def test_the_accelerator_tables_name_what_there_is():
    text = document("accelerators.md")
    cells = first_cells(text)
    for key in (*NUMBERS, *CHOICES, "name", "family", "about", "sources"):
        memory = re.sub(r"buffers\.\w+\.", "buffers.M.", key)
        assert memory in cells, key
    assert set(family_names()) <= cells
    for name in OVERRIDES:
        assert name in cells or name.startswith("buffers."), name


def test_the_example_network_runs(fsim, tmp_path, monkeypatch):
    (tmp_path / "docnet.py").write_text(block("networks.md", "python"))
    monkeypatch.chdir(tmp_path)
    result = fsim("inject", "--model", "docnet:make", "--images", 4, "--trials", 1, "--no-curve")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("note: weights as the factory makes them (torch seed 0)\n")


def test_the_example_of_quantisation_parameters_is_taken(fsim, tmp_path):
    path = tmp_path / "scales.json"
    path.write_text(block("networks.md", "json"))
    given = json.loads(path.read_text())
    program = open_session(
        "digits-cnn", load_accel("systolic"), images=2, quant_params=given
    ).program
    ops = {op.name: op for op in program.ops}
    assert ops["x"].scale == given["x"]["scale"] and not ops["x"].signed
    assert ops["conv1"].scale == 0.015
    assert (ops["conv1"].weight_scale == 0.02).all() and len(ops["conv1"].weight_scale) == 16
    assert (ops["fc"].weight_scale == 0.004).all()
    run = ("inject", "--images", 2, "--trials", 1, "--no-curve", "--quant-params", path)
    assert fsim(*run).exit_code == 0


def test_the_keys_of_a_fault_are_all_told():
    assert set(Fault.__dataclass_fields__) <= first_cells(document("faults.md"))


@pytest.fixture(scope="module")
def space():
    return select(open_session("digits-cnn", load_accel("systolic"), images=6).placement)


def test_the_faults_of_the_document_exist(space):
    texts = re.findall(r"fsim inject --fault ((?:layer|component)=\S+)", document("faults.md"))
    assert len(texts) == 3
    rows = network_rows([parse_fault(text) for text in texts], space)
    assert [bits_struck(row, bits) for row, bits in zip(rows, (8, 32, 32))] == [
        "bit 7 flipped", "bit 24 flipped", "bit 7 stuck at 1"]  # fmt: skip
    assert rows["xor_mask"][0] == -128
    assert rows["image"].tolist() == [-1, 5, -1] and rows["layer"][2] == -1
    conv2 = next(op for op in space.placement.program.ops if op.name == "conv2")
    assert conv2.weight.shape == (32, 16, 3, 3)
    assert np.unravel_index(1471, conv2.weight.shape) == (10, 3, 1, 1)


def test_the_models_of_the_document_are_made():
    text = document("faults.md")
    found = re.findall(r'--fault (?:"([a-z-]+,[^"]*)"|([a-z-]+,\S+))', text)
    made = [make_family(*parse_family(one or other)) for one, other in found]
    assert {model.name for model in made} >= {
        "mcu", "mbu-patterns", "control", "sram-voltage", "intermittent-duty"
    }  # fmt: skip
    special = {"crossbar-stuck", "crossbar-variation", "config-upsets"}  # on their own pages
    assert first_cells(text) >= set(BUILT_IN) - special


def test_masks_of_signed_and_unsigned_words_are_stored_as_told(space):
    signed = {op.name: op.signed for op in space.placement.program.ops}
    assert signed["conv3"] and not signed["conv2"]
    for layer, mask in (("conv3", -128), ("conv2", 128)):
        (row,) = network_rows([Fault("acts", bit=7, word=0, layer=layer)], space)
        assert row["xor_mask"] == mask
    (row,) = network_rows([Fault("weights", bit=1, kind="flip", word=0, layer="conv2")], space)
    assert (row["and_mask"], row["or_mask"], row["xor_mask"]) == (-1, 0, 2)
    stuck = [Fault("psum", bit=1, kind=kind) for kind in ("stuck0", "stuck1")]
    rows = network_rows(stuck, space)
    assert (rows["and_mask"][0], rows["or_mask"][1]) == (-3, 2)


def test_the_product_of_the_readme_prints_what_it_says(fsim, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text("utf-8")
    code, printed = re.search(
        r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", text, re.S
    ).groups()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
    command, printed = re.search(r"    fsim (gemm .*?)\n\n```\n(.*?)```", text, re.S).groups()
    monkeypatch.chdir(tmp_path)
    assert fsim(*command.replace("\\\n", " ").split()).stdout == printed


@pytest.mark.slow
def test_the_campaign_of_the_readme_prints_what_it_says(fsim, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text("utf-8")
    section = text[text.index("## Campaigns\n") : text.index("## Your own network\n")]
    command, printed = re.search(
        r"    fsim (campaign .*?)\n\n```\n(.*?)\.\.\.\n```", section, re.S
    ).groups()
    monkeypatch.chdir(tmp_path)

    def timeless(text):
        return re.sub(r" in [0-9.]+ s", "", text)

    result = fsim(*command.split(), "--quiet")
    assert result.exit_code == 0 and timeless(result.stdout).startswith(timeless(printed))
    (condition,) = re.findall(r'--fail-if "(.*?)"', section)
    for command in re.findall(r"`fsim ((?:campaign|curve|chips|protect|report|cite|trace|replay)"
                              r"\s[^`]*\.(?:h5|csv)[^`]*)`", section):  # fmt: skip
        result = fsim(*command.split())
        assert result.exit_code == 0, (command, result.output)
    result = fsim("campaign", "--trials", 20, "--images", 5, "--out", "ci.h5",
                  "--fail-if", condition)  # fmt: skip
    assert result.exit_code == 4 and "FAILED: fails if" in result.stdout
    assert fsim("compare", "strata.h5", "strata.h5").exit_code == 0
