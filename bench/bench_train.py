"""A training step on the simulated array against the same step in torch.

ResNet-20, batch 128, SGD. Steps take turns:

float         torch alone
fake          torch, activations and weights rounded to 8-bit grids (straight-through)
array         `fsim.attach`, no faults: the same quantisation, integers on the array
array faulty  the same under bit errors of 1e-5 in all memories, drawn each step

Limited is `array faulty` against `array`; it stands against `fake` and `float` as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import fsim
from fsim.fault_models.bit_errors import BitErrors

from .bench_network import BATCH, RATE, milliseconds
from .figures import LOWER, Figure
from .networks import network, pictures
from .timing import THREADS, alternate, threads_text, torch_threads

REPEATS = 7
FLOOR, AIM = 1.5, 1.2
SOURCE = "training against the same step without faults"

NOTES = (
    "torch has no integer training step: `fake` rounds operands to 8-bit grids in float32, which "
    "is what quantisation-aware training does elsewhere, and `float` is torch alone.",
)


def on_grid(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiples of scale, gradient straight through."""
    return x + ((x / scale).round() * scale - x).detach()


class Fake(TorchFunctionMode):
    """Convolutions and linear layers of 8-bit operands, in float."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.conv2d, torch.conv2d, F.linear):
            x, weight, *rest = args
            top = weight.detach().abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))
            x = on_grid(x, x.detach().abs().amax() / 255)
            args = (x, on_grid(weight, top / 127), *rest)
        return func(*args, **(kwargs or {}))


def main(quick: bool = False) -> list[Figure]:
    """Milliseconds a step and the ratios, at each number of threads."""
    given, what = pictures("resnet20", BATCH)
    model, weights = network("resnet20", given)
    print(f"ResNet-20, {weights}; {BATCH} images, {what}")
    images, labels = torch.from_numpy(given), torch.arange(BATCH) % 10
    attached = fsim.attach(model, "systolic", calibration=images).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    errors = BitErrors(RATE, RATE, RATE)

    def step(forward):
        optimiser.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimiser.step()

    def fake(x):
        with Fake():
            return model(x)

    def array(faults):
        attached.set_faults(faults)
        return attached

    figures = []
    for threads in THREADS:
        with torch_threads(threads):
            taken = alternate(
                {
                    "float": lambda: step(model),
                    "fake": lambda: step(fake),
                    "array": lambda: step(array(())),
                    "faulty": lambda: step(array(errors)),
                },
                2 if quick else REPEATS,
            )
        ms = {name: milliseconds(seconds) for name, seconds in taken.items()}
        label = f"a training step with faults, {threads_text(threads)}"
        figures += [
            Figure(label, ms["faulty"], "ms", LOWER, "the step without faults", ms["array"],
                   floor=FLOOR, aim=AIM, source=SOURCE),
            Figure(label, ms["faulty"], "ms", LOWER, "torch, fake quantisation", ms["fake"]),
            Figure(label, ms["faulty"], "ms", LOWER, "torch float32", ms["float"]),
        ]  # fmt: skip
    return figures


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
