"""The operations of the cell space as torch modules.

Each maps (n, c, h, w) to (n, c, ceil(h / stride), ceil(w / stride)) float32. Bodies and
normalisation as in walkerning/aw_nas, ops/ops.py; convolutions that a batch normalisation
follows have no bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsim.nas.networks.fault_points import macs_per_value
from fsim.nas.networks.layers import conv_bn, named

from .definition import CellSpace


@dataclass(frozen=True)
class Normalisation:
    """How the batch normalisations of a network of cells are set.

    edge_affine        those of edges have a learnt scale and shift
    preprocess_affine  likewise those of the cells' preprocessing
    after_pools        a pooling edge is followed by one, without scale and shift
    """

    edge_affine: bool
    preprocess_affine: bool
    after_pools: bool


SUPERNET = Normalisation(edge_affine=False, preprocess_affine=False, after_pools=True)
"""Of the supernet: weights that many architectures share must not learn one's scales."""


def final_normalisation(space: CellSpace) -> Normalisation:
    """Of a network that is trained on its own.

    The reference leaves out scale and shift of the preprocessing where it is
    relu_conv_bn_3x3: W-FTT-Net-20 then has the 2.711 M parameters of its table.
    """
    return Normalisation(True, space.preprocess == "relu_conv_bn_1x1", False)


class Zero(nn.Module):
    """The operation "none": zeros of the right shape."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Halves a map: ReLU, then half of the channels from its even rows and columns and half
    from its odd ones, by two 1x1 convolutions of stride 2.

    Each convolution has the normalisation of its own channels, so that it folds into the
    weights; with the one normalisation over all channels that the reference has, every
    value would be the same. A map of odd size is padded below and to the right.

    injects  feature faults enter its output: in the preprocessing they do, on an edge
             they do not (reference, ops.py: only convolutions outside skip_connect)
    """

    def __init__(self, channels_in: int, channels_out: int, affine: bool, injects: bool):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = conv_bn(channels_in, channels_out // 2, 1, 2, affine=affine)
        self.odd = conv_bn(channels_in, channels_out - channels_out // 2, 1, 2, affine=affine)
        self.joined = nn.Identity()
        self.injects = injects

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.joined(torch.cat([self.even(x), self.odd(shifted)], dim=1))

    def own_fault_points(self, reference: bool) -> list[tuple[str, int]]:
        """One for all channels, with the M of one convolution, C_in."""
        return [("joined", macs_per_value(self.odd.conv))] if self.injects else []


def primitive(name: str, channels: int, stride: int, norm: Normalisation) -> nn.Module:
    """The operation called `name` (of ADSAF_PRIMITIVES) on `channels` channels."""
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        if stride == 1:
            return nn.Identity()
        return FactorizedReduce(channels, channels, norm.edge_affine, injects=False)
    if name == "conv_1x1":
        return nn.Conv2d(channels, channels, 1, stride)  # with bias, without normalisation
    kind, _, size = name.rpartition("_")
    kernel = int(size[0])
    if kind in ("max_pool", "avg_pool"):
        return _pool(kind, kernel, channels, stride, norm)
    make = {"sep_conv": _sep_conv, "dil_conv": _dil_conv, "relu_conv_bn": _relu_conv_bn}[kind]
    return make(channels, kernel, stride, norm.edge_affine)


def preprocess(
    kind: str, channels_in: int, channels_out: int, stride: int, affine: bool
) -> nn.Module:
    """What brings a cell's input to its channels and, with stride 2, to its size."""
    if kind == "relu_conv_bn_3x3":
        return _relu_conv_bn(channels_in, 3, stride, affine, channels_out)
    if stride == 2:
        return FactorizedReduce(channels_in, channels_out, affine, injects=True)
    return _relu_conv_bn(channels_in, 1, 1, affine, channels_out)


def _pool(kind: str, kernel: int, channels: int, stride: int, norm: Normalisation) -> nn.Module:
    if kind == "max_pool":
        pool = nn.MaxPool2d(kernel, stride, kernel // 2)
    else:  # the mean of what lies inside the map
        pool = nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
    if not norm.after_pools:
        return pool
    return named(pool=pool, bn=nn.BatchNorm2d(channels, affine=False))


def _relu_conv_bn(
    channels_in: int, kernel: int, stride: int, affine: bool, channels_out: int | None = None
) -> nn.Sequential:
    channels_out = channels_in if channels_out is None else channels_out
    block = conv_bn(channels_in, channels_out, kernel, stride, affine=affine)
    return named(relu=nn.ReLU(), conv=block.conv, bn=block.bn)


def _depthwise(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(
        channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
    )


def _dil_conv(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    return named(
        relu=nn.ReLU(),
        depthwise=_depthwise(channels, kernel, stride, dilation=2),
        pointwise=nn.Conv2d(channels, channels, 1, bias=False),
        bn=nn.BatchNorm2d(channels, affine=affine),
    )


def _sep_conv(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    return named(
        relu1=nn.ReLU(),
        depthwise1=_depthwise(channels, kernel, stride),
        pointwise1=nn.Conv2d(channels, channels, 1, bias=False),
        bn1=nn.BatchNorm2d(channels, affine=affine),
        relu2=nn.ReLU(),
        depthwise2=_depthwise(channels, kernel, 1),
        pointwise2=nn.Conv2d(channels, channels, 1, bias=False),
        bn2=nn.BatchNorm2d(channels, affine=affine),
    )
