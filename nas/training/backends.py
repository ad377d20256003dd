"""Two ways to make a network meet faults, with one meaning.

`ArrayFaults`   `--fault-backend numba`: the network runs on the simulated array, and
                faults are those of its memories, registers and wires.
`TensorFaults`  `--fault-backend torch`: statistical models (FTT-NAS, arXiv
                2003.10375) as tensor operations, on any device.
`NoFaults`      plain training.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fsim.accel_models.accel import Accel
from fsim.errors import ConfigError
from fsim.fault_models.statistical import FaultModel, FixedPoint
from fsim.nas.networks.fault_points import fault_points
from fsim.simulator.attach import attach


class FaultBackend(Protocol):
    """model  the network that trains; its parameters are the optimiser's"""

    model: nn.Module

    def clean(self, images: Tensor) -> Tensor:
        """Logits without faults, in the mode (train or eval) of the backend."""

    def faulty(self, images: Tensor, trial: int) -> Tensor:
        """Logits under the faults of a trial: the same trial, the same faults."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


class NoFaults:
    """The network itself; its faulty pass is the clean one."""

    def __init__(self, model: nn.Module):
        self.model = model

    def clean(self, images: Tensor) -> Tensor:
        return self.model(images)

    def faulty(self, images: Tensor, trial: int) -> Tensor:
        return self.model(images)

    def train(self) -> None:
        self.model.train()

    def eval(self) -> None:
        self.model.eval()


class ArrayFaults:
    """The network on the simulated array, clean passes too: quantised like the machine.

    faults       a fault model of `fsim.fault_models`
    calibration  (n, c, h, w) float32 inputs
    """

    def __init__(self, model, accel: Accel, faults, calibration: np.ndarray, seed: int = 0):
        self.model = model
        self.attached = attach(
            model, accel, calibration=calibration, faults=faults, seed=seed, fresh="chip"
        )

    def clean(self, images: Tensor) -> Tensor:
        with self.attached.faults(None):
            return self._at(images, 0)

    def faulty(self, images: Tensor, trial: int) -> Tensor:
        return self._at(images, trial)

    def _at(self, images: Tensor, trial: int) -> Tensor:
        self.attached.trial = trial
        return self.attached(images)

    def train(self) -> None:
        self.attached.train()

    def eval(self) -> None:
        self.attached.eval()


class _Weights(TorchFunctionMode):
    """Convolutions and linear layers with weights on the grid, convolutions' under faults."""

    def __init__(self, model: FaultModel | None, grid: FixedPoint, generator: torch.Generator):
        super().__init__()
        self.model, self.grid, self.generator = model, grid, generator

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        conv = func in (F.conv2d, torch.conv2d)
        if conv or func is F.linear:
            args = list(args)
            weight = args.pop(1) if len(args) > 1 else kwargs.pop("weight")
            if conv and self.model is not None:
                weight = self.model(weight, generator=self.generator)
            else:
                weight = self.grid.quantise(weight).value
            args.insert(1, weight)
        return func(*args, **kwargs)


class TensorFaults:
    """Statistical models in a network: one of features, one of weights, or both.

    Features are struck where the paper does it (`fault_points`), weights of
    convolutions whole; linear layers are quantised only (arXiv 2003.10375, and the
    choices of walkerning/aw_nas).

    quantise_clean  the clean pass on the same 8-bit grid; False: in float, as the
                    reference implementation has it
    """

    def __init__(self, model, models, seed: int = 0, *, quantise_clean: bool = True):
        kinds = [m.target for m in models]
        if len(set(kinds)) != len(kinds) or not kinds:
            raise ConfigError(
                f"fault models must be one of features, one of weights or both, got {kinds}"
            )
        self.model, self.seed, self.quantise_clean = model, seed, quantise_clean
        self.features = next((m for m in models if m.target == "features"), None)
        self.weights = next((m for m in models if m.target == "weights"), None)
        self.grid = models[0].fixed_point
        self.points = fault_points(model)

    def clean(self, images: Tensor) -> Tensor:
        if not self.quantise_clean:
            return self.model(images)
        return self._run(images, None, None, torch.Generator(images.device))

    def faulty(self, images: Tensor, trial: int) -> Tensor:
        # One stream for each trial: a multiplier of Philox keeps near seeds apart.
        state = (self.seed * 0x9E3779B97F4A7C15 + trial * 0xD2B74407B1CE6E93) % (1 << 63)
        generator = torch.Generator(images.device).manual_seed(state)
        return self._run(images, self.features, self.weights, generator)

    def _run(self, images, features, weights, generator) -> Tensor:
        with ExitStack() as stack:
            for point in self.points:
                handle = point.module.register_forward_hook(self._hook(point, features, generator))
                stack.callback(handle.remove)
            stack.enter_context(_Weights(weights, self.grid, generator))
            return self.model(images)

    def _hook(self, point, features, generator):
        def hook(module, args, out):
            if features is None:
                return self.grid.quantise(out).value
            return features(out, generator=generator, macs=point.macs)

        return hook

    def train(self) -> None:
        self.model.train()

    def eval(self) -> None:
        self.model.eval()
