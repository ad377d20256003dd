"""Stuck cells of the weight memory: the law, the machine with them, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.errors import FaultError
from fsim.fault_models.network import Explicit, network_rows
from fsim.fault_models.statistical import AdSAFBits
from fsim.fault_models.stuck_cells import SA1_SHARE, StuckCells
from fsim.session import open_session
from fsim.simulator import inject
from fsim.simulator import program as P
from fsim.simulator.capture import capture
from fsim.simulator.draws import Draws
from fsim.simulator.inject import golden_run, run_rows, run_trials
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement, check_rows, select
from fsim.simulator.struck import settled
from fsim.simulator.trace import read_trace
from fsim.types import FOREVER, LEVEL, STATE, Fault
from tests.rates import assert_rate, assert_uniform, seed_for
from tests.test_engine import IMAGES, machine_of, network, oracle, place, random_rows


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", load_accel("systolic"), images=12)


@pytest.fixture(scope="module")
def space(session):
    return select(session.placement)


def drawn(space, model, seed=0, trial=0):
    return model.rows(space, trial, np.arange(3), Draws(seed))


def rows_alone(monkeypatch, *arguments, **options):
    """`run_rows` with every row applied by itself, however many there are."""
    with monkeypatch.context() as patch:
        patch.setattr(inject, "settled", lambda placement, rows: (placement, rows))
        return run_rows(*arguments, **options)


# The law


def test_cells_are_stuck_at_the_rate_given_and_read_1_at_the_share_given(space):
    p, share = 0.05, 0.3
    rows = np.concatenate(
        [drawn(space, StuckCells(p, share), seed_for("stuck") % (1 << 63), t) for t in range(20)]
    )
    cells = 20 * StuckCells(p).cells(space)
    assert cells == 20 * 8 * sum(op.weight.size for op in space.placement.program.array_ops)
    assert_rate(len(rows), cells, p)
    assert_rate(int((rows["or_mask"] != 0).sum()), len(rows), share)
    mask = np.abs(np.where(rows["or_mask"] != 0, rows["or_mask"], ~rows["and_mask"]))
    assert_uniform(np.bincount(np.log2(mask.astype(float)).astype(int), minlength=8))
    conv = rows[rows["layer"] == space.layer_index("conv2")]
    assert_uniform(np.bincount(conv["word"] // 64, minlength=72))
    at_1 = rows[rows["or_mask"] != 0]
    assert_uniform(np.bincount(np.log2(np.abs(at_1["or_mask"]).astype(float)).astype(int)))


def test_rows_say_that_every_image_and_every_read_meets_the_cell(space):
    rows = drawn(space, StuckCells(0.05))
    check_rows(space.placement, rows, 3)
    for name, value in (("image", -1), ("effect", LEVEL), ("first", 0), ("last", FOREVER),
                        ("xor_mask", 0), ("row", -1), ("col", -1)):  # fmt: skip
        assert set(rows[name].tolist()) == {value}
    assert set(rows["component"]) == {space.accel.component_index("weights")}
    assert ((rows["and_mask"] == -1) != (rows["or_mask"] == 0)).all()
    assert_array_equal(rows["event"], np.arange(len(rows)))
    assert len(np.unique(rows[["layer", "word", "and_mask", "or_mask"]])) == len(rows)
    again, other, chip = (drawn(space, StuckCells(0.05), *at) for at in ((0, 0), (1, 0), (0, 1)))
    assert rows.tobytes() == again.tobytes()
    assert len({rows["word"].tobytes(), other["word"].tobytes(), chip["word"].tobytes()}) == 3


def test_a_layer_alone_has_the_cells_that_it_has_among_others(space):
    alone = select(space.placement, ["conv3"])
    rows = drawn(space, StuckCells(0.05))
    mine = rows[rows["layer"] == space.layer_index("conv3")]
    found = drawn(alone, StuckCells(0.05))
    for name in set(rows.dtype.names) - {"event"}:
        assert_array_equal(found[name], mine[name])


@pytest.mark.parametrize(("share", "reads"), [(0.0, 0), (1.0, -1)])
def test_rates_at_their_ends(space, share, reads):
    """Every cell stuck: all weights read the same; none: no row."""
    assert len(drawn(space, StuckCells(0.0, share))) == 0
    rows = drawn(space, StuckCells(1.0, share))
    assert len(rows) == StuckCells(1.0).cells(space)
    machine, left = settled(space.placement, rows)
    assert len(left) == 0
    for op in machine.program.array_ops:
        assert set(op.weight.reshape(-1).tolist()) == {reads}


def test_weights_are_read_as_the_statistical_model_on_bits_reads_them(space):
    """AdSAFBits of the same masks, which shares no code with the machine."""
    rows = drawn(space, StuckCells(0.2, 0.4))
    machine, _ = settled(space.placement, rows)
    for op, struck in zip(space.placement.program.array_ops, machine.program.array_ops):
        mine = rows[rows["layer"] == op.index]
        stuck, ones = (np.zeros(op.weight.size, np.int32) for _ in range(2))
        at_1 = mine["or_mask"] != 0
        np.bitwise_or.at(stuck, mine["word"], ((~mine["and_mask"] | mine["or_mask"]) & 255).astype(
            np.int32))  # fmt: skip
        np.bitwise_or.at(ones, mine["word"][at_1], (mine["or_mask"][at_1] & 255).astype(np.int32))
        faults = torch.from_numpy(np.stack([stuck, ones])[None].reshape(1, 2, *op.weight.shape))
        # max|code| = 127 makes the model's step 1: its codes are the machine's.
        codes = torch.from_numpy(op.weight.astype(np.float32))
        assert op.weight.max() == 127 or op.weight.min() == -127
        read = AdSAFBits(p=0.2).apply(codes, faults)
        assert_array_equal(struck.weight, read.numpy())
        assert (struck.weight != op.weight).any()


def test_a_layer_used_twice_has_one_set_of_cells():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 2)

        def forward(self, x):
            return self.fc(torch.flatten(torch.relu(self.conv(torch.relu(self.conv(x)))), 1))

    torch.manual_seed(2)
    images = torch.randn(8, 3, 4, 4).numpy()
    program = quantise(capture(Twice(), images), images)
    space = select(Placement(program, load_accel("systolic")))
    model = StuckCells(0.2)
    first, second = space.layer_index("conv"), space.layer_index("conv#1")
    rows = drawn(space, model)
    assert model.cells(space) == 8 * (81 + 96)
    one, two = (rows[rows["layer"] == layer] for layer in (first, second))
    for name in ("word", "and_mask", "or_mask", "event"):
        assert_array_equal(one[name], two[name])
    assert not set(one["event"]) & set(rows["event"][rows["layer"] > second])


# The machine


MACHINES = {
    "ws": {},
    "os": {"flow": "os"},
    "is": {"flow": "is"},
    "ws saturating": {"acc_bits": 16, "overflow": "saturate"},
    "os saturating": {"flow": "os", "acc_bits": 16, "overflow": "saturate"},
    "is narrow": {"flow": "is", "acc_bits": 16},
    "os fetched again, saturating": {
        "flow": "os", "buffers.weights.kib": 30 / 1024, "acc_bits": 16, "overflow": "saturate",
    },
    "os weights fetched again": {"flow": "os", "buffers.weights.kib": 30 / 1024},
    "is all fetched again": {
        "flow": "is", "buffers.weights.kib": 30 / 1024, "buffers.acts.kib": 8 / 1024,
    },
}  # fmt: skip


def machine_with(name):
    """(placement, golden run, codes, machine for the restatement)."""
    options = dict(MACHINES[name])
    program, codes = network(acc_bits=options.get("acc_bits", 32))
    if options.get("overflow") == "saturate":  # so that sums without faults saturate too
        layer = program.array_ops[1]
        program = P.with_weights(program, {layer.index: np.sign(layer.weight) * 127})
    placement = place(program, **options)
    small = "buffers.weights.kib" in options
    large = {op.index for op in program.array_ops if op.weight.size * 8 > 120} if small else set()
    fetched = {op.index for op in program.ops} if "buffers.acts.kib" in options else set()
    images = codes.astype(np.float32).transpose(0, 3, 1, 2) * program.input.scale
    golden = golden_run(placement, images, np.zeros(IMAGES, int))
    return placement, golden, codes, machine_of(placement, fetched, large)


def restated(placement, machine, codes, rows):
    """`oracle` with every lasting row in each residency by itself."""
    parts = []
    for row in rows:
        op = placement.program.ops[row["layer"]]
        times = [row["first"]]
        if row["effect"] == LEVEL and not placement.weights_once(op):
            end = min(int(row["last"]), placement.position_tiles(op.index) - 1)
            times = range(row["first"], end + 1)
        for residency in times:
            parts.append(row.copy())
            parts[-1]["first"] = residency
    rows = np.array(parts, rows.dtype)
    return oracle(placement, machine, codes, rows, rows["image"])[0]


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("p", [0.02, 0.1])
def test_stuck_cells_against_the_restatement_and_row_by_row(name, p, monkeypatch):
    placement, golden, codes, machine = machine_with(name)
    rows = drawn(select(placement), StuckCells(p, 0.4), seed=3)
    assert len(rows) > 3
    check_rows(placement, rows, IMAGES)
    assert len(settled(placement, rows)[1]) == 0
    found = run_rows(placement, golden, rows)
    assert_array_equal(found.acc, restated(placement, machine, codes, rows))
    assert (found.acc != golden.acc).any()
    for backend in ("auto", "tile"):
        alone = rows_alone(monkeypatch, placement, golden, rows, backend=backend)
        assert_array_equal(alone.acc, found.acc)


@pytest.mark.parametrize("name", MACHINES)
def test_stuck_cells_among_other_faults(name, monkeypatch):
    """Bit errors of sums, codes and weights of single images meet the same chip."""
    placement, golden, codes, machine = machine_with(name)
    rng = np.random.default_rng(7)
    cells = drawn(select(placement), StuckCells(0.05, 0.4), seed=4)
    for components in (("psums", "acts"), ("psums", "weights")):
        other, other["image"] = random_rows(placement, rng, 40, components=components)
        for rows in (np.concatenate([cells, other]), rng.permutation(np.r_[cells, other])):
            found = run_rows(placement, golden, rows)
            assert_array_equal(found.acc, restated(placement, machine, codes, rows))
            alone = rows_alone(monkeypatch, placement, golden, rows, batch=2)
            assert_array_equal(alone.acc, found.acc)


@pytest.mark.parametrize("flow", ["ws", "is"])
def test_many_struck_sums_after_a_run_with_the_right_weights(flow, monkeypatch):
    """What the machine keeps of its own weights does not serve for struck ones."""
    placement, golden, codes, machine = machine_with(flow)
    other, other["image"] = random_rows(
        placement, np.random.default_rng(9), 400, components=("psums",)
    )
    rows = np.concatenate([drawn(select(placement), StuckCells(0.2, 0.4), seed=5), other])
    want = restated(placement, machine, codes, rows)
    assert_array_equal(rows_alone(monkeypatch, placement, golden, rows).acc, want)
    assert placement._cache
    assert_array_equal(run_rows(placement, golden, rows).acc, want)


def test_a_wrong_weight_of_one_fetch_is_no_wrong_weight_of_all():
    """Flips for all images, of one residency each, where weights are fetched again."""
    placement, golden, codes, machine = machine_with("os weights fetched again")
    rng = np.random.default_rng(3)
    rows, _ = random_rows(placement, rng, 60, components=("weights",))
    assert (rows["first"] > 0).any() and (rows["image"] == -1).all()
    again = {op.index for op in placement.program.array_ops if not placement.weights_once(op)}
    left = settled(placement, rows)[1]
    assert set(left["layer"].tolist()) == again & set(rows["layer"].tolist()) != set()
    found = run_rows(placement, golden, rows)
    assert_array_equal(found.acc, restated(placement, machine, codes, rows))


def test_weights_wrong_in_some_reads_of_all():
    """Level rows that begin late or end early: rows of a trace may say so."""
    placement, golden, codes, machine = machine_with("os weights fetched again")
    rng, struck = np.random.default_rng(6), 0
    for span in ((0, 0), (1, FOREVER), (0, 1), (1, 1), (0, FOREVER)):
        rows = drawn(select(placement), StuckCells(0.3, 0.4), seed=6)
        rows = rng.permutation(rows)[:60]
        tiles = {op.index: placement.position_tiles(op.index) for op in placement.program.array_ops}
        once = {op.index for op in placement.program.array_ops if placement.weights_once(op)}
        long = np.array([layer not in once and tiles[layer] > 2 for layer in rows["layer"]])
        rows["first"][long], rows["last"][long] = span
        check_rows(placement, rows, IMAGES)
        left = len(settled(placement, rows)[1])
        assert left == (0 if span == (0, FOREVER) else long.sum())
        struck += left
        found = run_rows(placement, golden, rows)
        assert_array_equal(found.acc, restated(placement, machine, codes, rows))
    assert struck


def test_upsets_of_registers_meet_the_struck_weights(session, monkeypatch):
    golden = session.golden()
    upset = Explicit((Fault("filter", row=3, col=2, bit=6, layer="conv2", cycle=40),
                      Fault("psum", row=1, col=1, bit=20, layer="conv3", cycle=60)))  # fmt: skip
    space = select(session.placement)
    upset = upset.rows(space, 0, np.arange(12), Draws(0))
    rows = np.concatenate([drawn(space, StuckCells(0.001)), upset])
    found = run_rows(session.placement, golden, rows)
    alone = rows_alone(monkeypatch, session.placement, golden, rows)
    tile = run_rows(session.placement, golden, rows, backend="tile")
    assert_array_equal(alone.acc, found.acc)
    assert_array_equal(tile.acc, found.acc)
    without = run_rows(session.placement, golden, rows[: -len(upset)])
    assert (without.acc != found.acc).any()


def test_what_lasts_is_taken_in_and_what_does_not_is_left(session):
    placement, space = session.placement, select(session.placement)
    cells = drawn(space, StuckCells(0.01))
    machine, left = settled(placement, cells)
    assert machine is not placement and not len(left)
    assert machine.program.op("conv2").weight is not placement.program.op("conv2").weight
    one = cells[cells["layer"] == space.layer_index("conv2")][:3].copy()
    one["image"][1] = 4  # a row of one image: the layer is left as it is
    same, left = settled(placement, np.concatenate([one, cells[:2]]))
    assert_array_equal(left["image"], one["image"])
    assert same.program.op("conv2").weight is placement.program.op("conv2").weight
    beyond = cells[:1].copy()
    beyond["and_mask"], beyond["or_mask"] = -1, 1 << 12  # no code of eight bits
    assert len(settled(placement, beyond)[1]) == 1


def test_cells_stuck_at_what_is_written_change_nothing(session):
    rows = drawn(select(session.placement), StuckCells(0.2))
    ops = session.program.ops
    written = np.array([ops[r["layer"]].weight.reshape(-1)[r["word"]] for r in rows])
    right = rows[((written & rows["and_mask"]) | rows["or_mask"]) == written]
    assert len(right) > 100
    golden = session.golden()
    found = run_rows(session.placement, golden, right)
    assert not found.outcome.any() and found.acc.tobytes() == golden.acc.tobytes()
    assert settled(session.placement, right)[0] is session.placement


def test_all_images_of_a_trial_meet_one_chip_whatever_the_batch(session, space):
    golden, model = session.golden(), StuckCells(0.03)
    trials = {r.trial: r for r in run_trials(space, golden, model, seed=2, trials=range(3))}
    for batch in (1, 5):
        again = run_trials(space, golden, model, seed=2, trials=[2, 0], batch=batch)
        for result in again:
            assert_array_equal(result.acc, trials[result.trial].acc)
    assert (trials[0].acc != trials[1].acc).any()
    late = run_rows(session.placement, golden, trials[1].rows, first=7, count=2)
    assert_array_equal(late.acc, trials[1].acc[7:9])


# Named stuck bits of a weight


def test_a_named_bit_of_a_weight_can_be_stuck(space):
    fault = Fault("weights", word=5, bit=7, layer="conv1", kind="stuck1")
    row = network_rows([fault], space)[0]
    assert (row["effect"], row["first"], row["last"]) == (LEVEL, 0, FOREVER)
    machine, _ = settled(space.placement, network_rows([fault], space))
    before = space.placement.program.op("conv1").weight.reshape(-1)[5]
    assert machine.program.op("conv1").weight.reshape(-1)[5] == before | -128
    flip = network_rows([Fault("weights", word=5, bit=7, layer="conv1")], space)[0]
    assert flip["effect"] == STATE


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("acts", word=5, bit=7, layer="conv1", kind="stuck1"), "acts takes flips only"),
        (Fault("psums", word=5, bit=7, layer="conv1", kind="stuck0"), "psums takes flips only"),
        (Fault("weights", word=5, bit=7, layer="conv1", kind="stuck0", cycle=0), "no cycle="),
        (Fault("weights", word=5, bit=7, layer="conv1", cycle=0, last=0), "no last="),
    ],
)
def test_what_cannot_be_stuck_is_refused(space, fault, says):
    with pytest.raises(FaultError, match=says):
        network_rows([fault], space)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"component": "acts", "layer": "conv1"}, "other than a weight must be 0"),
        ({"component": "psums", "layer": "conv1"}, "other than a weight must be 0"),
        ({"last": -1}, "last must be first or later"),
        ({"first": 1}, "residency must be in 0..0"),
    ],
)
def test_rows_of_a_file_that_make_no_sense_are_refused(space, changes, says):
    row = drawn(space, StuckCells(0.01))[:1].copy()
    for name, value in changes.items():
        if name == "component":
            value = space.accel.component_index(value)
        row[name] = space.layer_index(value) if name == "layer" else value
    with pytest.raises(FaultError, match=says):
        check_rows(space.placement, row, 3)


# The command


RUN = ("inject", "--images", 6, "--trials", 3, "--stuck-cells", "0.03")


def test_inject_replay_and_explain(fsim, tmp_path, session):
    trace = tmp_path / "run.h5"
    result = fsim(*RUN, "--sa1-share", "0.5", "--trace", trace, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "stuck cells of the weight memory, one chip a trial: 0.03 of all cells, 50 %" in (
        result.stdout
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["faults"] == {"kind": "stuck-cells", "p": 0.03, "sa1_share": 0.5}
    cells = StuckCells(0.03).cells(select(session.placement))
    assert report["plan"]["weight_cells"] == cells
    assert report["plan"]["expected_faults_per_trial"] == pytest.approx(0.03 * cells)
    stored = read_trace(trace)
    assert sum(row["faults"] for row in report["faults_by"]) == len(stored.faults)
    for arguments in ((), ("--backend", "reference"), ("--backend", "tile", "--sample-images", 2)):
        again = fsim("replay", trace, *arguments)
        assert again.exit_code == 0 and "differences  0" in again.stdout, again.output
    event = int(np.flatnonzero(stored.faults_of(1)["or_mask"] == -128)[0])
    text = fsim("explain", trace, "--trial", 1, "--event", event).stdout
    assert "bit 7 stuck at 1" in text and "0 to the end" in text


def test_the_default_share_is_that_of_the_paper(fsim):
    assert SA1_SHARE == 0.163 == AdSAFBits(p=0.1).sa1_share
    report = json.loads(fsim(*RUN, "--json").stdout)
    assert report["faults"]["sa1_share"] == SA1_SHARE


def test_a_dry_run_says_what_to_expect(fsim):
    result = fsim(*RUN, "--layers", "conv1", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert plan["weight_cells"] == 16 * 9 * 8
    assert plan["expected_faults_per_trial"] == pytest.approx(0.03 * 16 * 9 * 8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--stuck-cells", "1.5"), "[0, 1]"),
        (("--stuck-cells", "0.1", "--sa1-share", "-1"), "[0, 1]"),
        (("--stuck-cells", "0.1", "--ber", "1e-5"), "got --ber and --stuck-cells"),
        (("--stuck-cells", "0.1", "--hw-batch", "2"), "got --stuck-cells"),
        (("--stuck-cells", "0.1", "--curve"), "--curve needs --ber, got --stuck-cells"),
        (("--stuck-cells", "0.1", "--sites", "acts,psums"), "stuck cells need words"),
        (("--stuck-cells", "0.1", "--layers", "x"), "stuck cells need words"),
        (("--sa1-share", "0.5"), "--sa1-share needs --stuck-cells, got 0.5 without it"),
        (("--seu-rate", "1e-9", "--sa1-share", "0.5"), "--sa1-share needs --stuck-cells"),
    ],
)
def test_bad_input_is_one_line(fsim, arguments, says):
    result = fsim("inject", "--images", 4, *arguments)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.count("\n") == 1 and says in result.stderr, result.stderr
