"""Table and picture of `searched_networks`."""

from __future__ import annotations

import json
from pathlib import Path

from fsim.files import atomic_write

from .evaluation import MAPS, Faults

LABELS = {
    "plain": "plain NAS", "ft": "FT-NAS", "ftt": "FTT-NAS", "random": "random",
    "resnet18": "ResNet-18", "vgg16": "VGG-16", "mobilenet-v2": "MobileNet-V2",
}  # fmt: skip


def write_report(folder: Path, preset_name: str, preset, found: dict) -> None:
    """Beside `folder`: .json, .md and .png; prints the table.

    found  (family, network) -> its width, mflops, weights and accuracies by faults
    """
    report = {
        "preset": preset_name, "side": preset.side, "images": preset.images, "test": preset.test,
        "method": preset.method, "search_epochs": preset.search.epochs,
        "proposals": preset.search.proposals, "warmup": preset.search.warmup,
        "train_epochs": preset.train.epochs,
        "families": {
            name: {"trained": family.faults.name, "alpha_l": family.alpha_l,
                   "alpha_r": family.alpha_r, "sweep": family.sweep,
                   "networks": {k: found[name, k] for k in LABELS}}
            for name, family in preset.families.items()
        },
    }  # fmt: skip
    text = table(report)
    for suffix, content in ((".json", json.dumps(report, indent=1) + "\n"), (".md", text)):
        with atomic_write(folder.with_name(folder.name + suffix)) as file:
            file.write(content.encode())
    draw(report, folder.with_name(folder.name + ".png"))
    print(text)


def table(report: dict) -> str:
    """Markdown: a table for each family, a row for each network."""
    rewards = (report["search_epochs"] - report["warmup"]) * report["proposals"]
    lines = [
        f"CIFAR-10 at {report['side']} x {report['side']}, {report['images'] or 'all'} training "
        f"and {report['test'] or 'all'} test images. Searches: {report['method']}, "
        f"{report['search_epochs']} epochs, {rewards or 'a batch of'} rewards; trained for "
        f"{report['train_epochs']} epochs with the family's faults in the loss. Accuracy in %: "
        f"mean over {MAPS} fault maps +- standard deviation (5th percentile).",
    ]
    for name, family in report["families"].items():
        keys = [Faults(name, rate).name for rate in family["sweep"]]
        lines += [
            "",
            f"**{name}**, searched and trained at {family['trained']}, alpha_l "
            f"{family['alpha_l']}, alpha_r {family['alpha_r']}",
            "",
            "| network | MFLOPs | weights | clean | " + " | ".join(keys) + " |",
            "|---|---|---|---|" + "---|" * len(keys),
        ]
        for network, values in family["networks"].items():
            cells = [
                f"{100 * values[k]['mean']:.1f} +- {100 * values[k]['std']:.1f} "
                f"({100 * values[k]['low']:.1f})"
                for k in keys
            ]
            lines.append(
                f"| {LABELS[network]} | {values['mflops']:.2f} | {values['weights']:,} | "
                f"{100 * values['none']['mean']:.1f} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines) + "\n"


def draw(report: dict, path: Path) -> None:
    """Accuracy against the rate, a panel for each family; searched solid, baselines dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(report["families"])
    figure, panels = pyplot.subplots(
        1, count, figsize=(4.4 * count, 3.8), dpi=130, sharey=True, squeeze=False
    )
    panels = panels[0]
    for axes, (name, family) in zip(panels, report["families"].items()):
        rates = family["sweep"]
        for network, values in family["networks"].items():
            keys = [Faults(name, rate).name for rate in rates]
            mean = [100 * values[k]["mean"] for k in keys]
            low = [100 * values[k]["low"] for k in keys]
            searched = network in ("plain", "ft", "ftt", "random")
            (line,) = axes.plot(rates, mean, "o-" if searched else "s--", ms=3,
                                label=LABELS[network])  # fmt: skip
            axes.fill_between(rates, low, mean, color=line.get_color(), alpha=0.12)
        axes.set_xscale("linear" if name == "adsaf" else "log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel({"mibb": "MiBB, p_m a MAC", "adsaf": "adSAF, share of stuck cells",
                         "hardware": "systolic array, bit error rate"}[name])  # fmt: skip
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, % (band: to 5th percentile)")
    panels[-1].legend(fontsize=7)
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "fsim"})
    pyplot.close(figure)
