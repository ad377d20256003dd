"""The two CIFAR-10 residual networks of the zoo.

Parameter names equal those of the published checkpoints, so that these load as
they are. The forward passes are free of control flow on data: torch.fx traces them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut ("option A").

    Where the block halves the image, the shortcut takes every second pixel and
    fills the new channels with zeros, half of them below and half above the old
    ones (He et al. 2016, "Deep Residual Learning for Image Recognition",
    section 4.2; channel order as in akamaster/pytorch_resnet_cifar10).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.extra_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.extra_channels:
            below = self.extra_channels // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, below, self.extra_channels - below))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """ResNet-20 for 32 x 32 images: (n, 3, 32, 32) float32 to (n, classes) logits."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(F.avg_pool2d(x, 8), 1)
        return self.linear(x)


class ResNet8(nn.Module):
    """ResNet-8 of MLPerf Tiny: (n, 3, 32, 32) float32 to (n, classes) logits.

    The benchmark's TensorFlow model (mlcommons/tiny, image classification) pads
    "same": a strided 3x3 convolution pads one row below and one column to the
    right, and nothing above or to the left. The strided 1x1 convolutions of the
    shortcuts need no padding and have no batch normalisation.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        # (channels in, channels out, kernel, stride); numbered as in the checkpoint
        shapes = [
            (3, 16, 3, 1),
            (16, 16, 3, 1),
            (16, 16, 3, 1),
            (16, 32, 3, 2),
            (32, 32, 3, 1),
            (16, 32, 1, 2),
            (32, 64, 3, 2),
            (64, 64, 3, 1),
            (32, 64, 1, 2),
        ]
        self.conv = nn.ModuleList(
            nn.Conv2d(c_in, c_out, kernel, stride, padding=1 if kernel == 3 and stride == 1 else 0)
            for c_in, c_out, kernel, stride in shapes
        )
        normalised = (16, 16, 16, 32, 32, 64, 64)  # after conv.0-4, 6 and 7
        self.bn = nn.ModuleList(nn.BatchNorm2d(c, eps=1e-3) for c in normalised)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn[0](self.conv[0](x)))

        y = F.relu(self.bn[1](self.conv[1](x)))
        y = self.bn[2](self.conv[2](y))
        x = F.relu(x + y)

        y = F.relu(self.bn[3](self.conv[3](F.pad(x, (0, 1, 0, 1)))))
        y = self.bn[4](self.conv[4](y))
        x = F.relu(self.conv[5](x) + y)

        y = F.relu(self.bn[5](self.conv[6](F.pad(x, (0, 1, 0, 1)))))
        y = self.bn[6](self.conv[7](y))
        x = F.relu(self.conv[8](x) + y)

        return self.fc(torch.flatten(F.avg_pool2d(x, 8), 1))
