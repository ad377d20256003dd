"""Faults of campaigns: who they are, and that every way of evaluating them agrees."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, MappingError
from fsim.fault_models.bit_errors import OneFlip
from fsim.fault_models.upsets import SingleFault
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.campaign.evaluate import Evaluator, way_of
from fsim.simulator.campaign.frame import Frame
from fsim.simulator.campaign.population import Chips, FaultList, Flips, SingleFaults
from fsim.simulator.capture import capture
from fsim.simulator.engine import FaultHooks
from fsim.simulator.quantise import quantise
from fsim.simulator.sampling import entries_of_order
from fsim.simulator.sites import Placement, select
from fsim.simulator.statistics import Outcome
from fsim.simulator.walks import register_sums, walkable
from tests.test_delta import IMAGES, NETWORKS, made

LABELS = np.arange(IMAGES) % 4
FLIP = "flip"


def model_of(kind):
    return OneFlip() if kind == FLIP else SingleFault(kind)


@functools.cache
def network(name, unsigned):
    placement, images = made(name, unsigned=unsigned)
    return placement.program, images


def placed(name, accel, flow, **settings):
    machine = load_accel(accel, flow, settings)
    program, images = network(name, machine.unsigned_acts)
    return Placement(program, machine), images


@pytest.mark.parametrize("size", [1, 2, 5, 64, 4096, 4097, 10_000, 65_537])
def test_an_order_has_every_entry_once(size):
    found = entries_of_order(size, np.arange(size), seed=5, stream=9)
    assert sorted(found.tolist()) == list(range(size))
    assert np.array_equal(entries_of_order(size, np.arange(size)[::-1], seed=5, stream=9)[::-1],
                          found)  # fmt: skip
    if size > 60:
        assert not np.array_equal(found, entries_of_order(size, np.arange(size), seed=6, stream=9))


def test_the_first_entries_of_a_large_order_are_a_uniform_sample():
    size, count, cells = 10**12 + 7, 200_000, 64
    found = entries_of_order(size, np.arange(count), seed=1, stream=2)
    assert len(np.unique(found)) == count and found.min() >= 0 and found.max() < size
    observed = np.bincount(found * cells // size, minlength=cells)
    chi = ((observed - count / cells) ** 2 / (count / cells)).sum()
    # Chi-squared with 63 degrees: mean 63, standard deviation 11.2; six of them.
    assert abs(chi - (cells - 1)) < 6 * np.sqrt(2 * (cells - 1))


def test_bad_orders_are_refused():
    with pytest.raises(ConfigError, match=r"must lie in \[0, 5\)"):
        entries_of_order(5, np.array([5]), seed=0, stream=0)
    with pytest.raises(ConfigError, match="number of fault sites"):
        entries_of_order(0, np.array([], np.int64), seed=0, stream=0)


@pytest.mark.parametrize("stratify", [(), ("bit",), ("layer", "component"), ("component", "bit")])
@pytest.mark.parametrize("kind", [FLIP, "seu", "transient", "stuck0"])
def test_a_frame_has_every_site_of_every_image_once(kind, stratify):
    placement, images = placed("residual", "systolic", "os", rows=2, cols=2)
    layers = ["fc"] if kind != "stuck0" else None
    space = select(placement, layers, ["weights", "psums", "psum", "mul"])
    model = OneFlip(("weights", "psums")) if kind == FLIP else SingleFault(kind)
    each = IMAGES if kind == "stuck0" else None
    faults = SingleFaults(space, model, IMAGES, each=each, stratify=stratify, seed=3)
    frame = faults.frame
    assert sum(frame.sizes) == frame.size == frame.sites * (1 if each else IMAGES)
    trials = np.concatenate(
        [frame.trials(h, 0, size) for h, size in enumerate(frame.sizes)]
    )  # fmt: skip
    drawn = faults.draw(trials)
    rows = drawn.rows
    names = ("image", "layer", "component", "row", "col", "word", "first", "xor_mask", "and_mask")
    seen = np.unique(np.stack([rows[name].astype(np.int64) for name in names], 1), axis=0)
    assert len(seen) == frame.size == len(rows)
    if each is None:
        assert np.array_equal(np.unique(rows["image"]), np.arange(IMAGES))
    # Every trial is in the stratum that its number says.
    stratum, _ = frame.split(drawn.trial)
    for axis in stratify:
        if axis == "layer":
            got = [placement.program.ops[i].name if i >= 0 else "(all)" for i in rows["layer"]]
        elif axis == "component":
            got = [placement.accel.components[i].name for i in rows["component"]]
        else:
            mask = rows["xor_mask"] | ~rows["and_mask"]
            got = [(int(m) & -int(m)).bit_length() - 1 for m in mask]
        assert got == [frame.strata[h].key[axis] for h in stratum]


def test_faults_depend_on_seed_and_trial_alone():
    placement, images = made("residual")
    faults = SingleFaults(select(placement), SingleFault("seu"), IMAGES, seed=3)
    whole = faults.draw(np.arange(100))
    part = faults.draw(np.array([70, 3, 41]))
    np.testing.assert_array_equal(part.rows, whole.rows[[3, 41, 70]])
    assert not np.array_equal(
        whole.rows["word"], SingleFaults(select(placement), SingleFault("seu"), IMAGES, seed=4)
        .draw(np.arange(100)).rows["first"],
    )  # fmt: skip
    some = SingleFaults(select(placement), SingleFault("seu"), IMAGES, each=3, seed=3)
    image = some.draw(np.arange(50)).image
    assert image.shape == (50, 3) and (np.diff(image, axis=1) > 0).all()
    assert set(image.reshape(-1).tolist()) == set(range(IMAGES))


@pytest.mark.parametrize("axes", [("row",), ("layer", "layer")])
def test_strata_of_other_axes_are_refused(axes):
    placement, _ = made("residual")
    with pytest.raises(ConfigError, match="strata must be told apart by"):
        SingleFaults(select(placement), SingleFault("seu"), IMAGES, stratify=axes)


MACHINES = [
    ("systolic", "ws", {"rows": 8, "cols": 8}),
    ("systolic", "os", {"rows": 8, "cols": 8}),
    ("systolic", "is", {"rows": 8, "cols": 8}),
    ("gemmini-like-4x4", "ws", {}),
    ("gemmini-like-4x4", "os", {}),
    ("pipelined-systolic-4x4", "ws", {}),
    # Nothing stays on chip: activations and weights are fetched by tiles.
    ("systolic", "ws", {"rows": 8, "cols": 8, "buffers.acts.kib": 1, "buffers.weights.kib": 1}),
    ("systolic", "os", {"rows": 8, "cols": 8, "buffers.acts.kib": 1, "buffers.weights.kib": 1}),
]  # fmt: skip


@pytest.mark.parametrize("kind", [FLIP, "seu", "mbu", "transient", "intermittent"])
@pytest.mark.parametrize("accel, flow, settings", MACHINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_differences_are_whole_inferences(name, accel, flow, settings, kind):
    try:
        placement, images = placed(name, accel, flow, **settings)
        space = select(placement)
    except MappingError as error:
        pytest.skip(str(error))  # a joined tensor that does not fit a tiny memory
    try:
        faults = SingleFaults(space, model_of(kind), IMAGES, stratify=("layer", "component"))
    except MappingError as error:
        pytest.skip(str(error))
    fast = Evaluator(placement, images, LABELS, way="differences")
    slow = Evaluator(placement, images, LABELS, way="whole")
    count = len(faults.frame.strata)
    each = 16 if kind in (FLIP, "transient") else 6
    drawn = faults.draw(np.arange(count * each))
    got, wanted = fast.outcomes(drawn), slow.outcomes(drawn)
    for column in wanted.dtype.names:
        np.testing.assert_array_equal(got[column], wanted[column], column)
    codes = set(wanted["outcome"].tolist())
    assert Outcome.MASKED in codes and len(codes) > 1


@pytest.mark.parametrize("kind", ["seu", "transient", "intermittent"])
@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_registers_of_many_inferences_at_once_are_those_of_one(flow, kind):
    """The compiled walk of a batch against the engine's own, product by product."""
    placement, images = placed("everything", "systolic", flow, rows=8, cols=8)
    program, cells = placement.program, SingleFault(kind).cells(select(placement))
    wanted = [op.index for op in program.array_ops]
    run = P.run(program, images, keep=[op.index for op in program.ops[:-1]], keep_acc=wanted)
    rng, changed = np.random.default_rng(2), 0
    for op in program.array_ops:
        mine = [i for i, cell in enumerate(cells) if cell.layer == op.index]
        which = rng.choice(mine, 20)
        word = np.array([rng.integers(cells[w].words) for w in which])
        bit = np.array([rng.integers(cells[w].bits) for w in which])
        rows = SingleFault(kind).rows_at(select(placement), cells, which, word, bit)
        assert walkable(placement, op, rows).all()
        slot = rng.integers(0, IMAGES, len(rows))
        codes, acc = run.kept[op.inputs[0]], run.kept_acc[op.index]
        fault, index, value = register_sums(placement, op, codes, acc, rows, slot)
        for i in range(len(rows)):
            some = slice(slot[i], slot[i] + 1)
            hooks = FaultHooks(placement, Batch(rows[i : i + 1], np.zeros(1, np.int64)))
            found = hooks.accumulated(op, (codes[some],), acc[some])
            pairs = {} if found is None else dict(zip(*(part.tolist() for part in found)))
            here = fault == i
            assert dict(zip(index[here].tolist(), value[here].tolist())) == pairs
            changed += len(pairs)
    assert changed > 20


