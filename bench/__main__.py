"""`python -m bench [NAME ...]`: run every `bench_NAME.py` of this folder, or those named.

Each module has a `main()` that prints its own figures. The machine and its load
come first, because a figure without them says nothing.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """NAME of every bench_NAME.py, sorted."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def cpu_model() -> str:
    """The CPU's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> str:
    """Processes running or waiting, as averages; a busy machine spoils timings."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    return ", ".join(f"{value:.2f}" for value in os.getloadavg()) + " (1, 5, 15 min)"


def main(wanted: list[str]) -> int:
    """Run the benchmarks; 1 if one failed, 2 if one does not exist."""
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        print(
            f"Error: a benchmark must be one of {', '.join(names())}, got {', '.join(unknown)}",
            file=sys.stderr,
        )
        return 2
    print(f"machine: {cpu_model()}, {cpus()} CPUs, Python {platform.python_version()}")
    print(f"load before: {load()}")
    failed = []
    for name in wanted or names():
        print(f"\n== {name} ==", flush=True)
        start = time.perf_counter()
        try:
            importlib.import_module(f"bench.bench_{name}").main()
        except Exception as error:  # one broken benchmark must not hide the others
            failed.append(name)
            print(f"failed: {type(error).__name__}: {error}")
        print(f"({time.perf_counter() - start:.1f} s)", flush=True)
    print(f"\nload after: {load()}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
