"""A network that torch.fx cannot trace, layer by layer on the array.

The network's own code runs in float. Each call of a convolution or linear layer in
a forward pass is a *use*: an integer program of its own, calibrated on what that
call reads. All uses together are one site space, so that a trial draws once.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fsim.accel_models.accel import Accel
from fsim.errors import ConfigError, MappingError

from . import program as P
from .attach_program import (
    UNCOUNTED,
    Coverage,
    Covered,
    count_macs,
    on_array,
    place,
    plain_attention,
    run,
)
from .capture import capture
from .joined import joined_space
from .sites import Placement, SiteSpace

CALIBRATION = 256
"""Images that layers are calibrated on, at most."""

_HELD = 2 << 30
"""No more of them once their inputs, which are kept meanwhile, take this many bytes."""

_BATCH = 32
"""Calibration images that go through the float network together."""

_ON_ARRAY = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True, eq=False)
class _Use:
    """One call of a layer.

    number  of this use: `layer` in the rows of the network's site space
    name    module path; for later calls `path#1`, ...
    """

    number: int
    name: str
    placement: Placement

    @property
    def op(self) -> P.ArrayOp:
        return self.placement.program.ops[-1]

    def own(self, rows: np.ndarray) -> np.ndarray:
        """The network's rows that strike this use, numbered as in its program."""
        mine = rows[(rows["layer"] == self.number) | (rows["layer"] < 0)].copy()
        # What a layer reads is written by its program's input, operation 0; a copy
        # that the layer fetches for itself (first > 0) belongs to the layer.
        acts = self.placement.accel.component_index("acts")
        written = (mine["component"] == acts) & (mine["first"] == 0)
        own = np.where(written, 0, self.op.index)
        mine["layer"] = np.where(mine["layer"] < 0, -1, own)
        return mine


@dataclass
class _Pass:
    """One forward pass of the network, as its layers see it.

    images          in the batch
    rows, hw_batch  what strikes it, as `attach_program.run` takes them
    calls           path -> calls of that layer so far
    """

    images: int = 0
    rows: np.ndarray | None = None
    hw_batch: int | None = 1
    calls: Counter = field(default_factory=Counter)


class _ArrayLayer(nn.Module):
    """In place of a layer: each call of a forward pass has its own program."""

    def __init__(self, layer: nn.Module, path: str, uses: list[_Use], current: _Pass):
        super().__init__()
        for name in layer.__constants__:  # code of the model may read them
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.weight, self.bias = layer.weight, layer.bias
        self.path, self.uses, self.current = path, uses, current

    def forward(self, x: Tensor) -> Tensor:
        number = self.current.calls[self.path]
        self.current.calls[self.path] += 1
        if number >= len(self.uses):
            raise MappingError(
                f"layer {self.path} must not run more often than on the calibration images, "
                f"{len(self.uses)} times; add images that run it more often"
            )
        use = self.uses[number]
        shape = (self.current.images, *use.placement.program.input.shape)
        if tuple(x.shape) != shape:
            raise MappingError(
                f"layer {use.name} must get the shape it was calibrated with, {shape}, got "
                f"{tuple(x.shape)}"
            )
        rows = None if self.current.rows is None else use.own(self.current.rows)
        # As of host operations: float code that a fault upset can make NaN, code 0.
        images = torch.nan_to_num(x.detach().cpu().float()).numpy()
        values = run(use.placement, images, rows, self.current.hw_batch)
        out = use.op.shape
        if isinstance(use.op, P.Conv) and x.ndim == 3:  # of one axis: a map of one row
            out = out[0], out[2]
        return torch.from_numpy(values.reshape(len(x), *out)).to(x.device, x.dtype)


class _Watch:
    """What the modules of a float network read.

    ran        modules without children, in the order of their first call
    inputs     path of a layer -> by call, the tensors it read, one a batch
    problem    path of a layer -> why it cannot go on the array
    out_shape  of the network's output, without the batch
    """

    def __init__(self, network: nn.Module, images: np.ndarray):
        """Runs `network`, which keeps the hooks: it is of no further use."""
        self.ran: list[str] = []
        self.inputs: dict[str, list[list[Tensor]]] = {}
        self.problem: dict[str, str] = {}
        self.held = 0
        for path, module in _modules(network):
            module.register_forward_pre_hook(self._hook(path), with_kwargs=True)
        for part in torch.from_numpy(images[:CALIBRATION].copy()).split(_BATCH):
            self._run(network, part)
            if self.held > _HELD:
                break

    def _run(self, network: nn.Module, part: Tensor) -> None:
        self.images, self.calls = len(part), Counter()
        try:
            with torch.no_grad(), plain_attention():
                out = network(part)
        except Exception as error:  # the user's forward: anything can be raised
            raise ConfigError(
                f"calibration images must fit the network, got {tuple(part.shape)}: "
                f"{type(error).__name__}: {error} ({type(network).__name__})"
            ) from error
        if not isinstance(out, Tensor) or out.ndim < 1 or len(out) != self.images:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise MappingError(
                f"the network must return one tensor with an entry for each of {self.images} "
                f"images, got {got} ({type(network).__name__})"
            )
        self.out_shape = tuple(out.shape[1:])

    def _hook(self, path: str):
        def hook(module, args, kwargs):
            if path not in self.ran:
                self.ran.append(path)
            if isinstance(module, _ON_ARRAY):
                self._layer(path, module, [*args, *kwargs.values()])

        return hook

    def _layer(self, path: str, layer: nn.Module, given: list) -> None:
        if path in self.problem:
            return
        number = self.calls[path]
        self.calls[path] += 1
        least = layer.weight.ndim
        if len(given) != 1 or not isinstance(given[0], Tensor):
            self.problem[path] = "it does not read one tensor"
            return
        x = given[0].detach()
        if x.ndim < least or len(x) != self.images:
            self.problem[path] = "the first axis of its input does not number the images"
            return
        calls = self.inputs.setdefault(path, [])
        if number == len(calls):
            calls.append([])
        if calls[number] and calls[number][0].shape[1:] != x.shape[1:]:
            self.problem[path] = "the shape of its input changes between images"
            return
        calls[number].append(x.clone())
        self.held += x.nbytes


