"""A network's own convolutions and linear layers, taken to the array as they are called.

Neither the network nor its modules are changed: calls are recognised where torch
dispatches them (`TorchFunctionMode`), in modules and in plain functions alike, and
told apart by their order in a forward pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fsim.accel_models.accel import Accel
from fsim.errors import MappingError

from . import operators
from .session import Session
from .site import ArraySite, conv_site, linear_site

_CONV = {F.conv1d: 1, F.conv2d: 2, torch.conv1d: 1, torch.conv2d: 2}
_NAMES = {1: "conv1d", 2: "conv2d"}


@dataclass(frozen=True)
class Call:
    """One product of a forward pass.

    kind     "conv" or "linear"
    x        activations: (n, c, h, w) of a convolution, (n, ..., f) of a linear layer
    ones     axes of one entry that a conv1d was given to be a conv2d
    """

    kind: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    ones: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Everything that decides the site, the batch apart."""
        return (*self.x.shape[1:], *self.weight.shape, *self.stride, *self.padding,
                *self.dilation, self.groups)  # fmt: skip


def _understood(func, args, kwargs) -> Call | None:
    """The product that a torch function is, or None."""
    if func is F.linear:
        x, weight, bias = _named(args, kwargs, ("input", "weight", "bias"))
        return Call("linear", x, weight, bias) if x.ndim >= 2 else None
    if func not in _CONV:
        return None
    axes = _CONV[func]
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = _named(args, kwargs, names)
    if x.ndim != axes + 2:
        return None  # a single image without a batch
    stride, dilation = _pair(stride, axes, 1), _pair(dilation, axes, 1)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        if padding == "same":
            sides = [side for r in reversed(reach) for side in (r // 2, r - r // 2)]
            x = F.pad(x, sides)
        padding = [0] * axes
    else:
        padding = _pair(padding, axes, 0)
    ones = 2 - axes
    if ones:  # one row
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    return Call("conv", x, weight, bias, tuple(stride), tuple(padding), tuple(dilation),
                1 if groups is None else groups, ones)  # fmt: skip


def _named(args, kwargs, names):
    given = dict(zip(names, args)) | kwargs
    return tuple(given.get(name) for name in names)


def _pair(value, axes: int, default: int) -> tuple[int, ...]:
    if value is None:
        value = default
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value)


class Recorder(TorchFunctionMode):
    """Watches a forward pass in float: which products it is made of.

    seen     (call, smallest activation) in order, over one or more passes of the
             same kind; `begin` starts the next
    skipped  name of a torch function -> why its calls stay in float
    """

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[Call, float]] = []
        self.at = 0

    def begin(self) -> None:
        self.at = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call = _understood(func, args, kwargs or {})
        if call is not None:
            least = float(call.x.detach().amin()) if call.x.numel() else 0.0
            if self.at == len(self.seen):
                self.seen.append((call, least))
            else:
                first, before = self.seen[self.at]
                if first.shape != call.shape:
                    raise MappingError(
                        f"product {self.at} must have one shape, got {first.shape} and "
                        f"{call.shape} on the calibration images"
                    )
                self.seen[self.at] = first, min(before, least)
            self.at += 1
        return func(*args, **(kwargs or {}))


def sites_of(recorder: Recorder, network: nn.Module, accel: Accel) -> tuple[ArraySite, ...]:
    """A site for each recorded product, named after the module that owns its weight."""
    owner = {}
    for name, parameter in network.named_parameters(remove_duplicate=True):
        owner[id(parameter)] = name.rpartition(".")[0] or name
    calls: Counter[str] = Counter()
    sites = []
    for number, (call, least) in enumerate(recorder.seen):
        weight = call.weight if not call.ones else call.weight._base
        path = owner.get(id(weight), call.kind)
        name = f"{path}#{calls[path]}" if calls[path] else path
        calls[path] += 1
        signed = least < 0 or not accel.unsigned_acts
        if call.kind == "conv":
            sites.append(
                conv_site(number, name, accel, call.x.shape[1:], call.weight.shape, signed,
                          call.stride, call.padding, call.dilation, call.groups)
            )  # fmt: skip
        else:
            outputs = call.weight.shape[0]
            sites.append(linear_site(number, name, accel, call.x.shape[1:], outputs, signed))
    return tuple(sites)


class ArrayMode(TorchFunctionMode):
    """Within it, the products of one forward pass run on the array of a session.

    shapes  `Call.shape` of each product, as recorded
    trial   draw of the faults; below 0 none
    """

    def __init__(self, session: Session, shapes: tuple[tuple[int, ...], ...], trial: int):
        super().__init__()
        self.session, self.shapes, self.trial, self.at = session, shapes, trial, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call = _understood(func, args, kwargs or {})
        if call is None:
            return func(*args, **(kwargs or {}))
        number, self.at = self.at, self.at + 1
        if number >= len(self.shapes) or self.shapes[number] != call.shape:
            raise MappingError(
                f"product {number} of the network must be one of the calibration pass, got a "
                f"{call.kind} of {call.shape}: add calibration images that take this way"
            )
        site = self.session.sites[number]
        signed = site.input.signed
        scale = operators.activation_scale(call.x, signed, self.session.accel.operand_bits)
        where = (signed, self.session.handle, number, self.trial)
        if call.kind == "linear":
            return torch.ops.fsim.linear(call.x, call.weight, call.bias, scale, *where)[0]
        out, _ = torch.ops.fsim.conv2d(
            call.x, call.weight, call.bias, scale, list(call.stride), list(call.padding),
            list(call.dilation), call.groups, *where,
        )  # fmt: skip
        return out.squeeze(2) if call.ones else out
