"""Which torch calls are which operation of the integer network.

Each function below has the signature of the torch function it stands for, with
the traced output before it. It returns (kind, inputs, params), or several of them one
after another (`Chain`), or the `Ref` of its input if it changes nothing, or None if the
array cannot do it as it is called.

A tensor of one axis and channels is taken through operations of two axes as a map of a
single row.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import convolutions


@dataclass(frozen=True)
class Ref:
    """A tensor made by an earlier node; shape without the batch."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """Operations one after another on one tensor.

    steps  (suffix of the name, kind, shape without the batch, params)
    """

    input: Ref
    steps: tuple[tuple[str, str, tuple[int, ...], dict], ...]


def _pair(value) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if len(value) == 2 else (value[0], value[0])


def _is_map(x) -> bool:
    return isinstance(x, Ref) and len(x.shape) == 3


def _conv2d(out, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if not _is_map(input) or not isinstance(weight, Tensor) or isinstance(bias, Ref):
        return None
    dilation, stride = _pair(dilation), _pair(stride)
    if padding == "valid":
        left = right = top = bottom = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        top, left = total[0] // 2, total[1] // 2
        bottom, right = total[0] - top, total[1] - left
    else:
        top, left = _pair(padding)
        bottom, right = top, left
    params = {
        "weight": weight.detach(),
        "bias": torch.zeros(len(weight)) if bias is None else bias.detach(),
        "stride": stride,
        "padding": (left, right, top, bottom),
        "dilation": dilation,
        "groups": groups,
    }
    return "conv", [input], params


def _one(value):
    """Of an argument along one axis, given alone or in a sequence."""
    return value if isinstance(value, (int, str)) or value is None else value[0]


def _row(out, input, make):
    """An operation of one axis: `make(out, input)` of maps of one row, as of two axes."""
    if not isinstance(input, Ref) or len(input.shape) != 2 or out.ndim != 3:
        return None
    channels, length = input.shape
    out = out.unsqueeze(2)
    found = make(out, Ref(input.index, (channels, 1, length)))
    if found is None:
        return None
    steps = found.steps if isinstance(found, Chain) else ()
    if not steps:
        kind, _, params = found
        steps = (("", kind, tuple(out.shape[1:]), params),)
    first = (".rows", "host", (channels, 1, length), {**ROWS})
    return Chain(input, (first, *steps, (".row", "host", (out.shape[1], out.shape[3]), {**ROW})))


def _to_map(x: Tensor) -> Tensor:
    return x.unsqueeze(2)


def _to_row(x: Tensor) -> Tensor:
    return x.squeeze(2)


ROWS = {"function": _to_map, "what": "unsqueeze", "moves": True, "row": 1}
ROW = {"function": _to_row, "what": "squeeze", "moves": True, "row": -1}
"""params of the moves between a tensor (c, l) and a map (c, 1, l)."""


def _conv1d(out, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if not isinstance(weight, Tensor):
        return None
    padding = padding if isinstance(padding, str) else (0, _one(padding))
    return _row(out, input, lambda out, row: _conv2d(
        out, row, weight.unsqueeze(2), bias, (1, _one(stride)), padding, (1, _one(dilation)),
        groups,
    ))  # fmt: skip


def _conv_transpose2d(
    out, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    if not _is_map(input) or not isinstance(weight, Tensor) or isinstance(bias, Ref):
        return None
    stretch, around = convolutions.transposed(
        tuple(weight.shape[2:]), _pair(stride), _pair(padding), _pair(output_padding),
        _pair(dilation),
    )  # fmt: skip
    weight = convolutions.turned(weight.detach(), groups)
    params = {
        "weight": weight,
        "bias": torch.zeros(len(weight)) if bias is None else bias.detach(),
        "stride": (1, 1),
        "padding": around,
        "dilation": _pair(dilation),
        "groups": groups,
    }
    if not stretch.changes:
        return "conv", [input], params
    wide = tuple(stretch(torch.empty(1, *input.shape, device="meta")).shape[1:])
    moved = {"function": stretch, "what": "zeros between", "moves": True}
    steps = (".stretch", "host", wide, moved), ("", "conv", tuple(out.shape[1:]), params)
    return Chain(input, steps)


def _conv_transpose1d(
    out, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    if not isinstance(weight, Tensor):
        return None
    return _row(out, input, lambda out, row: _conv_transpose2d(
        out, row, weight.unsqueeze(2), bias, (1, _one(stride)), (0, _one(padding)),
        (0, _one(output_padding)), groups, (1, _one(dilation)),
    ))  # fmt: skip


def _linear(out, input, weight, bias=None):
    if not isinstance(weight, Tensor) or isinstance(bias, Ref) or len(input.shape) > 2:
        return None
    bias = torch.zeros(len(weight)) if bias is None else bias.detach()
    return "linear", [input], {"weight": weight.detach(), "bias": bias}


def _matmul(out, a, b, **_):
    if not (isinstance(a, Ref) and isinstance(b, Ref)):
        return None
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2]:
        return None
    return "matmul", [a, b], {}


def _relu(out, input, inplace=False):
    return "relu", [input], {"top": math.inf}


def _relu6(out, input, inplace=False):
    return "relu", [input], {"top": 6.0}


def _hardtanh(out, input, min_val=-1.0, max_val=1.0, inplace=False):
    return ("relu", [input], {"top": float(max_val)}) if min_val == 0 else None


def _add(out, a, b, alpha=1):
    if alpha != 1 or not (isinstance(a, Ref) and isinstance(b, Ref)) or a.shape != b.shape:
        return None
    return "add", [a, b], {}


def _avg_pool2d(
    out, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    padding = _pair(padding)
    if not _is_map(input) or ceil_mode or divisor_override is not None:
        return None
    if padding != (0, 0) and not count_include_pad:
        return None
    kernel = _pair(kernel_size)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    return "avg_pool", [input], {"kernel": kernel, "stride": stride, "padding": padding}


def _global_average(out, input):
    kernel = tuple(input.shape[1:])
    return "avg_pool", [input], {"kernel": kernel, "stride": (1, 1), "padding": (0, 0)}


def _adaptive_avg_pool2d(out, input, output_size):
    size = _pair(output_size) if output_size is not None else (None, None)
    if not _is_map(input):
        return None
    h, w = input.shape[1:]
    oh, ow = h if size[0] is None else size[0], w if size[1] is None else size[1]
    if h % oh or w % ow:
        return None
    kernel = (h // oh, w // ow)
    return "avg_pool", [input], {"kernel": kernel, "stride": kernel, "padding": (0, 0)}


def _max_pool2d(
    out, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    if not _is_map(input) or ceil_mode or return_indices:
        return None
    kernel = _pair(kernel_size)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    params = {"kernel": kernel, "stride": stride, "padding": _pair(padding)}
    return "max_pool", [input], {**params, "dilation": _pair(dilation)}


def _avg_pool1d(
    out, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
):
    stride = _one(stride) if stride not in (None, (), []) else _one(kernel_size)
    return _row(out, input, lambda out, row: _avg_pool2d(
        out, row, (1, _one(kernel_size)), (1, stride), (0, _one(padding)), ceil_mode,
        count_include_pad,
    ))  # fmt: skip


def _max_pool1d(
    out, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    if return_indices:
        return None
    stride = _one(stride) if stride not in (None, (), []) else _one(kernel_size)
    return _row(out, input, lambda out, row: _max_pool2d(
        out, row, (1, _one(kernel_size)), (1, stride), (0, _one(padding)), (1, _one(dilation)),
        ceil_mode,
    ))  # fmt: skip


def _adaptive_avg_pool1d(out, input, output_size):
    return _row(out, input, lambda out, row: _adaptive_avg_pool2d(out, row, (1, _one(output_size))))


def _reshape(out, input, *_, **__):
    """flatten, view and reshape: nothing, one row an image, or not ours."""
    if tuple(out.shape[1:]) == input.shape:
        return input
    if out.ndim == 2 and out.shape[0] == 1:
        return "flatten", [input], {}
    return None


def _pad(out, input, pad, mode="constant", value=None):
    if mode != "constant" or value not in (None, 0, 0.0) or len(pad) > 2 * len(input.shape):
        return None
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    if any(n < 0 for pair in pairs for n in pair):
        return None
    pairs += [(0, 0)] * (len(input.shape) - len(pairs))
    return "pad", [input], {"amount": tuple(reversed(pairs))}


def _getitem(out, input, index):
    """Slices that keep every axis."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        fill = (slice(None),) * (len(input.shape) + 2 - len(index))
        index = (*index[:at], *fill, *index[at + 1 :])
    if not all(isinstance(i, slice) for i in index):
        return None
    index += (slice(None),) * (len(input.shape) + 1 - len(index))
    if index[0] != slice(None):
        return None
    return "slice", [input], {"slices": index[1:]}


