"""A torch model on the simulated array: `fsim.attach`.

A model that torch.fx can trace becomes one integer program. Of any other model
each convolution and linear layer becomes a program of its own, between float
operations that stay as they are. Either way `coverage` lists what the array runs
and what it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fsim.accel_models.accel import MEMORIES, Accel
from fsim.errors import ConfigError, FaultError, MappingError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.network import Explicit
from fsim.parse import parse_probability
from fsim.types import Fault

from .attach_layers import Layered
from .attach_program import Coverage, Covered, Whole
from .capture import capture
from .draws import Draws
from .gemm import configure

__all__ = ["AttachedModel", "Coverage", "Covered", "attach"]


def attach(
    model: nn.Module,
    accel: str | Path | Accel,
    *,
    calibration,
    dataflow: str | None = None,
    faults=(),
    rates: float | Mapping[str, float] | None = None,
    seed: int = 0,
    quant_params: Mapping | None = None,
) -> AttachedModel:
    """The network on the simulated array; `model` itself is not changed.

    accel         a preset's name, the path of a description, or an Accel
    calibration   (n >= 1, c, h, w) network inputs, float32 or what casts to it, that
                  scales are chosen on; layer by layer the first 256 at most
    dataflow      in place of the description's own
    faults        a fault model, or explicit Faults (see `AttachedModel.set_faults`)
    rates         bit error rates instead of `faults`: one for all memories, or a
                  mapping of acts, weights and psums to theirs
    seed          of the fault model's draws
    quant_params  scales of one's own as `quantise(params=)` takes them; for whole
                  programs only

    Raises ConfigError for wrong arguments, FaultError for faults that the network
    cannot have and MappingError for networks that the machine cannot run.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(accel, (str, Path, Accel)):
        raise ConfigError(f"accel must be a name, a path or an Accel, got {type(accel).__name__}")
    machine = configure(accel, dataflow=dataflow)
    images = _images(calibration, "calibration images")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed must be an integer in [0, 2^64), got {seed!r}")
    if rates is not None:
        if faults is not None and not (isinstance(faults, (tuple, list)) and not faults):
            raise ConfigError("faults and rates both say which faults strike: give one of them")
        faults = _bit_errors(rates)
    try:
        graph = capture(model, images)
    except MappingError as error:
        if quant_params is not None:
            raise ConfigError(
                f"quant_params need a network that is one program, but {error}"
            ) from error
        network = Layered(model, machine, images, str(error))
    else:
        network = Whole(model, graph, machine, images, quant_params)
    attached = AttachedModel(network, machine, int(seed))
    attached.set_faults(faults)
    return attached


