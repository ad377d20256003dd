"""Vectors of a row-stationary PE in `fsim verify`: all pass, and what is wrong is found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fsim.errors import ConfigError, FaultError
from fsim.simulator.verify_rows import builtin_rows, is_row_file, read_rows, verify_rows


def altered(tmp_path, **changes):
    """The built-in file with some arrays replaced (None: left out)."""
    with np.load(builtin_rows()) as file:
        arrays = dict(file) | changes
    path = tmp_path / "altered.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def meta_with(**changes):
    with np.load(builtin_rows()) as file:
        return json.dumps(json.loads(str(file["meta"])) | changes)


@pytest.mark.parametrize("backend", ["replay", "reference"])
def test_all_built_in_vectors_pass(backend):
    report = verify_rows(backend=backend)
    assert (report.vectors, report.total, report.failed, report.skipped) == (300, 300, 0, 0)
    assert report.passed == 7 * 2 + 300 * 2  # result and cycles; result and masked flag
    assert {tally.check for tally in report.tallies} == {
        "fault-free result", "cycles", "flip result", "stuck0 result", "stuck1 result",
        "masked flag",
    }  # fmt: skip


def test_one_wrong_number_is_found_and_named(fsim, tmp_path):
    with np.load(builtin_rows()) as file:
        out, offset = file["f_out"].copy(), int(file["f_off"][17])
    out[offset + 1] ^= 4
    path = altered(tmp_path, f_out=out)
    assert is_row_file(path)
    report = verify_rows(path)
    assert report.failed == 1
    (mismatch,) = report.mismatches
    assert (mismatch.vector, mismatch.row, mismatch.col) == (17, 0, 1)
    assert mismatch.expected == mismatch.got ^ 4
    result = fsim("verify", "--vectors", path, "--backend", "replay")
    assert result.exit_code == 1
    assert "first difference, altered.npz, replay: vector 17, case" in result.stdout


def test_the_command_reports_rows_beside_arrays(fsim):
    options = ("verify", "--every", "60", "--seconds", "0", "--backend", "reference", "--json")
    report = json.loads(fsim(*options).stdout)
    (rows,) = report["rows"]
    assert rows["file"] == "eyeriss_pe.npz" and rows["vectors"] == 5 and rows["failed"] == 0
    assert "eyeriss_pe.npz" not in {item["file"] for item in report["vectors"]}
    only = json.loads(fsim("verify", "--vectors", builtin_rows(), "--json").stdout)
    assert only["vectors"] == [] and [item["vectors"] for item in only["rows"]] == [300, 300]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ifm2": None}, "ifm2"),
        ({"fil0": np.zeros(12)}, "fil0 must hold integers"),
        ({"f_bit": np.zeros(3, int)}, "f_bit must have n_vectors entries"),
        ({"f_case": np.full(300, -1)}, "f_case must not be negative"),
        ({"f_kind": np.full(300, 9)}, "keys that docs/vectors.md names"),
        ({"f_off": np.full(300, 1 << 40)}, "keys that docs/vectors.md names"),
        ({"C0": np.zeros((2, 2), int)}, "keys that docs/vectors.md names"),
        ({"meta": meta_with(cases=[{"S": 1}])}, "keys that docs/vectors.md names"),
        ({"meta": meta_with(sites=["x", "y", "z", "w"])}, None),
    ],
)
def test_files_that_are_not_right_are_refused(tmp_path, changes, says):
    path = altered(tmp_path, **changes)
    if says is None:
        with pytest.raises(FaultError, match="component must be one of"):
            verify_rows(path)
        return
    with pytest.raises(ConfigError, match=says) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
