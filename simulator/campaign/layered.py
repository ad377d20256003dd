"""Networks that cannot be traced: whole inferences, layer by layer on the array.

There is no graph to start in the middle of, so every fault costs a whole inference. The
last tensor is in float: a fault is masked if and only if every bit of it is the golden one.
"""

from __future__ import annotations

import numpy as np
import torch

from fsim.errors import ConfigError, MappingError
from fsim.simulator.attach_layers import Layered
from fsim.simulator.criteria import DEFAULT, judge
from fsim.simulator.inject import BATCH, Golden
from fsim.simulator.statistics import classify, top1
from fsim.simulator.trace_format import OUTCOME, tensor_digest

from .population import Drawn
from .protected import mark, read_drawn


class LayeredEvaluator:
    """Outcomes of trials on a network that runs layer by layer.

    layered   the network; images, labels of the run; way: of evaluate.WAYS
    critical  which wrong answers are critical: a name of `criteria`
    """

    def __init__(
        self, layered: Layered, images, labels, *, way: str = "auto", critical: str = DEFAULT
    ):
        if way == "differences":
            raise MappingError(f"there are no differences {layered.coverage.notes[0]}")
        self.layered, self.images, self.labels = layered, images, np.asarray(labels)
        empty = np.zeros(0, np.int64)
        parts = [self._logits(images[i : i + BATCH], None) for i in range(0, len(images), BATCH)]
        logits = np.concatenate(parts) if parts else empty
        if logits.ndim != 2:
            raise ConfigError(f"a network must give logits (n, classes), got {logits.shape}")
        self.logits, self.critical = logits, critical
        self.acc, self.top1 = _bits(logits), top1(logits)
        self.answers = Golden(images, self.labels, self.acc, self.top1)

    def _logits(self, images: np.ndarray, rows) -> np.ndarray:
        with torch.no_grad():
            return self.layered.run(images, rows, 1).numpy()

    def outcomes(self, drawn: Drawn) -> np.ndarray:
        """OUTCOME rows of trials, in the order of (trial, image)."""
        placement = self.layered.space.placement
        if not placement.accel.protected:
            return self._outcomes(drawn)
        read, repaired, detected = read_drawn(placement, drawn)
        table = self._outcomes(read).reshape(drawn.image.shape)
        mark(table, repaired, detected)
        return table.reshape(-1)

    def _outcomes(self, drawn: Drawn) -> np.ndarray:
        each = drawn.image.shape[1]
        which = np.repeat(np.arange(len(drawn.trial)), each)
        image = np.asarray(drawn.image).reshape(-1)
        table = np.zeros(len(which), OUTCOME)
        table["trial"], table["image"] = drawn.trial[which], image
        table["label"], table["golden"] = self.labels[image], self.top1[image]
        for first in range(0, len(which), BATCH):
            some = slice(first, min(first + BATCH, len(which)))
            parts = []
            for slot, trial in enumerate(which[some]):
                rows = drawn.rows[drawn.begin[trial] : drawn.begin[trial + 1]].copy()
                rows["image"] = slot
                parts.append(rows)
            here = image[some]
            logits = self._logits(self.images[here], np.concatenate(parts))
            bits, classes = _bits(logits), top1(logits)
            table["faulty"][some], table["digest"][some] = classes, tensor_digest(bits)
            failed = judge(self.critical, self.logits[here], logits, self.labels[here])
            table["outcome"][some] = classify(
                self.acc[here], bits, self.top1[here], classes, critical=failed
            )
        return table


def _bits(logits: np.ndarray) -> np.ndarray:
    """float32 logits as int64 numbers that are equal where all bits are."""
    return np.ascontiguousarray(logits, np.float32).view(np.int32).astype(np.int64)
