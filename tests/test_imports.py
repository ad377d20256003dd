"""Lower layers never import higher ones, and each heavy library has its few places."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.test_layout import ROOT, modules

STDLIB = set(sys.stdlib_module_names)

TORCH = {
    "exact", "quantise", "capture", "convolutions", "patterns", "program", "engine", "inject",
    "attach", "attach_layers", "attach_program", "layered", "modes", "network", "operators",
    "gradients",
}  # fmt: skip
"""Modules of simulator/ that may import torch."""


def layer(name: str) -> str:
    """Layer of the module called `name`; modules of one layer may import each other."""
    parts = name.split(".")
    if name in ("fsim", "fsim._version"):
        return "root"
    if parts[1] in ("types", "errors", "files", "parse", "plugins", "machine", "words"):
        return "types"
    if parts[1] == "accel_models":
        return "tile" if parts[-1] in ("tile", "tile_each", "replay", "layer") else "accel_models"
    if parts[1] == "simulator":
        return "kernels" if parts[2:3] == ["kernels"] else "simulator"
    known = ("jit", "fault_models", "nas", "session", "threads", "campaign", "fit", "report")
    own = parts[1] if parts[1] in known else "cli"
    return "session" if own == "threads" else own


BELOW = {
    "root": {"root"},
    "types": {"root", "types"},
    "jit": {"root"},
    "accel_models": {"root", "types", "accel_models"},
    "tile": {"root", "types", "accel_models", "jit", "kernels", "tile"},
    "fault_models": {"root", "types", "accel_models", "fault_models"},
    "kernels": {"root", "jit", "kernels"},
    "simulator": {"root", "types", "accel_models", "fault_models", "kernels", "simulator"},
}
BELOW["nas"] = BELOW["simulator"] | {"nas"}
BELOW["session"] = BELOW["nas"] | {"session"}
BELOW["campaign"] = BELOW["session"] | {"campaign"}
BELOW["fit"] = BELOW["campaign"] | {"fit"}
BELOW["report"] = BELOW["campaign"] | {"report"}
BELOW["cli"] = BELOW["report"] | BELOW["fit"] | {"cli"}
"""Layer -> layers it may import. `fsim.jit` is for kernels and tiles alone."""

COLUMNS = {"fsim.types", "fsim.accel_models.plan"}
"""Modules that name the columns of the tables which kernels read."""

NOTEBOOK = ("fsim.campaign.results", "fsim.report.notebook")
"""The one import upward: what a notebook asks of a campaign's results."""

LIBRARIES = {
    "root": set(),
    "types": {"numpy"},
    "jit": {"numba"},
    "accel_models": {"numpy", "pydantic", "yaml"},
    "tile": {"numpy", "numba"},
    "fault_models": {"numpy"},
    "kernels": {"numpy", "numba", "llvmlite"},
    "simulator": {"numpy", "scipy", "numba"},
    "nas": {"numpy", "scipy", "torch", "safetensors", "sklearn", "h5py", "matplotlib", "optuna"},
    "session": {"numpy", "numba", "torch"},
    "campaign": {"numpy", "numba", "torch"},
    "fit": {"numpy"},
    "report": {"numpy", "scipy", "matplotlib"},
    "cli": {"numpy", "click", "torch", "numba", "matplotlib", "h5py", "scipy", "yaml"},
}
"""Layer -> libraries it may import."""


def imports(name: str, path) -> list[tuple[int, str]]:
    """(line, absolute name of the module) of every import, those inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    known = modules()
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            # `from fsim.simulator import exact` imports the module fsim.simulator.exact.
            wholes = (f"{base}.{alias.name}" for alias in node.names)
            found += [(node.lineno, whole if whole in known else base) for whole in wholes]
    return sorted(set(found))


def problems(name: str, path) -> list[str]:
    """What a module imports although its layer may not."""
    own = layer(name)
    found = []
    for line, target in imports(name, path):
        top = target.split(".")[0]
        if top == "fsim":
            columns = own == "kernels" and target in COLUMNS
            shown = (name, target) == NOTEBOOK
            below = target == "fsim" or layer(target) in BELOW[own]
            if not (below or columns or shown):
                found.append(f"{path}:{line}: {own} must not import {target}")
        elif top not in STDLIB and top not in allowed_libraries(name):
            found.append(f"{path}:{line}: {name} must not import {top}")
    return found


def allowed_libraries(name: str) -> set[str]:
    own, last = layer(name), name.split(".")[-1]
    allowed = set(LIBRARIES[own])
    if name.startswith("fsim.fault_models.statistical"):
        allowed.add("torch")
    if own == "simulator" and last in TORCH:
        allowed.add("torch")
    if own == "simulator" and last in ("trace", "trace_format"):
        allowed.add("h5py")
    if name == "fsim.campaign.engines":
        allowed |= {"joblib", "distributed"}
    if name == "fsim.cli.trace":
        allowed.add("pyarrow")
    if own == "simulator" and last == "curve":
        allowed.add("matplotlib")
    return allowed


def test_every_module_imports_downward_only():
    found = [line for name, path in modules().items() for line in problems(name, path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("fsim.types", "import numba"),
        ("fsim.types", "from fsim.accel_models.accel import Accel"),
        ("fsim.accel_models.gemmini.schedule", "from fsim.jit import kernel"),
        ("fsim.accel_models.gemmini.cycle", "from .tile import run"),
        ("fsim.accel_models.accel", "def f():\n    from fsim.simulator import gemm"),
        ("fsim.fault_models.explicit", "import torch"),
        ("fsim.simulator.kernels.replay", "from fsim.accel_models.accel import Accel"),
        ("fsim.simulator.kernels.replay", "from ..gemm import gemm"),
        ("fsim.simulator.gemm", "import torch.nn as nn"),
        ("fsim.simulator.gemm", "import h5py"),
        ("fsim.simulator.gemm", "from fsim import jit"),
        ("fsim.simulator.gemm", "from fsim.cli.tables import table"),
        ("fsim.simulator.engine", "from fsim.nas import zoo"),
        ("fsim.cli.doctor", "import fsim.jit"),
    ],
)
def test_an_upward_import_is_seen(name, code, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(code)
    assert problems(name, path)


LIGHT = ("torch", "numba", "numpy", "pydantic", "yaml", "h5py", "scipy", "matplotlib", "sklearn")


def loaded_by(code: str) -> set[str]:
    """Top-level modules loaded by `code` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


HELP = """
from fsim.cli import main
try:
    main({arguments})
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_no_heavy_library(arguments):
    loaded = loaded_by(HELP.format(arguments=arguments))
    assert "click" in loaded
    assert not loaded & set(LIGHT)


def test_import_fsim_loads_no_heavy_library():
    assert not loaded_by("import fsim") & set(LIGHT)


def test_accelerator_commands_load_neither_torch_nor_numba():
    loaded = loaded_by(HELP.format(arguments=["accel", "show", "gemmini-like"]))
    assert "pydantic" in loaded
    assert not loaded & {"torch", "numba", "h5py"}
