"""Searched networks against the paper's baselines, with equal or fewer FLOPs.

    python -m bench.reproduce.searched_networks

For each family of faults (MiBB, adSAF, bit errors on the simulated array) four searches
over one space: plain NAS, FT-NAS, FTT-NAS and random sampling with the rewards and the
budget of FTT-NAS. Each found genotype is scaled to the FLOPs allowed, the baselines to at
least as many; all are trained from scratch with the family's faults in the loss, and
evaluated under it.

small  CIFAR-10 at 16 x 16 and three cells: for two cores; regularised evolution, for the
       paper's controller has hardly left its start after so few rewards
paper  the paper's spaces, controller, images and epochs

Every search and every training is saved after each epoch; run again, it goes on.
`--minutes` stops in time. What was found is under results/searched_networks_PRESET.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from bisect import bisect_left, bisect_right
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fsim.files import atomic_write
from fsim.nas.data import load_data
from fsim.nas.device import device_named
from fsim.nas.networks.cost import cost
from fsim.nas.networks.registry import build_network
from fsim.nas.search.build import build_search
from fsim.nas.search.run import SearchRun
from fsim.nas.search.search import SearchSettings
from fsim.nas.search.searchers import as_lists
from fsim.nas.space.cells import build_network as build_cells
from fsim.nas.space.definition import ADSAF_PRIMITIVES, SPACES, CellSpace
from fsim.nas.space.files import read_architecture, write_architecture
from fsim.nas.space.genotype import Architecture
from fsim.nas.training.loop import Trainer, TrainSettings
from fsim.nas.training.run import CHECKPOINT, Run
from fsim.nas.training.setting import load_setting

from .evaluation import CALIBRATION, Faults, Stop, accuracies, one_thread, summary
from .searched_report import write_report

RESULTS = Path(__file__).resolve().parent / "results"
BASELINES = ("resnet18", "vgg16", "mobilenet-v2")
KINDS = ("plain", "ft", "ftt", "random")
SAMPLES = 8


@dataclass(frozen=True)
class Family:
    """One kind of faults: what is searched and trained under, what evaluated under.

    alpha_l, alpha_r  as the paper chooses them for features and for weights
    """

    faults: Faults
    sweep: tuple[float, ...]
    alpha_l: float
    alpha_r: float


@dataclass(frozen=True)
class Preset:
    """side     of the images; spaces: by family, None: `small_space`
    search   settings but for the alphas; train: likewise
    mflops   of one image, allowed; None: networks as they are
    """

    side: int
    images: int | None
    test: int | None
    method: str
    search: SearchSettings
    train: TrainSettings
    mflops: float | None
    families: dict[str, Family]
    spaces: dict[str, CellSpace]


_SMALL_SPACE = CellSpace(ADSAF_PRIMITIVES, "relu_conv_bn_1x1", "NRR", 3, 8)
_SMALL = {
    # p_m such that values of a 3x3 convolution, 72 MACs here and 720 in the paper, are
    # struck about as often as in the paper's search (p_m = 1e-4)
    "mibb": Family(Faults("mibb", 1e-3), (3e-4, 1e-3, 3e-3), 0.5, 0.5),
    "adsaf": Family(Faults("adsaf", 0.08), (0.04, 0.08, 0.12), 0.7, 0.2),
    "hardware": Family(Faults("hardware", 1e-4), (3e-5, 1e-4, 3e-4), 0.5, 0.5),
}
_PAPER = {
    "mibb": Family(Faults("mibb", 1e-4), (3e-6, 1e-5, 3e-5, 1e-4, 3e-4), 0.5, 0.5),
    "adsaf": Family(Faults("adsaf", 0.08), (0.04, 0.06, 0.08, 0.10, 0.12), 0.7, 0.2),
    "hardware": Family(Faults("hardware", 1e-5), (3e-6, 1e-5, 3e-5, 1e-4), 0.5, 0.5),
}
PRESETS = {
    "small": Preset(
        16, 5000, 1000, "evolution",
        SearchSettings(epochs=20, proposals=40, warmup=14, reward_batch=256, shift=2, flip=True),
        TrainSettings(epochs=12, batch=64, shift=2, flip=True, eval_trials=1),
        3.0, _SMALL, dict.fromkeys(_SMALL, _SMALL_SPACE),
    ),
    "paper": Preset(
        32, None, None, "rl",
        SearchSettings(shift=4, flip=True),
        TrainSettings(epochs=100, shift=4, flip=True, eval_trials=1),
        None, _PAPER,
        {"mibb": SPACES["mibb"], "adsaf": SPACES["adsaf"], "hardware": SPACES["mibb"]},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Where and how: one for all tasks of a run.

    until  seconds since the epoch, at which tasks stop
    device of what statistical models strike; the array is simulated on the CPU
    """

    preset: str
    folder: Path
    until: float
    device: str

    @property
    def settings(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def data(self) -> str:
        return str(self.folder / "images.npz")

    @property
    def kept(self) -> Path:
        """What is committed."""
        return RESULTS / f"searched_networks_{self.preset}"

    def genotype(self, family: str, kind: str) -> Path:
        return self.kept / f"{family}-{kind}.toml"

    def device_of(self, faults: Faults) -> torch.device:
        return device_named("cpu" if faults.family == "hardware" else self.device)

    def stop(self) -> None:
        if time.time() > self.until:
            raise Stop


def write_images(bench: Bench) -> None:
    """CIFAR-10 at the preset's size, means of blocks of pixels."""
    found, path = {}, Path(bench.data)
    if path.exists():
        return
    preset = bench.settings
    for split, limit in (("train", preset.images), ("test", preset.test)):
        part = load_data("cifar10", split, None, limit)
        images = torch.from_numpy(part.images).float()
        images = F.avg_pool2d(images, images.shape[2] // preset.side).round().byte()
        found |= {f"{split}_images": images.numpy(), f"{split}_labels": part.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, **found)


def search(bench: Bench, family: str, kind: str) -> str:
    """One search to its genotype; what is committed of it."""
    preset = bench.settings
    chosen, space = preset.families[family], preset.spaces[family]
    alpha_l, alpha_r = {"plain": (0, 0), "ft": (0, chosen.alpha_r)}.get(
        kind, (chosen.alpha_l, chosen.alpha_r)
    )
    settings = replace(preset.search, alpha_l=float(alpha_l), alpha_r=float(alpha_r))
    faults = Faults("none") if kind == "plain" else chosen.faults
    method = "random" if kind == "random" else preset.method
    built = build_search(
        method, settings, space, faults.of_search(), data=bench.data, device=bench.device_of(faults)
    )
    folder = bench.folder / "search" / f"{family}-{kind}"
    resume = (folder / CHECKPOINT).exists()
    run = SearchRun(folder, built.identity, built.search, resume=resume)
    begin = time.time()

    def on_epoch(found):
        reward = "" if found.reward is None else f"  reward {found.reward:.4f}"
        print(f"search {family}-{kind:6} epoch {found.epoch + 1:>3}  loss {found.loss:.4f}{reward}"
              f"  {time.time() - begin:.0f} s", flush=True)  # fmt: skip
        bench.stop()

    history = run.go(on_epoch, lambda epoch, done: None)
    ranked = built.search.derive(SAMPLES)
    best, _ = ranked[0]
    name = f"{family}-{kind}"
    source = f"searched_networks, {bench.preset}, {method}, {settings.kind}, {faults.name}"
    write_architecture(bench.genotype(family, kind), Architecture(best, space, name, source))
    log = {
        "identity": built.identity,
        "epochs": [asdict(entry) for entry in history],
        "derived": [[as_lists(g), asdict(score)] for g, score in ranked],
        "told": [[as_lists(g), round(reward, 6)] for g, reward in built.search.searcher.told],
    }
    with atomic_write(bench.kept / "logs" / f"{name}.json") as file:
        file.write(_lines(log).encode())
    return name


def _lines(log: dict) -> str:
    """JSON with a line for each epoch and each genotype."""
    parts = [f'"identity": {json.dumps(log["identity"])}']
    for key in ("epochs", "derived", "told"):
        entries = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in log[key])
        parts.append(f'"{key}": [\n{entries}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def fitted(bench: Bench, family: str, name: str) -> tuple[str, float]:
    """(model, width) of a network for the FLOPs that the preset allows: a searched one has
    the most channels that fit, a baseline the fewest that reach them."""
    preset, limit = bench.settings, bench.settings.mflops
    baseline = name in BASELINES
    model = name if baseline else str(bench.genotype(family, name))
    if limit is None:
        return model, 1.0

    def flops(width: float) -> float:
        with torch.device("meta"):  # shapes without values: counted, not computed
            if baseline:
                made = build_network(name, num_classes=10, in_channels=3, image_size=preset.side,
                                     width=width)  # fmt: skip
            else:
                found = read_architecture(model)
                made = build_cells(replace(found, space=found.space.scaled(width)))
        return cost(made, (3, preset.side, preset.side)).flops / 1e6

    if baseline:
        hundredths = range(1, 200)
        return model, hundredths[bisect_left(hundredths, limit, key=lambda w: flops(w / 100))] / 100
    channels = preset.spaces[family].init_channels
    counts = range(1, 8 * channels)
    return model, counts[
        bisect_right(counts, limit, key=lambda c: flops(c / channels)) - 1
    ] / channels


def train(bench: Bench, family: str, name: str) -> dict:
    """One network trained under a family's faults; its cost and accuracies."""
    preset, chosen = bench.settings, bench.settings.families[family]
    model, width = fitted(bench, family, name)
    setting = load_setting(
        model, width=width, weights=None, data=bench.data, data_dir=None, images=None,
        test_images=None, seed=0,
    )  # fmt: skip
    calibration = setting.train[0][:CALIBRATION].numpy()
    setting = setting.to(bench.device_of(chosen.faults))
    settings = replace(preset.train, alpha=chosen.alpha_l)
    few = setting.test[0][:256], setting.test[1][:256]
    trainer = Trainer(
        chosen.faults.backend(setting.model, calibration), settings, setting.train, few
    )
    folder = bench.folder / "train" / f"{family}-{name}"
    identity = setting.identity | {"faults": chosen.faults.name, "settings": asdict(settings)}
    identity["model"] = name
    run = Run(folder, identity, trainer, resume=(folder / CHECKPOINT).exists())

    def on_epoch(found):
        print(f"train {family}-{name:12} epoch {found.epoch + 1:>3}  loss {found.loss:.4f}  "
              f"accuracy {100 * found.accuracy:.1f} %", flush=True)  # fmt: skip
        bench.stop()

    run.go(on_epoch, lambda epoch, done: None)
    size = cost(setting.model, (3, preset.side, preset.side))
    found = {"width": width, "mflops": size.flops / 1e6, "weights": size.weights}
    for faults in (Faults("none"), *(Faults(chosen.faults.family, r) for r in chosen.sweep)):
        bench.stop()
        values = accuracies(setting.model, faults, *setting.test, calibration)
        found[faults.name] = asdict(summary(values))
    return found


def searched_by(family: str, kind: str, preset: Preset) -> str:
    """The family whose search gives a genotype: plain NAS knows no faults, so that
    families of one space share it."""
    if kind != "plain":
        return family
    return next(f for f in preset.families if preset.spaces[f] == preset.spaces[family])


def _task(what: str, bench: Bench, family: str, name: str):
    """In a process of its own; None: not finished in time."""
    one_thread()
    try:
        return {"search": search, "train": train}[what](bench, family, name)
    except Stop:
        return None


def everything(bench: Bench, jobs: int) -> dict[tuple[str, str], dict] | None:
    """Accuracies by (family, network); None: time is over."""
    preset, found, done = bench.settings, {}, True
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        pending = {}

        def submit(what, family, name):
            pending[pool.submit(_task, what, bench, family, name)] = what, family, name

        def train_all_of(family, kind):
            for other in preset.families:
                if searched_by(other, kind, preset) == family:
                    path = bench.genotype(other, kind)
                    if other != family and not path.exists():
                        path.write_bytes(bench.genotype(family, kind).read_bytes())
                    submit("train", other, kind)

        for family in preset.families:
            for kind in KINDS:
                if searched_by(family, kind, preset) != family:
                    continue
                if bench.genotype(family, kind).exists():
                    train_all_of(family, kind)
                else:
                    submit("search", family, kind)
        for family in preset.families:
            for name in BASELINES:
                submit("train", family, name)
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                what, family, name = pending.pop(future)
                result = future.result()
                if result is None:
                    done = False
                elif what == "search":
                    train_all_of(family, name)
                else:
                    found[family, name] = result
                    print(f"done   {family}-{name}", flush=True)
    return found if done else None


def main() -> None:
    """Search, train, evaluate; write table, picture, genotypes and logs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--folder", type=Path, default=Path("out/reproduce/searched"))
    parser.add_argument("--minutes", type=float, default=1e7, help="stop after so many")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--device", default="cpu", help="for the statistical fault models")
    options = parser.parse_args()
    bench = Bench(options.preset, options.folder / options.preset,
                  time.time() + 60 * options.minutes, options.device)  # fmt: skip
    (bench.kept / "logs").mkdir(parents=True, exist_ok=True)
    write_images(bench)
    found = everything(bench, options.jobs)
    if found is None:
        print("time is over: run again to go on")
        return
    write_report(bench.kept, bench.preset, bench.settings, found)


if __name__ == "__main__":
    main()
