"""MobileNet-V2 for CIFAR (Sandler et al. 2018, with strides for 32 x 32 images)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fsim.nas.space.definition import scale_channels

from .fault_points import points_of
from .layers import classifier, conv_bn

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # stride 2 on ImageNet
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""expansion, channels, blocks, stride of the first block"""


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection; a shortcut where the stride is 1.

    Where the channels change as well the shortcut is a 1x1 convolution, as in the
    reference (aw_nas, baseline_ops.py), whose 2.297 M parameters include them.
    """

    def __init__(self, expansion: int, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        inner = expansion * channels_in
        self.expand = conv_bn(channels_in, inner, 1)
        self.depthwise = conv_bn(inner, inner, 3, stride, groups=inner)
        self.project = conv_bn(inner, channels_out, 1)
        self.has_shortcut = stride == 1
        self.has_conv_shortcut = stride == 1 and channels_in != channels_out
        self.shortcut = nn.Identity()
        if self.has_conv_shortcut:
            self.shortcut = conv_bn(channels_in, channels_out, 1)
        self.sum = nn.Identity()  # marks the sum for fault_points(reference=True)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.depthwise(F.relu(self.expand(x))))
        out = self.project(out)
        return self.sum(out + self.shortcut(x)) if self.has_shortcut else out

    def own_fault_points(self, reference: bool) -> list[tuple[str, int]]:
        """After every convolution's normalisation.

        The reference differs: faults of the projection enter after an identity shortcut is
        added, and not at all where the shortcut is a convolution.
        """
        points = points_of(self, ("expand", "depthwise"), reference)
        project = points_of(self, ("project",), reference)
        if reference and self.has_conv_shortcut:
            project = []
        elif reference and self.has_shortcut:
            project = [("sum", macs) for _, macs in project]
        return points + project + points_of(self, ("shortcut",), reference)


class MobileNetV2(nn.Module):
    """(n, in_channels, h, w) float32 to (n, num_classes) logits; 2.3 M parameters at width 1.

    ReLU instead of ReLU6, as in the reference.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0):
        super().__init__()
        before = scale_channels(32, width)
        self.stem = conv_bn(in_channels, before, 3)
        blocks = []
        for expansion, base, repeats, stride in _STAGES:
            channels = scale_channels(base, width)
            for i in range(repeats):
                block = InvertedResidual(expansion, before, channels, stride if i == 0 else 1)
                blocks.append(block)
                before = channels
        self.blocks = nn.Sequential(*blocks)
        last = scale_channels(1280, width)
        self.top = conv_bn(before, last, 1)
        self.head = classifier(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(F.relu(self.top(x)))
