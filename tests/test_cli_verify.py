"""`fsim verify` and `fsim doctor`: what they report, and that they fail when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from fsim import __version__
from fsim.errors import ConfigError
from fsim.simulator.crosscheck import MACHINES
from fsim.simulator.vectors import read_vectors
from fsim.simulator.verify import builtin_vectors
from fsim.threads import use_threads
from tests.test_layout import ROOT

QUICK = ("verify", "--every", "40", "--seconds", "0")


def test_verify_runs_every_built_in_file_with_every_backend(fsim):
    result = fsim(*QUICK, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"]) == (0, True)
    assert {(item["file"], item["backend"]) for item in report["vectors"]} == {
        (path.name, backend)
        for path in builtin_vectors()
        for backend in ("tile", "replay", "reference")
    }
    for item in report["vectors"]:
        assert item["failed"] == 0 < item["passed"]
        assert item["every"] == 40
        assert item["vectors"] == -(-item["vectors_in_file"] // 40)
    in_files = {item["file"]: item["vectors_in_file"] for item in report["vectors"]}
    assert in_files == {path.name: len(read_vectors(path).vectors) for path in builtin_vectors()}


def test_verify_prints_a_table_and_the_total(fsim):
    result = fsim(*QUICK, "--backend", "replay")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for path in builtin_vectors():
        (row,) = [line for line in lines if line.startswith(path.name)]
        total = len(read_vectors(path).vectors)
        assert " replay " in row and f" {-(-total // 40)} of {total} " in row
    assert lines[-1].split()[2:5] == ["passed,", "0", "failed"]
    assert "vectors: faults, 5,435 in 8 files" in lines


def test_verify_compares_backends_on_random_products(fsim):
    path = builtin_vectors()[0]
    only_vectors = json.loads(fsim(*QUICK, "--vectors", path, "--json").stdout)
    assert only_vectors["kernels"] == []
    arguments = ("verify", "--every", "500", "--seconds", "0.2", "--json", "--backend", "replay")
    kernels = json.loads(fsim(*arguments).stdout)["kernels"]
    assert {row["backend"] for row in kernels} == {"replay"}
    assert len(kernels) == len(MACHINES)
    assert all(row["failed"] == 0 < row["passed"] for row in kernels)


@pytest.fixture
def altered(tmp_path):
    """A copy of a vector file with one bit of one fault's result inverted."""
    source = next(path for path in builtin_vectors() if path.name == "gemmini_ws_4x4.npz")
    with np.load(source, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    masked = np.flatnonzero(arrays["f_masked"] == 0)
    arrays["f_out"] = arrays["f_out"].copy()
    arrays["f_out"][arrays["f_off"][masked[0]]] ^= 1
    path = tmp_path / "altered.npz"
    np.savez(path, **arrays)
    return path, int(masked[0])


def test_one_altered_number_fails_and_is_shown(fsim, altered):
    path, vector = altered
    arguments = ("verify", "--vectors", path, "--backend", "tile")
    result = fsim(*arguments)
    assert result.exit_code == 1
    assert f"first difference, altered.npz, tile: vector {vector}, " in result.stdout
    assert " 1 failed in " in result.stdout
    report = json.loads(fsim(*arguments, "--json").stdout)
    assert (report["ok"], report["vectors"][0]["failed"]) == (False, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--accel", "systolic"], "need --vectors FILE"),
        (["--vectors", "setup.cfg"], "must be a zip archive"),
        (["--vectors", "none.npz"], "must be a regular file that exists"),
        (["--vectors", "VECTORS", "--accel", "systolic"], "vectors are of a gemmini machine"),
        (["--vectors", "VECTORS", "--dataflow", "os"], "need --accel NAME"),
        (["--every", "0"], "0 is not in the range"),
        (["--seconds", "nan"], "must be from 0 to 86400 seconds, got nan"),
    ],
)
def test_a_wrong_request_is_one_line(fsim, arguments, says):
    vectors = str(builtin_vectors()[0])
    result = fsim("verify", *(vectors if part == "VECTORS" else part for part in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr and len(result.stderr.splitlines()) == 1


def test_threads_are_set_for_kernels_and_torch_or_refused():
    kernels, products = numba.get_num_threads(), torch.get_num_threads()
    try:
        assert use_threads(1) == numba.get_num_threads() == torch.get_num_threads() == 1
        assert use_threads(None) == 1
        most = numba.config.NUMBA_NUM_THREADS
        assert use_threads(most) == most
        with pytest.raises(ConfigError, match=f"--threads must be at most {most} here"):
            use_threads(most + 1)
    finally:
        numba.set_num_threads(kernels)
        torch.set_num_threads(products)


def test_doctor_reports_versions_threads_cache_and_paths(fsim):
    result = fsim("doctor", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["versions"]["fsim"] == __version__
    assert report["versions"]["numpy"] == np.__version__
    assert report["threads"]["kernels"] >= 1
    assert report["cache"]["writable"] == os.access(report["cache"]["folder"], os.W_OK)
    paths = {path["name"]: path for path in report["paths"]}
    assert list(paths) == ["vnni", "onednn", "int_mm", "fp32", "fp64", "int64"]
    assert all(path["probed"] > 0 for path in paths.values() if path["usable"])
    assert all(path["wrong"] == 0 for path in paths.values() if path["usable"])
    assert paths["int64"]["usable"]
    text = fsim("doctor").stdout
    for name in (*paths, "numba", "kernel cache", "int8 instructions"):
        assert any(line.startswith(name) for line in text.splitlines())


def test_doctor_sees_that_int8_paths_are_held_below_vnni():
    done = subprocess.run(
        [sys.executable, "-m", "fsim", "doctor", "--json"],
        cwd=ROOT,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    paths = {path["name"]: path for path in json.loads(done.stdout)["paths"]}
    assert not paths["onednn"]["usable"] and not paths["int_mm"]["usable"]
    assert paths["fp32"]["usable"]


def test_doctor_says_when_kernels_cannot_be_kept(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = subprocess.run(
        [sys.executable, "-m", "fsim", "doctor"],
        cwd=ROOT,
        env=os.environ | {"FSIM_CACHE": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "none: kernels are compiled at every start (set FSIM_CACHE" in done.stdout
