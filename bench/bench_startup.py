"""Start-up: `fsim --help` (limit 0.3 s) and a second `fsim gemm` (kernels from the cache)."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPEATS = 7
HELP_LIMIT_S = 0.3


def seconds(arguments: list[str]) -> float:
    """Wall time of one `fsim` process; CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fsim", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def show(label: str, times: list[float]) -> float:
    """Print median and range; return the median."""
    median = statistics.median(times)
    print(f"{label}: median {median:.3f} s of {len(times)} (from {min(times):.3f})")
    return median


def main():
    help_s = show("fsim --help", [seconds(["--help"]) for _ in range(REPEATS)])
    print(f"  limit {HELP_LIMIT_S} s: {'kept' if help_s < HELP_LIMIT_S else 'EXCEEDED'}")
    bare = [sys.executable, "-c", "import click"]
    start = time.perf_counter()
    subprocess.run(bare, check=True)
    print(f"  of which Python and click alone: {time.perf_counter() - start:.3f} s")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        a, b, out = (str(Path(folder) / name) for name in ("a.npy", "b.npy", "c.npy"))
        np.save(a, rng.integers(-128, 128, (16, 16)).astype(np.int8))
        np.save(b, rng.integers(-128, 128, (16, 16)).astype(np.int8))
        gemm = ["gemm", "--accel", "systolic-8x8", "--a", a, "--b", b, "--out", out]
        gemm += ["--backend", "tile", "--fault", "component=psum,bit=3,cycle=9"]
        first = seconds(gemm)
        print(f"fsim gemm --backend tile, first call: {first:.3f} s (compiles if not cached)")
        show("fsim gemm --backend tile, further calls", [seconds(gemm) for _ in range(REPEATS)])


if __name__ == "__main__":
    main()
