"""PyTorchFI 0.6.0: one flipped bit in one neuron of each image of a batch.

Its own bit-flip error model, `single_bit_flip_func`: the neuron's float32 value is taken
to 8 bits of the layer's range, a random bit is flipped, and it goes back to float32.
"""

from __future__ import annotations

import numpy as np
import torch
from pytorchfi.neuron_error_models import single_bit_flip_func

from .sites import Sites

LAYOUTS = ("channels first", "channels last")
RANGE_ROOM = 1.01
"""Ranges are this much wider than what was seen: its quantiser fails on the largest value."""


class Tool:
    """A network prepared for batches of one size.

    model  torch.nn.Module in eval mode
    shape  (channels, height, width) of an image
    """

    def __init__(self, model: torch.nn.Module, sites: Sites, batch: int, shape):
        self.batch, self.sites = batch, sites
        self.injector = single_bit_flip_func(model, batch, input_shape=list(shape), bits=8)
        self.injector.set_conv_max([RANGE_ROOM * value for value in sites.ranges])

    def run(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Logits of a batch, one new fault an image."""
        layer, place = self.sites.draw(self.batch, rng)
        channel, height, width = np.empty((3, self.batch), np.int64)
        for number, shape in enumerate(self.sites.shapes):
            here = layer == number
            channel[here], height[here], width[here] = np.unravel_index(place[here], shape)
        faulty = self.injector.declare_neuron_fi(
            batch=list(range(self.batch)),
            layer_num=layer.tolist(),
            dim1=channel.tolist(),
            dim2=height.tolist(),
            dim3=width.tolist(),
            function=self.injector.single_bit_flip_signed_across_batch,
        )
        return faulty(images)
