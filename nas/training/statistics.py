"""Batch-norm statistics of clean and faulty passes, shared or apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

KINDS = ("shared", "apart")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Statistics:
    """Running statistics of a network's batch normalisations.

    shared  both passes update the network's own
    apart   faulty passes of training have statistics of their own, so that those of
            clean passes, which evaluation uses, stay clean
    """

    def __init__(self, model: nn.Module, kind: str):
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.kind = kind
        self.other = None
        if kind == "apart":
            self.other = [
                {
                    name: getattr(m, name).clone()
                    for name in _BUFFERS
                    if getattr(m, name) is not None
                }
                for m in self.norms
            ]

    @contextmanager
    def of_faults(self) -> Iterator[None]:
        """Within it, the network has the statistics of faulty passes."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        if self.other is None:
            return
        for norm, held in zip(self.norms, self.other):
            for name, value in held.items():
                held[name] = getattr(norm, name)
                setattr(norm, name, value)

    def state(self) -> list[dict[str, torch.Tensor]]:
        """What a checkpoint keeps."""
        return [] if self.other is None else [dict(held) for held in self.other]

    def load(self, state: list[dict[str, torch.Tensor]]) -> None:
        """Take the statistics of a checkpoint, on the device of the network's."""
        for held, saved in zip(self.other or [], state):
            for name in held:
                held[name] = saved[name].to(held[name].device, copy=True)
