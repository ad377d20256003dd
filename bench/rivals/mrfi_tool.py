"""MRFI 2.1.0: one flipped bit in one output of each image of a batch.

The outputs are quantised to 8 bits of the layer's range, the struck ones only
(`layerwise: False`), a random bit is flipped, and they go back to float32.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from mrfi import MRFI, EasyConfig

from .sites import Sites

LAYOUTS = ("channels first",)  # it takes flat views of the outputs


class Tool:
    """A network prepared for batches of one size; arguments as of `pytorchfi_tool.Tool`."""

    def __init__(self, model: torch.nn.Module, sites: Sites, batch: int, shape):
        self.batch, self.sites = batch, sites
        config = EasyConfig()
        config.faultinject = [
            {
                "type": "activation_out",
                "quantization": {
                    "method": "SymmericQuantization",
                    "dynamic_range": value,
                    "bit_width": 8,
                    "layerwise": False,
                },
                "selector": {"method": "FixPositions", "positions": []},
                "error_mode": {"method": "IntRandomBitFlip", "bit_width": 8},
                "module_fullname": [name],
            }
            for name, value in zip(sites.names, sites.ranges)
        ]
        self.injector = MRFI(copy.deepcopy(model), config)
        self.layers = [
            self.injector.get_configs("activation_out.0", module_fullname=[name])[0]
            for name in sites.names
        ]

    def run(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Logits of a batch, one new fault an image."""
        layer, place = self.sites.draw(self.batch, rng)
        image = np.arange(self.batch)
        for number, config in enumerate(self.layers):
            here = layer == number
            positions = image[here] * math.prod(self.sites.shapes[number]) + place[here]
            config.selector.args["positions"] = positions.tolist()
            config["enabled"] = bool(len(positions))
        return self.injector(images)
