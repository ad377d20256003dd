"""Two ways to make a network meet faults, with one meaning.

`ArrayFaults`   `--fault-backend numba`: the network runs on the simulated array, and
                faults are those of its memories, registers and wires.
`TensorFaults`  `--fault-backend torch`: statistical models (FTT-NAS, arXiv
                2003.10375) as tensor operations, on any device.
`NoFaults`      plain training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fsim.accel_models.accel import Accel
from fsim.errors import ConfigError
from fsim.fault_models.statistical import FixedPoint, apply_several, common_grid
from fsim.fault_models.statistical.model import TARGETS
from fsim.nas.networks.fault_points import fault_points
from fsim.simulator.attach import attach


class FaultBackend(Protocol):
    """model  the network that trains; its parameters are the optimiser's"""

    model: nn.Module

    def clean(self, images: Tensor) -> Tensor:
        """Logits without faults, in the mode (train or eval) of the backend."""

    def faulty(self, images: Tensor, trial: int, chip: int | None = None) -> Tensor:
        """Logits under the faults of a trial: the same trial, the same faults.

        chip  faults of weights that statistical models draw, and lasting defects of the
              array, are those of this number in place of the trial's: they last over the
              batches of one evaluation
        """

    def train(self) -> None: ...

    def eval(self) -> None: ...


class NoFaults:
    """The network itself; its faulty pass is the clean one."""

    def __init__(self, model: nn.Module):
        self.model = model

    def clean(self, images: Tensor) -> Tensor:
        return self.model(images)

    def faulty(self, images: Tensor, trial: int, chip: int | None = None) -> Tensor:
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
        self.lasting = getattr(faults, "unit", "image") == "trial"
        self.attached = attach(
            model, accel, calibration=calibration, faults=faults, seed=seed, fresh="chip"
        )

    def clean(self, images: Tensor) -> Tensor:
        with self.attached.faults(None):
            return self._at(images, 0)

    def faulty(self, images: Tensor, trial: int, chip: int | None = None) -> Tensor:
        return self._at(images, chip if self.lasting and chip is not None else trial)

    def _at(self, images: Tensor, trial: int) -> Tensor:
        self.attached.trial = trial
        return self.attached(images)

    def train(self) -> None:
        self.attached.train()

    def eval(self) -> None:
        self.attached.eval()


class _Weights(TorchFunctionMode):
    """Convolutions and linear layers with weights on the grid, convolutions' under faults.

    struck  weight -> weight under faults; None: there are none
    """

    def __init__(self, grid: FixedPoint, struck: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.grid, self.struck = grid, struck

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        conv = func in (F.conv2d, torch.conv2d)
        if conv or func is F.linear:
            args = list(args)
            weight = args.pop(1) if len(args) > 1 else kwargs.pop("weight")
            if conv and self.struck is not None:
                weight = self.struck(weight)
            else:
                weight = self.grid.quantise(weight).value
            args.insert(1, weight)
        return func(*args, **kwargs)


class TensorFaults:
    """Statistical models in a network, any number of features and of weights.

    Features are struck where the paper does it (`fault_points`), weights of
    convolutions whole; linear layers are quantised only (arXiv 2003.10375, and the
    choices of walkerning/aw_nas). Models of the same target strike in the order given.

    quantise_clean  the clean pass on the same 8-bit grid; False: in float, as the
                    reference implementation has it

    Raises ConfigError unless there is a model and those of one target share a grid.
    """

    def __init__(self, model, models, seed: int = 0, *, quantise_clean: bool = True):
        self.models = tuple(models)
        if not self.models:
            raise ConfigError("there must be at least one fault model, got none")
        self.model, self.seed, self.quantise_clean = model, seed, quantise_clean
        self.numbers = {
            target: [i for i, entry in enumerate(self.models) if entry.target == target]
            for target in TARGETS
        }
        self.grids = {
            target: common_grid([self.models[i] for i in numbers]) or self.models[0].fixed_point
            for target, numbers in self.numbers.items()
        }
        self.points = fault_points(model)

    def clean(self, images: Tensor) -> Tensor:
        if not self.quantise_clean:
            return self.model(images)
        return self._run(images, {target: None for target in TARGETS})

    def faulty(self, images: Tensor, trial: int, chip: int | None = None) -> Tensor:
        trials = {"features": trial, "weights": trial if chip is None else chip}
        struck = {target: self._struck(target, trials[target], images.device) for target in TARGETS}
        return self._run(images, struck)

    def _struck(self, target: str, trial: int, device: torch.device):
        """Tensor -> tensor under the faults of a trial; None without models of the target."""
        numbers = self.numbers[target]
        if not numbers:
            return None
        models = [self.models[i] for i in numbers]
        generators = [self._generator(trial, i, device) for i in numbers]
        return partial(apply_several, models, generators=generators)

    def _generator(self, trial: int, number: int, device: torch.device) -> torch.Generator:
        # One stream for each trial and model. torch's generator on the CPU knows the low 32
        # bits of a seed only: odd multipliers keep trials apart there, and these keep the
        # streams of two models apart over 10^8 trials.
        state = (
            self.seed * 0x9E3779B97F4A7C15
            + trial * 0xD2B74407B1CE6E93
            + number * 0xBF58476D1CE4E5B9
        )
        return torch.Generator(device).manual_seed(state % (1 << 63))

    def _run(self, images, struck) -> Tensor:
        with ExitStack() as stack:
            for point in self.points:
                hook = self._hook(point, struck["features"])
                stack.callback(point.module.register_forward_hook(hook).remove)
            stack.enter_context(_Weights(self.grids["weights"], struck["weights"]))
            return self.model(images)

    def _hook(self, point, struck):
        def hook(module, args, out):
            if struck is None:
                return self.grids["features"].quantise(out).value
            return struck(out, macs=point.macs)

        return hook

    def train(self) -> None:
        self.model.train()

    def eval(self) -> None:
        self.model.eval()
