"""Building blocks that several networks share."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    bias: bool = False,
    affine: bool = True,
) -> nn.Sequential:
    """A convolution that keeps the size (up to its stride) and its batch normalisation.

    The output of a map of height h has height ceil(h / stride), for odd kernels.
    """
    conv = nn.Conv2d(
        channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=bias
    )
    return named(conv=conv, bn=nn.BatchNorm2d(channels_out, affine=affine))


def classifier(channels: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """(n, channels, h, w) to (n, num_classes) logits: mean over the map, dropout, linear."""
    return named(
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(dropout),
        linear=nn.Linear(channels, num_classes),
    )


def named(**modules: nn.Module) -> nn.Sequential:
    """The modules one after another, under these names."""
    return nn.Sequential(OrderedDict(modules))
