"""The CIFAR ResNet-18, which the paper's abstract calls ResNet-20."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fsim.nas.space.definition import scale_channels

from .layers import classifier, conv_bn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the block halves
    the map (He et al. 2016, option B). Faults enter all three convolutions, not the sum."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.first = conv_bn(channels_in, channels_out, 3, stride)
        self.second = conv_bn(channels_out, channels_out, 3)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else conv_bn(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(F.relu(self.first(x)))
        return F.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """(n, in_channels, h, w) float32 to (n, num_classes) logits; 11.2 M parameters at width 1.

    Four stages of two blocks with 64, 128, 256 and 512 channels behind a 3x3 stem without
    pooling. Not the ResNet-20 of the zoo, which has 0.27 M parameters.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        widths = [scale_channels(channels, width) for channels in (64, 128, 256, 512)]
        self.stem = conv_bn(in_channels, widths[0], 3)
        blocks, before = [], widths[0]
        for stage, channels in enumerate(widths):
            blocks.append(ResidualBlock(before, channels, 1 if stage == 0 else 2))
            blocks.append(ResidualBlock(channels, channels, 1))
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = classifier(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))))
