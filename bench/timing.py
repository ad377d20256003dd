"""Timing calls that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

from fsim.machine import cpus

THREADS = tuple(sorted({1, min(2, cpus())}))
"""Numbers of threads that whole networks are measured with."""


def threads_text(count: int) -> str:
    """1 thread, 2 threads."""
    return f"{count} thread" + ("s" if count != 1 else "")


def seconds(call: Callable) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` of them, the calls taking turns; one more to warm up."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def each(call: Callable, repeats: int, calls: int = 1) -> list[float]:
    """Seconds a call, `repeats` times over `calls` calls."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - start) / calls)
    return found


def faster(*alternatives: list[float]) -> list[float]:
    """The rounds of the alternative with the smaller median."""
    return min(alternatives, key=statistics.median)


@contextmanager
def torch_threads(count: int):
    """torch computes on so many threads, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
