"""A network in training with its products on the array."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fsim.accel_models.accel import Accel

from .modes import ArrayMode, Recorder, sites_of
from .session import Session

RECORDED = 32
"""Calibration images that a forward pass is recorded on, at most."""


class Trained:
    """The products of a network as sites of a session.

    network  the user's module, not changed
    session  its array; `session.model` is the fault model
    skipped  torch functions that multiply and add but stay in float -> calls a pass
    """

    def __init__(self, network: nn.Module, accel: Accel, images: np.ndarray, seed: int):
        self.network = network
        images = images[:RECORDED]
        recorder = Recorder(len(images))
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            with torch.no_grad(), recorder:
                network(torch.from_numpy(images.copy()))
        finally:
            for module, mode in modes:
                module.training = mode
        self.shapes = tuple(call.shape for call, _ in recorder.seen)
        self.skipped = {name: calls for name, calls in recorder.skipped.items() if calls}
        self.session = Session(accel, sites_of(recorder, network, accel), seed)

    def run(self, images: Tensor, trial: int) -> Tensor:
        """The network's output, faults of a trial in it (below 0: none)."""
        with ArrayMode(self.session, self.shapes, trial, len(images)):
            return self.network(images)
