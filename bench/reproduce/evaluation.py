"""Accuracy over fault maps: the same maps for every network, mean, spread and worst end."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.statistical import model_from_config
from fsim.nas.training.backends import ArrayFaults, NoFaults, TensorFaults

MAPS = 10
CALIBRATION = 256


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

    def backend(self, model: nn.Module, calibration: np.ndarray, seed: int = 0):
        """The network under these faults."""
        if self.family == "none":
            return NoFaults(model)
        if self.family == "hardware":
            errors = BitErrors(self.rate, self.rate, self.rate)
            return ArrayFaults(model, load_accel(self.accel), errors, calibration, seed)
        key = {"mibb": "p_m", "adsaf": "p"}[self.family]
        return TensorFaults(
            model, [model_from_config({"model": self.family, key: self.rate})], seed
        )


@dataclass(frozen=True)
class Accuracy:
    """Over fault maps, shares of the test images."""

    mean: float
    std: float
    low: float
    """5th percentile."""
    maps: int


def accuracy(model: nn.Module, faults: Faults, images, labels, calibration) -> Accuracy:
    """Accuracy of a network under faults; map i is the same for every network of its shapes."""
    backend = faults.backend(model, calibration, seed=77)
    backend.eval()
    maps = MAPS if faults.rate else 1
    with torch.no_grad():
        found = [
            float((backend.faulty(images, trial).argmax(1) == labels).double().mean())
            for trial in range(maps)
        ]
    return Accuracy(
        float(np.mean(found)), float(np.std(found, ddof=1 if maps > 1 else 0)),
        float(np.quantile(found, 0.05)), maps,
    )  # fmt: skip


def as_json(value: Accuracy) -> dict:
    """For the results file."""
    return asdict(value)
