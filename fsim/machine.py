"""The computer at hand, as far as results and timings depend on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

INT8 = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU flags that change how int8 products are computed."""


def _cpuinfo(*names: str) -> str:
    """The first of these fields in /proc/cpuinfo; "" if there is none."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in names:
                return value.strip()
    return ""


def cpu_model() -> str:
    """The CPU's name as the system tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def int8_instructions() -> list[str]:
    """Those of INT8 that the CPU has; empty where the system does not tell."""
    flags = _cpuinfo("flags", "Features").split()
    return [name for name in INT8 if name in flags]


def cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> tuple[float, ...]:
    """Average number of processes running or waiting over 1, 5 and 15 minutes; () if unknown."""
    return os.getloadavg() if hasattr(os, "getloadavg") else ()


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within a container's limit; None if unknown."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "MemAvailable":
                found.append(int(value.split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / f"memory.{x}").read_text().strip() for x in ("max", "current"))
        found += [max(int(most) - int(used), 0)] if most != "max" else []
    except (OSError, ValueError):  # no container, or one of the older kind
        pass
    return min(found, default=None)
