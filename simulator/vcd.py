"""A waveform as a Value Change Dump, the text format of IEEE 1364-2005, clause 18.

Every register of every PE is a variable in a scope of its own, `array.pe_0_3.psum`; what is not
in a PE is `array.out.out_5` and the like. Values are binary two's complement of the register's
width. Clock edge t rises at 10 t + 5 ns and S[t] is what stands after it; before edge 0 registers
are x, because a waveform begins with what edge 0 left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from fsim import __version__
from fsim.accel_models.accel import Accel
from fsim.errors import ConfigError
from fsim.files import atomic_write
from fsim.types import FAULT, FOREVER, LEVEL, Fault

PERIOD = 10
"""Units of time (1 ns each) of a clock cycle; the number means nothing to the machine."""

MOST_CHANGES = 20_000_000
"""Value changes a file may hold: about half a gigabyte of text, and a minute to write."""

Waves = Mapping[str, np.ndarray]


def write_vcd(
    path: str | os.PathLike,
    result,
    accel: Accel,
    *,
    faults: Sequence[Fault] | np.ndarray = (),
    golden=None,
) -> None:
    """Write the waveform of a run for GTKWave and its like.

    path    the file; written whole or not at all
    result  what `fsim.gemm(..., waveform=True)` returned, or its waveform: name -> integers
            (cycles, rows, cols), or of another shape behind the cycles
    accel   the Accel that ran, for the widths of its registers
    faults  those of the run, `Fault` values or FAULT rows: the wire `fault` is 1 in the cycles
            in which one acts
    golden  the same of the run without faults: a second scope `golden`, and the wire `differs`,
            1 in the cycles in which any register is not as in the fault-free run

    ConfigError where there is no waveform, the two do not fit each other, or the file would
    hold more than MOST_CHANGES value changes; OSError if the system refuses.

    >>> import fsim
    >>> machine = fsim.load_accel("systolic", overrides={"rows": 2, "cols": 2})
    >>> run = fsim.gemm([[1, 2]], [[3], [4]], accel=machine, waveform=True)
    >>> fsim.write_vcd("run.vcd", run, machine)  # doctest: +SKIP
    """
    content = vcd(result, accel, faults=faults, golden=golden)
    with atomic_write(Path(path)) as file:
        write(file, content)


def write(file: IO[bytes], content: Iterator[str]) -> None:
    """The lines of `vcd` into an open file."""
    for text in content:
        file.write(text.encode("ascii"))


def vcd(result, accel: Accel, *, faults=(), golden=None) -> Iterator[str]:
    """The file's text in pieces; parameters and errors as of `write_vcd`.

    What can be wrong is found before the first piece.
    """
    tops = {"array": _waves(result)}
    cycles = {len(wave) for wave in tops["array"].values()}
    if golden is not None:
        tops["golden"] = _waves(golden)
        shapes = [{name: wave.shape for name, wave in top.items()} for top in tops.values()]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"the golden waveform must have the shapes of the faulty one {shapes[0]}, "
                f"got {shapes[1]}"
            )
    if len(cycles) != 1:
        raise ConfigError(f"all waves must have the same number of cycles, got {sorted(cycles)}")
    changes = sum(_changes(wave) for top in tops.values() for wave in top.values())
    if changes > MOST_CHANGES:
        raise ConfigError(
            f"a VCD must hold at most {MOST_CHANGES:,} value changes, got {changes:,} "
            f"(a smaller product, or --waveform for all registers as .npz)"
        )
    return _text(tops, accel, cycles.pop(), faults)


def _waves(result) -> Waves:
    waves = result if isinstance(result, Mapping) else getattr(result, "waveform", None)
    if not waves:
        raise ConfigError(
            "a VCD needs the result of a run with waveform=True, got one without a waveform"
        )
    return {name: np.asarray(wave) for name, wave in waves.items()}


def _changes(wave: np.ndarray) -> int:
    """Values that the file must name: all of the first cycle, then those that changed."""
    return wave[:1].size + int(np.count_nonzero(wave[1:] != wave[:-1]))


def _width(name: str, wave: np.ndarray, accel: Accel) -> int:
    """Bits of a register: the component's; of a port the accumulator's; more where values need it.

    A value that fits the width as an unsigned number (an unsigned activation) needs no more.
    """
    widths = {component.name: component.bits for component in accel.components}
    width = widths.get(name, accel.acc_bits if name == "out" else 1)
    low, high = (int(wave.min()), int(wave.max())) if wave.size else (0, 0)
    needed = max(high.bit_length(), (-low - 1).bit_length() + 1 if low < 0 else 1)
    if low < 0:
        needed = max(needed, high.bit_length() + 1)
    return max(width, needed)


def _places(name: str, wave: np.ndarray, accel: Accel) -> Iterator[tuple[str, str]]:
    """(scope, variable) of every element behind the cycles, in C order."""
    shape = wave.shape[1:]
    for index in np.ndindex(*shape):
        if name != "out" and shape[:2] == (accel.rows, accel.cols):
            yield f"pe_{index[0]}_{index[1]}", "_".join((name, *map(str, index[2:])))
        elif index:
            yield name, "_".join((name, *map(str, index)))
        else:
            yield name, name


def _identifier(number: int) -> str:
    """The number-th short name: printable characters ! to ~, as the standard asks."""
    text = ""
    while True:
        number, digit = divmod(number, 94)
        text += chr(33 + digit)
        if not number:
            return text
        number -= 1


def _value(value: int, width: int, identifier: str) -> str:
    """One line of a value change; leading zeros may be left out."""
    bits = value & ((1 << width) - 1)
    return f"{bits}{identifier}\n" if width == 1 else f"b{bits:b} {identifier}\n"


def _acting(faults, cycles: int) -> np.ndarray:
    """(cycles,) bool: whether a fault acts on S[t]."""
    acts = np.zeros(cycles, bool)
    if isinstance(faults, np.ndarray) and faults.dtype == FAULT:
        spans = [
            (row["first"], row["last"] if row["effect"] == LEVEL else row["first"])
            for row in faults
        ]
    else:
        spans = []
        for fault in faults:
            first = -1 if fault.cycle is None else fault.cycle
            once = fault.kind == "flip" and fault.last is None
            spans.append((first, first if once else FOREVER if fault.last is None else fault.last))
    for first, last in spans:
        acts[max(int(first), 0) : min(int(last), cycles - 1) + 1] = True
    return acts


def _text(tops: dict[str, Waves], accel: Accel, cycles: int, faults) -> Iterator[str]:
    clock, cycle, fault, differs = (_identifier(i) for i in range(4))
    yield (
        f"$version fsim {__version__} $end\n"
        f"$comment {accel.name}, {accel.rows} x {accel.cols}, {accel.dataflow}; edge t is at "
        f"{PERIOD} t + {PERIOD // 2} ns $end\n"
        "$timescale 1 ns $end\n"
        f"$var wire 1 {clock} clk $end\n"
        f"$var integer 32 {cycle} cycle $end\n"
        f"$var wire 1 {fault} fault $end\n"
    )
    if "golden" in tops:
        yield f"$var wire 1 {differs} differs $end\n"
    columns = []  # (values (cycles, n), width, identifiers)
    number = 4
    for top, waves in tops.items():
        scopes: dict[str, list[str]] = {}
        for name, wave in waves.items():
            width, identifiers = _width(name, wave, accel), []
            size = f" [{width - 1}:0]" if width > 1 else ""
            for scope, variable in _places(name, wave, accel):
                identifiers.append(_identifier(number))
                number += 1
                scopes.setdefault(scope, []).append(
                    f"$var reg {width} {identifiers[-1]} {variable}{size} $end\n"
                )
            columns.append((wave.reshape(cycles, -1), width, identifiers))
        yield f"$scope module {top} $end\n"
        for scope, lines in scopes.items():
            yield f"$scope module {scope} $end\n{''.join(lines)}$upscope $end\n"
        yield "$upscope $end\n"
    yield "$enddefinitions $end\n#0\n$dumpvars\n"
    yield f"0{clock}\nbx {cycle}\n0{fault}\n" + (f"0{differs}\n" if "golden" in tops else "")
    for _, width, identifiers in columns:
        unknown = "x" if width == 1 else "bx "
        yield "".join(f"{unknown}{identifier}\n" for identifier in identifiers)
    yield "$end\n"

    markers = [(_acting(faults, cycles), fault)]
    if "golden" in tops:
        unlike = np.zeros(cycles, bool)
        for name, wave in tops["array"].items():
            other = tops["golden"][name]
            unlike |= (wave != other).reshape(cycles, -1).any(axis=1)
        markers.append((unlike, differs))
    for t in range(cycles):
        lines = [f"#{PERIOD * t + PERIOD // 2}\n1{clock}\nb{t:b} {cycle}\n"]
        for marks, identifier in markers:
            if t == 0 or marks[t] != marks[t - 1]:
                lines.append(f"{int(marks[t])}{identifier}\n")
        for values, width, identifiers in columns:
            now = values[t]
            changed = range(len(now)) if t == 0 else np.flatnonzero(now != values[t - 1]).tolist()
            lines += [_value(int(now[i]), width, identifiers[i]) for i in changed]
        lines.append(f"#{PERIOD * (t + 1)}\n0{clock}\n")
        yield "".join(lines)
