"""A trained network over many fault maps: mean, spread and the bad end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsim.nas.training.backends import FaultBackend
from fsim.nas.training.loop import EVALUATION

BATCH = 128
"""Images of a pass, as the reference implementation tests. Under statistical models they
decide the result: the range of the dynamic fixed point is that of the whole batch."""


@dataclass(frozen=True)
class Robustness:
    """Accuracies (shares) of one network.

    clean   without faults
    faulty  (maps,) one for each fault map
    """

    clean: float
    faulty: np.ndarray

    def summary(self) -> dict[str, float]:
        """mean; std, the sample standard deviation over maps; p5, the 5th percentile,
        interpolated linearly; worst."""
        return {
            "clean": self.clean,
            "mean": float(self.faulty.mean()),
            "std": float(self.faulty.std(ddof=1)) if len(self.faulty) > 1 else 0.0,
            "p5": float(np.percentile(self.faulty, 5)),
            "worst": float(self.faulty.min()),
        }


@torch.no_grad()
def evaluate_maps(
    backend: FaultBackend,
    test: tuple[Tensor, Tensor],
    maps: int,
    *,
    batch: int = BATCH,
    on_map: Callable[[int], None] = lambda done: None,
) -> Robustness:
    """Accuracy without faults and under each of `maps` fault maps.

    A map is one pass over all images, `batch` at a time. Weights that statistical models
    strike are struck once a map, a chip, and so are stuck cells of the array. All other
    faults are drawn for each image or, on the array, for each writing of the weights
    (`--hw-batch` images, at most a batch).
    Networks of the same shapes meet the same maps: draws know shapes, seed and map alone.
    """
    images, labels = test
    backend.eval()
    parts = list(zip(images.split(batch), labels.split(batch)))

    def hits(logits: Tensor, want: Tensor) -> int:
        return int((logits.argmax(1) == want).sum())

    clean = sum(hits(backend.clean(part), want) for part, want in parts)
    faulty = np.zeros(maps)
    for number in range(maps):
        for at, (part, want) in enumerate(parts):
            trial = EVALUATION + number * len(parts) + at
            faulty[number] += hits(backend.faulty(part, trial, chip=EVALUATION + number), want)
        on_map(number + 1)
    return Robustness(clean / len(images), faulty / len(images))
