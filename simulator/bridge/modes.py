"""A network's own products, taken to the array as they are called.

Neither the network nor its modules are changed: calls are recognised where torch
dispatches them (`TorchFunctionMode`), in modules and in plain functions alike, and
told apart by their order in a forward pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fsim.accel_models.accel import Accel
from fsim.errors import MappingError

from .. import convolutions
from . import operators
from .session import Session
from .site import ArraySite, conv_site, linear_site, matmul_site

_CONV = {F.conv1d: 1, F.conv2d: 2, torch.conv1d: 1, torch.conv2d: 2}
_TRANSPOSED = {
    F.conv_transpose1d: 1, F.conv_transpose2d: 2,
    torch.conv_transpose1d: 1, torch.conv_transpose2d: 2,
}  # fmt: skip
_MATMUL = {
    torch.matmul: "other", Tensor.matmul: "other", torch.bmm: "mat2", Tensor.bmm: "mat2",
}  # fmt: skip
"""What evaluation knows (`patterns.FUNCTIONS`), and the name of the right operand."""

_PRODUCTS = {
    "addbmm", "addmm", "addmv", "baddbmm", "bilinear", "bmm", "chain_matmul", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "dot", "einsum", "gru",
    "gru_cell", "inner", "kron", "linalg_matmul", "linalg_multi_dot", "linear", "lstm",
    "lstm_cell", "matmul", "mm", "multi_head_attention_forward", "mv", "outer", "rnn_relu",
    "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell", "scaled_dot_product_attention", "tensordot",
}  # fmt: skip
"""Names of torch functions that multiply and add; what of them is not understood is said."""


@dataclass(frozen=True)
class Call:
    """One product of a forward pass.

    kind     "conv", "linear" or "matmul"
    x        activations: (n, c, h, w) of a convolution, (n, ..., f) of a linear layer,
             (n, ..., m, k) of a product of two activations
    weight   of the latter (n, ..., k, p), the other activations
    ones     axes of one entry that a conv1d was given to be a conv2d
    given    the weight before that, and before a transposed one was turned round
    name     of a product of two activations, as in evaluation: "matmul", "matmul_1"
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
    given: Tensor | None = None
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Everything that decides the site, the batch apart."""
        if self.kind == "matmul":
            return (*self.x.shape[1:], *self.weight.shape[1:])
        return (*self.x.shape[1:], *self.weight.shape, *self.stride, *self.padding,
                *self.dilation, self.groups)  # fmt: skip


def _understood(func, args, kwargs, images: int | None) -> Call | None:
    """The product that a torch function is, or None.

    images  of the forward pass; None: products of two activations stay in float
    """
    if func in _MATMUL:
        a, b, out = _named(args, kwargs, ("input", _MATMUL[func], "out"))
        two = out is None and all(_is_activation(x, images) for x in (a, b))
        # As evaluation has it (`patterns._matmul`): nothing is broadcast.
        if not two or a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
            return None
        return Call("matmul", a, b, None)
    if func is F.linear:
        x, weight, bias = _named(args, kwargs, ("input", "weight", "bias"))
        return Call("linear", x, weight, bias) if x.ndim >= 2 else None
    if func in _TRANSPOSED:
        return _understood_transposed(_TRANSPOSED[func], args, kwargs)
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
    ones, given = 2 - axes, weight
    if ones:  # one row
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    return Call("conv", x, weight, bias, tuple(stride), tuple(padding), tuple(dilation),
                1 if groups is None else groups, ones, given)  # fmt: skip


def _understood_transposed(axes: int, args, kwargs) -> Call | None:
    """A transposed convolution as the convolution that it is (`fsim.simulator.convolutions`)."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups",
             "dilation")  # fmt: skip
    x, weight, bias, stride, padding, more, groups, dilation = _named(args, kwargs, names)
    if x.ndim != axes + 2:
        return None
    groups, given, ones = 1 if groups is None else groups, weight, 2 - axes
    arguments = [_pair(v, axes, d) for v, d in ((stride, 1), (padding, 0), (more, 0))]
    arguments.append(_pair(dilation, axes, 1))
    if ones:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        arguments = [(d, *v) for d, v in zip((1, 0, 0, 1), arguments)]
    stretch, around = convolutions.transposed(tuple(weight.shape[2:]), *arguments)
    if stretch.changes:
        x = stretch(x)
    left, right, top, bottom = around
    if (right, bottom) != (left, top):
        x, left, top = F.pad(x, around), 0, 0
    weight = convolutions.turned(weight, groups)
    return Call("conv", x, weight, bias, (1, 1), (top, left), arguments[3], groups, ones, given)


