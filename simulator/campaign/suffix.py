"""Networks beyond differences: from the struck operation on, as whole maps.

Stacks of matrices, operations in float, adders that saturate: what `Delta` cannot express
still starts at the faulted layer, on golden codes, and ends there if the layer's codes are
the golden ones. Only what survives runs on, all of the network that is left.
"""

from __future__ import annotations

import math

import numpy as np

from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.engine import FaultHooks, clean_hooks
from fsim.simulator.sites import Placement

_STRUCK = 64  # inferences whose struck operation is run together
_PIECE = 32  # images whose codes are taken over together


def memory_of(placement: Placement) -> int:
    """Bytes that the golden codes of one image take."""
    ops = placement.program.ops[:-1]
    return sum(math.prod(op.shape) * op.dtype.itemsize for op in ops)


class Suffix:
    """Golden codes of some images, and faults carried on from the operation they strike.

    placement  the network on its machine; images (n, ...) float32 network input
    """

    def __init__(self, placement: Placement, images: np.ndarray):
        self.placement = placement
        self._clean = clean_hooks(placement)
        keep = [op.index for op in placement.program.ops[:-1]]
        parts = []
        for first in range(0, max(len(images), 1), _PIECE):
            piece = images[first : first + _PIECE]
            parts.append(P.run(placement.program, piece, hooks=self._clean, keep=keep))
        self.acc = np.concatenate([part.acc for part in parts])
        self.kept = {i: np.concatenate([part.kept[i] for part in parts]) for i in keep}

    def carried(self, image: np.ndarray, rows: np.ndarray, threads: int) -> np.ndarray:
        """(f, classes) int64 last sums of inferences with one fault each.

        image  (f,) which image each strikes; rows (f,) FAULT of single layers
        """
        program = self.placement.program
        acc = self.acc[image]
        order = np.argsort(rows["layer"], kind="stable")
        layers = rows["layer"][order]
        groups = []
        for mine in np.split(order, np.flatnonzero(np.diff(layers)) + 1) if len(order) else ():
            groups += [mine[i : i + _STRUCK] for i in range(0, len(mine), _STRUCK)]

        def run(mine: np.ndarray):
            return self._from(program.ops[int(rows["layer"][mine[0]])], image[mine], rows[mine])

        for mine, found in zip(groups, P.concurrently(program, run, groups, threads)):
            acc[mine] = found
        return acc

    def _from(self, op, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Last sums of inferences whose faults are all in `op`."""
        program = self.placement.program
        hooks = FaultHooks(self.placement, Batch(rows, np.arange(len(rows))))
        if op.index:
            inputs = tuple(self.kept[i][image] for i in op.inputs)
            out = P.step(program, op, inputs, hooks)
        else:
            out = self.kept[0][image]
            hooks.stored(op, out)
        if op is program.ops[-1]:
            return out
        golden = self.kept[op.index][image]
        differs = (out != golden).reshape(len(image), -1).any(axis=1)
        acc = self.acc[image]
        if differs.any():
            some = image[differs]
            codes = {i: self.kept[i][some] for i in program.live(op.index + 1) if i != op.index}
            codes[op.index] = np.ascontiguousarray(out[differs])
            start = (op.index + 1, codes)
            found = P.run(program, hooks=self._clean, start=start, threads=1)
            acc[differs] = found.acc
        return acc
