"""Where a network computes: torch devices by name, and torch's own random numbers there."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from fsim.errors import ConfigError


def device_named(name: str) -> torch.device:
    """cpu, cuda, cuda:1, ...; ConfigError unless float64 can be computed there now.

    float64 because the statistical fault models draw gaps between faults in it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _unusable(name, "torch knows no such device") from None
    try:
        torch.ones((), dtype=torch.float64, device=device).item()
        torch.Generator(device)
    # Every kind of device refuses in a way of its own (RuntimeError, AssertionError,
    # NotImplementedError, TypeError, ...).
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise _unusable(name, line) from error
    return device


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(
        "the device must be cpu, cuda or another on which torch can compute here, "
        f"got {name[:40]!r}: {why[:200]}"
    )


def kept_random_state(device: torch.device) -> AbstractContextManager:
    """Within it, what is drawn from torch's own generators on the CPU and on `device` does
    not move what is drawn after it."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