def _modules(network: nn.Module):
    """(path, module) of layers and of what has no children, but for the network itself."""
    for path, module in network.named_modules():
        if path and (isinstance(module, _ON_ARRAY) or not any(module.children())):
            yield path, module


def _uses(layer: nn.Module, path: str, calls: list[list[Tensor]], accel: Accel, first: int):
    """The uses of a layer, numbered from `first`; MappingError if the array cannot run it."""
    made = []
    for number, parts in enumerate(calls):
        seen = torch.cat(parts).float().numpy()
        placement = place(capture(nn.Sequential(layer), seen), accel, seen)
        *before, last = placement.program.ops
        if not last.is_array or any(op.stores for op in before[1:]):
            raise MappingError("it is more than a convolution or product on the array")
        made.append(_Use(first + number, f"{path}#{number}" if number else path, placement))
    return made


class Layered(nn.Module):
    """A network whose convolutions and linear layers run on the array one by one.

    inner             the network, its layers replaced
    shape, out_shape  of an input and of its logits, without the batch
    names             that `Fault.layer` may have
    """

    mode = "layer by layer"
    program = None

    def __init__(self, model: nn.Module, accel: Accel, images: np.ndarray, reason: str):
        super().__init__()
        watch = _Watch(copy.deepcopy(model).eval().cpu().float(), images)
        self.shape, self.out_shape = images.shape[1:], watch.out_shape
        self.accel = accel
        self.inner = copy.deepcopy(model).eval().cpu().float()
        uses: dict[str, list[_Use]] = {}
        for path in watch.inputs:
            if path in watch.problem:
                continue
            layer, first = self.inner.get_submodule(path), sum(map(len, uses.values()))
            try:
                uses[path] = _uses(layer, path, watch.inputs[path], accel, first)
            except MappingError as error:
                watch.problem[path] = str(error)
        self.uses = tuple(use for made in uses.values() for use in made)
        self.names = tuple(use.name for use in self.uses)
        array = tuple(on_array(use.placement, use.op, use.name) for use in self.uses)
        other = self._in_float(watch, uses, images, sum(entry.macs for entry in array))
        self.coverage = Coverage(array, other, (f"layer by layer: {reason}",))
        self.current = _Pass()
        self._replace(uses)

    def _in_float(self, watch: _Watch, uses, images, macs: int) -> tuple[Covered, ...]:
        """What does not run on the array, which does `macs` multiply-adds."""
        total, counter = count_macs(self.inner, torch.from_numpy(images[:1].copy()))
        flops, root = counter.get_flop_counts(), type(self.inner).__name__
        found = []
        for path, module in _modules(self.inner):
            if path in uses:
                continue
            reason = watch.problem.get(path, "stays in float")
            if path not in watch.ran:
                reason = "never called as a module on the calibration images"
            kind = type(module).__name__
            own = sum(flops.get(f"{root}.{path}", {}).values()) // 2
            found.append(Covered(path, kind, None if kind in UNCOUNTED else own, reason))
        # Functions of a forward are in no module; they have what is left.
        rest = max(0, total - macs - sum(entry.macs or 0 for entry in found))
        return (*found, Covered("(functions)", "calls in forward", rest, "stays in float"))

    def _replace(self, uses: dict[str, list[_Use]]) -> None:
        """Put array layers in the network, wherever it holds the same module."""
        swapped = {
            self.inner.get_submodule(path): _ArrayLayer(
                self.inner.get_submodule(path), path, made, self.current
            )
            for path, made in uses.items()
        }
        for path, module in list(self.inner.named_modules(remove_duplicate=False)):
            if module in swapped:
                parent, _, name = path.rpartition(".")
                setattr(self.inner.get_submodule(parent), name, swapped[module])

    @cached_property
    def space(self) -> SiteSpace:
        return joined_space(self.accel, self.uses)

    def run(self, images: np.ndarray, rows, hw_batch: int | None) -> Tensor:
        """(n, *out_shape) float32 logits of (n, *shape) float32 images, n >= 1.

        rows, hw_batch  as of `attach_program.run`, with uses for layers
        Raises MappingError where the network's code takes a way that calibration
        did not see.
        """
        current = self.current
        current.images, current.rows, current.hw_batch = len(images), rows, hw_batch
        current.calls.clear()
        with plain_attention():
            return self.inner(torch.from_numpy(images.copy())).to(torch.float32)
