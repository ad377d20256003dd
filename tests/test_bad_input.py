"""Bad input, hostile files and full disks: one line, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fsim.errors import TraceError
from fsim.fault_models.upsets import UpsetRate
from fsim.nas.zoo import load_model
from fsim.simulator.draws import Draws
from fsim.simulator.sites import RegisterSites
from fsim.simulator.trace import TraceWriter, read_trace
from fsim.simulator.verify import builtin_vectors
from tests.test_cli_inject import refused

RUN = ("inject", "--images", 4, "--trials", 2, "--no-curve")
PSUM = "layer=conv2,component=psum,row=0,col=0,bit=1,cycle=5"
WEIGHT = "layer=conv2,component=weights,word=3,bit=1"


@contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes: the write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def product(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(-6, 6).reshape(3, 4))
    np.save(tmp_path / "b.npy", np.arange(-4, 4).reshape(4, 2))
    return ("gemm", "--accel", "systolic", "--set", "rows=4", "--set", "cols=4",
            "--a", tmp_path / "a.npy", "--b", tmp_path / "b.npy")  # fmt: skip


# gemm and verify


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "a.npy"], "must not be a file of an operand"),
        (["--waveform", "b.npy"], "must not be a file of an operand"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "circle"], "circle of links"),
        (["--a", "line\nend.npy"], "that exists"),
        (["--fault", "component=psum,bit=1,cycle=1,image=7"], "must have no image=, got 7"),
        (["--fault", "component=psum,bit=1,cycle=1,layer=fc"], "must have no layer=, got 'fc'"),
        (["--fault", "component=psum,bit=1,cycle=1,word=0"], "must have no word=, got 0"),
    ],
)
def test_gemm_refuses(fsim, tmp_path, product, arguments, says):
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    option, value = arguments
    value = value if option == "--fault" else tmp_path / value
    before = (tmp_path / "a.npy").read_bytes()
    refused(fsim, tmp_path, *product, option, value, says=says)
    assert (tmp_path / "a.npy").read_bytes() == before and (tmp_path / "circle").is_symlink()


def test_gemm_on_a_full_disk_writes_neither_file(fsim, tmp_path, product):
    outputs = ("--out", tmp_path / "c.npy", "--waveform", tmp_path / "w.npz")
    for size in (0, 100, 300):
        with full_disk(size):
            refused(fsim, tmp_path, *product, *outputs, says="File too large")
    assert fsim(*product, *outputs).exit_code == 0


def test_verify_refuses_another_machine_than_the_vectors(fsim, tmp_path):
    vectors = next(path for path in builtin_vectors() if path.name == "gemmini_ws_4x4.npz")
    run = ("verify", "--vectors", vectors, "--accel", "gemmini-like")
    refused(fsim, tmp_path, *run, "--set", "rows=7", says="rows must be that of the vectors, 4")
    refused(fsim, tmp_path, *run, "--dataflow", "os", says="dataflow must be that of the vectors")


# Descriptions, parameters, checkpoints and data


def test_descriptions_give_one_line_and_no_control_characters(fsim, tmp_path):
    deep, many, colour = (tmp_path / name for name in ("deep.toml", "many.yaml", "colour.yaml"))
    deep.write_text(".".join(["a"] * 5000) + " = 1\n")
    many.write_text("name: 3\nfamily: x\nbits: no\n")
    colour.write_text('"\\e[31mred": 3\n')
    for path in (deep, many, colour):
        for command in (("accel", "show", path), ("sites", "--accel", path)):
            result = refused(fsim, tmp_path, *command, says="more of its values are not valid")
            assert "\x1b" not in result.stderr


@pytest.mark.parametrize("content", ["pipe", "/dev/zero", '{"x": {"scale": 1}, "x": {"scale": 2}}'])
def test_quantisation_parameters_come_from_a_plain_file(fsim, tmp_path, content):
    path = tmp_path / "params.json"
    if content == "pipe":
        os.mkfifo(path)
    elif content == "/dev/zero":
        path.symlink_to(content)
    else:
        path.write_text(content)
    refused(fsim, tmp_path, *RUN, "--quant-params", path, says="quantisation parameters must be")


def changed(name: str) -> dict[str, torch.Tensor]:
    state = dict(load_model("digits-cnn").model.state_dict())
    weight = state["fc.weight"]
    state |= {
        "float8": {"fc.weight": weight.to(torch.float8_e4m3fn)},
        "meta": {"fc.weight": weight.to("meta")},
        "float64": {"fc.weight": weight.double() * 1e300},
        "variance": {"bn1.running_var": -1 - state["bn1.running_var"]},
        "terabytes": {"other": torch.zeros(1).expand(10**12)},
    }.get(name, {})
    return state


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("float8", "not dense real"),
        ("meta", "not dense real"),
        ("float64", "with NaN or infinity (fc.weight)"),
        ("variance", "must be finite on the calibration images"),
        ("terabytes", "1 unexpected (other)"),
    ],
)
def test_checkpoints_that_would_give_wrong_numbers(fsim, tmp_path, name, says):
    path = tmp_path / "w.pt"
    torch.save(changed(name), path)
    refused(fsim, tmp_path, *RUN, "--weights", path, says=says)


@pytest.mark.parametrize(
    ("scale", "label", "says"),
    [
        (3e38, 3, "values of the network must be finite"),
        (1e-40, 3, "scales must be from 1e-30 to 1e30"),
        (1, 10, "labels must be below 10"),
    ],
)
def test_data_that_would_give_wrong_numbers(fsim, tmp_path, scale, label, says):
    images = np.random.default_rng(0).random((4, 1, 8, 8)) * scale
    np.savez(tmp_path / "d.npz", images=images.astype(np.float32), labels=np.full(4, label))
    refused(fsim, tmp_path, *RUN, "--data", tmp_path / "d.npz", says=says)


def test_a_factory_that_ends_the_process_is_an_error(fsim, tmp_path):
    refused(fsim, tmp_path, *RUN, "--model", "sys:exit", "--data", "digits", says="SystemExit")


# Options of inject that contradict one another


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hw-batch", "4", "--fault", "seu"], "--hw-batch needs --ber"),
        (["--hw-batch", "all", "--seu-rate", "1e-9"], "--hw-batch needs --ber"),
        (["--hw-batch", "9" * 5000], "--hw-batch must be"),
        (["--curve", "--fault", "seu"], "--curve needs --ber"),
        (["--fault", PSUM, "--sites", "psum"], "must go without them"),
        (["--fault", PSUM, "--layers", "conv2"], "must go without them"),
        (["--fault", PSUM + ",word=3"], "word must be given for memories only"),
        (["--fault", WEIGHT + ",row=3"], "has no row= and col="),
        (["--sites", ""], "--sites must name things once each"),
        (["--layers", "conv1,conv1"], "--layers must name things once each"),
        (["--sites", "psum"], "--ber needs words of acts or weights or psums"),
        (["--ber", "weights=1e-5", "--sites", "acts"], "--ber needs words of weights"),
        (["--seu-rate", "1e-9", "--sites", "acts", "--dry-run"], "needs a register"),
        (["--data", ""], "data must be one of"),
    ],
)
def test_options_that_exclude_each_other(fsim, tmp_path, arguments, says):
    refused(fsim, tmp_path, *RUN, "--trace", tmp_path / "t.h5", "--out", tmp_path / "out",
            *arguments, says=says)  # fmt: skip


@pytest.mark.parametrize(
    ("trace", "out", "says"),
    [
        ("folder", "out", "must be a regular file"),
        ("run", "run", "must be two places"),
        ("out/report.json", "out", "must be two places"),
        ("t.h5", "t.h5.parts", "must be two places"),
        ("t.h5", "t.h5.parts/out", "must be two places"),
        ("t.h5", "taken", "must be a regular file"),
        ("foreign.h5", "out", "must hold shards only, got notes.txt"),
    ],
)
def test_outputs_in_each_others_place(fsim, tmp_path, trace, out, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken" / "report.json").mkdir(parents=True)
    (tmp_path / "foreign.h5.parts").mkdir()
    (tmp_path / "foreign.h5.parts" / "notes.txt").write_text("mine")
    refused(fsim, tmp_path, *RUN, "--overwrite", "--trace", tmp_path / trace,
            "--out", tmp_path / out, says=says)  # fmt: skip
    assert (tmp_path / "foreign.h5.parts" / "notes.txt").read_text() == "mine"


def test_every_rate_of_upsets_can_be_drawn():
    component = SimpleNamespace(kind="register", name="r", bits=4)
    space = SimpleNamespace(
        accel=SimpleNamespace(components=(component,), cols=2),
        registers=(RegisterSites(0, "x", 0, "r", 4, (1, 2, 1), 5),),
    )
    images = np.arange(3)
    rows = UpsetRate(1.0).rows(space, 0, images, Draws(1))
    places = np.stack([rows[name] for name in ("image", "row", "col", "first", "xor_mask")])
    assert len(rows) == 3 * 40 == len(np.unique(places, axis=1).T)
    for rate in (0.4, 0.9):
        rows = UpsetRate(rate).rows(space, 0, np.arange(500), Draws(1))
        places = np.stack([rows[name] for name in ("image", "row", "col", "first", "xor_mask")])
        assert len(np.unique(places, axis=1).T) == len(rows)
        assert len(rows) == pytest.approx(rate * 500 * 40, rel=0.03)
        per_bit = [np.count_nonzero(rows["xor_mask"] == mask) for mask in (1, 2, 4, -8)]
        assert per_bit == pytest.approx([rate * 5000] * 4, rel=0.06)


# Full disks


def test_inject_on_a_full_disk_writes_nothing(fsim, tmp_path):
    with full_disk(1000):
        refused(fsim, tmp_path, *RUN, "--ber", "1e-4", "--out", tmp_path / "out",
                says="File too large")  # fmt: skip
        refused(fsim, tmp_path, *RUN, "--ber", "1e-4", "--out", tmp_path / "out",
                "--trace", tmp_path / "t.h5", says="File too large")  # fmt: skip


def test_folders_made_for_outputs_do_not_stay(fsim, tmp_path):
    with full_disk(1000):
        refused(fsim, tmp_path, *RUN, "--ber", "1e-4", "--out", tmp_path / "a" / "b" / "out",
                "--trace", tmp_path / "c" / "d" / "t.h5", says="File too large")  # fmt: skip


def test_trials_before_the_disk_was_full_are_kept_and_the_one_line_says_so(
    fsim, tmp_path, monkeypatch
):
    real = TraceWriter.append

    def full(writer, *rows):
        if len(writer.stored_trials) == 1:
            raise TraceError("cannot write: No space left on device")
        real(writer, *rows)

    path = tmp_path / "t.h5"
    monkeypatch.setattr(TraceWriter, "append", full)
    monkeypatch.setattr("fsim.simulator.trace.SHARD_SECONDS", 0)  # a shard each trial
    result = fsim(*RUN, "--trace", path, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: cannot write: No space left on device; 1 trials are kept: go on with "
        f"--trace {path} --resume\n"
    )
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5.parts"]
    assert fsim(*RUN, "--trace", path, "--resume").exit_code == 0
    assert len(read_trace(path).trials) == 2


def test_a_report_that_cannot_be_written_leaves_the_trace(fsim, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "report.json")

    monkeypatch.setattr("fsim.cli.inject._write", full)
    path = tmp_path / "t.h5"
    result = fsim(*RUN, "--trace", path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "2 trials are kept" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]
    monkeypatch.undo()
    again = fsim(*RUN, "--trace", path, "--out", tmp_path / "out", "--resume")
    assert again.exit_code == 0 and (tmp_path / "out" / "report.json").is_file()


# Hostile traces


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    from click.testing import CliRunner

    from fsim.cli import main

    path = tmp_path_factory.mktemp("trace") / "t.h5"
    arguments = [str(a) for a in (*RUN, "--ber", "1e-4", "--trace", path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return read_trace(path)


def written(path, trace, **changes):
    """A trace with other parts, whose digests are right."""
    with TraceWriter(path, changes.get("task", trace.task), trace.provenance) as writer:
        writer.append(changes.get("faults", trace.faults), changes.get("outcomes", trace.outcomes))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"model": []}, {"model": {}}, {"model": "os:getcwd"}, {"model": "\x1b[31m"},
        {"accel": "x"}, {"accel": [1]}, {"data": "a\0b.npz"}, {"data": 3},
        {"weights": "a\0b.pt"}, {"weights": [1]}, {"images": -1}, {"images": 1.5},
        {"calibration": "x"}, {"calibration": 10**30, "images": 0}, {"quant_params": [1]},
        {"faults": {"hw_batch": 1 << 62}}, {"faults": {"hw_batch": 1.5}},
    ],
    ids=str,
)  # fmt: skip
def test_a_task_of_another_kind_is_refused(fsim, tmp_path, stored, change):
    path = written(tmp_path / "bad.h5", stored, task={**stored.task, **change})
    result = refused(fsim, tmp_path, "replay", path)
    assert "\x1b" not in result.stderr and len(result.stderr) < 1000


def test_a_pipe_and_a_device_are_no_traces(fsim, tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", "/dev/zero"):
        refused(fsim, tmp_path, "replay", path, says="must be a regular file")
        refused(fsim, tmp_path, "explain", path, "--event", 0, says="must be a regular file")


def test_resume_refuses_outcomes_of_other_images(fsim, tmp_path, stored):
    outcomes = stored.outcomes.copy()
    outcomes["image"][3] = 7
    path = written(tmp_path / "t.h5", stored, outcomes=outcomes)
    refused(fsim, tmp_path, *RUN, "--ber", "1e-4", "--trace", path, "--resume",
            says="must have 4 outcomes")  # fmt: skip
    faults = stored.faults.copy()
    faults["component"][0] = 99
    other = written(tmp_path / "other.h5", stored, faults=faults)
    refused(fsim, tmp_path, *RUN, "--ber", "1e-4", "--trace", other, "--resume",
            says="component must be in")  # fmt: skip


# Traces of networks by module:factory

FACTORY = """
from pathlib import Path
from fsim.nas.zoo import load_model
from fsim.nas.preprocessing import Preprocessing

