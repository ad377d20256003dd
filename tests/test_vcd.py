"""Waveforms as VCD files, read back by a reader that is not ours (pyvcd)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fsim
from fsim.errors import ConfigError
from fsim.simulator import vcd as module
from fsim.types import Fault

FAULTS = (Fault("psum", row=1, col=2, bit=9, cycle=8), Fault("mul", bit=0, kind="stuck1", cycle=3,
                                                            last=5))  # fmt: skip


def read(path):
    """(name with its scopes -> width, and -> values by time as {time: text}) of a file."""
    reader = pytest.importorskip("vcd.reader", reason="pyvcd reads the files back")
    kinds = reader.TokenKind
    widths, codes, values, scope, time = {}, {}, {}, [], None
    with path.open("rb") as file:
        for token in reader.tokenize(file):
            if token.kind is kinds.SCOPE:
                scope.append(token.scope.ident)
            elif token.kind is kinds.UPSCOPE:
                scope.pop()
            elif token.kind is kinds.VAR:
                name = ".".join((*scope, token.var.reference))
                assert name not in widths
                widths[name] = token.var.size
                # Names of one net share its changes.
                values[name] = codes.setdefault(token.var.id_code, {})
            elif token.kind is kinds.CHANGE_TIME:
                assert time is None or token.time_change > time
                time = token.time_change
            elif token.kind is kinds.CHANGE_SCALAR:
                codes[token.scalar_change.id_code][time] = token.scalar_change.value
            elif token.kind is kinds.CHANGE_VECTOR:
                change = token.vector_change
                codes[change.id_code][time] = change.value
    assert not scope
    return widths, values


def by_cycle(changes: dict[int, object], width: int, cycles: int, signed: bool = True) -> list[int]:
    """The value just before the end of each cycle, from its changes."""
    found = []
    for t in range(cycles):
        last = max(time for time in changes if time < 10 * (t + 1))
        value = int(changes[last])
        found.append(value - (1 << width) if signed and value >> (width - 1) else value)
    return found


@pytest.fixture
def run():
    """(machine, the run with FAULTS, the run without)."""
    machine = fsim.load_accel("systolic", overrides={"rows": 3, "cols": 4})
    rng = np.random.default_rng(5)
    a, b = rng.integers(-128, 128, (5, 7)), rng.integers(-128, 128, (7, 6))
    runs = [fsim.gemm(a, b, accel=machine, faults=f, waveform=True) for f in (FAULTS, ())]
    return machine, *runs


def test_every_register_of_every_cycle_reads_back(run, tmp_path):
    machine, faulty, golden = run
    path = tmp_path / "w.vcd"
    fsim.write_vcd(path, faulty, machine, faults=FAULTS, golden=golden)
    widths, values = read(path)
    for top, result in (("array", faulty), ("golden", golden)):
        for name, bits in (("ifmap", 8), ("filter", 8), ("psum", 32)):
            for i in range(3):
                for j in range(4):
                    full = f"{top}.pe_{i}_{j}.{name}"
                    assert widths[full] == bits
                    got = by_cycle(values[full], bits, result.cycles)
                    np.testing.assert_array_equal(got, result.waveform[name][:, i, j])
        for j in range(4):
            got = by_cycle(values[f"{top}.out.out_{j}"], 32, result.cycles)
            np.testing.assert_array_equal(got, result.waveform["out"][:, j])
    assert len(widths) == 4 + 2 * (3 * 12 + 4)
    assert len({id(changes) for changes in values.values()}) == len(widths)


def test_clock_cycle_and_markers(run, tmp_path):
    machine, faulty, golden = run
    path = tmp_path / "w.vcd"
    fsim.write_vcd(path, faulty, machine, faults=FAULTS, golden=golden)
    _, values = read(path)
    count = faulty.cycles
    rises = [time for time, value in values["clk"].items() if value == "1"]
    assert rises == [10 * t + 5 for t in range(count)]
    falls = [time for time, value in values["clk"].items() if value == "0"]
    assert falls == [10 * t for t in range(count + 1)]
    assert by_cycle(values["cycle"], 32, count) == list(range(count))
    marks = by_cycle(values["fault"], 1, count, signed=False)
    assert [t for t, mark in enumerate(marks) if mark] == [3, 4, 5, 8]
    unlike = np.zeros(count, bool)
    for name, wave in faulty.waveform.items():
        unlike |= (wave != golden.waveform[name]).reshape(count, -1).any(axis=1)
    assert unlike.any() and not unlike.all()
    np.testing.assert_array_equal(by_cycle(values["differs"], 1, count, signed=False), unlike)


def test_fault_rows_mark_the_same_cycles_as_faults(run):
    from fsim.fault_models.explicit import rows_of

    machine, faulty, _ = run
    rows = rows_of(FAULTS, machine, faulty.cycles)
    text = ["".join(module.vcd(faulty, machine, faults=f)) for f in (FAULTS, rows)]
    assert text[0] == text[1]
    assert text[0] != "".join(module.vcd(faulty, machine))


def test_other_shapes_names_and_widths(run, tmp_path):
    """Waves as machines with words in a PE, buffers beside the array or flags return them."""
    machine, *_ = run
    rng = np.random.default_rng(0)
    waves = {
        "psum": rng.integers(-1000, 1000, (5, 3, 4, 2)),
        "buffer": rng.integers(-9, 8, (5, 2, 6)),
        "ifmap": rng.integers(0, 256, (5, 3, 4)),  # unsigned activations in 8 bits
        "valid": rng.integers(0, 2, (5, 7)),
        "state": rng.integers(0, 6, 5),
        "out": np.full((5, 1), 1 << 40),
    }
    path = tmp_path / "w.vcd"
    fsim.write_vcd(path, waves, machine)
    widths, values = read(path)
    cases = {
        "array.pe_2_3.psum_1": (32, waves["psum"][:, 2, 3, 1], True),
        "array.buffer.buffer_1_5": (5, waves["buffer"][:, 1, 5], True),
        "array.pe_0_1.ifmap": (8, waves["ifmap"][:, 0, 1], False),
        "array.valid.valid_6": (1, waves["valid"][:, 6], False),
        "array.state.state": (3, waves["state"], False),
        "array.out.out_0": (41, waves["out"][:, 0], False),
    }
    for name, (width, wave, signed) in cases.items():
        assert widths[name] == width, name
        np.testing.assert_array_equal(by_cycle(values[name], width, 5, signed), wave)


def test_what_cannot_be_written_is_one_line(run, tmp_path, monkeypatch):
    machine, faulty, golden = run
    bare = dataclasses.replace(golden, waveform=None)
    with pytest.raises(ConfigError, match="needs the result of a run with waveform=True"):
        fsim.write_vcd(tmp_path / "w.vcd", bare, machine)
    short = {name: wave[1:] for name, wave in golden.waveform.items()}
    with pytest.raises(ConfigError, match="must have the shapes of the faulty one"):
        fsim.write_vcd(tmp_path / "w.vcd", faulty, machine, golden=short)
    with pytest.raises(ConfigError, match="same number of cycles"):
        fsim.write_vcd(tmp_path / "w.vcd", {"a": np.zeros((3, 2)), "b": np.zeros(4)}, machine)
    with pytest.raises(OSError, match="No such file"):
        fsim.write_vcd(tmp_path / "no" / "w.vcd", faulty, machine)
    monkeypatch.setattr(module, "MOST_CHANGES", 100)
    with pytest.raises(ConfigError, match="at most 100 value changes, got"):
        fsim.write_vcd(tmp_path / "w.vcd", faulty, machine)
    assert not list(tmp_path.iterdir())


def test_identifiers_are_printable_and_all_different():
    names = [module._identifier(number) for number in range(20_000)]
    assert len(set(names)) == len(names)
    assert {character for name in names for character in name} == set(map(chr, range(33, 127)))


def test_the_command_line_writes_all_files_or_none(fsim, tmp_path):
    rng = np.random.default_rng(5)
    np.save(tmp_path / "a.npy", rng.integers(-128, 128, (5, 7)))
    np.save(tmp_path / "b.npy", rng.integers(-128, 128, (7, 6)))
    given = ("gemm", "--accel", "systolic", "--set", "rows=3", "--set", "cols=4", "--a",
             tmp_path / "a.npy", "--b", tmp_path / "b.npy", "--fault",
             "component=psum,row=1,col=2,bit=9,cycle=8")  # fmt: skip
    files = [tmp_path / name for name in ("c.npy", "w.npz", "w.vcd")]
    result = fsim(*given, "--out", files[0], "--waveform", files[1], "--vcd", files[2])
    assert result.exit_code == 0, result.stderr
    assert str(files[2]) in result.stdout
    widths, values = read(files[2])
    with np.load(files[1]) as waves:
        count = len(waves["psum"])
        got = by_cycle(values["array.pe_1_2.psum"], 32, count)
        np.testing.assert_array_equal(got, waves["psum"][:, 1, 2])
    marks = by_cycle(values["fault"], 1, count, signed=False)
    assert [t for t, mark in enumerate(marks) if mark] == [8]
    assert min(t for t, v in values["differs"].items() if v == "1") == 85
    assert "golden.pe_1_2.psum" in widths
    before = sorted(tmp_path.iterdir())
    same = fsim(*given, "--vcd", tmp_path / "a.npy")
    assert same.exit_code == 2 and "--vcd must not be a file of an operand" in same.stderr
    twice = fsim(*given, "--out", tmp_path / "x", "--vcd", tmp_path / "x")
    assert twice.exit_code == 2 and "must be two files" in twice.stderr
    nowhere = fsim(*given, "--out", tmp_path / "x", "--vcd", tmp_path / "no" / "w.vcd")
    assert nowhere.exit_code == 2 and len(nowhere.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
