"""The random source that fault models are handed: named draws of one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import sampling


def counters(trial: int, images: np.ndarray) -> np.ndarray:
    """One counter for each (trial, image); image -1 stands for the whole trial."""
    return (np.int64(trial) << 32) + np.asarray(images, np.int64) + 1


@dataclass(frozen=True)
class Draws:
    """Draws that depend on (seed, stream, trial, image) and on nothing else."""

    seed: int

    def bits(self, count: int, p: float, stream: int, trial: int, images: np.ndarray):
        """(index into images, position) of bits that flip, each with probability p."""
        return sampling.draw_bits_many(
            count, p, seed=self.seed, stream=stream, trials=counters(trial, images)
        )

    def sites(self, sites: int, count: int, stream: int, trial: int, images: np.ndarray):
        """(images, count) int64 uniform sites in [0, sites)."""
        return sampling.draw_sites_many(
            sites, count, seed=self.seed, stream=stream, trials=counters(trial, images)
        )

    def counts(self, n: int, p: float, stream: int, trial: int, images: np.ndarray):
        """(images,) int64 binomial(n, p) counts."""
        return sampling.draw_count_many(
            n, p, seed=self.seed, stream=stream, trials=counters(trial, images)
        )
