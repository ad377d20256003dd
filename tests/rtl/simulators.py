"""The two RTL simulators that the project's own arrays run in: Verilator and Icarus Verilog."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .stimulus import Design

FOLDER = Path(__file__).resolve().parent
COMMANDS = {"verilator": ("verilator", "make", "g++"), "icarus": ("iverilog", "vvp")}
"""Simulator -> the programs it needs."""

SOURCES = {
    "os": ("dut_os.sv", "os_array.sv", "pe_os.sv", "fault_timer.sv"),
    "ws": ("dut_ws.sv", "ws_array.sv", "pe_ws.sv", "accumulators.sv", "fault_timer.sv"),
}
RUNS = 4096
"""The most edges and faults that testbench.sv has room for in one run."""

MISSING = (
    "no RTL simulator is installed: Verilator or Icarus Verilog is needed "
    "(on Debian: apt-get install verilator g++ make, or apt-get install iverilog)"
)


class SimulatorError(Exception):
    """A simulator that is missing, or that did not do what it was told."""


def installed() -> list[str]:
    """Simulators of this machine, the faster first."""
    return [name for name, needed in COMMANDS.items() if all(map(shutil.which, needed))]


def choose(name: str = "") -> str:
    """The simulator asked for, or the first installed; SimulatorError if there is none."""
    found = installed()
    if name and name not in COMMANDS:
        raise SimulatorError(f"RTL_SIM must be one of {', '.join(COMMANDS)}, got {name!r}")
    if name and name not in found:
        needed = ", ".join(COMMANDS[name])
        raise SimulatorError(f"RTL_SIM={name} needs {needed}; installed: {', '.join(found) or '-'}")
    if not found:
        raise SimulatorError(MISSING)
    return name or found[0]


def version(name: str) -> str:
    """First line of what the simulator says of itself."""
    command = ["verilator", "--version"] if name == "verilator" else ["iverilog", "-V"]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout.splitlines() or [name])[0].strip()


@dataclass(frozen=True)
class Build:
    """A design compiled in `folder`, ready to run."""

    simulator: str
    design: Design
    folder: Path

    def run(self, stimuli: list[str], faults: list[str], vcd: Path | None = None):
        """Lines that each run wrote: for every fault a dump an edge, then the result.

        vcd  also write the waveform of the simulator here (Icarus only)
        """
        if max(len(stimuli), len(faults)) > RUNS:
            raise SimulatorError(f"at most {RUNS} edges and faults fit in one run")
        files = {name: self.folder / f"{name}.hex" for name in ("stim", "faults", "out")}
        files["stim"].write_text("\n".join(stimuli) + "\n")
        files["faults"].write_text("\n".join(faults) + "\n")
        sizes = {"stim": len(stimuli), "faults": len(faults)}
        if self.simulator == "verilator":
            command = [self.folder / "harness"]
            for name, count in sizes.items():
                command += [files[name], str(count)]
            command.append(files["out"])
        else:
            command = ["vvp", "-n", self.folder / "testbench.vvp"]
            command += [f"+{name}={path}" for name, path in files.items()]
            command += [f"+edges={len(stimuli)}", f"+count={len(faults)}"]
            command += [f"+vcd={vcd}"] if vcd else []
        _call(command)
        lines = files["out"].read_text().split()
        per_run = len(stimuli) + 1
        if len(lines) != per_run * len(faults):
            raise SimulatorError(
                f"{self.simulator} must write {per_run * len(faults)} lines, got {len(lines)}"
            )
        return [lines[i : i + per_run] for i in range(0, len(lines), per_run)]


def build(simulator: str, design: Design, folder: Path) -> Build:
    """Compile a design in an empty folder; SimulatorError with the compiler's words if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [FOLDER / name for name in SOURCES[design.dataflow]]
    if simulator == "icarus":
        command = [
            "iverilog",
            "-g2012",
            "-I",
            FOLDER,
            "-s",
            "testbench",
            "-o",
            folder / "testbench.vvp",
        ]
        command += [f"-Ptestbench.{key}={value}" for key, value in design.parameters.items()]
        _call([*command, FOLDER / "testbench.sv", *sources])
    else:
        parameters = [f"-G{key}={value}" for key, value in design.parameters.items()]
        verilate("dut", sources, parameters, FOLDER / "harness.cpp", folder, ("-O0",))
    return Build(simulator, design, folder)


def verilate(
    top: str,
    sources: list[Path],
    parameters: list[str],
    main: Path,
    folder: Path,
    flags: tuple[str, ...],
) -> Path:
    """The program of the C++ file `main` around the module `top`: folder/<stem of main>.

    parameters  -GNAME=VALUE; flags  of the C++ compiler
    """
    # Operands of different widths are meant: signed ones are extended to the wider.
    command = ["verilator", "--cc", "--exe", "-O3", "-Wno-WIDTH", "--x-initial", "fast"]
    command += [f"-I{FOLDER}"]
    command += ["--top-module", top, "-Mdir", folder, "-o", main.stem, *parameters]
    _call([*command, *sources, main])
    # OPT_FAST and OPT_SLOW are the makefile's own names for the levels.
    levels = [f"{name}={' '.join(flags)}" for name in ("OPT_FAST", "OPT_SLOW", "OPT_GLOBAL")]
    jobs = str(os.cpu_count() or 1)
    _call(["make", "-s", "-j", jobs, "-C", folder, "-f", f"V{top}.mk", *levels, main.stem])
    return folder / main.stem


def _call(command: list) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise SimulatorError(
            f"{Path(str(command[0])).name} ended with status {done.returncode}: "
            + " | ".join(said[:6])
        )
