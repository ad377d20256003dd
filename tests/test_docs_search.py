"""docs/search.md is true: its commands run, its tables and its file are complete."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fsim.fault_models.statistical import COMPAT
from fsim.nas.search.build import METHODS, PRESETS, SMALL
from fsim.nas.space.definition import ADSAF_PRIMITIVES, SPACES, CellSpace
from fsim.nas.space.files import _KEYS, read_architecture
from tests.test_docs import block, document, first_cells

SHORT = {
    "search": "--images 64 --epochs 1 --proposals 2 --layout NR --steps 1 --channels 2 "
    "--data digits",
    "derive": "",
    "show": "",
    "train": "--images 64 --test-images 32 --epochs 1",
    "evaluate": "--test-images 32 --maps 2",
}
"""Added to a command of the document, so that it takes seconds: of an option that is given
twice the last counts."""


def commands() -> list[str]:
    return re.findall(r"^    fsim (nas .*)$", document("search.md"), re.MULTILINE)


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_document(fsim, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "awnas.json").write_text(block("search.md", "json"))
    assert {command.split()[1] for command in commands()} == set(SHORT)
    for command in commands():
        words = command.split()
        done = fsim(*words, *SHORT[words[1]].split())
        assert done.exit_code == 0, (command, done.output)
    left = {path.name for folder in ("search", "front", "mibb") for path in
            (tmp_path / "out" / folder).iterdir()}  # fmt: skip
    named = first_cells(document("search.md")) | {"front-1.toml"}
    assert {name for name in left if not name.startswith("front-")} <= named
    assert any(name.startswith("front-") for name in left)


def test_the_genotype_file_is_valid_and_has_every_key(tmp_path):
    path = tmp_path / "example.toml"
    path.write_text(block("search.md", "toml"))
    found = read_architecture(path)
    assert (found.name, found.space.layout, found.space.steps) == ("example", "NRN", 2)
    cells = first_cells(document("search.md"))
    fields = dataclasses.fields(CellSpace)
    assert {f"space.{field.name}" for field in fields} <= cells
    assert set(_KEYS) - {"space"} <= cells
    text, body = document("search.md"), path.read_text()
    for field in fields:
        assert f"\n{field.name} = " in body
        default = " ".join(field.default) if field.name == "layout" else field.default
        shown = "all eleven" if field.name == "primitives" else default
        assert re.search(rf"\| `space.{field.name}` \| `?{shown}`? \|", text), field.name


def test_the_tables_name_what_there_is():
    cells = first_cells(document("search.md"))
    assert set(ADSAF_PRIMITIVES) <= cells and set(METHODS) <= cells and set(COMPAT) <= cells


def test_the_presets_are_those_of_the_table():
    (row,) = re.findall(r"\| cells, steps, channels \| (.*) \| (.*) \|", document("search.md"))
    paper = SPACES["adsaf"]
    for shown, space in zip(row, (SMALL, paper)):
        assert shown == f"`{space.layout}`, {space.steps}, {space.init_channels}"
    (row,) = re.findall(r"\| epochs \| (.*) \| (.*) \|", document("search.md"))
    small, whole = PRESETS["default"], PRESETS["paper"]
    assert row[0].startswith(f"{small.epochs}, ") and row[1].startswith(f"{whole.epochs}, ")
    assert f" {small.proposals} proposals" in row[0] and f" {small.warmup} " in row[0]
    # 40,000 and 10,000 of 50,000 images in batches of 64
    assert (whole.share, whole.batch, whole.proposals, whole.warmup) == (0.8, 64, 0, 0)
    assert "625 weight steps and 157 proposals" in row[1]
