"""Kinds of convolution as the one that arrays run: two axes, windows that gather.

A convolution of one axis is one of a single row. A transposed convolution is a
convolution with the kernel turned round on a map with zeros between its values
(Dumoulin and Visin, "A guide to convolution arithmetic for deep learning",
arXiv 1603.07285, chapter 4); the array multiplies those zeros too. Everything here is
differentiable, and holds for quantised codes as well: it moves values and adds zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """A map with zeros between its values, cropped.

    step  of the values along (height, width)
    crop  rows and columns that are cut off: (left, right, top, bottom)
    """

    step: tuple[int, int]
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def changes(self) -> bool:
        return self.step != (1, 1) or any(self.crop)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c, (h - 1) step + 1 - crop, ...)."""
        n, c, h, w = x.shape
        down, across = self.step
        # Each value at the head of a block of zeros; the last block is all head.
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, across - 1, 0, 0, 0, down - 1))
        x = x.reshape(n, c, h * down, w * across)
        left, right, top, bottom = self.crop
        return F.pad(x, (-left, 1 - across - right, -top, 1 - down - bottom))


def turned(weight: Tensor, groups: int) -> Tensor:
    """(c_in, c_out / groups, kh, kw) of a transposed convolution to the
    (c_out, c_in / groups, kh, kw) of the convolution that does the same."""
    c_in, each, *kernel = weight.shape
    weight = weight.reshape(groups, c_in // groups, each, *kernel).transpose(1, 2)
    return weight.reshape(groups * each, c_in // groups, *kernel).flip(2, 3)


def transposed(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Stretch, tuple[int, int, int, int]]:
    """(what comes before, zero padding (left, right, top, bottom)) of the convolution of
    stride 1 that a transposed convolution is; arguments as of torch's."""
    sides = []
    for k, p, more, d in zip(kernel, padding, output_padding, dilation):
        around = d * (k - 1) - p
        sides.append((around, around + more))
    (top, bottom), (left, right) = sides
    wanted = left, right, top, bottom
    crop = tuple(max(-side, 0) for side in wanted)
    return Stretch(tuple(stride), crop), tuple(max(side, 0) for side in wanted)
