"""Which rows, channels and filters of a layer each PE of `eyeriss-like` does, and when.

A layer of R x S windows, C channels and M filters a group, E rows of F outputs:

* PE (i, j) of a *set* of R rows convolves filter row i with the ifmap row that output row
  j of the strip needs; the column adds its R sums up.
* q channels share a PE: as many as S q <= ifmap words allows, spread evenly over the
  fewest blocks. p filters share it: as many as psum words and q S p <= filter words
  allow, spread likewise.
* floor(rows / R) sets are stacked. Blocks of channels come first, side by side in the same
  column of sums; what rows are left then take more blocks of filters.
* E is cut into strips of as many rows as there are columns.
* One pass after another: groups outermost, then blocks of filters, strips, and blocks of
  channels innermost; partial sums go out to the global buffer after each pass and come
  back in the next. The first pass starts from the bias.

What the last block lacks of channels or filters is zeros (the configuration is scanned in
once a layer), which gate the multiplier. Rows of PEs beyond the sets and columns beyond the
strip's height are idle, and faults in them do nothing.

R, S, q, p, strips and sets are those of Chen et al., IEEE JSSC 52(1), 2017; the rules by
which sizes are chosen, one image at a time and no folding of short strips side by side are
assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsim.errors import MappingError

from ..plan import ceil_div
from .schedule import RowPass, check_pass, check_widths


@dataclass(frozen=True)
class Place:
    """What PE (row, col) does in one pass.

    kernel_row  i            output_row  e
    channel, filter  first of its block, within the group
    """

    kernel_row: int
    output_row: int
    channel: int
    filter: int


@dataclass(frozen=True)
class Mapping:
    """A layer on the array.

    row             what each PE does in a pass
    kernel_rows     R
    channel_sets, filter_sets    sets stacked in the rows, channels innermost
    groups, filter_passes, strips, channel_passes    loops, outermost first
    cols            output rows of a full strip
    output_rows     E
    stride          of the window down the map
    """

    row: RowPass
    kernel_rows: int
    channel_sets: int
    filter_sets: int
    groups: int
    filter_passes: int
    strips: int
    channel_passes: int
    cols: int
    output_rows: int
    stride: int

    @property
    def passes(self) -> int:
        """Of the layer."""
        return self.groups * self.filter_passes * self.strips * self.channel_passes

    @property
    def chain(self) -> int:
        """PEs whose sums a column adds up."""
        return self.kernel_rows * self.channel_sets

    def position(self, number: int) -> tuple[int, int, int, int]:
        """(group, filter pass, strip, channel pass) of a pass."""
        rest, channel = divmod(number, self.channel_passes)
        rest, strip = divmod(rest, self.strips)
        return *divmod(rest, self.filter_passes), strip, channel

    def number(self, group: int, block: int, strip: int, channel: int) -> int:
        """The inverse of `position`."""
        outer = (group * self.filter_passes + block) * self.strips + strip
        return outer * self.channel_passes + channel

    def height(self, strip: int) -> int:
        """Output rows of a strip."""
        return min(self.cols, self.output_rows - strip * self.cols)

    def place(self, number: int, row: int, col: int) -> Place | None:
        """What a PE does in a pass; None if it is idle."""
        _, block, strip, channel = self.position(number)
        if row >= self.chain * self.filter_sets or col >= self.height(strip):
            return None
        filter_set, rest = divmod(row, self.chain)
        channel_set, kernel_row = divmod(rest, self.kernel_rows)
        return Place(
            kernel_row,
            strip * self.cols + col,
            (channel * self.channel_sets + channel_set) * self.row.q,
            (block * self.filter_sets + filter_set) * self.row.p,
        )

    def entry(self, row: int, col: int) -> tuple[int, int]:
        """The PE at which the ifmap row that PE (row, col) reads enters the array.

        Of all that read it, those of the first set of filters in the lowest column.
        """
        set_row, kernel_row = divmod(row % self.chain, self.kernel_rows)
        while col > 0 and kernel_row + self.stride < self.kernel_rows:
            kernel_row, col = kernel_row + self.stride, col - 1
        return set_row * self.kernel_rows + kernel_row, col


def place(accel, low) -> Mapping:
    """The mapping of a lowered layer (`fsim.simulator.lower.Lowered`).

    Raises MappingError for windows that no PE or no column of PEs holds, and for dilated
    ones: an ifmap scratchpad shifts whole windows.
    """
    check_widths(accel)
    if tuple(low.dilation) != (1, 1):
        raise MappingError(
            f"dilation must be 1 on {accel.name}, whose ifmap scratchpad holds windows without "
            f"gaps, got {low.dilation[0]} x {low.dilation[1]}"
        )
    if low.kernel_h > accel.rows:
        raise MappingError(
            f"windows must be at most {accel.rows} rows high, the PE rows of {accel.name}, "
            f"got {low.kernel_h}"
        )
    s, words = low.kernel_w, accel.parameters
    smallest = RowPass(s, 1, 1, low.stride[1], low.out_w)
    check_pass(accel, smallest)
    channels = low.k // (low.kernel_h * s)
    q = _even(channels, min(words["ifmap_words"], words["filter_words"]) // s)
    p = _even(low.n, min(words["psum_words"], words["filter_words"] // (q * s)))
    channel_blocks, filter_blocks = ceil_div(channels, q), ceil_div(low.n, p)
    sets = accel.rows // low.kernel_h
    channel_sets = _even(channel_blocks, sets)
    filter_sets = _even(filter_blocks, sets // channel_sets)
    return Mapping(
        row=RowPass(s, q, p, low.stride[1], low.out_w),
        kernel_rows=low.kernel_h,
        channel_sets=channel_sets,
        filter_sets=filter_sets,
        groups=low.groups,
        filter_passes=ceil_div(filter_blocks, filter_sets),
        strips=ceil_div(low.out_h, accel.cols),
        channel_passes=ceil_div(channel_blocks, channel_sets),
        cols=accel.cols,
        output_rows=low.out_h,
        stride=low.stride[0],
    )


def _even(count: int, most: int) -> int:
    """Size of the parts if `count` is cut as evenly as can be into the fewest of at most `most`."""
    return ceil_div(count, ceil_div(count, most))
