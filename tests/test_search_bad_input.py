"""What `fsim nas` refuses: damaged and foreign checkpoints, genotypes that do not fit."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fsim.cli import main
from fsim.errors import ConfigError
from fsim.nas.training.folder import RunFolder

SPACE = ("--layout", "NR", "--steps", 1, "--channels", 2)
RUN = ("--images", 64, "--epochs", 1, "--proposals", 2)
NONE = ("--fault-backend", "none")


def nas(*arguments):
    return CliRunner().invoke(main, ["nas", *map(str, arguments)])


def refused(done, *says):
    """One line on stderr with all of `says`, exit code 2, nothing else printed."""
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1 and not done.stdout, done.output
    for text in says:
        assert str(text) in done.stderr, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished search."""
    folder = tmp_path_factory.mktemp("search") / "run"
    done = nas("search", *SPACE, *RUN, "--fault-backend", "torch", "--mibb", "1e-3", "--out",
               folder)  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


class Runs:
    """A pickle that would run something."""

    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def flipped(content: bytes, at: float) -> bytes:
    """One byte changed, at this share of the file."""
    found = bytearray(content)
    found[int(at * len(found))] ^= 0x10
    return bytes(found)


DAMAGES = {
    "half": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-1],
    "ten bytes": lambda whole: whole[:10],
    "empty": lambda whole: b"",
    "random": lambda whole: np.random.default_rng(0).bytes(len(whole)),
    "a byte of a tensor": lambda whole: flipped(whole, 0.5),
    "a byte of the pickle": lambda whole: flipped(whole, 0.01),
    "pickle": lambda whole: pickle.dumps({"identity": "{}"}),
    "pickle that runs": lambda whole: pickle.dumps(Runs()),
    "torch pickle that runs": lambda whole: saved(Runs()),
    "another dict": lambda whole: saved({"weights": torch.zeros(3)}),
    "a list": lambda whole: saved([1, 2]),
    "identity is no JSON": lambda whole: saved({"identity": "{"}),
    "identity is a number": lambda whole: saved({"identity": 7}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(damage, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "checkpoint.pt"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    options = ("--fault-backend", "torch", "--mibb", "1e-3", "--out", folder, "--resume")
    refused(nas("search", *SPACE, *RUN, *options), file, "one of fsim nas search")
    refused(nas("derive", "--search", folder), file)
    assert not (tmp_path / "pickle-was-run").exists()


def test_no_byte_of_a_checkpoint_changes_unnoticed(tmp_path):
    """A change is refused, or lies where the file holds nothing (padding, time stamps)."""
    state = {"a": torch.arange(200.0), "history": "[1, 2, 3]"}
    RunFolder(tmp_path, {"seed": 1}, "fsim train").save(state)
    file = tmp_path / "checkpoint.pt"
    whole, refusals = file.read_bytes(), 0
    for at in np.linspace(0, 1, 97, endpoint=False):
        file.write_bytes(flipped(whole, at))
        found = {}
        try:
            RunFolder(tmp_path, {"seed": 1}, "fsim train", found.update)
        except ConfigError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refusals += 1
        else:
            assert torch.equal(found["a"], state["a"]) and found["history"] == state["history"]
    assert refusals > 30


def test_what_a_checkpoint_lacks_is_named(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "checkpoint.pt"
    whole = torch.load(file)
    del whole["optimiser"]
    file.write_bytes(saved(whole))
    refused(nas("derive", "--search", folder), file, "got one without 'optimiser'")
    state = whole["supernet"]
    state.pop(next(iter(state)))
    file.write_bytes(saved(whole))
    refused(nas("derive", "--search", folder), file, "one of fsim nas search")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (("--seed", 1), "settings.seed: 0 there, 1 asked for"),
        (("--epochs", 2), "settings.epochs: 1 there, 2 asked for"),
        (("--alpha-r", 0.1), "settings.alpha_r: 0.5 there, 0.1 asked for"),
        (("--method", "evolution"), "method: 'rl' there, 'evolution' asked for"),
        (("--layout", "NN"), "space.layout: 'NR' there, 'NN' asked for"),
        (("--channels", 3), "space.init_channels: 2 there, 3 asked for"),
        (("--images", 65), "data: "),
        (("--mibb", "2e-3"), "faults.models: "),
        (("--adsaf", "0.1"), "faults.models: "),
    ],
)
def test_a_checkpoint_of_another_search_names_the_field(changed, field, finished):
    before = (finished / "checkpoint.pt").read_bytes()
    done = nas("search", *SPACE, *RUN, "--fault-backend", "torch", "--mibb", "1e-3", "--out",
               finished, "--resume", *changed)  # fmt: skip
    refused(done, "of another configuration", field, finished / "checkpoint.pt")
    assert (finished / "checkpoint.pt").read_bytes() == before


def test_the_checkpoint_of_a_training_is_none_of_a_search(finished, tmp_path):
    out = tmp_path / "net"
    done = nas("train", finished / "genotype.toml", "--images", 64, "--test-images", 32,
               "--epochs", 1, *NONE, "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    refused(nas("search", *SPACE, *RUN, *NONE, "--out", out, "--resume"), "another configuration")


@pytest.mark.parametrize(
    ("text", "says"),
    [("{}", "got none with "), ("[]", "got list"), ("{", "got Expecting"), (None, "got no ")],
)
def test_options_that_are_none_of_a_search_are_refused(text, says, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "options.json"
    file.unlink() if text is None else file.write_text(text)
    refused(nas("derive", "--search", folder), "must", says, folder)


@pytest.mark.parametrize("change", [{"seed": "x"}, {"epochs": [1]}, {"ber": 3}])
def test_options_of_another_type_are_refused(change, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "options.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(nas("derive", "--search", folder), "must be one of fsim nas search", "options.json")


def test_options_written_before_there_were_devices_are_taken(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "options.json"
    options = json.loads(file.read_text())
    del options["device"]
    file.write_text(json.dumps(options))
    done = nas("derive", "--search", folder, "--samples", 1)
    assert done.exit_code == 0, done.output


# --- genotypes


@pytest.mark.parametrize(
    ("primitives", "says"),
    [
        ("sep_conv_3x3,sep_conv_4x4", "got 'sep_conv_4x4'; did you mean sep_conv_"),
        ("conv_9x9", "operation must be one of"),
        ("adsaff", "operation must be one of"),
        ("none,none", "primitives must differ"),
        ("", "operation must be one of"),
    ],
)
def test_unknown_primitives_are_refused_before_anything_is_written(primitives, says, tmp_path):
    out = tmp_path / "run"
    refused(nas("search", "--primitives", primitives, *NONE, "--out", out), says)
    assert not out.exists()


HEAD = '[space]\nlayout = "N R"\nsteps = 2\nprimitives = ["conv_1x1", "none"]\n'
CELL = '2 = ["conv_1x1 from 0", "none from 1"]\n3 = ["conv_1x1 from 2", "none from 0"]\n'
BOTH = f"[normal]\n{CELL}[reduce]\n{CELL}"
GENOTYPES = {
    "unknown operation": (BOTH.replace("conv_1x1 from 2", "conv_9x9 from 2", 1),
                          "normal cell, node 3: operation must be one of conv_1x1, none"),
    "not of the space": (BOTH.replace("conv_1x1 from 2", "max_pool_3x3 from 2", 1),
                         "got 'max_pool_3x3'"),
    "reads itself": (BOTH.replace("from 2", "from 3", 1), "must read earlier nodes, 0 to 2"),
    "a step too few": (BOTH.replace('3 = ["conv_1x1 from 2", "none from 0"]\n', "", 1),
                       "the normal cell must have 2 steps, got 1"),
    "no reduce cell": (f"[normal]\n{CELL}", "the reduce cell must have 2 steps, got 0"),
    "three inputs": (BOTH.replace('"none from 1"', '"none from 1", "none from 0"', 1),
                     "must have 2 inputs, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", GENOTYPES)
@pytest.mark.parametrize("command", ["train", "show", "evaluate"])
def test_genotypes_that_do_not_fit_are_refused(command, name, tmp_path):
    body, says = GENOTYPES[name]
    file = tmp_path / "cells.toml"
    file.write_text(HEAD + body)
    out = tmp_path / "out"
    more = {"train": ("--out", out), "show": ("--out", out.with_suffix(".png")),
            "evaluate": ("--weights", tmp_path / "none.pt")}  # fmt: skip
    refused(nas(command, file, *more[command]), says, file)
    assert list(tmp_path.iterdir()) == [file]


def test_the_genotype_that_those_are_made_from_fits(tmp_path):
    file = tmp_path / "cells.toml"
    file.write_text(HEAD + BOTH)
    assert nas("show", file).exit_code == 0


def test_weights_of_another_genotype_are_refused(finished, tmp_path):
    out = tmp_path / "net"
    done = nas("train", finished / "genotype.toml", "--images", 64, "--test-images", 32,
               "--epochs", 1, *NONE, "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    file = tmp_path / "cells.toml"
    file.write_text(HEAD + BOTH)
    weights = out / "weights.safetensors"
    refused(nas("evaluate", file, "--weights", weights), "does not fit", weights)
