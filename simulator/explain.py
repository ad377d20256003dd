"""One fault followed through a network: what it touched and what was left of it."""

from __future__ import annotations

import numpy as np

from fsim.accel_models.accel import CHECK
from fsim.types import EFFECTS, FOREVER

from . import program as P
from .batch import Batch
from .engine import FaultHooks, clean_hooks
from .protection import read_rows
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

    read: what leaves the decoders, where a memory is protected; else None
    layers: for each operation that stores codes or runs on the array, the sums that
    the fault itself changed in it, and the codes that differ from the clean run
    """
    program, accel = placement.program, placement.accel
    keep = range(len(program.ops))
    images = image[None]
    clean = P.run(program, images, keep=keep, hooks=clean_hooks(placement))
    rows = rows.copy()
    found = read_rows(placement, rows, np.zeros(len(rows), np.int64))
    read, repaired, detected = found.rows, len(found.repaired) > 0, len(found.detected) > 0
    watch = _Watch(placement, Batch(read, np.zeros(len(read), np.int64)))
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
    outcome = classify(
        clean.acc, faulty.acc, top1(clean.logits), top1(faulty.logits), corrected=repaired,
        detected=detected,
    )  # fmt: skip
    return {
        "faults": [_describe(placement, row) for row in rows],
        "read": [_describe(placement, row) for row in read] if accel.protected else None,
        "layers": layers,
        "clean_logits": [float(x) for x in clean.logits[0]],
        "faulty_logits": [float(x) for x in faulty.logits[0]],
        "clean_class": golden_class,
        "faulty_class": faulty_class,
        "outcome": OUTCOME_NAMES[int(outcome[0])],
        "array": [accel.rows, accel.cols],
    }


def bits_struck(row, bits: int) -> str:
    """The masks of a row in words: "bit 1 flipped", "bits 6, 7 stuck at 1"."""
    low = [int(row[f"{name}_mask"]) & ((1 << bits) - 1) for name in ("and", "or", "xor")]
    kept, ones, flipped = low
    zeros = ~kept & ~ones & ((1 << bits) - 1)
    parts = []
    # An inverted stuck-at is stuck at the other value.
    for mask, what in (
        (flipped & kept & ~ones, "flipped"),
        ((zeros & ~flipped) | (ones & flipped), "stuck at 0"),
        ((ones & ~flipped) | (zeros & flipped), "stuck at 1"),
    ):
        found = [str(bit) for bit in range(bits) if mask >> bit & 1]
        if found:
            parts.append(f"bit{'s' if len(found) > 1 else ''} {', '.join(found)} {what}")
    return "; ".join(parts) or "no bit changed"


def word_place(placement: Placement, component: str, layer: int, word: int, residency: int) -> str:
    """Where in its tensor a memory word lies, by the addresses of `lower.py`."""
    op = placement.program.ops[layer]
    if component.endswith(CHECK):
        return f"check bits of memory word {word}"
    if component == "weights":
        return _coordinates(op.weight.shape, ("output", "input", "kernel y", "kernel x"), word)
    tensor = op
    if component == "acts" and residency > 0:  # a fetch of what the layer reads
        slot, _ = placement.fetch_of(op, residency)
        tensor = placement.program.ops[op.inputs[int(slot)]]
    if tensor.channels_last:
        place = _coordinates(tensor.layout, ("y", "x", "channel"), word)
    elif len(tensor.layout) == 1:
        place = _coordinates(tensor.layout, ("feature",), word)
    else:
        place = _coordinates(tensor.layout, [f"axis {i}" for i in range(len(tensor.layout))], word)
    return place if tensor is op else f"{place} of {tensor.name}"


def _coordinates(shape, names, word: int) -> str:
    return ", ".join(f"{name} {int(at)}" for name, at in zip(names, np.unravel_index(word, shape)))


def _word_bits(placement: Placement, component, row) -> int:
    """Width of the word that a row strikes."""
    if component.kind == "memory":
        for block in placement.blocks:
            if block.component == component.name and block.layer == int(row["layer"]):
                later = int(row["first"]) > 0 and component.name == "acts"
                if not later or block.first > 0:
                    return block.bits
    return component.bits


def _describe(placement: Placement, row) -> dict:
    """One row in words."""
    component = placement.accel.components[int(row["component"])]
    layer = int(row["layer"])
    bits = _word_bits(placement, component, row)
    text = {
        "component": component.name,
        "layer": placement.program.ops[layer].name if layer >= 0 else "all layers",
        "what": component.about,
        "bits": bits,
    }
    if component.kind == "memory":
        word, residency = int(row["word"]), int(row["first"])
        text["word"] = word
        text["place"] = word_place(placement, component.name, layer, word, residency)
        lasting = int(row["last"]) == FOREVER
        text["residency"] = f"{residency} to the end" if lasting else residency
    else:
        text["row"], text["col"] = int(row["row"]), int(row["col"])
        if int(row["word"]) >= 0:
            text["word"] = int(row["word"])
        first, last = int(row["first"]), int(row["last"])
        text["effect"] = EFFECTS[int(row["effect"])]
        text["cycles"] = f"{first} to {'the end' if last == FOREVER else last}"
    text["masks"] = (
        f"and {int(row['and_mask']):#x}, or {int(row['or_mask']):#x}, xor {int(row['xor_mask']):#x}"
    )
    text["struck"] = bits_struck(row, bits)
    return text
