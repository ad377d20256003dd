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
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fsim.files import atomic_write
from fsim.nas.device import device_named
from fsim.nas.training.loop import Trainer, TrainSettings
from fsim.nas.training.run import CHECKPOINT, Run
from fsim.nas.training.setting import load_setting

from .evaluation import CALIBRATION, MAPS, Faults, Stop, accuracies, one_thread, summary

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


@dataclass(frozen=True)
class Bench:
    """Where and how: one for all tasks of a run.

    until   seconds since the epoch, at which tasks stop
    device  of what statistical models strike; the array is simulated on the CPU
    """

    preset: str
    folder: Path
    until: float
    device: str

    def stop(self) -> None:
        if time.time() > self.until:
            raise Stop


def trained(bench: Bench, name: str, seed: int):
    """(setting after training, which goes on where it stopped; calibration images)."""
    preset, faults = PRESETS[bench.preset], TRAINED[name]
    setting = load_setting(
        "resnet18", width=preset["width"], weights=None, data="cifar10", data_dir=None,
        images=preset["images"], test_images=preset["test"], seed=seed,
    )  # fmt: skip
    calibration = setting.train[0][:CALIBRATION].numpy()
    setting = setting.to(device_named("cpu" if faults.family == "hardware" else bench.device))
    settings = TrainSettings(
        epochs=preset["epochs"], alpha=0.0 if faults.family == "none" else 0.5, lr=0.05,
        shift=setting.shift, flip=setting.flip, eval_trials=1, seed=seed,
    )  # fmt: skip
    few = setting.test[0][:256], setting.test[1][:256]
    trainer = Trainer(faults.backend(setting.model, calibration), settings, setting.train, few)
    identity = setting.identity | {"faults": faults.name, "settings": asdict(settings)}
    folder = bench.folder / (name if seed == 0 else f"{name}-{seed}")
    run = Run(folder, identity, trainer, resume=(folder / CHECKPOINT).exists())

    def on_epoch(found):
        print(f"{name:9} seed {seed} epoch {found.epoch + 1:>3}  loss {found.loss:.4f}  accuracy "
              f"{100 * found.accuracy:.2f} %", flush=True)  # fmt: skip
        bench.stop()

    run.go(on_epoch, lambda epoch, done: None)
    setting.model.eval()
    return setting, calibration


def evaluated(bench: Bench, name: str, seed: int) -> dict[str, list[float]] | None:
    """Accuracies over the maps by name of the faults; None: not finished in time."""
    one_thread()
    try:
        setting, calibration = trained(bench, name, seed)
        found = {}
        sweep = [Faults(family, rate) for family, rates in SWEEPS.items() for rate in rates]
        for faults in (Faults("none"), *sweep):
            bench.stop()
            here = setting.to(device_named("cpu" if faults.family == "hardware" else bench.device))
            found[faults.name] = accuracies(here.model, faults, *here.test, calibration).tolist()
        return found
    except Stop:
        return None


def main() -> None:
    """Train, evaluate, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--folder", type=Path, default=Path("out/reproduce/training"))
    parser.add_argument("--seeds", type=int, default=3, help="networks of each training")
    parser.add_argument("--minutes", type=float, default=1e7, help="stop after so many")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--device", default="cpu", help="for the statistical fault models")
    options = parser.parse_args()
    bench = Bench(options.preset, options.folder / options.preset,
                  time.time() + 60 * options.minutes, options.device)  # fmt: skip
    tasks = [(name, seed) for seed in range(options.seeds) for name in TRAINED]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(evaluated, bench, *task) for task in tasks]
        results = dict(zip(tasks, (future.result() for future in pending)))
    if None in results.values():
        print("time is over: run again to go on")
        return
    report = {
        "preset": options.preset, **PRESETS[options.preset], "seeds": options.seeds, "maps": MAPS,
        "trained": {name: faults.name for name, faults in TRAINED.items()},
        "accuracy": {
            name: {key: [results[name, seed][key] for seed in range(options.seeds)]
                   for key in results[name, 0]}
            for name in TRAINED
        },
    }  # fmt: skip
    stem = RESULTS / f"fault_tolerant_training_{options.preset}"
    RESULTS.mkdir(exist_ok=True)
    for suffix, text in ((".json", json.dumps(report) + "\n"), (".md", table(report))):
        with atomic_write(stem.with_suffix(suffix)) as file:
            file.write(text.encode())
    draw(report, stem.with_suffix(".png"))
    print(table(report))


def table(report: dict) -> str:
    """Markdown: a row for each kind of faults, a column for each training."""
    names = list(report["accuracy"])
    lines = [
        f"ResNet-18, width {report['width']}, CIFAR-10, {report['images'] or 'all'} training and "
        f"{report['test'] or 'all'} test images, {report['epochs']} epochs, {report['seeds']} "
        "networks of each training. Accuracy in %: mean over networks and "
        f"{report['maps']} fault maps each, +- standard deviation of the networks' means / of the "
        "maps of a network (5th percentile of all). Trained with: "
        + ", ".join(f"{k}: {v}" for k, v in report["trained"].items())
        + ".",
        "",
        "| evaluated under | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for key in report["accuracy"][names[0]]:
        cells = []
        for name in names:
            values = 100 * np.array(report["accuracy"][name][key])
            between = values.mean(1).std(ddof=1) if len(values) > 1 else 0.0
            cell = f"{values.mean():.1f} +- {between:.1f}"
            if values.shape[1] > 1:
                within = values.std(1, ddof=1).mean()
                cell += f" / {within:.1f} ({np.quantile(values, 0.05):.1f})"
            cells.append(cell)
        lines.append(f"| {'clean' if key == 'none' else key} | " + " | ".join(cells) + " |")
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
            found = [summary(np.concatenate(values[key])) for key in keys]
            mean, low = ([100 * getattr(one, field) for one in found] for field in ("mean", "low"))
            (line,) = axes.plot(rates, mean, "o-", ms=3, label=name)
            axes.fill_between(rates, low, mean, color=line.get_color(), alpha=0.15)
        axes.set_xscale("linear" if family == "adsaf" else "log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
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