class AttachedModel(nn.Module):
    """A network on the simulated array, made by `attach`.

    Called with (n, c, h, w) float32 images it returns the logits, without
    gradients. Each call is one trial of the fault model, with its images numbered
    from 0; `trial` is the number of the next call's and may be set. It always is in
    evaluation mode, in float32 and on the CPU: `train`, `half`, `to` change nothing.

    accel     the machine
    mode      "integer program" or "layer by layer"
    coverage  what the array runs and what it does not
    program   the integer program, or None layer by layer
    layers    names that `Fault.layer` may have
    """

    def __init__(self, network: Whole | Layered, accel: Accel, seed: int):
        super().__init__()
        self.network = network
        self.accel = accel
        self.mode = network.mode
        self.coverage: Coverage = network.coverage
        self.program = network.program
        self.layers: tuple[str, ...] = network.names
        self.trial = 0
        self._draws = Draws(seed)
        self._model = None
        self.eval()

    def train(self, mode: bool = True):
        return super().train(False)  # the scales were chosen for evaluation

    def _apply(self, fn, recurse=True):
        return self  # nor for other dtypes and devices

    def set_faults(self, faults=()) -> None:
        """What strikes from now on; nothing for None or an empty sequence.

        faults  a fault model, which has rows(space, trial, images, draws); a Fault;
                or a sequence of them, which strike in every trial. A word of `acts`
                in a layer is one of the tensor that the operation makes; layer by
                layer, of the tensor that the layer reads.
        Raises FaultError or ConfigError for faults that the network cannot have.
        """
        self._model = self._checked(faults)

    @contextmanager
    def faults(self, faults):
        """`with attached.faults(...):` sets faults and puts the earlier ones back."""
        before = self._model
        self.set_faults(faults)
        try:
            yield self
        finally:
            self._model = before

    def _checked(self, faults):
        """The fault model that stands for what `set_faults` takes, or None."""
        if callable(getattr(faults, "rows", None)):
            model = faults
        else:
            if faults is None or isinstance(faults, Fault):
                faults = () if faults is None else (faults,)
            named = tuple(faults) if np.iterable(faults) else (faults,)
            wrong = [type(fault).__name__ for fault in named if not isinstance(fault, Fault)]
            if wrong:
                raise FaultError(
                    "faults must be a model with rows(space, trial, images, draws) or a sequence "
                    f"of Fault, got {wrong[0]}"
                )
            model = Explicit(named) if named else None
        if isinstance(model, Explicit):  # draws nothing: what is wrong shows now
            model.rows(self.network.space, 0, np.zeros(0, np.int64), self._draws)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) float32 images to float32 logits on their device, as one trial.

        Raises ConfigError for images that do not fit, and layer by layer
        MappingError where the network takes a way that calibration did not see.
        """
        array = _images(images, "images", self.network.shape)
        if not len(array):
            out = torch.zeros(0, *self.network.out_shape)
        else:
            rows, hw_batch = None, 1
            if self._model is not None:
                numbers = np.arange(len(array), dtype=np.int64)
                rows = self._model.rows(self.network.space, int(self.trial), numbers, self._draws)
                hw_batch = getattr(self._model, "hw_batch", 1)
            with torch.no_grad():
                out = self.network.run(array, rows, hw_batch)
        self.trial += 1
        return out.to(images.device) if isinstance(images, Tensor) else out

    def report(self) -> str:
        """The coverage as text."""
        cover = self.coverage
        lines = [
            f"on {self.accel.name} ({self.accel.dataflow}), {self.mode}",
            f"array does {cover.share:.1%} of the multiply-adds",
            "",
            f"on the array: {len(cover.array)} operations",
            *_table(cover.array),
            "",
        ]
        if cover.other:
            lines += ["not covered, in float and without faults:", *_table(cover.other)]
        else:
            lines.append("not covered: nothing")
        return "\n".join([*lines, *(f"note: {note}" for note in cover.notes)])

    def extra_repr(self) -> str:
        return f"{self.mode}, accel={self.accel.name}, {self.coverage.share:.1%} on the array"


def _table(entries: tuple[Covered, ...]) -> list[str]:
    name, what = (
        max((len(getattr(e, key)) for e in entries), default=0) for key in ("name", "what")
    )
    return [
        f"  {e.name:<{name}}  {e.what:<{what}}  {e.macs:>12,} MACs{f'  {e.why}' if e.why else ''}"
        for e in entries
    ]


# --- arguments ---------------------------------------------------------------------------


def _images(images, what: str, shape=None) -> np.ndarray:
    """(n, ...) contiguous float32 of what the user gave.

    shape  of an image; None: any, and at least one image
    """
    given = images
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given  # numpy has no bfloat16
    least = "" if shape else " >= 1"
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} must be an array (n{least}, c, h, w): {error}") from error
    if array.dtype.kind != "f":
        got = type(images).__name__ if array.dtype.kind == "O" else array.dtype
        raise ConfigError(f"{what} must be float32 network input, got {got}")
    expected = ", ".join(map(str, shape)) if shape else "c, h, w"
    fits = array.shape[1:] == shape if shape else array.ndim >= 2 and len(array)
    if not fits:
        raise ConfigError(f"{what} must be (n{least}, {expected}), got {array.shape}")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"{what} must be finite in float32, got NaN or infinity")
    return array


def _bit_errors(rates) -> BitErrors:
    """The fault model of `attach(rates=)`."""
    if isinstance(rates, Real):
        rates = dict.fromkeys(MEMORIES, rates)
    if not isinstance(rates, Mapping) or not set(rates) <= set(MEMORIES):
        raise ConfigError(f"rates must be a number or map some of {', '.join(MEMORIES)} to one")
    try:
        return BitErrors(**{name: parse_probability(str(p)) for name, p in rates.items()})
    except ConfigError as error:
        raise ConfigError(f"rates: {error}") from None
