"""Where the paper's feature faults (MiBB) enter a network, and with which exponent M.

The fault is added to what a convolution gives, or to what the batch normalisation right
after it gives, before ReLU and pooling. The probability of a fault of one value is
p = 1 - (1 - p_m)^M with M the multiply-adds behind the value (Ning et al., arXiv
2003.10375; places as in walkerning/aw_nas, ops/ops.py and baseline_ops.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class FaultPoint:
    """A place where faults enter: the output of `module`.

    name    dotted name of `module` in the network, "" for the network itself
    module  a convolution, a batch normalisation, or an Identity that marks the place
    macs    M, multiply-adds per output value
    """

    name: str
    module: nn.Module
    macs: int


def macs_per_value(conv: nn.Conv2d) -> int:
    """M = (C_in / groups) * k_h * k_w: stride, dilation and image size do not enter."""
    height, width = conv.kernel_size
    return conv.in_channels // conv.groups * height * width


def fault_points(model: nn.Module, *, reference: bool = False) -> list[FaultPoint]:
    """Every place of `model` where MiBB faults enter, each once, in order of definition.

    A convolution has its point after the batch normalisation that is defined right after
    it in the same module and has its channels, else after itself. Linear layers, pooling,
    sums and concatenations have none. A module of ours that is different says so in a
    method own_fault_points(reference), which gives (name in it, M) pairs.

    reference  the places of aw_nas where they differ: MobileNet-V2 (see there)

    A module that runs twice in a forward pass is one point: a hook on it fires twice.
    """
    found, seen = [], set()
    for name, macs in _points(model, "", reference):
        module = model.get_submodule(name)
        if module not in seen:
            seen.add(module)
            found.append(FaultPoint(name, module, macs))
    return found


def _points(module: nn.Module, name: str, reference: bool) -> Iterator[tuple[str, int]]:
    if hasattr(module, "own_fault_points"):
        for inner, macs in module.own_fault_points(reference):
            yield _join(name, inner), macs
    elif isinstance(module, nn.Conv2d):
        yield name, macs_per_value(module)
    else:
        children = list(module.named_children())
        # The order in a list or dict of modules says nothing about the flow of data.
        ordered = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        for i, (inner, child) in enumerate(children):
            after, behind = children[i + 1] if ordered and i + 1 < len(children) else ("", None)
            if type(child) is nn.Conv2d and _normalises(behind, child):
                yield _join(name, after), macs_per_value(child)
            else:
                yield from _points(child, _join(name, inner), reference)


def _normalises(module: nn.Module | None, conv: nn.Conv2d) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.num_features == conv.out_channels


def points_of(module: nn.Module, names: Iterable[str], reference: bool) -> list[tuple[str, int]]:
    """(name, M) of the points in the named parts of `module`, for its own_fault_points."""
    return [
        point for name in names for point in _points(module.get_submodule(name), name, reference)
    ]


def _join(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name and inner else name or inner
