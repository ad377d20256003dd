"""Gradients of a network's loss with respect to its weight codes, straight through rounding.

The integer program in torch: products and sums as they are, every rounding as if it were none
(straight-through), every clamp with the gradient of a clamp. What a gradient says of a whole
code step is first order; who needs the truth runs the machine.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsim.errors import ConfigError

from . import ops as P


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes as it is."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def weight_gradients(
    program: P.Program, images: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[int, np.ndarray]]:
    """(mean cross-entropy, gradient for each code of each convolution and linear layer).

    images  (n, c, h, w) float32, as the network takes them; labels (n,) integers
    Gradients are float64 of the weights' shape, by operation index, per code step; in float32
    inside. ConfigError for a network with operations that have no gradient here.
    """
    held: dict[int, Tensor] = {
        op.index: torch.from_numpy(op.weight.astype(np.float32)).requires_grad_()
        for op in program.array_ops
        if not isinstance(op, P.MatMul)
    }
    values: dict[int, Tensor] = {}
    for op in program.ops:
        sources = [values[i] for i in op.inputs]
        values[op.index] = _step(program, op, sources, held.get(op.index), images)
    loss = F.cross_entropy(values[program.ops[-1].index], torch.from_numpy(_labels(labels)))
    loss.backward()
    found = {index: weight.grad.numpy().astype(np.float64) for index, weight in held.items()}
    return float(loss.detach()), found


def _labels(labels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(labels, np.int64)


def _step(program, op, sources, weight, images) -> Tensor:
    """The values of one operation: its codes as float32; of the last on the array, logits."""
    if isinstance(op, P.Input):
        codes = torch.from_numpy(np.ascontiguousarray(images, np.float32)) / op.scale
        return torch.round(codes).clamp(*op.range)
    if isinstance(op, (P.Conv, P.Linear)):
        return _array(program, op, sources[0], weight)
    if isinstance(op, P.Add):
        total = sources[0] * (op.m0 / 2**op.shift) + sources[1] * (op.m1 / 2**op.shift)
        return _Round.apply(total).clamp(op.lo, op.hi)
    if isinstance(op, P.MaxPool):
        padded = _padded(sources[0], op, -(2.0**30))
        return F.max_pool2d(padded, op.kernel, op.stride, 0, op.dilation)
    if isinstance(op, P.AvgPool):
        mean = F.avg_pool2d(_padded(sources[0], op, 0.0), op.kernel, op.stride)
        window = op.kernel[0] * op.kernel[1]
        return _Round.apply(mean * (window * op.m0 / 2**op.shift)).clamp(*op.range)
    if isinstance(op, P.Relu):
        return sources[0].clamp(op.lo, op.hi)
    if isinstance(op, P.Flatten):
        return sources[0].flatten(1)
    if isinstance(op, P.Pad):
        return F.pad(sources[0], [n for pair in reversed(op.amount) for n in pair])
    if isinstance(op, P.Slice):
        return sources[0][(slice(None), *op.slices)]
    if isinstance(op, P.Concat):
        parts = [
            x if m is None else _Round.apply(x * (m / 2**op.shift))
            for x, m in zip(sources, op.m0)
        ]  # fmt: skip
        return torch.cat(parts, 1 + op.axis).clamp(*op.range)
    raise ConfigError(
        f"gradients of weights need operations that have one here, got {op.name} "
        f"({type(op).__name__})"
    )


def _array(program, op, x: Tensor, weight: Tensor) -> Tensor:
    outputs = weight.shape[0]
    bias = torch.from_numpy(np.broadcast_to(op.bias, outputs).astype(np.float32))
    scale = torch.from_numpy(np.broadcast_to(op.multiplier, outputs).astype(np.float32))
    weight = weight / 2**op.truncate  # what a truncated product loses is rounding too
    if isinstance(op, P.Conv):
        left, right, top, bottom = op.padding
        x = F.pad(x, (left, right, top, bottom))
        acc = F.conv2d(x, weight, bias, op.stride, 0, op.dilation, op.groups)
        scale = scale[:, None, None]
    else:
        acc = F.linear(x, weight, bias)
    real = acc * scale
    if op.index == program.ops[-1].index:
        return real
    return _Round.apply(real).clamp(op.lo, op.hi)


def _padded(x: Tensor, op, value: float) -> Tensor:
    """A map with what its windows need: padding left and top, and to the right and below."""
    left, top = op.padding
    dilation = getattr(op, "dilation", (1, 1))
    need = [
        (size - 1) * step + (kernel - 1) * apart + 1
        for size, step, kernel, apart in zip(op.shape[1:], op.stride, op.kernel, dilation)
    ]
    bottom, right = need[0] - x.shape[2] - top, need[1] - x.shape[3] - left
    return F.pad(x, (left, right, top, bottom), value=value)
