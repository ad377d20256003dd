"""Fault backends for a network that changes with every step: the paths of a supernet.

They mean what those of `fsim.nas.training.backends` mean, a genotype given with each call.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fsim.nas.space.genotype import Genotype
from fsim.nas.space.supernet import Supernet
from fsim.nas.training.backends import TensorFaults

from .products import Products


class PathBackend(Protocol):
    """supernet  whose weights are shared"""

    supernet: Supernet

    def clean(self, images: Tensor, genotype: Genotype) -> Tensor:
        """(n, classes) logits without faults."""

    def faulty(self, images: Tensor, genotype: Genotype, trial: int) -> Tensor:
        """Logits under the faults of a trial: the same trial, the same faults."""


class NoPathFaults:
    """The float supernet; its faulty pass is the clean one."""

    def __init__(self, supernet: Supernet):
        self.supernet = supernet

    def clean(self, images, genotype):
        return self.supernet(images, genotype)

    def faulty(self, images, genotype, trial):
        return self.supernet(images, genotype)


class ArrayPaths:
    """Convolutions and linear layers of the path on the simulated array, clean passes too.

    The products are those of training (raw quantised weights, scales of the batch, batch
    normalisation in float), for rewards as well: the integer network of `fsim.attach`, its
    scales calibrated anew, would take longer to make than a reward takes to compute.
    """

    def __init__(self, products: Products):
        self.supernet, self.products = products.supernet, products

    def clean(self, images, genotype):
        return self.products.of(genotype).run(images, -1)

    def faulty(self, images, genotype, trial):
        return self.products.of(genotype).run(images, trial)


class TensorPaths:
    """Statistical models (`TensorFaults`) on the path, on any torch device."""

    def __init__(self, supernet: Supernet, models, seed: int = 0):
        self.supernet, self.models, self.seed = supernet, tuple(models), seed
        self._last: tuple[Genotype, TensorFaults] | None = None

    def _of(self, genotype: Genotype) -> TensorFaults:
        if self._last is None or self._last[0] != genotype:
            path = self.supernet.path(genotype)
            self._last = genotype, TensorFaults(path, self.models, self.seed)
        return self._last[1]

    def clean(self, images, genotype):
        return self._of(genotype).clean(images)

    def faulty(self, images, genotype, trial):
        return self._of(genotype).faulty(images, trial)
