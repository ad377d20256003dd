"""`fsim gemm`: one matrix product on the array, with explicit faults."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path
from tokenize import TokenError

import click

from fsim.cli.options import FaultType, accel_options, json_option, load_accel_option
from fsim.cli.tables import pairs, print_json

FILE = click.Path(path_type=Path)


@click.command()
@accel_options()
@click.option("--a", "a_file", required=True, type=FILE, help=".npy of (m, k) integer codes.")
@click.option("--b", "b_file", required=True, type=FILE, help=".npy of (k, n) integer codes.")
@click.option("--d", "d_file", type=FILE, help=".npy of the (m, n) bias that is preloaded.")
@click.option(
    "--fault",
    "faults",
    type=FaultType,
    multiple=True,
    help="component=c1,row=2,col=3,bit=5,kind=flip,cycle=17; kind is flip, stuck0 or stuck1, "
    "mask= takes several bits, last= ends a stuck-at (docs/faults.md). May be repeated.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "reference", "tile", "replay"]),
    default="auto",
    show_default=True,
    help="How the same bits are computed: cycle by cycle in Python, compiled, or only the "
    "outputs that the faults touch.",
)
@click.option(
    "--truncate",
    type=click.IntRange(0, 32),
    default=0,
    show_default=True,
    help="Output truncation in bits, for machines that have such a stage.",
)
@click.option("--waveform", type=FILE, help="Write every register by cycle to this .npz.")
@click.option(
    "--vcd",
    type=FILE,
    help="Write every register by cycle to this .vcd, for waveform viewers; with faults the "
    "fault-free run beside them.",
)
@click.option("--out", type=FILE, help="Write the (m, n) int64 result to this .npy.")
@json_option
def gemm(
    accel,
    settings,
    dataflow,
    a_file,
    b_file,
    d_file,
    faults,
    backend,
    truncate,
    waveform,
    vcd,
    out,
    as_json,
):
    """One product a @ b + d on the array, bit for bit, with explicit faults.

    Components, their bits and their backends: fsim accel show NAME.
    """
    from fsim.errors import ConfigError
    from fsim.simulator.gemm import gemm as run

    outputs = [("--out", out), ("--waveform", waveform), ("--vcd", vcd)]
    for (name, path), (other, second) in itertools.combinations(outputs, 2):
        if path and second and os.path.realpath(path) == os.path.realpath(second):
            raise ConfigError(f"{name} and {other} must be two files, got {path} twice")
    for name, path in outputs:
        for operand in (a_file, b_file, d_file):
            if path and operand and os.path.realpath(path) == os.path.realpath(operand):
                raise ConfigError(f"{name} must not be a file of an operand, got {path}")
    for fault in faults:
        for name in ("layer", "image"):
            if getattr(fault, name) is not None:
                raise ConfigError(
                    f"a fault of a single product must have no {name}=, got "
                    f"{getattr(fault, name)!r}: it belongs to a network (fsim inject)"
                )
    machine = load_accel_option(accel, settings, dataflow)
    operands = [read_matrix(path) if path else None for path in (a_file, b_file, d_file)]
    result = run(
        *operands,
        accel=machine,
        truncate=truncate,
        faults=faults,
        backend=backend,
        waveform=bool(waveform or vcd),
    )
    golden = None
    if vcd and faults:
        golden = run(*operands, accel=machine, truncate=truncate, backend=backend, waveform=True)
    _write(result, out, waveform, vcd, dict(accel=machine, faults=faults, golden=golden))
    m, n = result.out.shape
    summary = {
        "accel": machine.name,
        "dataflow": machine.dataflow,
        "shape": {"m": m, "k": operands[0].shape[1], "n": n},
        "cycles": result.cycles,
        "backend": result.backend,
        "faults": len(faults),
        "masked": bool(result.masked),
        "changed_outputs": int(result.changed),
        "outputs": m * n,
        "out": str(out) if out else None,
        "waveform": str(waveform) if waveform else None,
        "vcd": str(vcd) if vcd else None,
    }
    if as_json:
        print_json(summary)
        return
    if not faults:
        effect = "no fault given"
    elif result.masked:
        effect = f"masked, all {m * n} outputs as without"
    else:
        effect = f"{result.changed} of {m * n} outputs changed"
    rows = [
        ("product", f"({m} x {operands[0].shape[1]})({operands[0].shape[1]} x {n})"),
        (
            "accelerator",
            f"{machine.name}, {machine.rows} x {machine.cols} PEs, {machine.dataflow}",
        ),
        ("cycles", result.cycles),
        ("backend", result.backend),
        ("faults", f"{len(faults)}: {effect}" if faults else effect),
    ]
    rows += [("written", path) for path in (out, waveform, vcd) if path]
    click.echo(pairs(rows))


def read_matrix(path: Path):
    """The integer matrix of an .npy file; ConfigError if it is anything else.

    The header is checked against the size of the file before anything of the
    declared size is allocated, and no dtype that could run code is accepted.
    """
    import numpy as np

    from fsim.errors import ConfigError

    if not path.is_file():
        raise ConfigError(f"an operand must be an .npy file that exists, got {path}")
    try:
        with path.open("rb") as file:
            shape, column_major, dtype = _header(file)
            data = file.read() if dtype.kind in "iu" else b""
    except OSError as error:
        raise ConfigError(f"cannot read the operand: {error.strerror or error} ({path})") from None
    except (ValueError, SyntaxError, TokenError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"an operand must be an .npy file, got something else: {reason} ({path})"
        ) from None
    if dtype.kind not in "iu" or len(shape) != 2:
        raise ConfigError(
            f"an operand must be a matrix of integer codes, got {dtype} of shape {shape} ({path})"
        )
    if min(shape) < 0 or shape[0] * shape[1] * dtype.itemsize != len(data):
        raise ConfigError(
            f"an operand must hold what its header says, {dtype} of shape {shape}, "
            f"got {len(data)} bytes ({path})"
        )
    matrix = np.frombuffer(data, dtype).reshape(shape, order="F" if column_major else "C")
    return matrix.copy()  # writable: kernels would be compiled anew for a read-only array


def _header(file):
    """(shape, whether column major, dtype) that an .npy file declares."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"its version is {version[0]}.{version[1]}, not 1.0 or 2.0")


def _write(result, out: Path | None, waveform: Path | None, vcd: Path | None, run: dict):
    """All files or, if one of them cannot be written, none.

    run  what the VCD tells besides the waveform: accel, faults, golden
    """
    import numpy as np

    from fsim.files import atomic_write_all
    from fsim.simulator import vcd as dump

    content = dump.vcd(result, **run) if vcd else ()
    with atomic_write_all(*(path for path in (out, waveform, vcd) if path)) as files:
        left = iter(files)
        if out:
            made = io.BytesIO()  # numpy would not tell a full disk from other errors
            np.save(made, result.out, allow_pickle=False)
            next(left).write(made.getbuffer())
        if waveform:
            np.savez_compressed(next(left), **result.waveform)
        if vcd:
            dump.write(next(left), content)