def _cat(out, tensors, dim=0):
    if not all(isinstance(t, Ref) for t in tensors):
        return None
    axis = dim % out.ndim - 1
    return ("concat", list(tensors), {"axis": axis}) if axis >= 0 else None


def _mean(out, input, dim=None, keepdim=False, **_):
    """Only over rows and columns; `flat` asks for a flatten after it."""
    if not _is_map(input) or dim is None or isinstance(dim, int):
        return None
    if sorted(d % 4 for d in dim) != [2, 3]:
        return None
    kind, inputs, params = _global_average(out, input)
    return kind, inputs, {**params, "flat": not keepdim}


def _same(out, input, *_, **__):
    return input


def _batch_norm(
    out, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1,
    eps=1e-5,
):  # fmt: skip
    if running_mean is None or running_var is None:
        return None  # batch statistics: not a fixed scale and shift
    scale = (running_var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -running_mean.double() * scale
    if bias is not None:
        shift = shift + bias.detach().double()
    return "batch_norm", [input], {"scale": scale, "shift": shift}


def _module_batch_norm(m, out, x):
    return _batch_norm(out, x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)


def _module_conv2d(m, out, x):
    if m.padding_mode != "zeros":
        return None
    return _conv2d(out, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _module_conv1d(m, out, x):
    if m.padding_mode != "zeros":
        return None
    return _conv1d(out, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _of_transposed(pattern):
    return lambda m, out, x: pattern(
        out, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation
    )


def _module_avg_pool2d(m, out, x):
    return _avg_pool2d(
        out, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad,
        m.divisor_override,
    )  # fmt: skip


def _module_max_pool2d(m, out, x):
    return _max_pool2d(
        out, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    )


def _module_same(m, out, x):
    return x


# Exact types: a subclass may compute something else.
_MODULES = {
    nn.Conv2d: _module_conv2d,
    nn.Conv1d: _module_conv1d,
    nn.ConvTranspose2d: _of_transposed(_conv_transpose2d),
    nn.ConvTranspose1d: _of_transposed(_conv_transpose1d),
    nn.Linear: lambda m, out, x: _linear(out, x, m.weight, m.bias),
    nn.BatchNorm2d: _module_batch_norm,
    nn.BatchNorm1d: _module_batch_norm,
    nn.ReLU: lambda m, out, x: _relu(out, x),
    nn.ReLU6: lambda m, out, x: _relu6(out, x),
    nn.Hardtanh: lambda m, out, x: _hardtanh(out, x, m.min_val, m.max_val),
    nn.AvgPool2d: _module_avg_pool2d,
    nn.AdaptiveAvgPool2d: lambda m, out, x: _adaptive_avg_pool2d(out, x, m.output_size),
    nn.MaxPool2d: _module_max_pool2d,
    nn.AvgPool1d: lambda m, out, x: _avg_pool1d(
        out, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad
    ),
    nn.AdaptiveAvgPool1d: lambda m, out, x: _adaptive_avg_pool1d(out, x, m.output_size),
    nn.MaxPool1d: lambda m, out, x: _max_pool1d(
        out, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.ZeroPad2d: lambda m, out, x: _pad(out, x, m.padding),
    nn.ConstantPad2d: lambda m, out, x: _pad(out, x, m.padding, value=m.value),
    nn.Flatten: lambda m, out, x: _reshape(out, x),
    nn.Identity: _module_same,
    nn.Dropout: _module_same,
    nn.Dropout1d: _module_same,
    nn.Dropout2d: _module_same,
    nn.AlphaDropout: _module_same,
}


def from_module(module: nn.Module, out, *args, **kwargs):
    """As the functions above, for a module called with the given arguments."""
    inputs = [*args, *kwargs.values()]
    known = _MODULES.get(type(module))
    if known is None or len(inputs) != 1 or not isinstance(inputs[0], Ref):
        return None
    return known(module, out, inputs[0])


FUNCTIONS = {
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.conv1d: _conv1d,
    torch.conv1d: _conv1d,
    F.conv_transpose1d: _conv_transpose1d,
    torch.conv_transpose1d: _conv_transpose1d,
    F.conv_transpose2d: _conv_transpose2d,
    torch.conv_transpose2d: _conv_transpose2d,
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.bmm: _matmul,
    operator.matmul: _matmul,
    F.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool1d: _avg_pool1d,
    F.adaptive_avg_pool1d: _adaptive_avg_pool1d,
    F.max_pool1d: _max_pool1d,
    torch.max_pool1d: _max_pool1d,
    F.batch_norm: _batch_norm,
    F.pad: _pad,
    operator.getitem: _getitem,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.flatten: _reshape,
    torch.reshape: _reshape,
    torch.mean: _mean,
    F.dropout: _same,
    F.dropout2d: _same,
}
"""Traced function -> pattern."""

METHODS = {
    "relu": _relu,
    "relu_": _relu,
    "add": _add,
    "add_": _add,
    "__add__": _add,
    "matmul": _matmul,
    "bmm": _matmul,
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "mean": _mean,
    "contiguous": _same,
    "clone": _same,
    "detach": _same,
    "float": _same,
}
"""Traced method of a tensor -> pattern."""
