"""VGG-16 for CIFAR: thirteen convolutions with batch normalisation, one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from fsim.nas.space.definition import scale_channels

from .layers import classifier, conv_bn, named

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


class VGG16(nn.Module):
    """(n, in_channels, h, w) float32 to (n, num_classes) logits; 14.7 M parameters at width 1.

    Convolutions have a bias although batch normalisation follows, as in the reference
    (aw_nas, baseline_ops.py): hence 14.728 M parameters and not 14.724 M. 2x2 pooling
    ends each stage.

    image_size  height and width of the images; pooling that would leave nothing of the
                map is left out, so that images smaller than 32 can be used
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        image_size: int = 32,
    ):
        super().__init__()
        blocks, before, size = [], in_channels, image_size
        for base, repeats in _STAGES:
            channels = scale_channels(base, width)
            for _ in range(repeats):
                block = conv_bn(before, channels, 3, bias=True)
                blocks.append(named(conv=block.conv, bn=block.bn, relu=nn.ReLU()))
                before = channels
            if size >= 2:
                blocks.append(nn.MaxPool2d(2))
                size //= 2
        self.blocks = nn.Sequential(*blocks)
        self.head = classifier(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))
