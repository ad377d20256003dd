"""A torch module that runs on the simulated accelerator and takes faults."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fsim.accel_models.accel import Accel
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.network import Explicit, network_rows
from fsim.types import Fault

from . import program as P
from .capture import capture
from .draws import Draws
from .engine import Batch, FaultHooks
from .inject import slots_of
from .quantise import quantise
from .sites import Placement, select


class AttachedModel(nn.Module):
    """A network as integer arithmetic on an array; forward gives float32 logits.

    placement  the quantised program on its machine
    trial      number of the next forward pass; each is one draw of faults
    """

    def __init__(self, placement: Placement, seed: int = 0):
        super().__init__()
        self.placement = placement
        self.seed = seed
        self.trial = 0
        self._model = None
        self._space = select(placement)

    def set_faults(self, faults) -> None:
        """Explicit `Fault` values, a fault model (rows(space, trial, images, draws)), or None."""
        if faults is None or hasattr(faults, "rows"):
            self._model = faults
            return
        if isinstance(faults, Fault):
            faults = (faults,)
        if not isinstance(faults, Sequence) or not all(isinstance(f, Fault) for f in faults):
            raise FaultError(f"faults must be Fault values or a fault model, got {faults!r}")
        network_rows(faults, self._space)
        self._model = Explicit(tuple(faults)) if faults else None

    @property
    def coverage(self) -> list[dict]:
        """Operations on the array with their MACs, and those that the array cannot run."""
        lowered = self.placement.lowered
        total = sum(low.macs for low in lowered.values())
        rows = [
            {"layer": op.name, "on_array": True, "macs": lowered[op.index].macs,
             "share": lowered[op.index].macs / total}
            for op in self.placement.program.array_ops
        ]  # fmt: skip
        rows += [
            {"layer": op.name, "on_array": False, "what": op.what, "macs": 0, "share": 0.0}
            for op in self.placement.program.host_ops
        ]
        return rows

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of images (n, c, h, w), under this trial's faults."""
        array = images.detach().cpu().numpy().astype(np.float32, copy=False)
        hooks = None
        if self._model is not None:
            index = np.arange(len(array), dtype=np.int64)
            rows = self._model.rows(self._space, self.trial, index, Draws(self.seed))
            weights = self.placement.accel.component_index("weights")
            batch = getattr(self._model, "hw_batch", 1)
            struck, slot = slots_of(rows, 0, len(array), weights, batch)
            hooks = FaultHooks(self.placement, Batch(struck, slot))
            self.trial += 1
        result = P.run(self.placement.program, array, hooks=hooks)
        return torch.from_numpy(result.logits.copy()).to(images.device)


def attach(
    model: nn.Module,
    accel: str | Accel,
    *,
    calibration: torch.Tensor | np.ndarray,
    dataflow: str | None = None,
    faults=None,
    seed: int = 0,
    quant_params: dict | None = None,
) -> AttachedModel:
    """`model` quantised and placed on an accelerator; the model itself is not changed.

    calibration  (n, c, h, w) float32 network inputs, a few hundred
    faults       see `AttachedModel.set_faults`
    Raises MappingError for a model that torch.fx cannot trace, ConfigError otherwise.
    """
    if not isinstance(accel, Accel):
        accel = load_accel(accel, dataflow)
    seen = np.asarray(
        calibration.detach().cpu() if isinstance(calibration, torch.Tensor) else calibration,
        np.float32,
    )
    if seen.ndim != 4 or not len(seen):
        raise ConfigError(f"calibration must be (n, c, h, w) images, n >= 1, got {seen.shape}")
    program = quantise(
        capture(model, seen[:1]),
        seen,
        accel_bits=accel.operand_bits,
        acc_bits=accel.acc_bits,
        unsigned=accel.unsigned_acts,
        params=quant_params,
    )
    attached = AttachedModel(Placement(program, accel), seed)
    attached.set_faults(faults)
    return attached
