"""The command line's frame: the table of commands, exit codes, one-line errors, files."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from fsim.cli.group import COMMANDS, RootGroup
from fsim.cli.options import Probability, seed_option
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError, FaultError, FsimError, TraceError
from fsim.files import atomic_write
from fsim.parse import parse_assignments, parse_fault, parse_probability, parse_shape
from fsim.types import Fault
from tests.test_layout import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_loads_and_explains_itself(fsim, name):
    module, attribute = COMMANDS[name][0].split(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
    result = fsim(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: fsim {name}")
    assert COMMANDS[name][1] in fsim("--help").stdout


def test_version_is_that_of_the_package(fsim):
    from fsim import __version__

    assert fsim("--version").stdout == f"fsim {__version__}\n"


def test_an_unknown_command_names_the_nearest(fsim):
    result = fsim("verfy")
    assert result.exit_code == 2
    assert "did you mean verify?" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def raising(error: BaseException):
    """The exit code and stderr of a command that raises `error`."""

    @click.group(cls=RootGroup)
    def group():
        raise error

    result = CliRunner().invoke(group, ["doctor"])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (FsimError("x must be y"), 2, "Error: x must be y\n"),
        (ConfigError("one\ntwo"), 2, "Error: one; two\n"),
        (ConfigError("a \x1b[31m red\udcff\x9b word"), 2,
         "Error: a \\x1b[31m red\\udcff\\x9b word\n"),
        (TraceError("damaged"), 2, "Error: damaged\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "f"), 2, "Error: No such file: f\n"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2,
         "Error: Permission denied: f\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 2,
         "Error: No space left on device: f\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "f"), 2,
         "Error: File name too long: f\n"),
        (OSError(errno.EIO, "Input/output error", "f"), 1, "Error: Input/output error: f\n"),
        (RecursionError("x"), 2, "Error: the input must not be nested so deeply\n"),
        (MemoryError(), 1, "Error: there is not enough memory\n"),
        (KeyboardInterrupt(), 130, "Error: interrupted\n"),
        (click.UsageError("bad"), 2, "Error: bad (see group --help)\n"),
        (click.exceptions.Exit(3), 3, ""),
    ],
)  # fmt: skip
def test_errors_become_one_message_and_an_exit_code(error, code, text):
    got_code, stderr = raising(error)
    assert got_code == code
    assert stderr.strip("\n").replace("(see fsim", "(see group") == text.strip("\n")


def test_a_mistake_of_ours_is_not_hidden():
    @click.group(cls=RootGroup)
    def group():
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(group, ["doctor"]).exception, ZeroDivisionError)


def process(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fsim", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def test_exit_codes_and_streams_of_a_real_process(tmp_path):
    good = process("accel", "check", "accel_models/presets/systolic.yaml")
    assert (good.returncode, good.stderr) == (0, "")
    bad = process("accel", "show", "nothing")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("Error: accelerator must be one of")
    assert len(bad.stderr.splitlines()) == 1


def test_an_error_without_end_is_cut_and_what_was_noted_is_said():
    code, stderr = raising(ConfigError("x" * 10**6 + "end"))
    assert code == 2 and len(stderr) < 2100 and stderr.endswith("end\n") and " ... " in stderr
    error = ConfigError("no")
    error.add_note("2 trials are kept")
    assert raising(error) == (2, "Error: no; 2 trials are kept\n")
    interrupt = KeyboardInterrupt()
    interrupt.add_note("2 trials are kept")
    assert raising(interrupt)[1].strip() == "Error: interrupted; 2 trials are kept"


def test_output_to_a_full_disk_is_exit_code_2():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fsim", "accel", "list"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "Error: No space left on device\n"


WAITING = """
import sys, time, click
from fsim.cli.group import RootGroup
from fsim.files import atomic_write

@click.group(cls=RootGroup)
def group():
    with atomic_write(sys.argv[1]) as file:
        file.write(b"half")
        print("ready", flush=True)
        time.sleep(60)

