"""Trials: the same whatever the batch, threads and order; and drawn from the law they state."""

from __future__ import annotations

import contextlib

import numba
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.network import Explicit
from fsim.fault_models.upsets import KINDS, SingleFault, UpsetRate
from fsim.session import open_session
from fsim.simulator.draws import Draws
from fsim.simulator.inject import run_rows, run_trials, slots_of
from fsim.simulator.sites import Placement, check_rows, select
from fsim.types import FOREVER, LEVEL, STATE, Fault
from tests.rates import assert_rate, assert_uniform, seed_for

IMAGES = 10
MODELS = [
    BitErrors(1e-4, 1e-4, 1e-4),
    BitErrors(weights=1e-3, acts=1e-4, hw_batch=4),
    BitErrors(weights=1e-3, hw_batch=None),
    OneFlip(),
    UpsetRate(2e-8),
    *[SingleFault(kind) for kind in KINDS],
    Explicit((Fault("psum", bit=20, row=1, col=2, layer="conv2", cycle=60, image=3),)),
]


def named(model) -> str:
    return f"{model.name}-{getattr(model, 'kind', getattr(model, 'hw_batch', ''))}"


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", load_accel("systolic"), images=IMAGES)


@pytest.fixture(scope="module")
def golden(session):
    return session.golden()


@pytest.fixture(scope="module")
def space(session):
    return select(session.placement)


@contextlib.contextmanager
def threads(count):
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def results(space, golden, model, *, seed=5, trials=range(2), batch=128):
    found = run_trials(space, golden, model, seed=seed, trials=trials, batch=batch)
    return {result.trial: result for result in found}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for trial in one:
        for name in ("rows", "acc", "top1", "outcome"):
            assert_array_equal(getattr(one[trial], name), getattr(other[trial], name))


def struck_bits(rows):
    """(rows, 6): component, layer, word, residency, image and bit of single flips."""
    mask = np.abs(rows["xor_mask"]).astype(np.int64)
    assert (mask & (mask - 1) == 0).all() and (mask > 0).all()
    bit = np.log2(mask.astype(float)).astype(np.int64)
    columns = [rows[name] for name in ("component", "layer", "word", "first", "image")]
    return np.stack([*columns, bit], 1)


# The same answers, however they are computed


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_batches_threads_and_order_of_trials_change_nothing(space, golden, model):
    wanted = results(space, golden, model)
    assert any(len(result.rows) for result in wanted.values())
    for batch in (1, 7):
        assert_same(wanted, results(space, golden, model, batch=batch))
    for count in (1, 2):
        with threads(count):
            assert_same(wanted, results(space, golden, model))
            assert_same({1: wanted[1]}, results(space, golden, model, trials=[1]))
            assert_same(wanted, results(space, golden, model, trials=range(2), batch=5))
    assert_same(wanted, results(space, golden, model, trials=[1, 0]))
    assert_same({1: wanted[1]}, results(space, golden, model, trials=[1]))


@pytest.mark.parametrize("model", MODELS[:-1], ids=named)
def test_another_seed_and_another_trial_draw_other_faults(space, model):
    images = np.arange(IMAGES)

    def places(seed, trial):
        rows = model.rows(space, trial, images, Draws(seed))
        return rows[["component", "layer", "row", "col", "word", "first", "xor_mask", "or_mask"]]

    base = places(5, 0)
    assert base.tobytes() == places(5, 0).tobytes()
    assert base.tobytes() not in (places(6, 0).tobytes(), places(5, 1).tobytes())


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_rows_lie_in_the_machine_and_images_draw_for_themselves(space, model):
    rows = model.rows(space, 4, np.arange(16), Draws(5))
    check_rows(space.placement, rows, 16)
    assert set(rows["trial"].tolist()) <= {4}
    assert_array_equal(np.sort(rows["event"]), np.arange(len(rows)))
    some = model.rows(space, 4, np.arange(8), Draws(5))
    kept = rows[rows["image"] < 8]
    for name in set(rows.dtype.names) - {"event"}:
        assert_array_equal(some[name], kept[name])


def test_a_trial_without_rows_is_the_golden_run(space, golden):
    result = results(space, golden, BitErrors(), trials=[0])[0]
    assert len(result.rows) == 0 and not result.outcome.any()
    assert_array_equal(result.acc, golden.acc)
    assert_array_equal(result.top1, golden.top1)


# Batches of the hardware: how long a weight stays


