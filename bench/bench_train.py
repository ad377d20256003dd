"""A training step on the simulated array against the same step in torch.

ResNet-20, batch 128, SGD. Steps alternate, medians:

float         torch alone
fake          torch, activations and weights rounded to 8-bit grids (straight-through)
array         `fsim.attach`, no faults: the same quantisation, integers on the array
array faulty  the same under bit errors of 1e-5 in all memories, drawn each step

The figure is `array faulty` against `array`, and against `fake` beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import fsim
from fsim.fault_models.bit_errors import BitErrors
from fsim.machine import load

from .bench_network import RATE, alternate, network, pictures

REPEATS = 7
FLOOR, AIM = 1.5, 1.2


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


def main() -> None:
    """Print milliseconds a step and the ratios, at 1 and 2 threads."""
    model, source = network()
    images = torch.from_numpy(pictures())
    labels = torch.arange(len(images)) % 10
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

    print(f"ResNet-20 ({source}), batch {len(images)}, medians of {REPEATS} alternating steps")
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds = alternate(
            {
                "float": lambda: step(model),
                "fake": lambda: step(fake),
                "array": lambda: step(array(())),
                "array faulty": lambda: step(array(errors)),
            },
            REPEATS,
        )
        print(f"{threads} thread(s): " + ", ".join(f"{k} {v * 1e3:.0f}" for k, v in seconds.items())
              + " ms a step")  # fmt: skip
        ratio = seconds["array faulty"] / seconds["array"]
        word = "meets the aim" if ratio <= AIM else "within the floor" if ratio <= FLOOR else "SLOW"
        print(
            f"  faulty against fault-free {ratio:.2f}: {word} (floor {FLOOR}, aim {AIM}); against "
            f"fake {seconds['array faulty'] / seconds['fake']:.2f}; "
            f"load {load()[0] if load() else float('nan'):.2f}"
        )
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
