"""Train the embedded digits network: `python -m fsim.nas.train_digits [--out FILE]`.

Seeded and single-threaded: two runs on one machine give the same bits. The file
in nas/weights/ was written by this script with its defaults.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

from fsim.errors import ConfigError, FsimError
from fsim.files import atomic_write
from fsim.nas.digits import PIXEL_MAX, digits_split
from fsim.nas.digits_cnn import DigitsCNN
from fsim.nas.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(scale=1 / PIXEL_MAX)

SEED = 1
EPOCHS = 40
BATCH = 64


def _shifted(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixel down and across, zeros moving in."""
    n, _, height, width = batch.shape
    padded = F.pad(batch, (1, 1, 1, 1))
    down, across = torch.randint(0, 3, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (across[:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(n)[:, None, None], 0, rows, columns][:, None]


def accuracy(model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images x (n, 1, 8, 8) that get their label; the model must be in eval mode."""
    with torch.inference_mode():
        return (model(x).argmax(1) == labels).double().mean().item()


def train(seed: int = SEED, epochs: int = EPOCHS) -> tuple[DigitsCNN, float]:
    """Train on the training split; the model in eval mode and its test accuracy.

    Leaves torch's global random state and thread count as they were.
    """
    if epochs < 1:
        raise ConfigError(f"epochs must be >= 1, got {epochs}")
    images, labels = digits_split("train")
    x, y = PREPROCESSING(images), torch.from_numpy(labels)
    test_images, test_labels = digits_split("test")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            model = DigitsCNN()
            optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
            steps = epochs * -(-len(x) // BATCH)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
            for _ in range(epochs):
                for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
                    logits = model(_shifted(x[chosen], generator))
                    loss = F.cross_entropy(logits, y[chosen], label_smoothing=0.05)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
        model.eval()
        return model, accuracy(model, PREPROCESSING(test_images), torch.from_numpy(test_labels))
    finally:
        torch.set_num_threads(threads)


def save(model: DigitsCNN, path: Path, metadata: dict) -> None:
    """Write the weights as safetensors, whole or not at all.

    metadata stands as one JSON text under the key "fsim": several keys would be
    written in an order that changes from run to run.
    """
    data = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        metadata={"fsim": json.dumps(metadata, sort_keys=True)},
    )
    with atomic_write(path) as file:
        file.write(data)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fsim.nas.train_digits", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("digits-cnn.safetensors"))
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        model, share = train(options.seed, options.epochs)
        metadata = {
            "architecture": "digits-cnn",
            "seed": options.seed,
            "epochs": options.epochs,
            "test_accuracy": share,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        save(model, options.out, metadata)
    except (FsimError, OSError) as error:
        parser.error(str(error))
    seconds = time.perf_counter() - start
    print(f"test accuracy {share:.2%}, {seconds:.1f} s, written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