def test_a_row_of_weights_strikes_its_batch_of_images(space, golden):
    model = BitErrors(weights=1e-3, acts=1e-4, hw_batch=4)
    trial = results(space, golden, model, trials=[0])[0]
    weights = space.accel.component_index("weights")
    of_weights = trial.rows["component"] == weights
    assert set(trial.rows["image"][of_weights]) == {0, 4, 8}
    for image in range(IMAGES):
        stored = np.where(of_weights, image // 4 * 4, image)
        mine = trial.rows[trial.rows["image"] == stored]
        mine["image"] = image
        alone = run_rows(space.placement, golden, mine, first=image, count=1)
        assert_array_equal(alone.acc[0], trial.acc[image])
    first = trial.rows[of_weights & (trial.rows["image"] == 0)][:1]
    only = run_rows(space.placement, golden, first, hw_batch=4, batch=3)
    assert_array_equal(only.acc[4:], golden.acc[4:])


def test_weights_written_once_strike_the_whole_trial(space, golden):
    trial = results(space, golden, BitErrors(weights=1e-3, hw_batch=None), trials=[0])[0]
    assert set(trial.rows["image"]) == {-1}
    for image in range(IMAGES):
        mine = trial.rows.copy()
        mine["image"] = image
        alone = run_rows(space.placement, golden, mine, first=image, count=1)
        assert_array_equal(alone.acc[0], trial.acc[image])
    assert (trial.outcome > 0).all()


@pytest.mark.parametrize("hw_batch", [1, 2, 4, 1 << 20, None])
@pytest.mark.parametrize(("first", "count"), [(0, 10), (3, 4), (9, 1)])
def test_slots_are_the_images_of_a_row(space, hw_batch, first, count):
    names = [component.name for component in space.accel.components]
    rows = BitErrors(2e-5, 2e-4, 2e-6, hw_batch).rows(space, 0, np.arange(20), Draws(1))
    weights = names.index("weights")
    wanted = set()
    for row in rows:
        image, event = int(row["image"]), int(row["event"])
        size = hw_batch if hw_batch and row["component"] == weights and image >= 0 else 1
        if image < 0:
            wanted.add((event, -1))
        else:
            last = min(image + size, first + count)
            wanted |= {(event, i - first) for i in range(max(image, first), last)}
    struck, slot = slots_of(rows, first, count, weights, hw_batch)
    pairs = list(zip(struck["event"].tolist(), slot.tolist()))
    assert len(pairs) == len(set(pairs)) and set(pairs) == wanted


# The law of the rows


MACHINES = {
    "32x32": {},
    "several folds": {"rows": 8, "cols": 8},
    "output stationary": {"dataflow": "os", "rows": 8, "cols": 8},
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_rate_of_one_flips_every_exposed_bit_once_and_zero_none(session, machine):
    overrides = dict(MACHINES[machine])
    accel = load_accel("systolic", overrides.pop("dataflow", None), overrides)
    space = select(Placement(session.program, accel), ["x", "conv1", "fc"])
    images = np.arange(4)
    assert len(BitErrors().rows(space, 0, images, Draws(1))) == 0
    assert len(UpsetRate(0.0).rows(space, 0, images, Draws(1))) == 0
    for component in ("acts", "weights", "psums"):
        model = BitErrors(**{component: 1.0}, hw_batch=2)
        bits = sum(b.exposed_bits for b in space.blocks if b.component == component)
        units = 2 if component == "weights" else 4
        rows = model.rows(space, 0, images, Draws(1))
        assert set(rows["component"]) == {accel.component_index(component)}
        assert len(rows) == units * bits == len(np.unique(struck_bits(rows), axis=0))
        check_rows(space.placement, rows, 4)


@pytest.mark.parametrize("component", ["acts", "weights", "psums"])
@pytest.mark.parametrize("hw_batch", [1, 4])
def test_bit_errors_have_the_rate_given_in_each_memory(space, component, hw_batch):
    p, images = 1e-3, np.arange(2000)
    only = select(space.placement, None, [component])
    n = sum(block.exposed_bits for block in only.blocks) * len(images)
    model = BitErrors(**{component: p}, hw_batch=hw_batch)
    k = len(model.rows(only, 0, images, Draws(seed_for(f"ber {component} {hw_batch}"))))
    assert_rate(k, n // hw_batch if component == "weights" else n, p)


def test_bit_errors_are_uniform_over_bits_and_words(session):
    only = select(session.placement, ["conv1"], ["psums"])
    rows = BitErrors(psums=0.05).rows(only, 0, np.arange(80), Draws(seed_for("uniform ber")))
    struck = struck_bits(rows)
    assert_uniform(np.bincount(struck[:, 5], minlength=32))
    assert_uniform(np.bincount(struck[:, 2], minlength=1024))


def test_bit_errors_of_words_that_are_fetched_often_are_uniform_over_residencies(session):
    accel = load_accel("systolic", "ws", {"rows": 8, "cols": 8})
    only = select(Placement(session.program, accel), ["conv2"], ["psums"])
    folds = int(only.blocks[0].residencies)
    assert folds > 2
    rows = BitErrors(psums=5e-3).rows(only, 0, np.arange(200), Draws(seed_for("residencies")))
    assert_uniform(np.bincount(rows["first"], minlength=folds))


def test_one_flip_is_uniform_over_exposed_bits(space):
    rows = OneFlip().rows(space, 0, np.arange(200_000), Draws(seed_for("one flip")))
    assert_array_equal(rows["image"], np.arange(200_000))
    names = [component.name for component in space.accel.components]
    exposed = np.array([block.exposed_bits for block in space.blocks])
    counts = [
        np.sum((rows["layer"] == b.layer) & (rows["component"] == names.index(b.component)))
        for b in space.blocks
    ]
    assert_uniform(counts, probabilities=exposed / exposed.sum())
    psums = rows[rows["component"] == names.index("psums")]
    assert_uniform(np.bincount(struck_bits(psums)[:, 5], minlength=32))


@pytest.mark.parametrize("kind", ["seu", "transient", "intermittent"])
def test_single_faults_are_uniform_over_components_layers_pes_and_bits(space, kind):
    rows = SingleFault(kind).rows(space, 0, np.arange(150_000), Draws(seed_for(f"one {kind}")))
    kinds = {"seu": ("register",), "transient": ("net",)}.get(kind, ("register", "net"))
    sites = [s for s in space.registers if space.accel.components[s.component].kind in kinds]
    sizes = np.array([site.sites for site in sites], float)
    cells = [(rows["component"] == s.component) & (rows["layer"] == s.layer) for s in sites]
    assert_uniform([cell.sum() for cell in cells], probabilities=sizes / sizes.sum())
    assert_uniform(np.bincount(rows["row"] * 32 + rows["col"], minlength=1024))
    widest = max(s.bits for s in sites)
    wide = rows[np.isin(rows["component"], [s.component for s in sites if s.bits == widest])]
    mask = np.abs((wide["or_mask"] if kind == "intermittent" else wide["xor_mask"]).astype(float))
    assert_uniform(np.bincount(np.log2(mask).astype(int), minlength=widest))
    for site, cell in zip(sites, cells):
        assert rows["first"][cell].min() >= 0 and rows["first"][cell].max() < site.cycles
    length = 16 if kind == "intermittent" else 1
    assert_array_equal(rows["last"] - rows["first"], length - 1)
    assert set(rows["effect"]) == {STATE if kind == "seu" else LEVEL}


@pytest.mark.parametrize("kind", ["stuck0", "stuck1"])
def test_permanent_faults_are_one_a_trial_in_the_machine(space, kind):
    draws = Draws(seed_for(kind))
    trials = [SingleFault(kind).rows(space, t, np.arange(3), draws) for t in range(400)]
    rows = np.concatenate(trials)
    assert len(rows) == 400
    for name, value in (("image", -1), ("layer", -1), ("first", -1), ("last", FOREVER),
                        ("effect", LEVEL), ("xor_mask", 0)):  # fmt: skip
        assert set(rows[name].tolist()) == {value}
    moved = rows["and_mask"] != -1 if kind == "stuck0" else rows["or_mask"] != 0
    assert moved.all() and len(np.unique(rows["component"])) > 2


def test_an_mbu_flips_adjacent_bits_of_one_register(space):
    rows = SingleFault("mbu").rows(space, 0, np.arange(5000), Draws(3))
    for component in np.unique(rows["component"]):
        bits = space.accel.components[component].bits
        masks = rows["xor_mask"][rows["component"] == component].astype(np.int64)
        masks = set((masks & ((1 << bits) - 1)).tolist())
        assert masks <= {3 << bit for bit in range(bits - 1)} | {1 << (bits - 1)}


def test_upsets_have_their_rate_and_are_uniform_over_the_registers(space):
    sites = [s for s in space.registers if space.accel.components[s.component].kind == "register"]
    sizes = np.array([site.sites for site in sites])
    total, images, rate = int(sizes.sum()), 500, 1e-6
    rows = UpsetRate(rate).rows(space, 0, np.arange(images), Draws(seed_for("upsets")))
    assert_rate(len(rows), total * images, rate)
    counts = [np.sum((rows["component"] == s.component) & (rows["layer"] == s.layer))
              for s in sites]  # fmt: skip
    assert_uniform(counts, probabilities=sizes / total)
    names = ["image", "component", "layer", "row", "col", "first", "xor_mask"]
    assert len(np.unique(rows[names])) == len(rows)
