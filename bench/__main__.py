"""`python -m bench [NAME ...]`: run every `bench_NAME.py` of this folder, or those named.

Each module has a `main()` that prints its own figures. The machine and its load
come first, because a figure without them says nothing.
"""

from __future__ import annotations

import importlib
import platform
import sys
import time
from pathlib import Path

from fsim.machine import cpu_model, cpus, load

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """NAME of every bench_NAME.py, sorted."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def load_line() -> str:
    """The machine's load; a busy one spoils timings."""
    return (
        ", ".join(f"{value:.2f}" for value in load()) + " (1, 5, 15 min)" if load() else "unknown"
    )


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
    print(f"load before: {load_line()}")
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
    print(f"\nload after: {load_line()}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
