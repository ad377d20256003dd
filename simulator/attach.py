"""A torch model on the simulated array: `fsim.attach`.

A model that torch.fx can trace becomes one integer program. Of any other model
each convolution and linear layer becomes a program of its own, between float
operations that stay as they are. Either way `coverage` lists what the array runs
and what it does not.
"""

from __future__ import annotations

import copy
import itertools
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
from .bridge.network import Trained
from .capture import capture
from .draws import Draws
from .gemm import configure
from .protection import read_rows

FRESH = ("step", "epoch", "chip")

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
    fresh: str = "step",
) -> AttachedModel:
    """The network on the simulated array.

    Evaluation is integer arithmetic from the input's codes on, batch normalisation
    folded in. Training runs each convolution and linear layer on the array with
    quantised raw weights, and each product of two activations that evaluation knows,
    everything between in float, and passes gradients straight through roundings and
    faults: it changes the parameters of `model`, which is otherwise left as it is.

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
    fresh         when training meets new faults: each "step" (forward pass), each
                  "epoch" (call of `train()`), or never, on one faulty "chip"

    Raises ConfigError for wrong arguments, FaultError for faults that the network
    cannot have and MappingError for networks that the machine cannot run.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(accel, (str, Path, Accel)):
        raise ConfigError(f"accel must be a name, a path or an Accel, got {type(accel).__name__}")
    machine = configure(accel, dataflow=dataflow)
    images = _images(calibration, "calibration images").copy()  # the caller's may change
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed must be an integer in [0, 2^64), got {seed!r}")
    if rates is not None:
        if faults is not None and not (isinstance(faults, (tuple, list)) and not faults):
            raise ConfigError("faults and rates both say which faults strike: give one of them")
        faults = _bit_errors(rates)
    if fresh not in FRESH:
        raise ConfigError(f"fresh must be one of {', '.join(FRESH)}, got {fresh!r}")
    attached = AttachedModel(model, machine, images, quant_params, int(seed), fresh)
    attached.set_faults(faults)
    return attached


class AttachedModel(nn.Module):
    """A network on the simulated array, made by `attach`.

    Called with (n, c, h, w) images it returns the logits. Each call is one trial of
    the fault model, with its images numbered from 0; `trial` is the number of the
    next call's and may be set. After `eval()`, which is how it begins, it is the
    integer network, without gradients; parameters that have changed since are
    quantised anew. After `train()` it is the network itself with its convolutions,
    linear layers and products of two activations on the array. `state_dict` and
    parameters are those of `module`.

    module    the network that was given
    accel     the machine
    mode      of evaluation: "integer program" or "layer by layer"
    coverage  what the array runs in evaluation and what it does not
    program   the integer program, or None layer by layer
    layers    names that `Fault.layer` may have in the mode that it is in
    fresh     "step", "epoch" or "chip": when training meets new faults
    """

    def __init__(self, model, accel: Accel, images: np.ndarray, params, seed: int, fresh: str):
        super().__init__()
        self.module = model
        self.accel, self.fresh = accel, fresh
        self.trial = 0
        self._images, self._params, self._seed = images, params, seed
        self._model = None
        self._trained = None
        self._quantise()
        self.training = False  # the module's own mode is its user's until train() or eval()

    # The integer network holds modules of its own, which are not the user's.

    @property
    def network(self) -> Whole | Layered:
        """The integer network, of the parameters as they are."""
        if self._versions() != self._quantised[1]:
            self._quantise()
        return self._quantised[0]

    def _quantise(self) -> None:
        versions = self._versions()
        try:
            graph = capture(self.module, self._images)
        except MappingError as error:
            if self._params is not None:
                raise ConfigError(
                    f"quant_params need a network that is one program, but {error}"
                ) from error
            network = Layered(self.module, self.accel, self._images, str(error))
        else:
            network = Whole(self.module, graph, self.accel, self._images, self._params)
        self._quantised = (network, versions)  # a tuple: not a submodule

    def _versions(self) -> tuple:
        held = itertools.chain(self.module.parameters(), self.module.buffers())
        return tuple((id(tensor), tensor._version) for tensor in held)

    @property
    def mode(self) -> str:
        return self._quantised[0].mode

    @property
    def coverage(self) -> Coverage:
        return self._quantised[0].coverage

    @property
    def program(self):
        return self.network.program

    @property
    def layers(self) -> tuple[str, ...]:
        if self.training:
            return tuple(site.name for site in self._trained.session.sites)
        return self._quantised[0].names

    def train(self, mode: bool = True):
        if mode and self.fresh == "epoch" and self._trained is not None:
            self.trial += 1
        if mode and self._trained is None:
            self._trained = Trained(self.module, self.accel, self._images, self._seed)
        return super().train(mode)

    def state_dict(self, *args, **kwargs):
        """That of `module`, under its own names."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        """Into `module`."""
        return self.module.load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        # The integer network may hold functions that cannot be pickled; it is made anew.
        return {name: value for name, value in vars(self).items() if name != "_quantised"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._quantise()

    def __deepcopy__(self, memo):
        twin = attach(
            copy.deepcopy(self.module, memo), self.accel, calibration=self._images,
            seed=self._seed, quant_params=self._params, fresh=self.fresh,
        )  # fmt: skip
        twin._model, twin.trial = self._model, self.trial
        return twin.train(self.training)

    def set_faults(self, faults=()) -> None:
        """What strikes from now on; nothing for None or an empty sequence.

        faults  a fault model, which has rows(space, trial, images, draws); a Fault;
                or a sequence of them, which strike in every trial. A word of `acts`
                in a layer is one of the tensor that the operation makes; layer by
                layer and in training, of the tensor that the layer reads. A product
                of two activations reads its first at cycle=1 and its second at 2.
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
            space = self._trained.session.space if self.training else self.network.space
            model.rows(space, 0, np.zeros(0, np.int64), Draws(self._seed))
        return model

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) float32 images to float32 logits on their device, as one trial.

        Raises ConfigError for images that do not fit, and layer by layer
        MappingError where the network takes a way that calibration did not see.
        """
        if self.training:
            return self._train_on(images)
        return self._evaluate(images)

    @torch.compiler.disable
    def _evaluate(self, images: Tensor) -> Tensor:
        network = self.network
        array = _images(images, "images", network.shape)
        if not len(array):
            out = torch.zeros(0, *network.out_shape)
        else:
            rows, hw_batch = None, 1
            if self._model is not None:
                numbers = np.arange(len(array), dtype=np.int64)
                rows = self._model.rows(network.space, int(self.trial), numbers, Draws(self._seed))
                hw_batch = getattr(self._model, "hw_batch", 1)
                if self.accel.protected:
                    key, placement = rows["image"].astype(np.int64), network.space.placement
                    rows = read_rows(placement, rows, key, len(array), hw_batch).rows
            with torch.no_grad():
                out = network.run(array, rows, hw_batch)
        self.trial += 1
        return out.to(images.device) if isinstance(images, Tensor) else out

    def _train_on(self, images: Tensor) -> Tensor:
        self._trained.session.model = self._model
        out = self._trained.run(images, -1 if self._model is None else int(self.trial))
        if self.fresh == "step":
            self.trial += 1
        return out

    def report(self) -> str:
        """The coverage as text."""
        cover = self.coverage
        lines = [
            f"on {self.accel.name} ({self.accel.dataflow}), {self.mode}",
            f"array does {cover.share_text}",
            "",
            f"on the array: {len(cover.array)} operations",
            *_table(cover.array),
            "",
        ]
        if cover.other:
            lines += ["not covered, in float and without faults:", *_table(cover.other)]
        else:
            lines.append("not covered: nothing")
        lines += (f"note: {note}" for note in cover.notes)
        if self._trained is not None and self._trained.skipped:
            calls = (f"{name} ({calls})" for name, calls in sorted(self._trained.skipped.items()))
            lines.append(f"note: in training in float (calls a pass): {', '.join(calls)}")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        return f"{self.mode}, accel={self.accel.name}, array does {self.coverage.share_text}"


def _table(entries: tuple[Covered, ...]) -> list[str]:
    name, what = (
        max((len(getattr(e, key)) for e in entries), default=0) for key in ("name", "what")
    )
    return [
        f"  {e.name:<{name}}  {e.what:<{what}}  "
        + ("     unknown MACs" if e.macs is None else f"{e.macs:>12,} MACs")
        + (f"  {e.why}" if e.why else "")
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
