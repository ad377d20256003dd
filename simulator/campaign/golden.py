"""The fault-free run of a campaign's images, in pieces that memory holds.

The codes and sums of all operations of an image take about a megabyte on a CIFAR network:
a thousand images are too many for some machines. Images are cut into chunks that fit; a
chunk that is asked for again after others have pushed it out is run again.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from fsim.errors import MappingError
from fsim.simulator import program as P
from fsim.simulator.delta import Delta, memory_of
from fsim.simulator.engine import clean_hooks
from fsim.simulator.inject import Golden
from fsim.simulator.sites import Placement
from fsim.simulator.statistics import top1
from fsim.simulator.trace_format import tensor_digest

from . import suffix
from .suffix import Suffix

MEMORY = 2 << 30
"""Bytes that golden codes may take, unless the caller says otherwise."""


class GoldenCache:
    """Answers of all images, and the codes inside the network of those in use.

    placement  the network on its machine
    images, labels  of the run
    memory     bytes that codes and sums may take; at least one image is held

    Attributes: answers (`inject.Golden`), digests (images,) uint64 of the last integer
    tensors, refusal (why differences cannot be carried and `Suffix` is used, or None).
    """

    def __init__(self, placement: Placement, images, labels, *, memory: int = MEMORY):
        self.placement, self.memory = placement, memory
        self._chunks: OrderedDict[int, Delta | Suffix] = OrderedDict()
        try:
            each = max(memory_of(placement, 1), 1)
            if clean_hooks(placement) is not None:
                raise MappingError("adders that saturate are not carried as differences")
            if placement.accel.kind.layers:
                raise MappingError("products that lose low bits are not carried as differences")
            self.refusal = None
        except MappingError as error:
            each, self.refusal = max(suffix.memory_of(placement), 1), str(error)
        self.held = max(1, min(len(images), memory // each))
        self.size = -(-len(images) // -(-len(images) // self.held)) if self.held else 1
        # Half of what fits, so that the next chunk is made before the last one goes.
        if self.size < len(images):
            self.size = max(1, self.size // 2)
        result = P.run(placement.program, images, hooks=clean_hooks(placement))
        self.answers = Golden(images, np.asarray(labels), result.acc, top1(result.logits))
        self.digests = tensor_digest(result.acc)

    def chunk_of(self, image: np.ndarray) -> np.ndarray:
        """Number of the chunk that holds each image."""
        return image // self.size

    def chunk(self, number: int) -> tuple[Delta | Suffix, int]:
        """(codes of a chunk's images, its first image)."""
        first = number * self.size
        if number in self._chunks:
            self._chunks.move_to_end(number)
        else:
            while len(self._chunks) * self.size + self.size > self.held and self._chunks:
                self._chunks.popitem(last=False)
            images = self.answers.images[first : first + self.size]
            make = Suffix if self.refusal else Delta
            self._chunks[number] = make(self.placement, images)
        return self._chunks[number], first