group.main(["doctor"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_half_written_file(tmp_path, number, code):
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(number)
    _, stderr = child.communicate(timeout=30)
    assert child.returncode == code, stderr
    assert list(tmp_path.iterdir()) == []


DROPPED = """
import signal, sys, time, weakref, click
from fsim.cli.group import RootGroup

class Thing:
    pass

@click.group(cls=RootGroup)
def group():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(int(sys.argv[1])) or int("1"))
    del thing
    time.sleep(20)

group.main(["doctor"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_python_would_drop_is_not_lost(number, code):
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, str(int(number))],
        cwd=ROOT, capture_output=True, text=True, timeout=15,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.strip() == {143: "Error: terminated", 130: "Error: interrupted"}[code]


def test_atomic_write_replaces_only_when_complete(tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_atomic_write_follows_a_link_and_respects_the_umask(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "private") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("path", ["", "folder", "/dev/null"])
def test_atomic_write_refuses_folders_and_devices(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="must be a regular file"), atomic_write(tmp_path / path):
        pass
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_atomic_write_names_the_users_file_when_the_disk_is_full(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(OSError) as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")  # as file.write raises it
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError) as missing, atomic_write(tmp_path / "no" / "out"):
        pass
    assert missing.value.filename == str(tmp_path / "no" / "out")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "component=c1,row=2,col=3,bit=5,kind=flip,cycle=17",
            Fault("c1", row=2, col=3, bit=5, kind="flip", cycle=17),
        ),
        (
            " component = psum , mask = 0x81 , kind = stuck1 , cycle=3,last=9 ",
            Fault("psum", mask=0x81, kind="stuck1", cycle=3, last=9),
        ),
        ("component=acts,word=12,bit=0,image=4", Fault("acts", bit=0, word=12, image=4)),
    ],
)
def test_a_fault_is_read_as_written(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be key=value"),
        ("c1", "must be key=value"),
        ("component=", "must be key=value"),
        ("component=c1,bit=1,", "must be key=value"),
        ("component=c1,bti=1", "did you mean bit?"),
        ("component=c1,bit=1,bit=2", "given once, got bit twice"),
        ("component=c1,bit=1.5", "bit of a fault must be a whole number, got '1.5'"),
        ("component=c1,bit=nan", "must be a whole number"),
        ("component=c1,bit=1,row=-2", "row of a fault must be >= -1"),
        ("component=c1,bit=1,cycle=99999999999999999999", "must be >= -1 and < 2^62"),
        ("component=c1,bit=" + "9" * 5000, "must be a whole number"),
        ("component=c1,bit=1,kind=flop", "kind of a fault must be one of flip, stuck0, stuck1"),
        ("bit=1", "must name its component"),
        ("component=c1", "either bit= or mask="),
        ("component=c1,bit=1,mask=2", "either bit= or mask="),
    ],
)
def test_a_wrong_fault_is_one_clear_error(text, says):
    with pytest.raises(FaultError) as caught:
        parse_fault(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 6000 and "\n" not in str(caught.value)


def test_the_layer_of_a_fault_is_text():
    assert parse_fault("component=acts,word=1,bit=0,layer=layer1.0.conv1").layer == "layer1.0.conv1"


def test_assignments_shapes_and_probabilities():
    assert parse_assignments(["rows=8", " a.b = c=d "]) == {"rows": "8", "a.b": "c=d"}
    assert parse_shape("3, 4,5") == (3, 4, 5)
    assert [parse_probability(text) for text in ("0", "1", "1e-5", "-0.0")] == [0, 1, 1e-5, 0]
    for wrong in (["rows"], ["=8"], ["rows="], ["rows=1", "rows=2"]):
        with pytest.raises(ConfigError):
            parse_assignments(wrong)
    for wrong in ("", "1,2", "1,2,3,4", "1,2,x", "0,1,1", "1,-1,1", "1,1,99999999999"):
        with pytest.raises(ConfigError):
            parse_shape(wrong)
    for wrong in ("", "x", "nan", "inf", "-1e-300", "1.0000001", "1,0"):
        with pytest.raises(ConfigError, match="probability must be"):
            parse_probability(wrong)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--p", "nan"], "must be in [0, 1], got nan"),
        (["--p", "1.5"], "must be in [0, 1], got 1.5"),
        (["--p", "x"], "must be a number, got 'x'"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--seed", str(1 << 64)], "is not in the range"),
    ],
)
def test_numbers_of_options_are_exact(arguments, says):
    @click.command()
    @click.option("--p", type=Probability)
    @seed_option
    def command(p, seed):
        click.echo(f"{p} {seed}")

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    good = CliRunner().invoke(command, ["--p", "1e-5", "--seed", str((1 << 64) - 1)])
    assert good.stdout == "1e-05 18446744073709551615\n"


def test_tables_align_and_json_refuses_nan(monkeypatch):
    assert table(("a", "n"), [("x", 1), ("long", 23)], right=("n",)) == (
        "a      n\nx      1\nlong  23"
    )
    assert table(("a", "n"), []) == "a  n"
    assert pairs([("k", 1), ("key", "")]) == "k    1\nkey"
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    print_json({"a": [1, 2.5, None]})
    assert json.loads(out.getvalue()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"a": float("nan")})