def test_a_bounded_memory_gives_the_same(monkeypatch):
    placement, images = made("residual")
    faults = SingleFaults(select(placement), OneFlip(), IMAGES).draw(np.arange(300))
    roomy, tight = (Evaluator(placement, images, LABELS, memory=memory) for memory in (1 << 30, 1))
    assert roomy.golden.size == IMAGES and tight.golden.size == 1
    np.testing.assert_array_equal(roomy.outcomes(faults), tight.outcomes(faults))
    assert len(tight.golden._chunks) == 1


def test_faults_that_meet_several_images():
    placement, images = made("residual")
    space = select(placement)
    for kind in ("seu", "stuck1"):
        for each in (2, IMAGES):
            faults = SingleFaults(space, SingleFault(kind), IMAGES, each=each, seed=1)
            drawn = faults.draw(np.arange(40))
            got = Evaluator(placement, images, LABELS).outcomes(drawn)
            wanted = Evaluator(placement, images, LABELS, way="whole").outcomes(drawn)
            np.testing.assert_array_equal(got, wanted)
            # One fault and one image at a time, in whole inferences.
            for at in (0, 17, 39):
                row = drawn.rows[at : at + 1].copy()
                row["image"] = -1
                for place, image in enumerate(drawn.image[at]):
                    hooks = FaultHooks(placement, Batch(row, np.array([0])))
                    alone = P.run(placement.program, images[image : image + 1], hooks=hooks)
                    assert wanted["faulty"][at * each + place] == np.argmax(alone.logits[0])


