"""Tensor bits and cells of a memory: one to one, and laid out as the module says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsim.accel_models.accel import Buffer
from fsim.errors import MappingError
from fsim.simulator.address_map import AddressMap, tensor_map
from tests.test_engine import network, place


def cell_by_hand(m: AddressMap, line: int, b: int):
    """(bank, row, column) of bit b of memory word `line`, by filling the memory in order.

    Walks over the addresses as the memory is written, word by word: nothing is divided.
    """
    bank, slots = 0, [0] * m.banks
    for _ in range(m.first + line % m.capacity):
        slots[bank] += 1
        bank = bank + 1 if bank + 1 < m.banks else 0
    row, left = 0, slots[bank]
    while left >= m.row_words:
        row, left = row + 1, left - m.row_words
    column = 0
    while left >= m.interleave:
        column, left = column + m.stored_bits * m.interleave, left - m.interleave
    return bank, row, column + b * m.interleave + left


def every_cell(m: AddressMap):
    """{(bank, row, column): (word, bit, check)} of all bits of the tensor, by hand."""
    found = {}
    for line in range(m.lines):
        for b in range(m.stored_bits):
            if b >= m.word_bits:
                held = (line, b - m.word_bits, True)
            else:
                at, bit = divmod(b, m.bits)
                if at >= m.per_line or line * m.per_line + at >= m.words:
                    continue
                held = (line * m.per_line + at, bit, False)
            where = cell_by_hand(m, line, b)
            assert where not in found, "two bits in one cell"
            found[where] = held
    return found


SMALL = [
    Buffer(1 / 16, doubled, protection, word_bits, banks, interleave, columns)
    for doubled, protection, (word_bits, interleave, columns), banks in itertools.product(
        (False, True), ("none", "parity", "secded"),
        ((8, 1, None), (8, 4, None), (16, 2, 64), (12, 2, None)), (1, 2, 3),
    )
]  # fmt: skip


@pytest.mark.parametrize("bits", [3, 8])
def test_every_bit_has_a_cell_of_its_own_and_every_cell_knows_its_bit(bits):
    for buffer, half in itertools.product(SMALL, (0, 1)):
        m = AddressMap.of(buffer, bits, 17, half)
        assert m.lines <= m.capacity
        wanted = every_cell(m)
        for where, (word, bit, check) in wanted.items():
            place = m.place_check if check else m.place
            assert tuple(int(x) for x in place(word, bit)) == where
        rows = range(m.rows.start, m.rows.stop)
        where = np.array(list(itertools.product(range(m.banks), rows, range(m.columns))))
        found = zip(*(x.tolist() for x in m.cell(*where.T)))
        for cell, held in zip(map(tuple, where.tolist()), found):
            assert held == wanted.get(cell, (-1, -1, False))
        assert set(wanted) <= set(map(tuple, where.tolist()))


def test_halves_share_no_cell():
    buffer = Buffer(1 / 16, True, "secded", 8, 2, 2)
    first, second = (AddressMap.of(buffer, 8, 30, half) for half in (0, 1))
    assert not set(every_cell(first)) & set(every_cell(second))
    assert first.rows.stop == second.rows.start


@given(
    word_bits=st.integers(8, 64), bits=st.integers(2, 8), banks=st.integers(1, 9),
    interleave=st.integers(1, 8), groups=st.integers(1, 4), words=st.integers(1, 10**6),
    protection=st.sampled_from(["none", "parity", "secded"]), half=st.integers(0, 1),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_cell_inverts_place(
    word_bits, bits, banks, interleave, groups, words, protection, half, seed
):
    columns = word_bits * interleave * groups
    buffer = Buffer(2048, True, protection, word_bits, banks, interleave, columns)
    m = AddressMap.of(buffer, bits, words, half)
    rng = np.random.default_rng(seed)
    word = rng.integers(0, min(words, m.capacity * m.per_line), 50)
    bit = rng.integers(0, bits, 50)
    back = m.cell(*m.place(word, bit))
    assert np.array_equal(back[0], word) and np.array_equal(back[1], bit) and not back[2].any()
    if m.check_bits:
        line = rng.integers(0, min(m.lines, m.capacity), 50)
        bit = rng.integers(0, m.check_bits, 50)
        back = m.cell(*m.place_check(line, bit))
        assert np.array_equal(back[0], line) and np.array_equal(back[1], bit) and back[2].all()


def test_interleaving_keeps_neighbours_in_different_memory_words():
    offsets = [(0, 0), (0, 1), (0, 2), (0, 3)]
    for interleave, distinct in ((1, 1), (2, 2), (4, 4)):
        m = AddressMap.of(Buffer(1, False, "secded", 32, 1, interleave), 8, 256)
        word, bit, check = m.neighbours(np.arange(16), np.full(16, 2), offsets)
        assert (word[:, 0] == np.arange(16)).all() and (bit[:, 0] == 2).all()
        for mine, is_check in zip(word, check):
            lines = {w if c else w // m.per_line for w, c in zip(mine.tolist(), is_check.tolist())}
            assert len(lines - {-1}) <= distinct
        whole = (word >= 0).all(axis=1)
        assert whole.any()
        lines = np.where(check, word, word // m.per_line)[whole]
        assert all(len(set(row.tolist())) == distinct for row in lines)


def test_neighbours_stop_at_the_edges_of_a_bank():
    m = AddressMap.of(Buffer(1 / 16, False, "none", 8, 2, 1), 8, 64)
    word, bit, _ = m.neighbours([0, 63], [0, 7], [(-1, 0), (0, -1), (1, 0), (0, 1)])
    assert word.tolist() == [[-1, -1, 2, 0], [61, 63, -1, -1]]
    assert bit.tolist() == [[-1, -1, 0, 1], [7, 6, -1, -1]]


def test_a_tensor_that_does_not_fit_is_written_over_itself():
    buffer = Buffer(1 / 16, False, "none", 8)
    m = AddressMap.of(buffer, 8, 200)
    assert m.capacity == 64
    for a, b in zip(m.place(3, 5), m.place(3 + 64, 5)):
        assert a == b
    word, bit, _ = m.cell(*m.place(3 + 128, 5))
    assert (int(word), int(bit)) == (3, 5)


def test_what_a_memory_word_cannot_hold_is_refused():
    with pytest.raises(MappingError, match="word_bits 8"):
        AddressMap.of(Buffer(1, False, "none", 8), 16, 4)
    with pytest.raises(MappingError, match="0 memory words"):
        AddressMap.of(Buffer(1 / 64, False, "none", 64, 64), 8, 4)


def test_contents_of_a_double_buffer_take_turns():
    placement = place(network()[0], **{"buffers.weights.banks": 2})
    weights = [block for block in placement.blocks if block.component == "weights"]
    halves = [tensor_map(placement, block).first > 0 for block in weights]
    assert len(halves) > 2
    assert halves == [number % 2 == 1 for number in range(len(weights))]
    psums = next(b for b in placement.blocks if b.component == "psums" and b.residencies > 1)
    first, second = (tensor_map(placement, psums, residency) for residency in (0, 1))
    assert {first.first, second.first} == {0, first.capacity}


def test_words_of_a_fetched_tile_are_packed_in_the_order_of_their_addresses():
    placement = place(network()[0], **{"buffers.acts.kib": 0.0625, "buffers.acts.word_bits": 32})
    block = next(b for b in placement.blocks if b.word is not None and b.contents > 1)
    for residency in np.unique(block.residency).tolist():
        mine = block.word[block.residency == residency]
        where = block.packed(mine, np.full(len(mine), residency))
        assert np.array_equal(where, np.arange(len(mine)))
        assert np.array_equal(block.unpacked(where, np.full(len(mine), residency)), mine)
        assert tensor_map(placement, block, residency).words == len(mine)
    checks = block.checks(32, 7)
    for residency in np.unique(block.residency).tolist():
        count = -(-int((block.residency == residency).sum()) // (32 // block.bits))
        assert checks.word[checks.residency == residency].tolist() == list(range(count))
