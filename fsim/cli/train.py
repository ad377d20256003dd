"""`fsim train`: fault-tolerant training of a network."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from fsim.cli.fault_backend import DEVICES, device_of, faults_of
from fsim.cli.options import (
    Probability,
    accel_options,
    device_option,
    json_option,
    seed_option,
    threads_option,
)
from fsim.cli.tables import print_json
from fsim.threads import use_threads

CALIBRATION = 256
BACKENDS = ("numba", "torch", "none")


@click.command(epilog=DEVICES)
@click.option(
    "--model",
    default="digits-cnn",
    show_default=True,
    help="A network of the zoo or of `fsim nas networks`, or module:factory.",
)
@click.option(
    "--width",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of a network of `fsim nas networks`: times as many channels.",
)
@click.option(
    "--weights", help="Checkpoint to start from: .pt, .pth, .th, .safetensors.  [default: new]"
)
@click.option("--data", help="digits, cifar10, fashion-mnist or an .npz file.")
@click.option("--data-dir", help="Folder of the data set.")
@click.option("--images", type=click.IntRange(1), help="Only the first so many for training.")
@click.option("--test-images", type=click.IntRange(1), help="Only the first so many for testing.")
@click.option(
    "--fault-backend",
    type=click.Choice(BACKENDS),
    default="numba",
    show_default=True,
    help="The simulated array, statistical models, or no faults.",
)
@click.option(
    "--accel",
    default="systolic",
    show_default=True,
    metavar="NAME|FILE",
    help="numba: a preset (fsim accel list) or a .yaml or .toml file.",
)
@accel_options(given=False)
@click.option(
    "--ber",
    metavar="P",
    help="numba: flip probability per bit and residency, or weights=P,acts=P,psums=P.  "
    "[default: 1e-5 if no other rate is given]",
)
@click.option("--seu-rate", type=Probability, help="numba: upsets per register bit and cycle.")
@click.option("--hw-batch", metavar="N|all", help="numba: images between two writes of weights.")
@click.option(
    "--stuck-cells",
    type=Probability,
    metavar="P",
    help="numba: probability that a cell of the weight memory is stuck.",
)
@click.option(
    "--sa1-share",
    type=Probability,
    metavar="SHARE",
    help="numba: share of stuck cells that read 1.  [default: 0.163]",
)
@click.option(
    "--faults",
    "faults_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="torch: fault models, a .toml or .json file. With --mibb and --adsaf all strike: "
    "the file's in its order, then MiBB, then adSAF.",
)
@click.option("--mibb", type=Probability, metavar="P", help="torch: MiBB at P per MAC.")
@click.option("--adsaf", type=Probability, metavar="P", help="torch: adSAF, share P of weights.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Weight of the loss under faults.",
)
@click.option(
    "--bn",
    type=click.Choice(["shared", "apart"]),
    default="shared",
    show_default=True,
    help="Batch-norm statistics of clean and faulty passes.",
)
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--batch", type=click.IntRange(2), default=64, show_default=True)
@click.option("--lr", type=click.FloatRange(0), default=0.05, show_default=True)
@click.option(
    "--eval-trials",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Fault maps that accuracy under faults is a mean over.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/train"),
    show_default=True,
    help="Folder for checkpoint, weights, history and picture.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--quiet", is_flag=True, help="No progress.")
@device_option
@seed_option
@threads_option
@json_option
def train(model, width, weights, data, data_dir, images, test_images, fault_backend, accel,
          settings, dataflow, ber, seu_rate, hw_batch, faults_file, mibb, adsaf, stuck_cells,
          sa1_share, alpha, bn, epochs, batch, lr, eval_trials, out, resume, quiet, device, seed,
          threads, as_json):  # fmt: skip
    """Train a network to bear faults: L = (1 - alpha) CE(clean) + alpha CE(faulty).

    \b
    fsim train --fault-backend numba --accel systolic --ber 1e-4 --out out/train
    fsim train --model resnet18 --width 0.25 --data cifar10 --fault-backend torch --mibb 1e-4
    """
    machine, chosen, described = faults_of(
        fault_backend,
        accel,
        dataflow,
        settings,
        ber,
        seu_rate,
        hw_batch,
        faults_file,
        mibb,
        adsaf,
        stuck_cells,
        sa1_share,
    )
    device = device_of(device, fault_backend)
    use_threads(threads)
    from fsim.nas.training.loop import Trainer, TrainSettings
    from fsim.nas.training.run import PICTURE, WEIGHTS, Run
    from fsim.nas.training.setting import load_setting

    setting = load_setting(
        model, width=width, weights=weights, data=data, data_dir=data_dir, images=images,
        test_images=test_images, seed=seed,
    ).to(device)  # fmt: skip
    options = TrainSettings(
        epochs=epochs, batch=batch, lr=lr, alpha=alpha if fault_backend != "none" else 0.0, bn=bn,
        shift=setting.shift, flip=setting.flip, eval_trials=eval_trials, seed=seed,
    )  # fmt: skip
    backend = _backend(fault_backend, setting, machine, chosen, seed)
    identity = setting.identity | {"faults": described} | {"settings": vars(options) | {}}
    trainer = Trainer(backend, options, setting.train, setting.test)
    run = Run(out, identity, trainer, resume=resume)
    lines = sys.stderr.isatty() and not quiet
    begin = time.monotonic()

    def on_step(epoch, done):
        if lines:
            click.echo(f"\repoch {epoch + 1}/{epochs}, step {done}/{trainer.steps} ", nl=False,
                       err=True)  # fmt: skip

    def on_epoch(found):
        if lines:
            click.echo("\r" + " " * 50 + "\r", nl=False, err=True)
        if not as_json:
            click.echo(
                f"epoch {found.epoch + 1:>3}  loss {found.loss:7.4f}  accuracy "
                f"{100 * found.accuracy:6.2f} %  under faults {100 * found.accuracy_faulty:6.2f} %"
            )

    if not as_json:
        click.echo(f"network   {setting.identity['model']}, {len(setting.train[0])} images")
        click.echo(f"faults    {described['text']}")
        if run.history:
            click.echo(f"resumed   after epoch {len(run.history)}")
    history = run.go(on_epoch, on_step)
    last = history[-1]
    if as_json:
        print_json({"identity": identity, "epochs": [vars(entry) for entry in history]})
    else:
        click.echo(
            f"done      {len(history)} epochs in {time.monotonic() - begin:.0f} s: accuracy "
            f"{100 * last.accuracy:.2f} %, under faults {100 * last.accuracy_faulty:.2f} %"
        )
        click.echo(f"written   {out / WEIGHTS}, {out / PICTURE}")


def _backend(kind, setting, machine, chosen, seed):
    """The fault backend around the network of a setting."""
    from fsim.nas.training.backends import ArrayFaults, NoFaults, TensorFaults

    if kind == "none":
        return NoFaults(setting.model)
    if kind == "torch":
        return TensorFaults(setting.model, chosen, seed)
    calibration = setting.train[0][:CALIBRATION].numpy()
    return ArrayFaults(setting.model, machine, chosen, calibration, seed)
