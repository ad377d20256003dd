"""Several fault models on one tensor, in the order given.

The tensor is quantised once and all models work on its codes: a step taken anew after
each would change with the largest value, hence with the faults.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fsim.errors import ConfigError

from .fixed_point import FixedPoint
from .gradient import straight_through
from .model import FaultModel


def common_grid(models: Sequence[FaultModel]) -> FixedPoint | None:
    """The fixed point of models that strike one tensor; None of no model.

    Raises ConfigError unless all have the same target, bits and grid.
    """
    for model in models[1:]:
        first = models[0]
        for name in ("target", "bits", "grid"):
            one, other = getattr(first, name), getattr(model, name)
            if one != other:
                raise ConfigError(
                    f"fault models of one tensor must have one {name}, got {one} of {first.name} "
                    f"and {other} of {model.name}"
                )
    return models[0].fixed_point if models else None


def apply_several(
    models: Sequence[FaultModel],
    x: torch.Tensor,
    *,
    generators: Sequence[torch.Generator],
    macs: int | None = None,
) -> torch.Tensor:
    """`x` on the models' grid, struck by one model after the other; shape, dtype, device of `x`.

    models      at least one, as `common_grid` takes them
    generators  one for each model, on the device of `x`: no model's draws depend on another

    A model that works on bits after one that leaves the grid (variation) sees the value
    rounded to it. Gradient: the product of the models' own, straight through roundings.
    """
    fixed = common_grid(models)
    encoded = fixed.encode(x)
    with torch.no_grad():
        through = None
        for number, (model, generator) in enumerate(zip(models, generators, strict=True)):
            if number and model.on_bits:
                codes = encoded.codes.round().clamp(fixed.low, fixed.high)
                encoded = encoded._replace(codes=codes)
            faults = model.draw(x.shape, generator=generator, macs=macs)
            codes, passes = model.corrupt(encoded, faults)
            encoded = encoded._replace(codes=codes)
            if passes is not None:
                through = passes if through is None else through * passes
        value = (encoded.codes * encoded.step).to(x.dtype)
    return straight_through(x, value, through)
