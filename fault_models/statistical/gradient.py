"""The straight-through estimate of a gradient."""

from __future__ import annotations

import torch


class _StraightThrough(torch.autograd.Function):
    """Forward: `value` as it is. Backward: the gradient to `x`, where `passes` allows it."""

    @staticmethod
    def forward(ctx, x, value, passes):
        ctx.save_for_backward(passes)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        (passes,) = ctx.saved_tensors
        return (gradient if passes is None else gradient * passes), None, None


def straight_through(
    x: torch.Tensor, value: torch.Tensor, passes: torch.Tensor | None = None
) -> torch.Tensor:
    """`value`, bit for bit, with the gradient of `x` (0 where the bool `passes` is False).

    The common `x + (value - x).detach()` is not used: the sum is rounded, so that
    its result can lie beside the grid.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return value
    return _StraightThrough.apply(x, value, passes)
