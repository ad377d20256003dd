"""Where the rivals' faults go: one output of all convolutions for each image of a batch.

Uniform over outputs, as fsim draws accumulators. The tools' own random location takes a
layer first, whatever its size, and is slower than this.
"""

from __future__ import annotations

import math

import numpy as np


class Sites:
    """Outputs of the convolutions of a network.

    Of each, in the order in which they run:
    names   of the module
    shapes  (channels, height, width) of its output
    ranges  the largest absolute value of its output without faults
    """

    def __init__(self, names, shapes, ranges):
        self.names, self.shapes, self.ranges = list(names), list(shapes), list(ranges)
        self.ends = np.cumsum([math.prod(shape) for shape in self.shapes])

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(layer, place in the layer's output) for each image of a batch."""
        at = rng.integers(self.ends[-1], size=batch)
        layer = np.searchsorted(self.ends, at, "right")
        return layer, at - (self.ends - [math.prod(s) for s in self.shapes])[layer]
