"""`fsim nas train` and `fsim nas evaluate`: a genotype trained from scratch, and its worth."""

from __future__ import annotations

import click

from fsim.cli.fault_backend import DEVICES, device_of, faults_of
from fsim.cli.nas_options import COMMON, DATA, FAULTS, bar, progress, train_options
from fsim.cli.tables import pairs, print_json
from fsim.cli.train import train as train_network
from fsim.errors import ConfigError
from fsim.threads import use_threads

CALIBRATION = 256


def _checked(genotype: str) -> str:
    """ConfigError unless it is a genotype, packaged or in a file."""
    from fsim.nas.space.files import load_architecture

    load_architecture(genotype)
    return genotype


@train_options(*(option.name for option in train_network.params if option.name != "model"))
@click.command(epilog=DEVICES)
@click.argument("genotype", metavar="GENOTYPE|NAME")
def train(genotype, data, **options):
    """Train the network of a genotype from scratch, as `fsim train` does.

    \b
    fsim nas train out/search/genotype.toml --ber 1e-5 --epochs 30 --out out/found
    """
    train_network.callback(model=_checked(genotype), data=data or "digits", **options)


@train_options("width", *FAULTS, *DATA, *COMMON)
@click.command(epilog=DEVICES)
@click.argument("genotype", metavar="GENOTYPE|NAME")
@click.option("--weights", required=True, help=".pt or .safetensors, as fsim nas train writes.")
@click.option("--maps", type=click.IntRange(1, 100_000), default=10, show_default=True,
              help="Fault maps.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True,
              help="Images of a pass.")  # fmt: skip
def evaluate(genotype, weights, maps, batch, width, data, data_dir, images, test_images, quiet,
             device, seed, threads, as_json, **faults):  # fmt: skip
    """Accuracy of a trained genotype, clean and over several fault maps.

    With --fault-backend numba the network runs on the simulated array as fsim inject has it, batch
    normalisation folded in.

    A map is one pass over the test images, --batch at a time. numba: every image has bit errors
    and upsets of its own in activations, partial sums and registers; weights are written, and
    struck anew, every --hw-batch images, at the latest with each batch. torch: features (MiBB,
    iBB, iBF) are struck in every image anew; weights (adSAF, variation, iBF of weights) once for
    the whole map, which is one chip. So the spread is one between chips for weights, and for all
    else one between passes.

    torch quantises with the range of a batch, as the paper does, so that its accuracies are those
    of a size of batch. numba has calibrated ranges.

    Networks of the same shapes meet the same maps for the same --seed, --batch, faults and
    --device: their accuracies can be compared map by map (--json).
    """
    machine, models, described = faults_of(**faults)
    if described["backend"] == "none":
        raise ConfigError("evaluate needs faults: --fault-backend numba or torch, got none")
    device = device_of(device, described["backend"])
    use_threads(threads)
    from fsim.nas.search.evaluation import evaluate_maps
    from fsim.nas.training.backends import ArrayFaults, TensorFaults
    from fsim.nas.training.setting import load_setting

    setting = load_setting(
        _checked(genotype), width=width, weights=weights, data=data or "digits",
        data_dir=data_dir, images=images, test_images=test_images, seed=seed,
    ).to(device)  # fmt: skip
    note = None
    if machine is not None:
        calibration = setting.train[0][:CALIBRATION].numpy()
        backend = ArrayFaults(setting.model, machine, models, calibration, seed)
        cover = backend.attached.coverage
        note = cover.share_text
        if cover.other:
            note += f"; not on it: {', '.join(sorted({entry.what for entry in cover.other}))}"
    else:
        backend = TensorFaults(setting.model, models, seed)
    show = progress(quiet)
    found = evaluate_maps(
        backend, setting.test, maps, batch=batch,
        on_map=lambda done: show(f"maps {bar(done, maps)}"),
    )  # fmt: skip
    show("")
    summary = found.summary()
    if as_json:
        print_json({"identity": setting.identity, "faults": described, "maps": maps, "batch": batch,
                    "on_array": note, **summary, "faulty": found.faulty.tolist()})  # fmt: skip
        return
    rows = [("network", f"{genotype}, {len(setting.test[0])} images"),
            ("faults", described["text"])]  # fmt: skip
    if note:
        rows.append(("on the array", note))
    labels = {"clean": "clean", "mean": f"mean of {maps} maps", "std": "spread (std)",
              "p5": "5th percentile", "worst": "worst"}  # fmt: skip
    rows += [(label, f"{100 * summary[name]:6.2f} %") for name, label in labels.items()]
    click.echo(pairs(rows))