Path(__file__).with_name("imported").touch()

def make():
    model = load_model("digits-cnn").model
    model.preprocessing, model.default_data = Preprocessing(scale=1 / 16), "digits"
    return model
"""


def test_code_of_a_trace_runs_only_when_it_is_named_again(fsim, tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile_factory.py").write_text(FACTORY)
    name = "hostile_factory:make"
    path = tmp_path / "t.h5"
    run = fsim(*RUN, "--model", name, "--fault", WEIGHT, "--trace", path)
    assert run.exit_code == 0, run.output
    (tmp_path / "imported").unlink()
    del sys.modules["hostile_factory"]
    for command in (("replay", path), ("explain", path, "--event", 0)):
        refused(fsim, tmp_path, *command, says="give --model with the same name")
        refused(fsim, tmp_path, *command, "--model", "hostile_factory:other",
                says="--model must be that of the trace")  # fmt: skip
        refused(fsim, tmp_path, *command, "--model", "digits-cnn", says="must be that of the trace")
        assert "hostile_factory" not in sys.modules and not (tmp_path / "imported").exists()
    for command in (("replay", path), ("explain", path, "--event", 0)):
        assert fsim(*command, "--model", name).exit_code == 0
    assert (tmp_path / "imported").exists()
    sys.modules.pop("hostile_factory", None)


