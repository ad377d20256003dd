"""The table of operations that the kernels of differences read, and how codes lie in memory.

Tensors of an image lie in one buffer of bytes, as "frames": (h, w, c) with the channels
filled up to whole words of four and a border that convolutions read as padding. A byte is
the code plus the operation's `zero`, 0 for unsigned codes and 128 for signed ones, so that
every byte is unsigned, as VPDPBUSD takes them; the border and the filling hold code 0. What
the sums of products become larger by, `zero` times the sum of an output's weights, comes off
with the bias.

Which pixels of an operation differ from the golden ones is said by one bit a pixel, rows of
whole 64-bit words.
"""

from __future__ import annotations

CONV_VNNI, CONV, DEPTHWISE_VNNI, DEPTHWISE, ADD, AVERAGE, MAXIMUM, RELU, COPY, LAST = range(1, 11)
"""Kinds of operations. LAST is the linear layer that gives the answer."""

FIELDS = (
    "kind", "a", "b", "at", "row", "pixel", "h", "w", "c", "zero", "mask", "span", "sums",
    "kh", "kw", "sh", "sw", "top", "left", "dh", "dw", "runs", "words", "steps", "weight",
    "bias", "m0", "m1", "shift", "c_in", "c_out", "acc_bits", "per", "flat", "narrow",
    "low", "high",
)  # fmt: skip
"""Columns of the table of operations, int64.

a, b          operations it reads, -1: none
at            byte of the frame's pixel (0, 0), channel 0
row, pixel    bytes from one row, one pixel to the next
zero          what a byte is larger than its code by
mask, span    where its rows of bits begin, words of a row
sums          where its golden sums begin
kh .. dw      window, stride, padding at the top and left, dilation; of COPY: sh, sw the
              stride, top and left the offset, c_in and c_out first channels
runs, words   a window is read as so many runs of so many words that lie one after another;
              of DEPTHWISE a run is a position, of DEPTHWISE_VNNI four positions
steps         where the runs' byte offsets from the window's first code begin in `steps`
weight        where its part begins in `weights`
bias          where its part begins in `bias`, `wide`, `offset` and `factors`
m0, m1, shift  of additions and averages, as in `ops.py`; of COPY the first channels of
              two inputs that are joined
per, flat     input channels of one group; whether slots run over (channel, row, column), as
              of a flattened map, and not over (row, column, channel)
narrow        float32 holds every sum exactly, and none can wrap
low, high     first and last row with a bit, high -1 where there is none: of a copy of the
              table, which changes as faults are carried
"""

(KIND, A, B, AT, ROW, PIXEL, H, W, C, ZERO, MASK, SPAN, SUMS, KH, KW, SH, SW, TOP, LEFT, DH, DW,
 RUNS, WORDS, STEPS, WEIGHT, BIAS, M0, M1, SHIFT, C_IN, C_OUT, ACC_BITS, PER, FLAT,
 NARROW, LOW, HIGH) = range(len(FIELDS))  # fmt: skip

SLACK = 64
"""Bytes after the frames of an image, and entries after other tables, that a load may touch."""
