"""Start-up: `fsim --help` (limit 0.3 s) and a second `fsim gemm` (kernels from the cache)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from .figures import LOWER, Figure
from .timing import seconds

REPEATS = 7
HELP_LIMIT_S = 0.3


def python(*arguments: str) -> float:
    """Wall time of one Python process; CalledProcessError if it fails."""
    command = [sys.executable, *arguments]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def main(quick: bool = False) -> list[Figure]:
    """Seconds of whole processes."""
    repeats = 3 if quick else REPEATS
    python("-m", "fsim", "--help")
    bare, helped = [], []
    for _ in range(repeats):
        bare.append(python("-c", "import click"))
        helped.append(python("-m", "fsim", "--help"))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        a, b, out = (str(Path(folder) / name) for name in ("a.npy", "b.npy", "c.npy"))
        for path in (a, b):
            np.save(path, rng.integers(-128, 128, (16, 16)).astype(np.int8))
        gemm = ["-m", "fsim", "gemm", "--accel", "systolic-8x8", "--a", a, "--b", b, "--out", out,
                "--backend", "tile", "--fault", "component=psum,bit=3,cycle=9"]  # fmt: skip
        first = python(*gemm)
        further = [python(*gemm) for _ in range(repeats)]
    return [
        Figure("fsim --help", helped, "s", LOWER, floor=HELP_LIMIT_S,
               source="start-up of the command line"),
        Figure("Python and click alone", bare, "s", LOWER),
        Figure("fsim gemm --backend tile, first call", [first], "s", LOWER,
               note="compiles kernels if they are not cached"),
        Figure("fsim gemm --backend tile, further calls", further, "s", LOWER),
    ]  # fmt: skip


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