def test_flips_are_distinct_and_as_many_as_the_stratum_says():
    placement, images = made("residual")
    counts = (1, 2, 7, 300)
    flips = Flips(select(placement), OneFlip(), IMAGES, counts, seed=2)
    drawn = flips.draw(np.arange(40))
    assert np.array_equal(np.diff(drawn.begin), np.array(counts)[drawn.trial % 4])
    names = ["trial", "layer", "component", "word", "first", "xor_mask"]
    sites = np.stack([drawn.rows[name].astype(np.int64) for name in names], 1)
    assert len(np.unique(sites, axis=0)) == len(sites)
    assert np.array_equal(drawn.rows["image"], np.repeat(drawn.image[:, 0], np.diff(drawn.begin)))
    # One flip a trial is carried as differences, several as whole inferences.
    one = Flips(select(placement), OneFlip(), IMAGES, (1,), seed=2).draw(np.arange(60))
    fast, slow = (Evaluator(placement, images, LABELS, way=way) for way in ("auto", "whole"))
    np.testing.assert_array_equal(fast.outcomes(one), slow.outcomes(one))
    for at in (2, 7):
        mine = drawn.rows[drawn.begin[at] : drawn.begin[at + 1]]
        image = drawn.image[at]
        hooks = FaultHooks(placement, Batch(mine, np.zeros(len(mine), np.int64)))
        alone = P.run(placement.program, images[image], hooks=hooks)
        assert fast.outcomes(drawn)["faulty"][at] == np.argmax(alone.logits[0])
    for bad in ((), (0, 1), (2, 1), (1, 1), (1, 1 << 40)):
        with pytest.raises(ConfigError, match="numbers of flips must rise"):
            Flips(select(placement), OneFlip(), IMAGES, bad)


