"""`fsim gemm`: files in, files out, and nothing written when something is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.naive import matmul

M, K, N = 5, 7, 6
FAULT = "component=psum,row=1,col=2,bit=9,cycle=8"
RUN = ("gemm", "--accel", "systolic", "--set", "rows=3", "--set", "cols=4")


@pytest.fixture
def operands(tmp_path):
    rng = np.random.default_rng(5)
    arrays = {
        "a": rng.integers(-128, 128, (M, K)).astype(np.int8),
        "b": rng.integers(-128, 128, (K, N)).astype(np.int8),
        "d": rng.integers(-1000, 1000, (M, N)).astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return arrays


def files(folder, *names: str) -> list[str]:
    return [part for name in names for part in (f"--{name}", str(folder / f"{name}.npy"))]


def product(operands, bias: bool) -> np.ndarray:
    a, b = (operands[name].tolist() for name in "ab")
    out = np.array(matmul(a, b))
    return out + operands["d"] if bias else out


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
@pytest.mark.parametrize("bias", [False, True])
def test_without_faults_the_file_holds_the_product(fsim, operands, tmp_path, dataflow, bias):
    names = "abd" if bias else "ab"
    out = tmp_path / "c.npy"
    result = fsim(*RUN, "--dataflow", dataflow, *files(tmp_path, *names), "--out", out)
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(np.load(out), product(operands, bias))
    assert "no fault given" in result.stdout


def test_column_major_and_big_endian_files_are_read_as_what_they_hold(fsim, operands, tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(operands["a"]))
    np.save(tmp_path / "b.npy", operands["b"].astype(">i4"))
    out = tmp_path / "c.npy"
    assert fsim(*RUN, *files(tmp_path, "a", "b"), "--out", out).exit_code == 0
    np.testing.assert_array_equal(np.load(out), product(operands, False))


def test_backends_agree_and_the_report_counts_the_changed_outputs(fsim, operands, tmp_path):
    results = []
    for backend in ("reference", "replay", "tile", "auto"):
        out = tmp_path / f"{backend}.npy"
        run = fsim(
            *RUN, *files(tmp_path, "a", "b"), "--fault", FAULT, "--backend", backend,
            "--out", out, "--json",
        )  # fmt: skip
        assert run.exit_code == 0, run.stderr
        report = json.loads(run.stdout)
        results.append(np.load(out))
        np.testing.assert_array_equal(results[-1], results[0])
        changed = int((results[-1] != product(operands, False)).sum())
        assert report["changed_outputs"] == changed == 1
        assert (report["masked"], report["outputs"]) == (False, M * N)
        assert report["backend"] == (backend if backend != "auto" else "replay")
        assert report["shape"] == {"m": M, "k": K, "n": N}
        # SCALE-Sim, weight stationary: ceil(K/R) ceil(N/C) folds of 2R + C + M - 2 cycles.
        assert report["cycles"] == 3 * 2 * (2 * 3 + 4 + M - 2)


def test_several_faults_act_together(fsim, operands, tmp_path):
    stuck = [f"component=psum,row=2,col={col},bit=0,kind=stuck1" for col in range(4)]
    faults = [part for fault in stuck for part in ("--fault", fault)]
    out = tmp_path / "c.npy"
    assert fsim(*RUN, *files(tmp_path, "a", "b"), *faults, "--out", out).exit_code == 0
    # Bit 0 of the partial sum of the bottom row is read as 1 in each of the three folds.
    a, b = operands["a"].astype(int), operands["b"].astype(int)
    wanted = sum((a[:, k : k + 3] @ b[k : k + 3]) | 1 for k in (0, 3, 6))
    np.testing.assert_array_equal(np.load(out), wanted)


def test_the_waveform_holds_every_register_in_every_cycle(fsim, operands, tmp_path):
    wave = tmp_path / "w.npz"
    run = fsim(*RUN, *files(tmp_path, "a", "b"), "--waveform", wave, "--fault", FAULT, "--json")
    assert run.exit_code == 0, run.stderr
    cycles = json.loads(run.stdout)["cycles"]
    with np.load(wave, allow_pickle=False) as waves:
        shapes = {name: waves[name].shape for name in waves.files}
        psum = waves["psum"]
    assert shapes == {name: (cycles, 3, 4) for name in ("ifmap", "filter", "psum")} | {
        "out": (cycles, 4)
    }
    plain = tmp_path / "plain.npz"
    assert fsim(*RUN, *files(tmp_path, "a", "b"), "--waveform", plain).exit_code == 0
    with np.load(plain, allow_pickle=False) as waves:
        differs = np.argwhere(waves["psum"] != psum)
    assert differs[0].tolist() == [8, 1, 2]


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("a", np.zeros((M, K)), "must be a matrix of integer codes, got float64"),
        ("a", np.arange(5), "must be a matrix of integer codes, got int64 of shape (5,)"),
        ("a", np.zeros((0, K), int), "a must be a non-empty matrix, got shape (0, 7)"),
        ("a", np.full((M, K), 128), "codes of a must lie in -128..127"),
        ("a", np.full((M, K), 300, np.uint16), "codes of a must lie in 0..255"),
        ("a", np.zeros((M, K + 1), int), "must share k, got (5, 8) and (7, 6)"),
        ("b", np.full((K, N), -129), "codes of b must lie in -128..127"),
        ("d", np.zeros((M, N + 1), int), "d must be (m,n) = (5, 6), got (5, 7)"),
        ("d", np.full((M, N), 1 << 31), "codes of d must lie in"),
    ],
)
def test_a_wrong_operand_is_one_line_and_nothing_is_written(
    fsim, operands, tmp_path, name, array, says
):
    np.save(tmp_path / f"{name}.npy", array)
    before = sorted(tmp_path.iterdir())
    result = fsim(*RUN, *files(tmp_path, "a", "b", "d"), "--out", tmp_path / "c.npy")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr and len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def header(shape: str, descr: str = "'|i1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00" + b"x" * 99,
        header("(5, 7)")[:40],
        header("(5, 7)") + b"x" * 34,
        header("(50000000000, 70000000000)") + b"x" * 35,
        header("(10**9, 7)") + b"x" * 35,
        header("(-5, 7)") + b"x" * 35,
        header("(5, 7)", "'|O'") + b"x" * 35,
        header("(5, 7)", "[('a', '<i4')]") + b"x" * 140,
        header("(5, 7)", "'spam'") + b"x" * 35,
        header("(" * 60, "'|i1'") + b"x" * 35,
        b"\x80\x04N.",
    ],
)
def test_a_damaged_or_hostile_operand_is_one_line(fsim, operands, tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    result = fsim(*RUN, *files(tmp_path, "a", "b"), "--out", tmp_path / "c.npy")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: an operand must ")
    assert str(tmp_path / "a.npy") in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "component=c1,bit=0,cycle=1"], "component must be one of ifmap, filter"),
        (["--fault", "component=psum,bit=32,cycle=1"], "bit must be in 0..31"),
        (["--fault", "component=psum,bit=0,cycle=78"], "cycle must be in 0..77"),
        (["--fault", "component=psum,bit=0,cycle=1,row=3"], "row must be in 0..2, got 3"),
        (["--fault", "component=psum,bit=0,cycle=1,col=4"], "col must be in 0..3, got 4"),
        (["--fault", "component=acts,bit=0,cycle=1"], "need a network"),
        (["--fault", "component=psum,bit=zero"], "must be a whole number, got 'zero'"),
        (["--backend", "magic"], "'magic' is not one of"),
        (["--truncate", "3"], "truncate must be 0"),
        (["--set", "acc_bits=0"], "bits.acc must be >= 4, got 0"),
        (["--set", "rows=4"], "given once, got rows twice"),
    ],
)
def test_a_wrong_option_is_one_line(fsim, operands, tmp_path, arguments, says):
    result = fsim(*RUN, *files(tmp_path, "a", "b"), "--out", tmp_path / "c.npy", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "c.npy").exists()


def test_outputs_that_cannot_be_written_leave_nothing_behind(fsim, operands, tmp_path):
    run = (*RUN, *files(tmp_path, "a", "b"))
    before = sorted(tmp_path.iterdir())
    result = fsim(*run, "--out", tmp_path / "c.npy", "--waveform", tmp_path / "no" / "w.npz")
    assert result.exit_code == 2
    assert result.stderr == f"Error: No such file or directory: {tmp_path / 'no' / 'w.npz'}\n"
    same = fsim(*run, "--out", tmp_path / "c.npy", "--waveform", tmp_path / "c.npy")
    assert same.exit_code == 2 and "must be two files" in same.stderr
    assert sorted(tmp_path.iterdir()) == before
