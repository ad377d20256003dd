"""fsim: hardware-accurate fault simulation of deep-learning accelerators.

Public names load on first use, so that `import fsim` and `fsim --help` cost
neither torch nor numba.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from ._version import __version__

# In a checkout the sub-packages lie beside this folder; installed, inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "simulator" / "__init__.py").is_file():
    __path__.append(str(_root))

_PUBLIC = {
    "Accel": "fsim.accel_models.accel",
    "Component": "fsim.types",
    "FAULT": "fsim.types",
    "Fault": "fsim.types",
    "FsimError": "fsim.errors",
    "ConfigError": "fsim.errors",
    "MappingError": "fsim.errors",
    "FaultError": "fsim.errors",
    "TraceError": "fsim.errors",
    "load_accel": "fsim.accel_models.load",
    "gemm": "fsim.simulator.gemm",
    "GemmResult": "fsim.simulator.gemm",
    "row_conv": "fsim.simulator.row_conv",
    "RowConvResult": "fsim.simulator.row_conv",
    "write_vcd": "fsim.simulator.vcd",
    "attach": "fsim.simulator.attach",
    "run_campaign": "fsim.campaign.api",
    "read_campaign": "fsim.campaign.results",
}

_OTHER_NAMES = {"read_campaign": "read_results"}
"""Public names that a module calls otherwise."""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), _OTHER_NAMES.get(name, name))
    raise AttributeError(f"module 'fsim' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
