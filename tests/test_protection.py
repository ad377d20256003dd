"""Faults of protected memories: decoded once, the same on every path, counted as what they are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.network import network_rows
from fsim.fault_models.rows import extend_masks, flip_rows
from fsim.fault_models.stuck_cells import StuckCells
from fsim.simulator.campaign.evaluate import Evaluator
from fsim.simulator.campaign.population import Chips, Drawn, FaultList, Flips, SingleFaults
from fsim.simulator.campaign.tally import Tally
from fsim.simulator.draws import Draws
from fsim.simulator.inject import golden_run, run_rows, run_trials
from fsim.simulator.protection import code_of, read_rows
from fsim.simulator.sites import Placement, check_rows, select
from fsim.simulator.statistics import Outcome
from fsim.types import FAULT, FOREVER, LEVEL, STATE, Fault
from tests.test_delta import IMAGES, made
from tests.test_ecc import CLEAN, CORRECTED, DETECTED, Oracle

MEMORIES = ("acts", "weights", "psums")
SECDED = {f"buffers.{name}.protection": "secded" for name in MEMORIES}
SMALL = {f"buffers.{name}.word_bits": 32 for name in MEMORIES}
LABELS = np.arange(IMAGES) % 4


def placed(flow="ws", name="residual", **settings):
    program, images = made(name, unsigned=True)[0].program, made(name, unsigned=True)[1]
    accel = load_accel("systolic", flow, {"rows": 2, "cols": 2, **settings})
    return Placement(program, accel), images


def names_of(placement):
    return [component.name for component in placement.accel.components]


# --- an oracle: every memory word by itself, bit by bit, through the matrix of test_ecc ---


class Parity:
    """One check bit; nothing is ever corrected."""

    def __init__(self, word_bits):
        self.k, self.r = word_bits, 1

    def check(self, data_bits):
        return data_bits.sum(axis=1, keepdims=True) % 2

    def decode(self, stored):
        odd = stored.sum(axis=1) % 2 == 1
        return stored.copy(), np.where(odd, DETECTED, CLEAN)


class WordByWord:
    """What is read, by walking over inferences, residencies and memory words."""

    def __init__(self, placement, rows, key, inferences):
        self.placement, self.rows, self.key, self.inferences = placement, rows, key, inferences
        self.names, self.by_place = names_of(placement), {}
        for number, row in enumerate(rows):
            at = "lasting" if row["effect"] == LEVEL else int(row["first"])
            place = self.names[row["component"]], int(row["layer"]), int(key[number]), at
            self.by_place.setdefault(place, []).append(number)

    def run(self):
        """({(inference, memory, layer, residency, word): xor}, repaired, detected inferences)."""
        wrong, repaired, detected = {}, set(), set()
        for block in self.placement.blocks:
            if block.component not in MEMORIES:
                continue
            buffer = self.placement.accel.buffers[block.component]
            if buffer.protection == "none":
                continue
            code = (
                Parity(buffer.word_bits) if buffer.protection == "parity"
                else Oracle(buffer.word_bits, {32: 7, 64: 8}[buffer.word_bits])
            )  # fmt: skip
            times = (
                sorted(set(block.residency.tolist())) if block.word is not None
                else range(block.first, block.first + int(block.residencies))
            )  # fmt: skip
            for inference, time in itertools.product(self.inferences, times):
                held = (
                    list(range(block.words)) if block.word is None
                    else block.word[block.residency == time].tolist()
                )  # fmt: skip
                self._residency(block, code, inference, time, held, wrong, repaired, detected)
        return wrong, repaired, detected

    def _active(self, inference, time, component, layer):
        """Rows that act in a residency of an inference, in their order."""
        here = [
            number
            for key, at in itertools.product((-1, inference), ("lasting", time))
            for number in self.by_place.get((component, layer, key, at), ())
        ]
        for number in sorted(here):
            row = self.rows[number]
            if row["effect"] == STATE or row["first"] <= time <= row["last"]:
                yield row

    def _residency(self, block, code, inference, time, held, wrong, repaired, detected):
        per = code.k // block.bits
        of_data = list(self._active(inference, time, block.component, block.layer))
        of_check = list(self._active(inference, time, block.component + "_check", block.layer))
        place = {word: at for at, word in enumerate(held)}
        lines = {place[int(row["word"])] // per for row in of_data}
        lines |= {int(row["word"]) for row in of_check}
        for line in lines:
            sent = np.zeros((1, code.k), np.int64)
            for at, word in enumerate(held[line * per : (line + 1) * per]):
                value = 0
                if block.component == "weights":
                    op = self.placement.program.ops[block.layer]
                    value = int(op.weight.reshape(-1)[word])
                for bit in range(block.bits):
                    sent[0, at * block.bits + bit] = value >> bit & 1
            stored = np.concatenate([sent, code.check(sent)], axis=1)
            mine = [(row, place[int(row["word"])] % per * block.bits, block.bits)
                    for row in of_data if place[int(row["word"])] // per == line]  # fmt: skip
            mine += [(row, code.k, code.r) for row in of_check if int(row["word"]) == line]
            changed = found = False
            intervals = sorted({int(row["col"]) for row, *_ in mine}, key=lambda i: (i < 0, i))
            for interval in intervals:
                for row, begin, bits in mine:
                    if int(row["col"]) != interval:
                        continue
                    for bit in range(bits):
                        old = stored[0, begin + bit]
                        keep, put, turn = (int(row[f"{n}_mask"]) >> bit & 1
                                           for n in ("and", "or", "xor"))  # fmt: skip
                        stored[0, begin + bit] = ((old & keep) | put) ^ turn
                stored, status = code.decode(stored)
                changed |= status[0] == CORRECTED
                found |= status[0] == DETECTED
            error = stored[0, : code.k] ^ sent[0]
            if found:
                detected.add(inference)
            if changed and not error.any():
                repaired.add(inference)
            for at, word in enumerate(held[line * per : (line + 1) * per]):
                field = error[at * block.bits : (at + 1) * block.bits]
                if field.any():
                    mask = sum(int(b) << i for i, b in enumerate(field))
                    wrong[inference, block.component, block.layer, time, word] = mask


def as_read(placement, read, inferences):
    """The same of `read_rows`: flips as masks, summed over rows that meet."""
    names, wrong = names_of(placement), {}
    blocks = {}
    for block in placement.blocks:
        times = (
            set(block.residency.tolist()) if block.word is not None
            else range(block.first, block.first + int(block.residencies))
        )  # fmt: skip
        for time in times:
            blocks[block.component, block.layer, time] = block
    for row, key in zip(read.rows, read.key):
        assert row["and_mask"] == -1 and row["or_mask"] == 0 and row["xor_mask"] != 0
        memory, layer = names[row["component"]], int(row["layer"])
        lasting = row["effect"] == LEVEL
        times = [int(row["first"])]
        if lasting:
            times = [t for m, n, t in blocks if (m, n) == (memory, layer)
                     and row["first"] <= t <= row["last"]]  # fmt: skip
        for inference, time in itertools.product(inferences if key < 0 else [key], times):
            block = blocks[memory, layer, time]
            where = int(inference), memory, layer, int(time), int(row["word"])
            mask = int(row["xor_mask"]) & ((1 << block.bits) - 1)
            wrong[where] = wrong.get(where, 0) ^ mask
    return {where: mask for where, mask in wrong.items() if mask}


def told(keys, inferences):
    return set(inferences) if -1 in keys else {int(k) for k in keys}


def crowded_rows(placement, rng, count, inferences, lasting=False, intervals=0):
    """Rows that meet in few memory words: data and check bits, some for all inferences."""
    blocks = [b for b in placement.blocks if b.memory in placement.accel.protected]
    chosen = [blocks[i] for i in rng.choice(len(blocks), min(6, len(blocks)), replace=False)]
    names, rows, key = names_of(placement), flip_rows(count), np.empty(count, np.int64)
    for i in range(count):
        block = chosen[rng.integers(len(chosen))]
        if block.component in MEMORIES and rng.random() < 0.3:
            block = next(b for b in placement.blocks
                         if b.component == block.component + "_check"
                         and (b.layer, b.first) == (block.layer, block.first))  # fmt: skip
        limit = min(block.exposed_bits, 6 * block.bits)
        residency, word, bit = (int(x) for x in block.site(np.array(rng.integers(limit))))
        row = rows[i]
        row["component"], row["layer"], row["word"] = (
            names.index(block.component),
            block.layer,
            word,
        )
        row["first"] = row["last"] = residency
        mask = int(extend_masks(np.array(bit), block.bits, block.signed))
        row["xor_mask"], row["event"] = mask, i
        key[i] = rng.choice(inferences)
        if block.memory == "weights" and rng.random() < 0.3:
            key[i] = -1
            if lasting:
                row["effect"], row["first"], row["last"] = LEVEL, 0, FOREVER
                row["xor_mask"] = 0
                if rng.random() < 0.5:
                    row["and_mask"] = ~mask
                else:
                    row["or_mask"] = mask
        if intervals and row["effect"] == STATE:
            row["col"] = rng.integers(-1, intervals)
    rows["image"] = key
    return rows, key


@pytest.mark.parametrize("flow", ["ws", "os"])
@pytest.mark.parametrize("lasting, intervals", [(False, 0), (True, 0), (False, 3)])
def test_words_are_read_as_an_oracle_reads_them(flow, lasting, intervals):
    seen = [0, 0, 0]
    for seed, kind in itertools.product(range(3), ("secded", "parity")):
        settings = {f"buffers.{name}.protection": kind for name in MEMORIES}
        if seed % 2:
            settings["buffers.psums.protection"] = "none"
        # Small memories: feature maps and weights are fetched tile by tile.
        tight = {"buffers.acts.kib": 0.03125, "buffers.weights.kib": 0.03125} if seed else {}
        placement, _ = placed(flow, **settings, **(SMALL if seed < 2 else {}), **tight)
        rng = np.random.default_rng(100 * seed + intervals)
        inferences = [0, 1, 2]
        rows, key = crowded_rows(placement, rng, 40, inferences, lasting, intervals)
        check_rows(placement, rows, 3)
        wanted, repaired, detected = WordByWord(placement, rows, key, inferences).run()
        read = read_rows(placement, rows, key, 3)
        assert as_read(placement, read, inferences) == wanted
        assert told(read.repaired_key, inferences) == repaired
        assert told(read.detected_key, inferences) == detected
        for count, found in enumerate((wanted, repaired, detected)):
            seen[count] += len(found)
    assert min(seen) > 0


def test_unprotected_rows_pass_in_their_order():
    placement, _ = placed(**{"buffers.weights.protection": "secded"}, **SMALL)
    rng = np.random.default_rng(3)
    some, key = crowded_rows(placement, rng, 30, [0, 1])
    psums = next(b for b in placement.blocks if b.component == "psums")
    some["component"][::2] = names_of(placement).index("psums")
    some["layer"][::2], some["word"][::2], some["first"][::2] = psums.layer, 0, 0
    read = read_rows(placement, some, key, 2)
    kept = read.rows[read.rows["component"] == names_of(placement).index("psums")]
    assert np.array_equal(kept, some[::2])


# --- whole networks ---


def golden_of(placement, images):
    return golden_run(placement, images, LABELS)


def test_single_flips_are_corrected_everywhere_and_double_ones_detected():
    placement, images = placed(**SECDED, **SMALL)
    golden = golden_of(placement, images)
    space = select(placement)
    rows = OneFlip().rows(space, 0, np.arange(IMAGES), Draws(4))
    found = run_rows(placement, golden, rows)
    assert (found.outcome == Outcome.CORRECTED).all()
    assert np.array_equal(found.acc, golden.acc)
    # The same word of a weight struck twice.
    block = next(b for b in placement.blocks if b.component == "weights")
    pair = np.concatenate([
        network_rows([Fault("weights", bit=bit, layer=block.name, word=3, image=1)], space)
        for bit in (0, 7)  # the sign bit: masks are stored sign-extended
    ])  # fmt: skip
    found = run_rows(placement, golden, pair)
    wanted = np.full(IMAGES, Outcome.MASKED)
    wanted[1] = Outcome.DUE
    assert found.outcome.tolist() == wanted.tolist()
    # What is detected is read as it is stored.
    plain, _ = placed()
    assert np.array_equal(run_rows(plain, golden, pair).acc, found.acc)


def test_a_miscorrection_of_unused_bits_is_no_error_in_a_word():
    """Wrong check bits that look like one data bit, which no tensor word has."""
    width = {"buffers.weights.word_bits": 56}
    placement, images = placed(**{"buffers.weights.protection": "secded"}, **width)
    golden, names = golden_of(placement, images), names_of(placement)
    code = code_of("secded", 56, 7)
    block = next(b for b in placement.blocks if b.component == "weights" and b.words % 7)
    for at, wrong in ((block.words % 7, 0), (block.words % 7 - 1, 1)):
        column = int(code.columns[8 * at])
        bits = [j for j in range(7) if column >> j & 1]
        rows = flip_rows(
            len(bits), component=names.index("weights_check"), layer=block.layer, image=-1,
            word=block.words // 7, xor_mask=[1 << j for j in bits],
        )  # fmt: skip
        assert len(bits) >= 3
        read = read_rows(placement, rows, np.full(len(bits), -1))
        assert len(read.rows) == wrong and not len(read.detected) and not len(read.repaired)
        found = run_rows(placement, golden, rows, hw_batch=None)
        assert not np.isin(found.outcome, [Outcome.DUE, Outcome.CORRECTED]).any()
        if wrong:  # the last word of the tensor: a silent error
            assert int(read.rows["word"][0]) == block.words - 1
            assert int(read.rows["xor_mask"][0]) == 1


def test_a_weight_batch_is_detected_as_a_whole():
    placement, images = placed(**SECDED)
    golden = golden_of(placement, images)
    block = next(b for b in placement.blocks if b.component == "weights")
    pair = np.concatenate([
        network_rows([Fault("weights", bit=bit, layer=block.name, word=3, image=2)],
                     select(placement)) for bit in (0, 5)
    ])  # fmt: skip
    found = run_rows(placement, golden, pair, hw_batch=2)
    hit = np.flatnonzero(found.outcome == Outcome.DUE).tolist()
    assert hit == [2, 3]
    pair["image"] = -1
    found = run_rows(placement, golden, pair, hw_batch=None)
    assert (found.outcome == Outcome.DUE).all()


@pytest.mark.parametrize("kind, settings, p", [("parity", {}, 2e-7), ("secded", SMALL, 1e-4)])
def test_bit_errors_are_what_the_decoded_rows_do_on_a_plain_machine(kind, settings, p):
    """Outcomes and sums of trials against rows that the oracle says are read."""
    protection = {f"buffers.{name}.protection": kind for name in MEMORIES}
    placement, images = placed(**protection, **settings)
    plain, _ = placed()
    golden = golden_of(placement, images)
    model = BitErrors(p, p, p)
    codes = set()
    for result in run_trials(select(placement), golden, model, seed=3, trials=range(2)):
        key = result.rows["image"].astype(np.int64)
        wrong, repaired, detected = WordByWord(placement, result.rows, key, range(IMAGES)).run()
        rows = flip_rows(len(wrong))
        signed = {(b.component, b.layer): (b.bits, b.signed) for b in placement.blocks}
        for row, ((image, memory, layer, time, word), mask) in zip(rows, sorted(wrong.items())):
            bits, two = signed[memory, layer]
            row["image"], row["layer"], row["word"] = image, layer, word
            row["component"] = names_of(plain).index(memory)
            row["first"] = row["last"] = time
            row["xor_mask"] = mask - (1 << bits) if two and mask >> (bits - 1) else mask
        wanted = run_rows(plain, golden, rows)
        assert np.array_equal(wanted.acc, result.acc)
        for image in range(IMAGES):
            outcome = wanted.outcome[image]
            if image in detected:
                outcome = Outcome.DUE
            elif outcome == Outcome.MASKED and image in repaired:
                outcome = Outcome.CORRECTED
            assert outcome == result.outcome[image]
        codes |= set(result.outcome.tolist())
    assert {Outcome.DUE, Outcome.CORRECTED if kind == "secded" else Outcome.MASKED} <= codes


@pytest.mark.parametrize("way", ["auto", "whole"])
@pytest.mark.parametrize("kind", ["none", "parity", "secded"])
def test_campaigns_find_what_single_trials_find(way, kind):
    settings = {f"buffers.{name}.protection": kind for name in ("acts", "weights")}
    placement, images = placed(**settings, **SMALL)
    golden, space = golden_of(placement, images), select(placement)
    evaluator = Evaluator(placement, images, LABELS, way=way)
    # Several bits of one word: none, one, two and three of a memory word's.
    single = SingleFaults(space, OneFlip(), IMAGES, seed=1).draw(np.arange(120))
    single.rows["xor_mask"][::3] ^= 6
    single.rows["xor_mask"][::5] ^= 1
    several = Flips(space, OneFlip(), IMAGES, (1, 40, 200), seed=2).draw(np.arange(30))
    for drawn in (single, several):
        table = evaluator.outcomes(drawn).reshape(len(drawn.trial), -1)
        for number, trial in enumerate(drawn.trial.tolist()):
            mine = drawn.rows[drawn.begin[number] : drawn.begin[number + 1]]
            image = int(drawn.image[number, 0])
            wanted = run_rows(placement, golden, mine, trial=trial, first=image, count=1)
            assert table["outcome"][number, 0] == wanted.outcome[0]
            assert table["faulty"][number, 0] == wanted.top1[0]
            assert table["trial"][number, 0] == trial and table["image"][number, 0] == image
    seen = set(evaluator.outcomes(single)["outcome"].tolist())
    assert (Outcome.DUE in seen) == (kind != "none")
    assert (Outcome.CORRECTED in seen) == (kind == "secded")


def test_chips_with_stuck_cells_are_decoded_with_what_is_written():
    plain, images = placed()
    placement, _ = placed(**{"buffers.weights.protection": "secded"}, **SMALL)
    golden = golden_of(placement, images)
    model = StuckCells(0.02)
    space = select(placement)
    cells = model.cells(space)
    data = StuckCells(0.02).cells(select(plain))
    lines = sum(-(-b.words // 4) for b in plain.blocks if b.component == "weights")
    assert cells == data + 7 * lines
    drawn = Chips(space, model, IMAGES, seed=2).draw(np.arange(3))
    table = Evaluator(placement, images, LABELS).outcomes(drawn).reshape(3, IMAGES)
    for number in range(3):
        mine = drawn.rows[drawn.begin[number] : drawn.begin[number + 1]]
        key = np.full(len(mine), -1)
        wrong, repaired, detected = WordByWord(placement, mine, key, [0]).run()
        read = read_rows(placement, mine, key, IMAGES)
        assert as_read(placement, read, [0]) == wrong
        assert (detected == {0}) == bool((table["outcome"][number] == Outcome.DUE).all())
        found = run_rows(placement, golden, mine, hw_batch=None)
        assert found.outcome.tolist() == table["outcome"][number].tolist()
    assert (table["outcome"] == Outcome.DUE).any()


def test_one_stuck_cell_that_reads_what_is_written_is_no_error():
    placement, images = placed(**{"buffers.weights.protection": "secded"})
    golden = golden_of(placement, images)
    op = placement.program.array_ops[0]
    code = int(op.weight.reshape(-1)[0])
    same, other = ("stuck1", "stuck0") if code & 1 else ("stuck0", "stuck1")
    for kind, outcome in ((same, Outcome.MASKED), (other, Outcome.CORRECTED)):
        rows = network_rows(
            [Fault("weights", bit=0, layer=op.name, word=0, kind=kind)], select(placement)
        )
        assert (run_rows(placement, golden, rows).outcome == outcome).all()


def test_due_and_corrected_are_not_sdc():
    tally = Tally(1, 1, "sdc")
    codes = np.array([[o] for o in Outcome], np.uint8)
    tally.add(np.zeros(len(codes), np.int64), codes)
    assert {m: int(tally.of(m)[0]) for m in ("masked", "corrected", "sdc", "due", "hang")} == {
        "masked": 1, "corrected": 1, "sdc": 2, "due": 1, "hang": 1,
    }  # fmt: skip


def test_check_bits_are_struck_at_the_rate_of_their_memory():
    placement, _ = placed(**SECDED, **SMALL)
    blocks = {name: 0 for name in names_of(placement)}
    for block in placement.blocks:
        blocks[block.component] += block.exposed_bits
    rows = BitErrors(1.0, 0.0, 0.0).rows(select(placement), 0, np.arange(1), Draws(0))
    names = names_of(placement)
    counts = {names[i]: int((rows["component"] == i).sum()) for i in np.unique(rows["component"])}
    assert counts == {name: blocks[name] for name in ("acts", "acts_check")}
    assert all(blocks[name + "_check"] > 0 for name in MEMORIES)
    # Draws of the data bits are those of a machine without protection.
    plain, _ = placed()
    both = [
        BitErrors(1e-3, 1e-3, 1e-3).rows(select(p), 7, np.arange(3), Draws(1))
        for p in (plain, placement)
    ]
    data = both[1][np.isin(both[1]["component"], np.unique(both[0]["component"]))]
    for name in ("component", "layer", "word", "first", "image", "xor_mask"):
        assert np.array_equal(data[name], both[0][name])


def test_scrubbing_keeps_errors_of_different_intervals_apart():
    base = {"buffers.weights.protection": "secded"}
    space = {}
    for scrub in (None, 1, 4):
        extra = {} if scrub is None else {"buffers.weights.scrub_inferences": scrub}
        space[scrub] = select(placed(**base, **extra)[0])
    images = np.arange(8)
    model = BitErrors(weights=3e-3, hw_batch=8)
    seen = {}
    for scrub, one in space.items():
        key_count = 0
        for trial in range(60):
            rows = model.rows(one, trial, images, Draws(5))
            intervals = rows["col"]
            if scrub is None:
                assert (intervals == -1).all()
            else:
                assert intervals.min() >= 0 and intervals.max() < 8 // scrub
            read = read_rows(one.placement, rows, rows["image"].astype(np.int64), 8, 8)
            key_count += len(read.detected)
        seen[scrub] = key_count
    # Two errors in a word meet in one of s intervals with probability 1 / s.
    assert seen[None] > 60
    for scrub, s in ((4, 2), (1, 8)):
        expected = seen[None] / s
        assert abs(seen[scrub] - expected) < 5 * np.sqrt(expected) + 0.1 * expected


def test_scrub_intervals_follow_the_schedule():
    placement, _ = placed(**SECDED, **{"buffers.weights.scrub_cycles": 100,
                                       "buffers.acts.scrub_cycles": 7})  # fmt: skip
    total = sum(placement.cycles(op.index) for op in placement.program.array_ops)
    for block in placement.blocks:
        buffer = placement.accel.buffers[block.memory]
        if block.memory == "weights":
            own = placement.cycles(block.layer)
            assert block.scrub_intervals(buffer) == -(-own // 100)
            assert block.scrub_intervals(buffer, 3) == -(-(own + 2 * total) // 100)
        if block.memory == "psums":
            assert block.scrub_intervals(buffer) == 1
    first = next(b for b in placement.blocks if b.component == "acts")
    reader = next(op for op in placement.program.array_ops if first.layer in op.inputs)
    assert first.cycles >= placement.cycles(reader.index) > 0


def test_flips_of_a_campaign_have_scrub_intervals():
    placement, _ = placed(**SECDED, **{"buffers.acts.scrub_cycles": 7})
    population = Flips(select(placement), OneFlip(("acts",)), IMAGES, (50,), seed=1)
    rows = population.draw(np.arange(5)).rows
    assert rows["col"].max() > 3 and rows["col"].min() == 0
    again = population.draw(np.arange(3, 5)).rows
    assert np.array_equal(again, rows[rows["trial"] >= 3])


def test_stuck_bits_of_protected_activations_are_refused():
    placement, _ = placed(**SECDED)
    rows = np.zeros(1, FAULT)
    block = next(b for b in placement.blocks if b.component == "acts")
    rows["component"], rows["layer"] = names_of(placement).index("acts"), block.layer
    rows["and_mask"] = ~1
    with pytest.raises(FaultError, match="protected acts must be flips"):
        read_rows(placement, rows, np.zeros(1, np.int64))


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"buffers.acts.protection": "tmr"}, "must be 'none', 'parity' or 'secded'"),
        ({"buffers.psums.word_bits": 16}, "must be >= 32"),
        ({"buffers.acts.interleave": 4, "buffers.acts.columns": 64}, "a multiple of"),
        ({"buffers.acts.banks": 1024, "buffers.acts.interleave": 64}, "hold one row"),
        ({"buffers.acts.scrub_cycles": 5}, "must go with protection secded"),
        ({"buffers.acts.protection": "secded", "buffers.acts.scrub_cycles": 5,
          "buffers.acts.scrub_inferences": 5}, "one scrub interval"),
        ({"buffers.acts.banks": True}, "must be a whole number"),
    ],
)  # fmt: skip
def test_buffers_that_cannot_be_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        load_accel("systolic", None, settings)


def test_a_list_of_faults_is_decoded_too():
    placement, images = placed(**SECDED)
    rows = OneFlip().rows(select(placement), 0, np.arange(IMAGES), Draws(4))
    rows["trial"] = np.arange(IMAGES)
    drawn = FaultList(rows, IMAGES).draw(np.arange(IMAGES))
    assert isinstance(drawn, Drawn)
    table = Evaluator(placement, images, LABELS).outcomes(drawn)
    assert (table["outcome"] == Outcome.CORRECTED).all()
