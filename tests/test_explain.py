"""What `fsim explain` says of a fault: its bits in words, its address as coordinates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.fault_models.explicit import masks
from fsim.fault_models.network import network_rows
from fsim.session import open_session
from fsim.simulator.explain import bits_struck, explain_rows, word_place
from fsim.simulator.sites import select
from fsim.types import FAULT, Fault, wrap


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", load_accel("systolic"), images=2)


def row_of(and_mask, or_mask, xor_mask):
    row = np.zeros(1, FAULT)
    row["and_mask"], row["or_mask"], row["xor_mask"] = and_mask, or_mask, xor_mask
    return row[0]


@pytest.mark.parametrize(
    ("kind", "mask", "says"),
    [
        ("flip", 0b10, "bit 1 flipped"),
        ("flip", 0b11000000, "bits 6, 7 flipped"),
        ("stuck1", 0x80, "bit 7 stuck at 1"),
        ("stuck0", 0x81, "bits 0, 7 stuck at 0"),
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_masks_in_words(kind, mask, says, signed):
    assert bits_struck(row_of(*masks(kind, mask, 8, signed)), 8) == says


def test_masks_in_words_are_what_the_masks_do():
    generator = np.random.default_rng(0)
    for _ in range(200):
        three = [int(m) for m in generator.integers(-8, 8, 3)]
        text = bits_struck(row_of(*three), 4)
        said = {}
        for part in filter(None, text.replace("no bit changed", "").split("; ")):
            names, what = part.split(" ", 1)[1].split(" ", 1) if "bits" not in part else (
                part[5:].rsplit(" flipped")[0].rsplit(" stuck")[0], part)  # fmt: skip
            for bit in names.split(","):
                said[int(bit)] = what.split()[-1]
        for value in range(16):
            new = wrap(((value & three[0]) | three[1]) ^ three[2], 4) & 15
            for bit in range(4):
                old = value >> bit & 1
                expected = {"flipped": 1 - old, "0": 0, "1": 1}.get(said.get(bit), old)
                assert new >> bit & 1 == expected, (three, text)


def test_words_are_numbered_as_the_documents_say(session):
    placement = session.placement
    at = {op.name: op for op in placement.program.ops}
    conv = at["conv2"]
    output, c, y, x = 5, 3, 2, 1
    word = ((output * conv.weight.shape[1] + c) * 3 + y) * 3 + x
    assert word_place(placement, "weights", conv.index, word, 0) == (
        "output 5, input 3, kernel y 2, kernel x 1"
    )
    channels, height, width = conv.shape
    word = (3 * width + 2) * channels + 7
    for memory in ("acts", "psums"):
        assert word_place(placement, memory, conv.index, word, 0) == "y 3, x 2, channel 7"
    fc = at["fc"]
    assert word_place(placement, "weights", fc.index, fc.weight.shape[1] + 4, 0) == (
        "output 1, input 4"
    )
    assert word_place(placement, "psums", fc.index, 9, 0) == "feature 9"


def test_every_block_of_every_layer_has_places():
    small = {f"buffers.{name}.kib": 0.25 for name in ("acts", "weights", "psums")}
    for overrides in ({}, small | {"rows": 8, "cols": 8}):
        for dataflow in ("ws", "os", "is"):
            accel = load_accel("systolic", dataflow, overrides)
            placement = open_session("digits-cnn", accel, images=2).placement
            for block in placement.blocks:
                residency = block.first
                if block.residency is not None:
                    residency = int(block.residency[0])
                place = word_place(
                    placement, block.component, block.layer, block.words - 1, residency
                )
                numbers = [int(part.split()[-1]) for part in place.split(" of ")[0].split(", ")]
                assert math.prod(n + 1 for n in numbers) == block.words


def test_one_output_changes_where_the_place_says(session):
    placement, image = session.placement, session.images[0]
    fault = Fault("psums", bit=31, word=(3 * 4 + 2) * 32 + 7, layer="conv2")
    found = explain_rows(placement, image, network_rows([fault], select(placement)))
    (said,) = found["faults"]
    assert (said["place"], said["struck"]) == ("y 3, x 2, channel 7", "bit 31 flipped")
    fault = Fault("psum", bit=7, row=1, col=2, cycle=9, layer="conv2", kind="stuck1")
    (said,) = explain_rows(placement, image, network_rows([fault], select(placement)))["faults"]
    assert said["struck"] == "bit 7 stuck at 1" and "place" not in said