def test_lists_and_chips():
    from fsim.fault_models.stuck_cells import StuckCells

    placement, images = made("residual")
    space = select(placement)
    drawn = SingleFaults(space, SingleFault("seu"), IMAGES, seed=9).draw(np.arange(50))
    listed = FaultList(drawn.rows, IMAGES)
    again = listed.draw(np.array([4, 30, 9]))
    np.testing.assert_array_equal(again.rows, drawn.rows[[4, 9, 30]])
    np.testing.assert_array_equal(again.image, drawn.image[[4, 9, 30]])
    mixed = drawn.rows.copy()
    mixed["image"][3] = -1
    with pytest.raises(ConfigError, match="an image for every trial"):
        FaultList(mixed, IMAGES)
    chips = Chips(space, StuckCells(0.01), IMAGES, seed=1).draw(np.arange(6))
    assert chips.image.shape == (6, IMAGES) and (chips.rows["image"] == -1).all()
    found = Evaluator(placement, images, LABELS).outcomes(chips)
    assert np.array_equal(found["trial"], np.repeat(np.arange(6), IMAGES))


def test_a_frame_is_made_again_from_its_json():
    placement, _ = made("residual")
    cells = SingleFault("seu").cells(select(placement))
    frame = Frame(cells, 7, None, ("layer", "bit"))
    again = Frame.from_json(frame.to_json())
    assert again.sizes == frame.sizes and again.to_json() == frame.to_json()
    assert [s.key for s in again.strata] == [s.key for s in frame.strata]
    for bad in ({}, {"cells": 3}, {**frame.to_json(), "images": "x"},
                {**frame.to_json(), "cells": [[0, "a", 0, "b", 5, 65]]},
                {**frame.to_json(), "cells": []},
                {**frame.to_json(), "stratify": ["no"]}):  # fmt: skip
        with pytest.raises(ConfigError):
            Frame.from_json(bad)


class Attention(nn.Module):
    """Products of two activations, a softmax in float, and a residual."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        scores = torch.matmul(self.q(x), self.k(x).transpose(1, 2))
        x = x + torch.matmul(torch.softmax(scores, -1), self.v(x))
        return self.fc(x.mean(1))


@functools.cache
def attention():
    torch.manual_seed(5)
    images = torch.randn(24, 3, 8, 8).numpy()
    return quantise(capture(Attention().eval(), images), images), images[:IMAGES]


@pytest.mark.parametrize("kind", [FLIP, "seu", "intermittent"])
@pytest.mark.parametrize("flow", ["ws", "os"])
@pytest.mark.parametrize("name", ["attention", "saturating"])
def test_networks_beyond_differences_start_at_the_struck_layer(name, flow, kind, monkeypatch):
    if name == "attention":
        program, images = attention()
        settings = {"rows": 8, "cols": 8}
    else:
        program, images = network("residual", True)
        settings = {"rows": 8, "cols": 8, "overflow": "saturate", "acc_bits": 16}
    placement = Placement(program, load_accel("systolic", flow, settings))
    with pytest.raises(MappingError):
        Evaluator(placement, images, LABELS, way="differences")
    faults = SingleFaults(
        select(placement), model_of(kind), IMAGES, stratify=("layer", "component")
    )
    drawn = faults.draw(np.arange(len(faults.frame.strata) * 6))
    fast, slow = Evaluator(placement, images, LABELS), Evaluator(placement, images, LABELS,
                                                                 way="whole")  # fmt: skip
    way, reason = way_of(fast)
    assert way.startswith("whole maps") and reason
    wanted, begun = slow.outcomes(drawn), []
    real = P.run

    def watched(*arguments, start=None, **options):
        begun.append(start[0] if start else 0)
        return real(*arguments, start=start, **options)

    fast.golden.chunk(0)
    monkeypatch.setattr(P, "run", watched)
    got = fast.outcomes(drawn)
    for column in wanted.dtype.names:
        np.testing.assert_array_equal(got[column], wanted[column], column)
    assert begun and min(begun) > 0  # nothing began at the images
    codes = set(wanted["outcome"].tolist())
    assert Outcome.MASKED in codes and len(codes) > 1


def test_ways_are_told_apart():
    placement, images = made("residual")
    assert way_of(Evaluator(placement, images, LABELS)) == (
        "differences from the struck layer on", None,
    )  # fmt: skip
    assert way_of(Evaluator(placement, images, LABELS, way="whole")) == ("whole inferences", None)
    with pytest.raises(ConfigError, match="way must be one of"):
        Evaluator(placement, images, LABELS, way="quick")
