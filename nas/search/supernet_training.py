"""Steps of the shared weights, and what a genotype is worth with them.

    L = (1 - a_l) CE(clean) + a_l CE(faulty)
    R = (1 - a_r) acc(clean) + a_r acc(faulty)      (Ning et al., arXiv 2003.10375)

Each takes one forward pass for each term whose weight is not 0: two at most. Batch
normalisation always takes the statistics of its batch, as in the paper's search: running
ones would mix those of all paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fsim.nas.space.genotype import Genotype
from fsim.nas.space.supernet import Supernet
from fsim.simulator.kernels import requantise

from .paths import PathBackend


@dataclass(frozen=True)
class Score:
    """Of a genotype on a batch: R, and the accuracies (shares; None: no such pass)."""

    reward: float
    accuracy: float | None
    accuracy_faulty: float | None


def batch_statistics(supernet: Supernet) -> Supernet:
    """The supernet without running statistics: passes then leave it as it was, and `eval`
    turns off dropout alone."""
    for module in supernet.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return supernet


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch on one thread: its gradients of convolutions depend on how many there are, in
    the last bits, and a search makes different genotypes of them. The array keeps its own:
    its integer arithmetic does not depend on them."""
    # Numba's first call starts its threads and with them gives OpenMP, hence torch, its own
    # number: let that come before.
    requantise.threads()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weight_step(
    backend: PathBackend,
    optimiser: torch.optim.Optimizer,
    genotype: Genotype,
    images: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    clip: float,
    trial: int,
) -> float:
    """One update of the weights of one path; the loss.

    images (n, c, h, w) float32, labels (n,); alpha: a_l; clip: largest norm of the gradient
    """
    optimiser.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=images.device)
    if alpha < 1:
        loss = loss + (1 - alpha) * F.cross_entropy(backend.clean(images, genotype), labels)
    if alpha > 0:
        faulty = backend.faulty(images, genotype, trial)
        loss = loss + alpha * F.cross_entropy(faulty, labels)
    loss.backward()
    used = [p for p in backend.supernet.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(used, clip)
    optimiser.step()  # parameters without a gradient stay as they are, momentum too
    return float(loss.detach())


@torch.no_grad()
def score(
    backend: PathBackend,
    genotype: Genotype,
    images: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    trial: int,
    both: bool = False,
) -> Score:
    """The reward of a genotype; alpha: a_r; both: both passes, whatever alpha is."""
    clean = faulty = None
    if alpha < 1 or both:
        clean = _accuracy(backend.clean(images, genotype), labels)
    if alpha > 0 or both:
        faulty = _accuracy(backend.faulty(images, genotype, trial), labels)
    return Score((1 - alpha) * (clean or 0.0) + alpha * (faulty or 0.0), clean, faulty)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
