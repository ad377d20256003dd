"""The networks and images that several benchmarks share."""

from __future__ import annotations

import numpy as np
import torch

from fsim.errors import ConfigError
from fsim.nas.data import load_data
from fsim.nas.networks.registry import build_network
from fsim.nas.preprocessing import Preprocessing
from fsim.nas.zoo import ZOO, load_model

NAMES = ("resnet20", "resnet8", "mobilenet-v2")
CALIBRATION_BATCHES = 4


def network(name: str, images: np.ndarray) -> tuple[torch.nn.Module, str]:
    """A network in eval mode and where its weights are from.

    Where a checkpoint is not found weights are random, and batch normalisation has the
    statistics of `images`: otherwise activations grow or vanish layer by layer, and with
    them what a fault changes.
    """
    if name in ZOO:
        try:
            return load_model(name).model, "its checkpoint"
        except ConfigError:
            make = ZOO[name].build
    else:

        def make():
            return build_network(name)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    calibrate(model, images)
    return model.eval(), "random weights, calibrated batch normalisation"


def calibrate(model: torch.nn.Module, images: np.ndarray) -> None:
    """Give every batch normalisation the mean statistics of CALIBRATION_BATCHES batches."""
    normalised = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for module in normalised:
        module.reset_running_stats()
        module.momentum = None  # the mean over batches, not a moving one
    model.train()
    with torch.no_grad():
        for part in np.array_split(images, CALIBRATION_BATCHES):
            model(torch.from_numpy(part))
    model.eval()


def pictures(name: str, count: int) -> tuple[np.ndarray, str]:
    """(count, 3, 32, 32) float32 network input, and what it is of: CIFAR-10 or noise.

    With real images activations are as often zero as in use, and bits flip as far.
    """
    preprocessing = ZOO[name].preprocessing if name in ZOO else Preprocessing(1 / 255)
    try:
        data = load_data("cifar10", limit=count)
    except ConfigError:
        noise = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
        return preprocessing(noise).numpy(), "noise"
    return preprocessing(data.images).numpy(), "CIFAR-10"