def _is_activation(x, images: int | None) -> bool:
    """Whether an operand has a matrix or more of each image; a parameter never does."""
    return (
        isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.is_floating_point()
        and x.ndim >= 3 and len(x) == images and 0 not in x.shape[1:]
    )  # fmt: skip


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
    skipped  torch functions that multiply and add but stay in float -> their calls

    images   of a pass; None: products of two activations are not looked for
    """

    def __init__(self, images: int | None = None):
        super().__init__()
        self.images = images
        self.seen: list[tuple[Call, float]] = []
        self.skipped: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        self.at = 0
        self.skipped.clear()
        self._named: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call = _understood(func, args, kwargs or {}, self.images)
        name = getattr(func, "__name__", "")
        if func in _MATMUL:  # torch.fx counts so, those that stay in float too
            number = self._named[name]
            self._named[name] += 1
            if call is not None:
                call = replace(call, name=f"{name}_{number}" if number else name)
        if call is None:
            self.skipped[name] += name in _PRODUCTS
        else:
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
        weight = call.weight if call.given is None else call.given
        path = call.name or owner.get(id(weight), call.kind)
        name = f"{path}#{calls[path]}" if calls[path] else path
        calls[path] += 1
        signed = least < 0 or not accel.unsigned_acts
        if call.kind == "conv":
            sites.append(
                conv_site(number, name, accel, call.x.shape[1:], call.weight.shape, signed,
                          call.stride, call.padding, call.dilation, call.groups)
            )  # fmt: skip
        elif call.kind == "matmul":
            other = call.weight.shape[1:]
            sites.append(matmul_site(number, name, accel, call.x.shape[1:], other, signed))
        else:
            outputs = call.weight.shape[0]
            sites.append(linear_site(number, name, accel, call.x.shape[1:], outputs, signed))
    return tuple(sites)


class ArrayMode(TorchFunctionMode):
    """Within it, the products of one forward pass run on the array of a session.

    shapes  `Call.shape` of each product, as recorded
    trial   draw of the faults; below 0 none
    images  of the pass; None: products of two activations stay in float, as in a
            recording without it
    """

    def __init__(
        self,
        session: Session,
        shapes: tuple[tuple[int, ...], ...],
        trial: int,
        images: int | None = None,
    ):
        super().__init__()
        self.session, self.shapes, self.trial, self.at = session, shapes, trial, 0
        self.images = images

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call = _understood(func, args, kwargs or {}, self.images)
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
        bits = self.session.accel.operand_bits
        scale = operators.activation_scale(call.x, signed, bits)
        where = (signed, self.session.handle, number, self.trial)
        if call.kind == "matmul":
            other = operators.activation_scale(call.weight, True, bits)
            return torch.ops.fsim.matmul(call.x, call.weight, scale, other, *where)[0]
        if call.kind == "linear":
            return torch.ops.fsim.linear(call.x, call.weight, call.bias, scale, *where)[0]
        out, _ = torch.ops.fsim.conv2d(
            call.x, call.weight, call.bias, scale, list(call.stride), list(call.padding),
            list(call.dilation), call.groups, *where,
        )  # fmt: skip
        return out.squeeze(2) if call.ones else out
