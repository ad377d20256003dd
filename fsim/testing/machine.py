"""The small machines and the operands that the contract of a family is tried on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.families import family
from fsim.accel_models.load import load_accel, presets
from fsim.errors import ConfigError
from fsim.types import Component

from .check import require

NARROW = {"operand_bits": 3, "product_bits": 6, "acc_bits": 10}
"""Widths at which every bit can be tried; a family may refuse them."""


@dataclass(frozen=True)
class Machine:
    """A family and dataflow as the checks of its contract take it.

    name        of the family
    flow        the dataflow
    rows, cols  of the small array
    spare       names of components with bits that products without faults do not use
    """

    name: str
    flow: str
    rows: int
    cols: int
    spare: tuple[str, ...] = ()

    def accel(self, **overrides) -> Accel:
        """The first preset as a small array with narrow words, if the family takes those.

        overrides  as of `load_accel`, on top of size and widths
        """
        found = preset_names(self.name)
        require(bool(found), f"family {self.name!r} must have a preset")
        size = {"rows": self.rows, "cols": self.cols}
        try:
            accel = load_accel(found[0], self.flow, {**size, **NARROW, **overrides})
            _ = accel.components  # a family may refuse a width here
            return accel
        except ConfigError:
            kept = {key: value for key, value in overrides.items() if key not in NARROW}
            return load_accel(found[0], self.flow, {**size, **kept})


def preset_names(name: str) -> list[str]:
    """Presets of the family. Those of others may be broken, its own may not."""
    folder = family(name).presets
    found = []
    for preset, path in presets().items():
        own = folder is not None and path.parent == Path(folder)
        try:
            if load_accel(preset).family == name:
                found.append(preset)
        except ConfigError as error:
            require(not own, f"preset {preset} must be valid: {error}")
    return found


def operands(accel: Accel, shape, seed: int, peak: int | None = None):
    """Random a, b and bias of (m, k, n), in [-peak, peak); None: over all codes of a word."""
    rng = np.random.default_rng(seed)
    half = 1 << (accel.operand_bits - 1) if peak is None else peak
    m, k, n = shape
    a, b = rng.integers(-half, half, (m, k)), rng.integers(-half, half, (k, n))
    return a, b, rng.integers(-half, half, (m, n))


def ends(bits: int) -> tuple[int, int]:
    """Smallest and largest number of a two's complement word."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def elements(accel: Accel) -> list[tuple[int, Component]]:
    """(index, component) of registers and nets."""
    return [(i, c) for i, c in enumerate(accel.components) if c.kind != "memory"]


def backends(accel: Accel) -> list[str]:
    """The fast backends that some component claims."""
    claimed = {backend for _, component in elements(accel) for backend in component.backends}
    return [name for name in ("tile", "replay") if name in claimed]


def plain(accel: Accel) -> bool:
    """Whether its adders do what `overflow` says, and nothing else, to a sum."""
    return not hasattr(accel.schedule, "plain_limit")
