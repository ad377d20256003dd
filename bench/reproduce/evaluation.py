"""Accuracy over fault maps: the same maps for every network, mean, spread and worst end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.statistical import model_from_config
from fsim.nas.training.backends import ArrayFaults, NoFaults, TensorFaults

MAPS = 10
CALIBRATION = 256
BATCH = 128
BACKENDS = {"none": "none", "mibb": "torch", "adsaf": "torch", "hardware": "numba"}
"""Family of faults -> `--fault-backend`."""


@dataclass(frozen=True)
class Faults:
    """A family of faults and its rate.

    family  "mibb" (p_m a MAC), "adsaf" (share of stuck cells), "hardware" (bit error
            rate of all memories of an accelerator), or "none"
    """

    family: str
    rate: float = 0.0
    accel: str = "systolic"

    @property
    def name(self) -> str:
        return self.family if self.family == "none" else f"{self.family} {self.rate:g}"

    def of_search(self) -> tuple:
        """(Accel or None, fault model(s) or None, description), as `build_search` takes them."""
        described = {"backend": BACKENDS[self.family], "text": self.name}
        if self.family == "hardware":
            return load_accel(self.accel), BitErrors(self.rate, self.rate, self.rate), described
        return None, None if self.family == "none" else [self._statistical()], described

    def backend(self, model: nn.Module, calibration: np.ndarray, seed: int = 0):
        """The network under these faults."""
        if self.family == "none":
            return NoFaults(model)
        if self.family == "hardware":
            errors = BitErrors(self.rate, self.rate, self.rate)
            return ArrayFaults(model, load_accel(self.accel), errors, calibration, seed)
        return TensorFaults(model, [self._statistical()], seed)

    def _statistical(self):
        key = {"mibb": "p_m", "adsaf": "p"}[self.family]
        return model_from_config({"model": self.family, key: self.rate})


@dataclass(frozen=True)
class Accuracy:
    """Over fault maps, shares of the test images."""

    mean: float
    std: float
    low: float
    """5th percentile."""
    maps: int


class Stop(Exception):
    """The time is over; the checkpoint is written."""


def one_thread() -> None:
    """A process of its own for one task among several: torch and numba on one thread."""
    import numba

    torch.set_num_threads(1)
    numba.set_num_threads(1)


def accuracies(model: nn.Module, faults: Faults, images, labels, calibration) -> np.ndarray:
    """(maps,) accuracy under faults, shares; map i is the same for networks of one shape.

    Statistical models take their range from the images that run together, BATCH of them as
    in the reference implementation's tests. Stuck weights last a whole map. Without faults
    one run of the float network.
    """
    backend = faults.backend(model, calibration, seed=77)
    backend.eval()
    maps = MAPS if faults.rate else 1
    parts = list(zip(images.split(BATCH), labels.split(BATCH)))
    found = np.zeros(maps)
    with torch.no_grad():
        for trial in range(maps):
            for at, (part, wanted) in enumerate(parts):
                number = trial if faults.family == "adsaf" else trial * len(parts) + at
                found[trial] += int((backend.faulty(part, number).argmax(1) == wanted).sum())
    return found / len(images)


def summary(values: np.ndarray) -> Accuracy:
    """Of accuracies over maps."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return Accuracy(
        float(np.mean(values)), float(spread), float(np.quantile(values, 0.05)), len(values)
    )
