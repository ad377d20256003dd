"""What a network costs: operations of one image, and parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from .fault_points import macs_per_value


@dataclass(frozen=True)
class Cost:
    """Of one image.

    flops       2 x multiply-adds of convolutions and linear layers, the paper's convention
                (aw_nas, cnn_model.py); biases, batch normalisation, pooling and sums count 0
    weights     weights of convolutions and linear layers, without biases
    parameters  all parameters that are learnt
    """

    flops: int
    weights: int
    parameters: int


def cost(model: nn.Module, image_shape: tuple[int, int, int]) -> Cost:
    """Count by shapes alone: nothing is computed, and the model is not changed.

    image_shape  (channels, height, width)
    A module that runs twice counts twice in `flops`, once in the parameters.
    """
    model = copy.deepcopy(model).to("meta").eval()
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        each = module.in_features if isinstance(module, nn.Linear) else macs_per_value(module)
        macs += each * output.numel()

    weights = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
            weights += module.weight.numel()
    with torch.no_grad():
        model(torch.empty(1, *image_shape, device="meta"))
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(2 * macs, weights, parameters)
