"""Patterns of bits in one word, and clusters of cells across words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fsim.errors import FaultError
from fsim.fault_models.mbu import MultiBitUpset
from fsim.fault_models.mcu import MultiCellUpset
from fsim.fault_models.shapes import shapes_of
from fsim.simulator.draws import Draws
from fsim.simulator.sites import select
from fsim.types import STATE
from tests.rates import assert_uniform, seed_for
from tests.test_engine import compare, machine_of, network, place


def drawn(space, model, count, name, trial=0):
    return model.rows(space, trial, np.arange(count), Draws(seed_for(name) >> 1))


def bits_of(row, bits):
    """Bits that a row flips, lowest first."""
    mask = int(row["xor_mask"]) & ((1 << bits) - 1)
    extended = mask - (1 << bits) if mask >> (bits - 1) else mask
    assert int(row["xor_mask"]) in (mask, extended)
    return tuple(b for b in range(bits) if mask >> b & 1)


# --- shapes ---


def test_pictures_are_cells_by_row_and_column():
    told = shapes_of("2x2:0.5 10/01:0.25 101:0.25", "shapes")
    assert [s.cells for s in told] == [
        ((0, 0), (0, 1), (1, 0), (1, 1)), ((0, 0), (1, 1)), ((0, 0), (0, 2)),
    ]  # fmt: skip
    assert [s.size for s in told] == [(2, 2), (2, 2), (1, 3)]
    assert shapes_of("1/1", "shapes")[0].share == 1.0
    assert shapes_of("00/011", "shapes")[0].cells == ((0, 0), (0, 1))  # moved to the corner


# --- bits of one word ---


def test_patterns_come_at_their_shares_and_places_alike():
    """Every (component, pattern, lowest bit) against counting the places by hand."""
    program, _ = network()
    space = select(place(program, rows=3, cols=2), ["fc"], ["filter", "psum"])
    shares = {"11": 0.5, "101": 0.3, "1111": 0.2}
    model = MultiBitUpset(" ".join(f"{k}:{v}" for k, v in shares.items()))
    count = 60_000
    rows = drawn(space, model, count, "patterns")
    assert (rows["effect"] == STATE).all() and (rows["first"] == rows["last"]).all()
    want = {}
    for pattern, share in shares.items():
        places = [(site.component, low, site.bits) for site in space.registers
                  for low in range(site.bits - len(pattern) + 1)]  # fmt: skip
        for component, low, _ in places:  # registers of one size and as many cycles each
            want[component, pattern, low] = share / len(places)
    names = {(0, 1): "11", (0, 2): "101", (0, 1, 2, 3): "1111"}
    width = {site.component: site.bits for site in space.registers}
    found = Counter()
    for component, mask in zip(rows["component"].tolist(), rows["xor_mask"].tolist()):
        bits = [b for b in range(width[component]) if mask >> b & 1]
        low = bits[0]
        found[component, names[tuple(b - low for b in bits)], low] += 1
    keys = list(want)
    assert set(found) == set(keys)
    assert_uniform([found[k] for k in keys], probabilities=[want[k] for k in keys],
                   mutant=[want[k] * (2 if k[2] == 0 else 1) for k in keys])  # fmt: skip


def test_a_pattern_lies_in_its_word_and_the_sign_bit_is_extended():
    program, _ = network()
    space = select(place(program), None, ["filter"])
    rows = drawn(space, MultiBitUpset("111111"), 200, "sign")
    assert {bits_of(row, 8) for row in rows} == {tuple(range(low, low + 6)) for low in range(3)}
    assert (rows["xor_mask"][rows["xor_mask"] < 0] == -4).all()
    with pytest.raises(FaultError, match="must fit a word"):
        drawn(space, MultiBitUpset("111111111"), 1, "wide")
    memory = MultiBitUpset("11", "memories")
    rows = drawn(select(place(program)), memory, 60, "memories")
    kinds = {space.accel.components[c].kind for c in rows["component"].tolist()}
    assert kinds == {"memory"} and (rows["row"] == -1).all()


# --- clusters ---


def around(buffer, words, bits):
    """{(bank, row, column): (word, bit)} of a tensor that fits: the layout, restated."""
    per, wide = buffer.word_bits // bits, buffer.word_bits + buffer.check_bits
    found = {}
    for word in range(words):
        line, slot = divmod(word, per)
        local, bank = divmod(line, buffer.banks)
        row, w = divmod(local, buffer.row_words)
        group, lane = divmod(w, buffer.interleave)
        for bit in range(bits):
            column = (group * wide + slot * bits + bit) * buffer.interleave + lane
            found[bank, row, column] = word, bit
    assert len(found) == words * bits
    return found


LAYOUTS = {
    "plain": {"buffers.weights.word_bits": 16},
    "interleaved": {"buffers.weights.word_bits": 16, "buffers.weights.interleave": 4},
    "banks": {"buffers.weights.word_bits": 8, "buffers.weights.banks": 2,
              "buffers.weights.columns": 32, "buffers.weights.interleave": 2},
}  # fmt: skip


@pytest.mark.parametrize("picture", ["11", "1/1", "10/01", "2x2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cluster_that_touches_the_tensor_is_equally_likely(layout, picture):
    """All places of the shape over the cells of one small tensor, listed by hand."""
    program, _ = network()
    placement = place(program, **LAYOUTS[layout])
    name = min(program.array_ops, key=lambda op: op.weight.size).name
    space = select(placement, [name], ["weights"])
    (block,) = space.blocks
    cells = around(placement.accel.buffers["weights"], block.words, 8)
    offsets = shapes_of(picture, "shapes")[0].cells
    events = {}
    for bank, row, column in cells:
        for dr, dc in offsets:
            origin = bank, row - dr, column - dc
            struck = frozenset(
                cells[key] for r, c in offsets
                if (key := (bank, origin[1] + r, origin[2] + c)) in cells
            )  # fmt: skip
            events[origin] = struck
    want = Counter(events.values())
    count = 40 * len(events)
    rows = drawn(space, MultiCellUpset(picture), count, f"cluster {layout} {picture}")
    found = {}
    for row in rows:
        found.setdefault(int(row["image"]), set()).update(
            (int(row["word"]), bit) for bit in bits_of(row, 8)
        )
    seen = Counter(frozenset(cells) for cells in found.values())
    assert len(found) == count and set(seen) <= set(want)
    keys = list(want)
    p = np.array([want[k] for k in keys]) / len(events)
    tilted = p * (np.arange(len(keys)) % 2 * 0.5 + 0.75)
    assert_uniform([seen[k] for k in keys], probabilities=p, mutant=tilted)


def test_interleaving_spreads_an_event_over_words():
    """Two cells side by side: two bits of a word, or one bit each of two words."""
    program, _ = network()
    for interleave, words, bits in ((1, 1, 2), (8, 2, 1)):
        placement = place(program, **{"buffers.weights.interleave": interleave,
                                      "buffers.weights.word_bits": 8})  # fmt: skip
        space = select(placement, ["grouped"], ["weights"])
        rows = drawn(space, MultiCellUpset("11", memories="weights"), 300, "spread")
        sizes = np.unique(rows["event"], return_counts=True)[1]
        whole = [row for row in rows if (rows["event"] == row["event"]).sum() == words
                 and len(bits_of(row, 8)) == bits]  # fmt: skip
        # All but those cut by the edge of a row or of the tensor.
        assert len(whole) > 0.7 * len(rows) and sizes.max() == words


@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_the_network_under_clusters_in_every_memory(flow):
    """Against the plain restatement; tensors that do not fit are fetched in tiles."""
    program, codes = network()
    for kib, fetched in ((16, ()), (8 / 1024, True)):
        placement = place(program, flow=flow, **{"buffers.acts.kib": kib,
                                                 "buffers.acts.word_bits": 8})  # fmt: skip
        stored = [op.index for op in program.ops[:-1] if op.stores]
        rows = drawn(select(placement), MultiCellUpset("2x2"), len(codes) * 12, f"net {flow}")
        slot = rows["image"] % len(codes)
        assert len(np.unique(rows["component"])) == 3
        machine = machine_of(placement, fetched=stored if fetched else ())
        compare(placement, machine, codes, rows, slot)


def test_check_bits_are_struck_and_protection_decides():
    """A cluster of one bit a word is corrected; of two bits of one word it is detected."""
    from fsim.simulator.inject import golden_run, run_trials
    from fsim.simulator.statistics import Outcome

    program, _ = network()
    outcomes = {}
    for interleave in (1, 8):
        placement = place(program, **{"buffers.weights.protection": "secded",
                                      "buffers.weights.interleave": interleave})  # fmt: skip
        rng = np.random.default_rng(4)
        images = rng.normal(size=(40, *program.input.shape)).astype(np.float32)
        golden = golden_run(placement, images, np.zeros(40, int))
        space = select(placement, None, ["weights", "weights_check"])
        model = MultiCellUpset("11", memories="weights")
        (result,) = run_trials(space, golden, model, seed=1, trials=[0])
        outcomes[interleave] = Counter(result.outcome.tolist())
        names = {space.accel.components[c].name for c in result.rows["component"].tolist()}
        assert names == {"weights", "weights_check"}
    assert outcomes[8] == {Outcome.CORRECTED: 40}
    # Only a pair that is cut by the edge of a row strikes a single bit.
    assert outcomes[1][Outcome.DUE] > 30 and set(outcomes[1]) <= {Outcome.DUE, Outcome.CORRECTED}
