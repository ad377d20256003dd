"""The row-stationary array: mapping, clean sums, and faults of compiled code against PE by PE."""

from __future__ import annotations

import numpy as np
import pytest

from fsim.accel_models.eyeriss import array, layer
from fsim.accel_models.eyeriss.cycle import SpadStrike, run_pe
from fsim.accel_models.eyeriss.mapping import place
from fsim.accel_models.eyeriss.schedule import RowPass
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, MappingError
from fsim.simulator import lower
from fsim.simulator.lower import Lowered
from fsim.types import FAULT, FOREVER, LEVEL, STATE, fault_table

EYERISS = load_accel("eyeriss-like")
SMALL = load_accel(
    "eyeriss-like",
    overrides={"rows": 5, "cols": 3, "parameters.ifmap_words": 4, "parameters.filter_words": 14,
               "parameters.psum_words": 3},
)  # fmt: skip
"""A machine so small that every layer has many passes, sets, strips and ragged blocks."""


def conv(c, h, w, n, kh, kw, stride=(1, 1), padding=(0, 0), groups=1) -> Lowered:
    out_h = (h + 2 * padding[0] - kh) // stride[0] + 1
    out_w = (w + 2 * padding[1] - kw) // stride[1] + 1
    return Lowered(
        groups, out_h * out_w, kh * kw * (c // groups), n // groups, h, w, c, out_h, out_w, n,
        kh, kw, stride, padding,
    )  # fmt: skip


LAYERS = {
    "3x3": conv(3, 6, 5, 5, 3, 3, padding=(1, 1)),
    "1x1 stride 2": conv(9, 5, 5, 4, 1, 1, stride=(2, 2)),
    "stride 2": conv(2, 7, 6, 4, 2, 3, stride=(2, 2), padding=(1, 0)),
    "tall": conv(2, 8, 3, 2, 5, 1),
    "depthwise": conv(3, 5, 5, 3, 3, 2, padding=(1, 1), groups=3),
    "linear": Lowered(1, 4, 19, 7, 4, 1, 19, 4, 1, 7),
    "sets of filters": conv(1, 5, 4, 8, 2, 2),
    "stride above rows": conv(2, 9, 9, 3, 2, 2, stride=(3, 3)),
}


def operands(low, seed=0, bits=16, zeros=0.3):
    """(codes [groups] (h, w, c), weights [groups] (kh, kw, c, n), bias (groups, n))."""
    rng = np.random.default_rng(seed)
    channels = low.k // (low.kernel_h * low.kernel_w)
    top = 1 << (bits - 1)
    codes = rng.integers(-top, top, (low.groups, low.h, low.w, channels)).astype(np.int32)
    codes[rng.random(codes.shape) < zeros] = 0
    shape = (low.groups, low.kernel_h, low.kernel_w, channels, low.n)
    weights = rng.integers(-top, top, shape).astype(np.int32)
    bias = rng.integers(-top, top, (low.groups, low.n))
    return codes, weights, bias


def naive(low, codes, weights, bias, truncate, bits=16):
    """Sums straight from the definition, in Python integers."""
    out = np.zeros((low.groups, low.m, low.n), np.int64)
    for g, m, n in np.ndindex(out.shape):
        y, x = divmod(m, low.out_w)
        total = int(bias[g, n])
        for ky, kx, c in np.ndindex(weights.shape[1:4]):
            row = y * low.stride[0] + ky - low.padding[0]
            col = x * low.stride[1] + kx - low.padding[1]
            if 0 <= row < low.h and 0 <= col < low.w:
                total += int(codes[g, row, col, c]) * int(weights[g, ky, kx, c, n]) >> truncate
        out[g, m, n] = (total + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    return out


def reference(accel, low, codes, weights, bias, table, truncate=0, changed=None):
    """(groups, m, n) by the array in plain Python."""

    def deliver(group, block, strip):
        code, weight = (changed or {}).get((group, block, strip), (codes[group], weights[group]))
        return code.tolist(), weight.transpose(3, 2, 0, 1).tolist()

    found = array.run_layer(accel, low, deliver, bias.tolist(), table, truncate)
    out = np.full((low.groups, low.m, low.n), 1 << 40)
    for key, value in found.items():
        out[key] = value
    return out


def compiled(accel, low, codes, weights, bias, table, truncate=0, changed=None):
    """(groups, m, n): naive sums where nothing differs, else what `layer` says."""
    plain = naive(low, codes, weights, bias, truncate, accel.acc_bits)
    clean = plain - bias[:, None, :]
    held = layer.Operands(lambda g: codes[g], lambda g: weights[g], changed)
    group, m, n, value = layer.changed_sums(
        accel, low, held, lambda *key: clean[key], bias, table, truncate
    )
    assert (plain[group, m, n] != value).all()
    plain[group, m, n] = value
    return plain


def random_faults(accel, low, rng, count, kinds=("flip", "stuck0", "stuck1", "window")):
    """A fault table of registers anywhere in the layer, and of partial sums in the buffer."""
    mapping = place(accel, low)
    cycles = mapping.passes * mapping.row.cycles
    rows = np.zeros(count, FAULT)
    for row in rows:
        number = int(rng.integers(len(accel.components)))
        component = accel.components[number]
        if component.name in ("acts", "weights"):
            number = accel.component_index("psums")
            component = accel.components[number]
        mask = 1 << int(rng.integers(component.bits))
        mask = mask - (1 << component.bits) if mask >> (component.bits - 1) else mask
        row["component"], row["and_mask"] = number, -1
        if component.kind == "memory":
            row["row"] = row["col"] = -1
            row["word"] = rng.integers(low.groups * low.m * low.n)
            row["first"] = row["last"] = rng.integers(mapping.channel_passes)
            row["xor_mask"], row["effect"] = mask, STATE
            continue
        height, width, words = accel.grid(component)
        # Mostly among the PEs and words in use.
        height = min(height, mapping.chain * mapping.filter_sets + 1)
        used = {"ifmap_spad": mapping.row.window, "filter_spad": mapping.row.filters,
                "psum_spad": mapping.row.p}.get(component.name, 1)  # fmt: skip
        words = min(words, used + 1)
        row["row"], row["col"] = rng.integers(height), rng.integers(width)
        row["word"] = rng.integers(words) if component.words > 1 else -1
        first = int(rng.integers(cycles))
        kind = kinds[rng.integers(len(kinds))]
        if kind == "flip":
            row["effect"], row["first"], row["last"], row["xor_mask"] = STATE, first, first, mask
        else:
            row["effect"], row["first"], row["last"] = LEVEL, -1, FOREVER
            if kind == "window":
                row["first"], row["last"] = first, first + int(rng.integers(2 * cycles))
                row["xor_mask"] = mask
            elif kind == "stuck0":
                row["and_mask"] = ~mask
            else:
                row["or_mask"] = mask
    return fault_table(rows)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("truncate", [0, 5])
def test_without_faults_the_array_is_the_truncated_convolution(name, truncate):
    low = LAYERS[name]
    codes, weights, bias = operands(low)
    wanted = naive(low, codes, weights, bias, truncate)
    none = fault_table(np.zeros(0, FAULT))
    for accel in (SMALL, EYERISS):
        np.testing.assert_array_equal(
            reference(accel, low, codes, weights, bias, none, truncate), wanted
        )


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_faults_are_those_of_the_array_pe_by_pe(name):
    low, struck = LAYERS[name], 0
    codes, weights, bias = operands(low, seed=1)
    rng = np.random.default_rng(2)
    clean = naive(low, codes, weights, bias, 3)
    for count in [1] * 12 + [3, 8, 30]:
        table = random_faults(SMALL, low, rng, count)
        wanted = reference(SMALL, low, codes, weights, bias, table, 3)
        np.testing.assert_array_equal(
            compiled(SMALL, low, codes, weights, bias, table, 3), wanted, str(table)
        )
        struck += bool((wanted != clean).any())
    assert struck >= 4  # of 15 tables: the comparison is of something


def test_every_site_of_a_small_layer():
    """One flip in every cycle of every word in use, and every stuck bit 3."""
    accel = load_accel(
        "eyeriss-like",
        overrides={"rows": 2, "cols": 2, "parameters.ifmap_words": 3,
                   "parameters.filter_words": 6, "parameters.psum_words": 2},
    )  # fmt: skip
    low = conv(2, 3, 3, 2, 2, 2, padding=(0, 1))
    codes, weights, bias = operands(low, seed=3)
    mapping = place(accel, low)
    cycles = mapping.passes * mapping.row.cycles
    clean = naive(low, codes, weights, bias, 0)
    changed = 0
    for number, component in enumerate(accel.components[:6]):
        height, width, words = accel.grid(component)
        for r, c, word in np.ndindex(height, width, words):
            rows = np.zeros(1, FAULT)
            rows["component"], rows["row"], rows["col"] = number, r, c
            rows["word"] = word if words > 1 else -1
            rows["and_mask"] = -1
            for cycle in range(-1, cycles, 1 + (component.words > 2)):
                rows["effect"], rows["first"], rows["last"] = STATE, cycle, cycle
                rows["xor_mask"] = 8
                if cycle < 0:
                    rows["effect"], rows["last"] = LEVEL, FOREVER
                    rows["xor_mask"], rows["or_mask"] = 0, 8
                else:
                    rows["or_mask"] = 0
                table = fault_table(rows)
                wanted = reference(accel, low, codes, weights, bias, table)
                np.testing.assert_array_equal(
                    compiled(accel, low, codes, weights, bias, table), wanted
                )
                changed += bool((wanted != clean).any())
    assert changed > 100


@pytest.mark.parametrize("name", ["3x3", "depthwise", "linear"])
def test_operands_that_one_tile_fetched_wrong(name):
    low = LAYERS[name]
    codes, weights, bias = operands(low, seed=4)
    mapping = place(SMALL, low)
    rng = np.random.default_rng(5)
    changed = {}
    for _ in range(3):
        tile = tuple(
            int(rng.integers(size))
            for size in (mapping.groups, mapping.filter_passes, mapping.strips)
        )
        code, weight = codes[tile[0]].copy(), weights[tile[0]].copy()
        code.reshape(-1)[rng.integers(code.size)] ^= 64
        weight.reshape(-1)[rng.integers(weight.size)] ^= 32
        changed[tile] = code, weight
    for count in (0, 4):
        table = random_faults(SMALL, low, rng, count)
        wanted = reference(SMALL, low, codes, weights, bias, table, 2, changed)
        got = compiled(SMALL, low, codes, weights, bias, table, 2, changed)
        np.testing.assert_array_equal(got, wanted)


def test_the_stated_mapping_of_known_layers():
    resnet = place(EYERISS, conv(16, 32, 32, 16, 3, 3, padding=(1, 1)))
    assert (resnet.row.q, resnet.row.p, resnet.channel_sets) == (4, 16, 4)
    assert (resnet.strips, resnet.filter_passes, resnet.channel_passes) == (3, 1, 1)
    alexnet = place(EYERISS, conv(3, 227, 227, 96, 11, 11, stride=(4, 4)))
    assert (alexnet.row.q, alexnet.row.p, alexnet.channel_passes) == (1, 20, 3)
    assert (alexnet.filter_passes, alexnet.strips) == (5, 4)
    linear = place(EYERISS, Lowered(1, 1, 64, 10, 1, 1, 64, 1, 1, 10))
    assert (linear.row.q, linear.row.p, linear.channel_sets, linear.passes) == (11, 10, 6, 1)
    for low in LAYERS.values():
        loops = SMALL.schedule.layer_loops(SMALL, low)
        mapping = place(SMALL, low)
        assert -(-low.m // loops.m) == mapping.strips
        assert -(-low.n // loops.n) == mapping.filter_passes
        assert -(-low.k // (loops.fold or low.k)) == mapping.channel_passes
        assert [mapping.number(*mapping.position(i)) for i in range(mapping.passes)] == list(
            range(mapping.passes)
        )


@pytest.mark.parametrize("name", LAYERS)
def test_every_product_of_a_layer_is_made_once(name):
    low = LAYERS[name]
    mapping = place(SMALL, low)
    channels = low.k // (low.kernel_h * low.kernel_w)
    times = np.zeros((low.groups, low.out_h, low.n, low.kernel_h, channels), int)
    for number in range(mapping.passes):
        group = mapping.position(number)[0]
        for row, col in np.ndindex(SMALL.rows, SMALL.cols):
            at = mapping.place(number, row, col)
            if at is not None:
                block = np.s_[at.filter : at.filter + mapping.row.p], at.kernel_row
                times[(group, at.output_row, *block)][
                    :, at.channel : at.channel + mapping.row.q
                ] += 1
    assert (times == 1).all()


def test_partial_sum_words_are_those_of_lower():
    for low in (LAYERS["depthwise"], Lowered(2, 3, 4, 5, 3, 1, 4, 3, 1, 5)):
        words = low.groups * low.m * low.n
        at = layer._Layer(SMALL, low, layer.Operands(lambda g: None, lambda g: None), 0)
        for word in range(words):
            wanted = tuple(int(v) for v in lower.psum_position(low, word))
            assert tuple(int(v) for v in at.sum_of(word)) == wanted == array._sum_of(low, word)


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (conv(1, 20, 20, 1, 13, 3), "windows must be at most 12 rows high"),
        (conv(1, 20, 20, 1, 3, 13), "S x q must be at most 12"),
        (
            Lowered(1, 9, 9, 1, 7, 7, 1, 3, 3, 1, 3, 3, (1, 1), (0, 0), (2, 2)),
            "dilation must be 1 on eyeriss-like",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(low, says):
    with pytest.raises(MappingError, match=says):
        place(EYERISS, low)


def test_widths_that_would_not_wrap_alike_are_refused():
    wide = load_accel("eyeriss-like", overrides={"acc_bits": 32})
    with pytest.raises(ConfigError, match="acc_bits must equal product_bits"):
        place(wide, LAYERS["3x3"])


@pytest.mark.parametrize("name", LAYERS)
def test_an_ifmap_row_enters_at_one_pe_of_its_diagonal(name):
    low = LAYERS[name]
    mapping = place(SMALL, low)
    channels = low.k // (low.kernel_h * low.kernel_w)
    for number in range(mapping.passes):
        readers = {}
        for row, col in np.ndindex(SMALL.rows, SMALL.cols):
            at = mapping.place(number, row, col)
            if at is not None:
                reads = at.output_row * low.stride[0] + at.kernel_row, at.channel
                readers.setdefault(reads, []).append((row, col))
                assert at.channel <= channels + mapping.row.q * mapping.channel_sets
        entries = set()
        for pes in readers.values():
            found = {mapping.entry(*pe) for pe in pes}
            lowest = min(col for _, col in pes)
            assert len(found) == 1  # all that read a row share its entry,
            (entry,) = found
            assert entry in pes and entry[1] == lowest  # which is one of them,
            assert entry[0] < mapping.chain  # in the first set of filters,
            assert entry not in entries  # and no other row's
            entries.add(entry)


def test_buses_carry_a_word_in_the_cycle_in_which_it_is_written():
    """A word wrong on a bus is a word flipped in the scratchpad after that edge."""
    rng = np.random.default_rng(0)
    for s, q, p, stride, outputs in ((3, 1, 2, 1, 4), (2, 2, 1, 1, 3), (2, 1, 3, 2, 3),
                                     (1, 2, 2, 3, 3), (4, 1, 1, 3, 3)):  # fmt: skip
        row = RowPass(s, q, p, stride, outputs)
        ifmap = (rng.integers(1, 99, row.row) * 4).tolist()
        filters = rng.integers(1, 99, row.filters).tolist()
        none = [[0] * p for _ in range(outputs)]

        def run(pixels, words, strikes=(), row=row, none=none):
            return run_pe(EYERISS, row, pixels, words, none, strikes)

        def flip(component, word, cycle):
            return SpadStrike(component, word, 16, False, cycle, cycle, -1, 0, 1)

        assert sorted(row.arrivals.values()) == sorted(
            {f * row.step + i for f in range(outputs) for i in range(row.window)}
        )
        for cycle, pixel in row.arrivals.items():
            f = next(f for f in range(outputs) if pixel < f * row.step + row.window)
            wrong = ifmap[:pixel] + [ifmap[pixel] ^ 1] + ifmap[pixel + 1 :]
            cell = pixel - f * row.step
            struck = run(ifmap, filters, [flip("ifmap_spad", cell, cycle)])
            assert struck == run(wrong, filters) != run(ifmap, filters)
            early = run(ifmap, filters, [flip("ifmap_spad", cell, cycle - 1)])
            assert early != struck  # not yet written
        for word in range(row.filters):
            wrong = filters[:word] + [filters[word] ^ 1] + filters[word + 1 :]
            struck = run(ifmap, filters, [flip("filter_spad", word, word)])
            assert struck == run(ifmap, wrong) != run(ifmap, filters)
        for f in range(outputs):
            last = row.start(f) + row.filters - 1
            seen = [run(ifmap, filters, [flip("psum_spad", 0, t)])[f][0] for t in (last, last + 1)]
            clean = run(ifmap, filters)[f][0]
            assert seen == [clean ^ 1, clean]  # the sum leaves in the cycle after its last product
