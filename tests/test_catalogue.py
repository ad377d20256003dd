"""The analysis of hardware faults: every row is complete, and what it names exists."""

from __future__ import annotations

import json

import pytest

from fsim.fault_models.catalogue import (
    BEYOND,
    CAUSES,
    CERTAINTY,
    FAULTS,
    PLATFORMS,
    faults_on,
)
from fsim.fault_models.families import BUILT_IN
from fsim.fault_models.statistical import MODELS
from tests.test_imports import HELP, loaded_by


def test_rows_use_the_words_that_are_explained():
    assert len({row.name for row in FAULTS}) == len(FAULTS)
    for row in FAULTS:
        assert row.platforms and set(row.platforms) <= set(PLATFORMS), row.name
        assert row.causes and set(row.causes) <= set(CAUSES), row.name
        assert row.kind in ("hard", "soft") and row.level in ("weights", "features"), row.name
        assert row.certainty in CERTAINTY and row.reference, row.name
        assert all((row.source, row.position, row.component, row.mitigation, row.formula)), row.name
    assert {cause for row in FAULTS for cause in row.causes} == set(CAUSES)
    assert {row.certainty for row in FAULTS} == set(CERTAINTY)


def test_every_row_names_a_model_that_exists_and_strikes_what_the_row_says():
    for row in FAULTS:
        assert row.models or row.inject, f"nothing represents {row.name}"
        for model in row.models:
            assert row.level in MODELS[model].targets, (row.name, model)


def test_every_model_of_the_paper_represents_some_fault():
    named = {model for row in FAULTS for model in row.models}
    assert named == {name for name in MODELS if not name.endswith("awnas")}


@pytest.mark.parametrize("options", sorted({row.inject for row in FAULTS if row.inject}))
def test_fsim_inject_takes_the_options_of_each_row(fsim, options):
    words = options.replace("=P", "=1e-6").replace(" P", " 1e-9").split()
    result = fsim("inject", *words, "--dry-run", "--images", 20)
    assert result.exit_code == 0, result.stderr


# The paper's table by platform: rows of RRAM, of SRAM (both chips), of LUTs and of logic.
@pytest.mark.parametrize(
    ("platform", "names"),
    [
        ("rram", ["rram-stuck-bit", "rram-stuck-weight", "rram-variation", "trojan"]),
        ("fpga", ["sram-weights-hard", "sram-weights-soft", "lut-pe-hard", "lut-pe-soft",
                  "sram-features-hard", "sram-features-soft", "trojan"]),
        ("asic", ["sram-weights-hard", "sram-weights-soft", "sram-features-hard",
                  "sram-features-soft", "logic-pe-hard", "logic-pe-soft", "trojan"]),
    ],
)  # fmt: skip
def test_a_platform_has_its_rows(fsim, platform, names):
    assert [row.name for row in faults_on(platform)] == names
    printed = json.loads(fsim("faults", "--platform", platform, "--json").stdout)
    assert [row["name"] for row in printed["faults"]] == names
    assert printed["platform"] == platform
    for row in printed["faults"]:
        assert row["certainty"] in printed["certainty"]


def test_the_table_explains_itself(fsim):
    text = fsim("faults").stdout
    for row in FAULTS:
        assert text.count(row.name) >= 2 and row.formula in text
    for word, meaning in CERTAINTY.items():
        assert f"{word}" in text and meaning in text
    for tag in ("[R", "RECALL", "[W]"):
        assert tag not in text


def test_every_named_model_is_listed(fsim):
    assert [row.name for row in BEYOND] == [*BUILT_IN, "attack"]
    printed = json.loads(fsim("faults", "--json").stdout)["models"]
    text = fsim("faults").stdout
    for row, told in zip(BEYOND, printed):
        assert set(row.causes) <= set(CAUSES) and row.source and row.name in text
        assert told["name"] == row.name and told["about"] == row.about
    models = json.loads(fsim("faults", "--models", "--json").stdout)["models"]
    assert [model["name"] for model in models] == list(BUILT_IN)
    assert fsim("faults", "--models", "--platform", "asic").exit_code == 2


def test_an_unknown_platform_is_refused_in_one_line(fsim):
    result = fsim("faults", "--platform", "gpu")
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1


def test_the_command_loads_no_heavy_library():
    assert not loaded_by(HELP.format(arguments=["faults"])) & {"torch", "numba", "numpy", "scipy"}
