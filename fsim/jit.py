"""The one decorator for compiled kernels, and the policy it owns.

* no fastmath, no bounds checks beyond what NUMBA_BOUNDSCHECK asks for: results must be
  the same bits everywhere;
* compiled code is kept between runs in a folder named by a hash of every kernel
  source, because numba's own key sees only the file of the kernel itself and not
  the helpers it calls in other files.

Only `simulator/kernels/` and the tile and replay modules of families may import this module.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba
from numba import prange  # noqa: F401  (kernels take it from here)

_PACKAGE = Path(__file__).resolve().parent


def _kernel_sources() -> list[Path]:
    """Every file that holds compiled code, in a checkout and installed alike."""
    roots = [_PACKAGE, _PACKAGE.parent]
    # Types, plans and schedules hold no compiled code, but kernels freeze their constants.
    files = [Path(__file__).resolve(), _PACKAGE / "types.py"]
    for root in roots:
        files += root.glob("simulator/kernels/*.py")
        files += root.glob("accel_models/**/*.py")
    return sorted(set(files))


def _cache_dir() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in _kernel_sources():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    base = Path(os.environ.get("FSIM_CACHE", Path.home() / ".cache" / "fsim"))
    return base / "kernels" / digest.hexdigest()[:16]


def _prepare_cache() -> bool:
    """Point numba at our cache folder; False if no folder can be written."""
    folder = _cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    numba.config.CACHE_DIR = str(folder)
    return os.access(folder, os.W_OK)


CACHED = _prepare_cache()


def kernel(function):
    """Compile a serial kernel."""
    return numba.njit(cache=CACHED, nogil=True, error_model="numpy")(function)


def parallel_kernel(function):
    """Compile a kernel with `prange`. A function is either this or `kernel`, never both."""
    return numba.njit(cache=CACHED, nogil=True, parallel=True, error_model="numpy")(function)
