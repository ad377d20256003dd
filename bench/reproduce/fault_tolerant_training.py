"""Fault-tolerant against normal training of one network.

    python -m bench.reproduce.fault_tolerant_training

The paper's ResNet (CIFAR ResNet-18) on CIFAR-10, trained plainly and with faults in
half of the loss: MiBB, adSAF, bit errors on the simulated array. Each network is
then evaluated under all three families, so the table also says how training on a
statistical model carries over to the hardware model and back.

small  1/8 of the channels, 5,000 images, 12 epochs: for two cores
paper  all channels and images, 100 epochs

Training is saved after every epoch; run again, it goes on. `--minutes` stops in time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from fsim.files import atomic_write
from fsim.nas.training.loop import Trainer, TrainSettings
from fsim.nas.training.run import CHECKPOINT, Run
from fsim.nas.training.setting import load_setting

from .evaluation import CALIBRATION, Faults, accuracy, as_json

RESULTS = Path(__file__).resolve().parent / "results"
PRESETS = {
    "small": dict(width=0.125, images=5000, test=500, epochs=12),
    "paper": dict(width=1.0, images=None, test=None, epochs=100),
}
TRAINED = {
    "normal": Faults("none"),
    "MiBB": Faults("mibb", 3e-4),
    "adSAF": Faults("adsaf", 0.08),
    "hardware": Faults("hardware", 3e-5),
}
SWEEPS = {
    "mibb": (1e-4, 3e-4, 1e-3, 3e-3),
    "adsaf": (0.04, 0.08, 0.12),
    "hardware": (3e-6, 1e-5, 3e-5, 1e-4),
}


class Stop(Exception):
    """The time is over; the checkpoint is written."""


def trained(name: str, preset: dict, folder: Path, until: float):
    """(network, setting) after training, which goes on where it stopped."""
    setting = load_setting(
        "resnet18", width=preset["width"], weights=None, data="cifar10", data_dir=None,
        images=preset["images"], test_images=preset["test"], seed=0,
    )  # fmt: skip
    faults = TRAINED[name]
    settings = TrainSettings(
        epochs=preset["epochs"], alpha=0.0 if faults.family == "none" else 0.5, lr=0.05,
        shift=setting.shift, flip=setting.flip, eval_trials=1,
    )  # fmt: skip
    calibration = setting.train[0][:CALIBRATION].numpy()
    trainer = Trainer(faults.backend(setting.model, calibration), settings, setting.train,
                      (setting.test[0][:256], setting.test[1][:256]))  # fmt: skip
    identity = setting.identity | {"faults": faults.name, "settings": vars(settings) | {}}
    run = Run(folder / name, identity, trainer, resume=(folder / name / CHECKPOINT).exists())

    def on_epoch(found):
        print(f"{name:9} epoch {found.epoch + 1:>3}  loss {found.loss:.4f}  accuracy "
              f"{100 * found.accuracy:.2f} %", flush=True)  # fmt: skip
        if time.monotonic() > until:
            raise Stop

    run.go(on_epoch, lambda epoch, done: None)
    setting.model.eval()
    return setting


def main() -> None:
    """Train, evaluate, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--folder", type=Path, default=Path("out/reproduce/training"))
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    preset, until = PRESETS[options.preset], time.monotonic() + 60 * options.minutes
    found: dict[str, dict] = {}
    try:
        for name in TRAINED:
            setting = trained(name, preset, options.folder / options.preset, until)
            calibration = setting.train[0][:CALIBRATION].numpy()
            found[name] = {
                "clean": as_json(
                    accuracy(setting.model, Faults("none"), *setting.test, calibration)
                )
            }
            for family, rates in SWEEPS.items():
                for rate in rates:
                    faults = Faults(family, rate)
                    got = accuracy(setting.model, faults, *setting.test, calibration)
                    found[name][faults.name] = as_json(got)
                    print(f"{name:9} under {faults.name:15} {100 * got.mean:6.2f} %", flush=True)
    except Stop:
        print("time is over: run again to go on")
        return
    report = {"preset": options.preset, **preset,
              "trained": {name: faults.name for name, faults in TRAINED.items()},
              "accuracy": found}  # fmt: skip
    stem = RESULTS / f"fault_tolerant_training_{options.preset}"
    RESULTS.mkdir(exist_ok=True)
    for suffix, text in ((".json", json.dumps(report, indent=1) + "\n"), (".md", table(report))):
        with atomic_write(stem.with_suffix(suffix)) as file:
            file.write(text.encode())
    draw(report, stem.with_suffix(".png"))
    print(table(report))


def table(report: dict) -> str:
    """Markdown: a row for each kind of faults, a column for each training."""
    names = list(report["accuracy"])
    lines = [
        f"ResNet-18, width {report['width']}, CIFAR-10, {report['images'] or 'all'} training and "
        f"{report['test'] or 'all'} test images, {report['epochs']} epochs. Accuracy in %: mean "
        "over fault maps +- standard deviation (5th percentile). Trained with: "
        + ", ".join(f"{k}: {v}" for k, v in report["trained"].items())
        + ".",
        "",
        "| evaluated under | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for key in report["accuracy"][names[0]]:
        cells = []
        for name in names:
            a = report["accuracy"][name][key]
            mean = f"{100 * a['mean']:.1f}"
            cells.append(mean if a["maps"] == 1
                         else f"{mean} +- {100 * a['std']:.1f} ({100 * a['low']:.1f})")  # fmt: skip
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(report: dict, path: Path) -> None:
    """Accuracy against the rate, one panel for each family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SWEEPS), figsize=(12, 3.6), dpi=130, sharey=True)
    for axes, (family, rates) in zip(panels, SWEEPS.items()):
        for name, values in report["accuracy"].items():
            keys = [replace(Faults(family), rate=rate).name for rate in rates]
            mean = [100 * values[key]["mean"] for key in keys]
            low = [100 * values[key]["low"] for key in keys]
            (line,) = axes.plot(rates, mean, "o-", ms=3, label=name)
            axes.fill_between(rates, low, mean, color=line.get_color(), alpha=0.15)
        axes.set_xscale("linear" if family == "adsaf" else "log")
        axes.set_xlabel({"mibb": "MiBB, p_m a MAC", "adsaf": "adSAF, share of stuck cells",
                         "hardware": "systolic array, bit error rate"}[family])  # fmt: skip
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, % (band: to 5th percentile)")
    panels[-1].legend(title="trained with")
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "fsim"})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
