"""One fault followed through a network: what it touched and what was left of it."""

from __future__ import annotations

import numpy as np

from fsim.types import EFFECTS, FOREVER

from . import program as P
from .batch import Batch
from .engine import FaultHooks, clean_hooks
from .sites import Placement
from .statistics import OUTCOME_NAMES, classify, top1


class _Watch(FaultHooks):
    """Faults, and how many sums of each operation they (and what they caused) changed."""

    def __init__(self, placement, batch):
        super().__init__(placement, batch)
        self.sums: dict[int, int] = {}

    def accumulated(self, op, inputs, acc):
        replaced = super().accumulated(op, inputs, acc)
        self.sums[op.index] = 0 if replaced is None else len(np.unique(replaced[0]))
        return replaced


def explain_rows(placement: Placement, image: np.ndarray, rows: np.ndarray) -> dict:
    """JSON-ready account of FAULT rows striking one image (c, h, w) float32.

    layers: for each operation that stores codes or runs on the array, the sums that
    the fault itself changed in it, and the codes that differ from the clean run
    """
    program, accel = placement.program, placement.accel
    keep = range(len(program.ops))
    images = image[None]
    clean = P.run(program, images, keep=keep, hooks=clean_hooks(placement))
    rows = rows.copy()
    watch = _Watch(placement, Batch(rows, np.zeros(len(rows), np.int64)))
    faulty = P.run(program, images, keep=keep, hooks=watch)
    layers = []
    for op in program.ops:
        if op.index not in clean.kept:
            continue
        before = clean.kept[op.index].astype(np.int64)
        after = faulty.kept[op.index].astype(np.int64)
        difference = np.abs(after - before)
        layers.append(
            {
                "layer": op.name,
                "operation": type(op).__name__.lower(),
                "sums_changed": watch.sums.get(op.index),
                "codes_changed": int(np.count_nonzero(difference)),
                "codes": int(difference.size),
                "largest": int(difference.max(initial=0)),
            }
        )
    last = program.ops[-1]
    if last.index not in clean.kept:
        difference = np.abs(faulty.acc - clean.acc)
        layers.append(
            {
                "layer": last.name,
                "operation": type(last).__name__.lower(),
                "sums_changed": watch.sums.get(last.index),
                "codes_changed": int(np.count_nonzero(difference)),
                "codes": int(difference.size),
                "largest": int(difference.max(initial=0)),
            }
        )
    golden_class, faulty_class = int(top1(clean.logits)[0]), int(top1(faulty.logits)[0])
    outcome = classify(clean.acc, faulty.acc, top1(clean.logits), top1(faulty.logits))
    return {
        "faults": [_describe(placement, row) for row in rows],
        "layers": layers,
        "clean_logits": [float(x) for x in clean.logits[0]],
        "faulty_logits": [float(x) for x in faulty.logits[0]],
        "clean_class": golden_class,
        "faulty_class": faulty_class,
        "outcome": OUTCOME_NAMES[int(outcome[0])],
        "array": [accel.rows, accel.cols],
    }


def _describe(placement: Placement, row) -> dict:
    """One row in words."""
    component = placement.accel.components[int(row["component"])]
    layer = int(row["layer"])
    text = {
        "component": component.name,
        "layer": placement.program.ops[layer].name if layer >= 0 else "all layers",
        "what": component.about,
        "bits": component.bits,
    }
    if int(row["word"]) >= 0:
        text["word"], text["residency"] = int(row["word"]), int(row["first"])
    else:
        text["row"], text["col"] = int(row["row"]), int(row["col"])
        last = int(row["last"])
        text["effect"] = EFFECTS[int(row["effect"])]
        text["cycles"] = f"{int(row['first'])} to {'the end' if last == FOREVER else last}"
    text["masks"] = (
        f"and {int(row['and_mask']):#x}, or {int(row['or_mask']):#x}, xor {int(row['xor_mask']):#x}"
    )
    return text
